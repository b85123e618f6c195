"""The methods that a plan compares, and the choice among them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lightning_vlm.counted import counted
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.plan.plan import SHORTCUTS, expand
from lightning_vlm.planning.step import Method

Aim = Literal["own", "quality", "merge", "swap"]
"""What matters: the config's own method, the best answers, adapters that are merged, or that are swapped."""
OWN, PROJECTOR = "as configured", "projector"


def _lora(rank: int) -> dict[str, Any]:
    return {"projector": "full", "language": {"lora": {"r": rank}}}


def compared() -> dict[str, Method]:
    """The methods that are compared with that of a config, by name."""
    methods = [
        Method("full", expand("full")),
        Method("lora r=64", _lora(64)),
        Method("lora r=16", _lora(16)),
        Method("lora r=8", _lora(8)),
        Method("qlora r=64", _lora(64), Quantization()),
        Method("qlora r=16", _lora(16), Quantization()),
        Method("adapter", {"projector": "full", "language": {"adapter": {"reduction": 16}}}),
        Method(PROJECTOR, expand("projector-only")),
    ]
    return {method.name: method for method in methods}


def adapt_of(method: Method) -> str | dict[str, Any]:
    """A method's plan as `model.adapt` is best written: by its name, if it is a ready one.

    >>> adapt_of(compared()["qlora r=16"]), adapt_of(compared()["lora r=8"])
    ('qlora', {'projector': 'full', 'language': {'lora': {'r': 8}}})
    """
    for name, plan in SHORTCUTS.items():
        if plan == method.plan and (name == "qlora") == (method.quantization is not None):
            return name
    return dict(method.plan)


DERIVED = ("lora r=16", "qlora r=64")
"""Those that follow from others, by their ranks."""
_ORDERS: dict[str, tuple[str, ...]] = {
    "own": (OWN, "lora r=16", "qlora r=16"),
    "quality": ("full", "lora r=64", "qlora r=64", "lora r=16", "qlora r=16"),
    "merge": ("lora r=16", "qlora r=16"),
    "swap": ("adapter", "lora r=16", "qlora r=16"),
}
"""What is tried for each aim, the better one first."""
ORDERS: dict[str, tuple[str, ...]] = {aim: (*order, PROJECTOR) for aim, order in _ORDERS.items()}


class Fit(NamedTuple):
    """How many samples of the longest kind fit, with activations kept, and with them computed again."""

    kept: int
    recomputed: int


class Picked(NamedTuple):
    """What was picked.

    Args:
        name: Of the method; None if none fits.
        recompute: Whether activations are computed again.
        reasons: Why, a line each.
    """

    name: str | None
    recompute: bool
    reasons: tuple[str, ...]


def pick(aim: Aim, fits: Mapping[str, Fit], enough: int, order: Sequence[str] | None = None) -> Picked:
    """The first method of an aim's order that fits.

    It is the tree of methods made a rule: little memory leaves QLoRA; where there is more, the aim decides.

    Args:
        aim: What matters.
        fits: What fits of each method; those that a model can't have are missing.
        enough: From so many samples on, more of them aren't worth computing everything again.
        order: In place of the aim's own.

    >>> pick("quality", {"full": Fit(0, 0), "lora r=64": Fit(1, 8)}, enough=4)
    Picked(name='lora r=64', recompute=True, reasons=('full: not one sample fits', 'lora r=64: 8 samples...'))
    """
    reasons = []
    for name in order or ORDERS[aim]:
        if name not in fits:
            continue
        kept, recomputed = fits[name]
        if max(kept, recomputed) < 1:
            reasons.append(f"{name}: not one sample fits")
            continue
        recompute = kept < enough and recomputed > kept
        if recompute:
            were = f"{kept} without" if kept else "none without"
            fit = counted(recomputed, "sample")
            reasons.append(f"{name}: {fit} of the longest fit with recomputing, {were}")
        else:
            reasons.append(f"{name}: {counted(kept, 'sample')} of the longest fit with activations kept")
        return Picked(name, recompute, tuple(reasons))
    return Picked(None, True, tuple(reasons))
