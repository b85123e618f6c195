"""Plans of what trains: selector -> method, read and checked before any model is loaded."""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lightning_vlm.errors import UserError

Plan = Mapping[str, str | Mapping[str, Any]]
"""Selector -> `frozen`, `full`, the name of a method, or `{method: {setting: value}}`; see `METHODS`."""

_LORA: dict[str, Any] = {"projector": "full", "language": {"lora": {"r": 16}}}
SHORTCUTS: dict[str, dict[str, Any]] = {
    "lora": _LORA,
    "qlora": _LORA,
    "full": {"vision": "full", "projector": "full", "language": "full", "head": "full"},
    "projector-only": {"projector": "full"},
    "mixed-16gb": {
        "vision": "frozen",
        "projector": "full",
        "language.layers[0%:25%]": {"lora": {"r": 8}},
        "language.layers[25%:75%]": {"lora": {"r": 16}},
        "language.layers[75%:100%]": {"lora": {"r": 32}},
    },
}
"""Plans by name. `lora` is also what trains without any plan; `qlora` is the same on quantised weights
(Dettmers et al. 2023, https://arxiv.org/abs/2305.14314). `mixed-16gb` gives later layers more rank, for a GPU
with 16 GB. It has no LoRA on the head, as a head tied to the embeddings can't take any: add `head: {lora: {r:
8}}` where yours isn't."""

Kind = Literal["nf4", "int8"]
"""How weights are quantised."""
Checks = dict[str, tuple[bool, str]]
"""Setting -> whether its value will do, and what would."""


class Lora(NamedTuple):
    """Low-rank adapters: `W + alpha/r · B A` (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Args:
        r: Rank.
        alpha: Scale; None: 2 r, as LLaVA trains (PEFT's own default is 8 for both), or 16 with `rslora`.
        dropout: On what goes into the adapter.
        modules: Last names of the linear layers to adapt, such as `q_proj`; None: all.
        rslora: Divide alpha by √r instead of r (https://arxiv.org/abs/2312.03732).
        dora: Learn the norm of each row of the weight beside its direction (https://arxiv.org/abs/2402.09353).
        init: `default` (A random, B zero), `gaussian`, `orthogonal` (r even), `pissa`, `pissa_niter_16` (or
            another number; faster) or `olora`. The last three move the largest directions of the weight into
            the adapters (https://arxiv.org/abs/2404.02948, https://arxiv.org/abs/2406.01775), so the start
            equals the base model up to rounding.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    modules: Sequence[str] | None = None
    rslora: bool = False
    dora: bool = False
    init: str = "default"

    @property
    def scale(self) -> float:
        """Alpha, the default filled in."""
        if self.alpha is not None:
            return self.alpha
        return 16 if self.rslora else 2 * self.r

    @property
    def changes_base(self) -> bool:
        """Whether the weights themselves change at the start."""
        return self.init.startswith(("pissa", "olora"))

    def checks(self) -> Checks:
        """What each setting must be."""
        known = isinstance(self.init, str) and re.fullmatch(_INIT, self.init)
        even = self.init != "orthogonal" or (_number(self.r, int) and self.r % 2 == 0)
        return {
            "r": (
                _number(self.r, int) and self.r >= 1 and even,
                "a whole number >= 1" if even else "an even number for init: orthogonal",
            ),
            "alpha": (
                self.alpha is None or (_number(self.alpha, int, float) and self.alpha > 0),
                "a number > 0",
            ),
            "dropout": (_number(self.dropout, int, float) and 0 <= self.dropout < 1, "a number in [0, 1)"),
            "modules": _names(self.modules),
            "rslora": (isinstance(self.rslora, bool), "true or false"),
            "dora": (isinstance(self.dora, bool), "true or false"),
            "init": (bool(known), _expected_init(self.init)),
        }


class IA3(NamedTuple):
    """Learned factors on keys, values and what enters an MLP's last layer.

    This is IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638).

    Args:
        modules: Last names of the linear layers; None: keys, values and the MLP's last, as in the paper.
        feedforward: Those of them whose input is scaled instead of the output; None: the MLP's last.
    """

    modules: Sequence[str] | None = None
    feedforward: Sequence[str] | None = None

    def checks(self) -> Checks:
        """What each setting must be."""
        return {"modules": _names(self.modules), "feedforward": _names(self.feedforward)}


class Adapter(NamedTuple):
    """Bottleneck adapters: see `adapters.Bottleneck`.

    Args:
        reduction: Width of the layer over width of the bottleneck.
        kind: `sequential`, after the layer, or `parallel`, beside its MLP.
        scale: Factor on what is added.
    """

    reduction: int = 16
    kind: Literal["sequential", "parallel"] = "sequential"
    scale: float = 1.0

    def checks(self) -> Checks:
        """What each setting must be."""
        return {
            "reduction": (_number(self.reduction, int) and self.reduction >= 1, "a whole number >= 1"),
            "kind": (self.kind in ("sequential", "parallel"), "sequential or parallel"),
            "scale": (_number(self.scale, int, float) and self.scale > 0, "a number > 0"),
        }


class CrossModalAdapter(NamedTuple):
    """Text attends to the picture's features once more: see `cross_modal.CrossModal`.

    Args:
        reduction: Width of the language model over width of the attention.
        heads: Of the attention; they divide its width.
    """

    reduction: int = 4
    heads: int = 8

    def checks(self) -> Checks:
        """What each setting must be."""
        return {
            "reduction": (_number(self.reduction, int) and self.reduction >= 1, "a whole number >= 1"),
            "heads": (_number(self.heads, int) and self.heads >= 1, "a whole number >= 1"),
        }


Settings = Lora | IA3 | Adapter | CrossModalAdapter

METHODS: dict[str, type[Settings] | None] = {
    "frozen": None,
    "full": None,
    "lora": Lora,
    "ia3": IA3,
    "adapter": Adapter,
    "cross_modal_adapter": CrossModalAdapter,
}
"""The methods and their settings."""

_INIT = r"default|gaussian|orthogonal|pissa|pissa_niter_\d+|olora"
_REFUSED = {
    "prefix": "PEFT's prefix tuning wraps the whole model and can't be put inside, is not the base model at "
    "the start, and fails on Qwen-VL and Mllama; use lora, ia3 or adapter",
    "eva": "it needs data before training; use init: pissa, or default",
    "corda": "it needs data before training; use init: pissa, or default",
    "lora_ga": "it needs gradients before training; use init: pissa, or default",
    "loftq": "it quantises the weights itself; use init: default on quantised weights",
    "mica": "it trains A alone; use init: default",
}
"""What PEFT has and we haven't: why, and what to take instead."""


class Line(NamedTuple):
    """One line of a plan: the method, and its settings if it has any."""

    method: str
    settings: Settings | None = None


def expand(plan: Plan | str | None) -> dict[str, Any]:
    """A plan as a dict of its own, which a person can print and edit.

    Args:
        plan: A plan, the name of a shortcut, or None for `lora`.

    Raises:
        UserError: There is no such shortcut.

    >>> expand("projector-only")
    {'projector': 'full'}
    """
    if plan is None:
        plan = "lora"
    if isinstance(plan, str):
        if plan not in SHORTCUTS:
            raise UserError(f"plan: found {plan!r}; {expected(plan, list(SHORTCUTS))}")
        plan = SHORTCUTS[plan]
    return copy.deepcopy(dict(plan))


def read_plan(plan: Plan) -> dict[str, Line]:
    """The lines of a plan by selector, checked as far as that goes without a model.

    Args:
        plan: Selector -> method, such as `{"projector": "full", "language": {"lora": {"r": 8}}}`.

    Raises:
        UserError: An unknown method, key or value, or lines that PEFT can't have in one model.

    >>> read_plan({"language": {"lora": {"r": 8}}})["language"].settings.scale
    16
    """
    lines = {selector: _read(selector, value) for selector, value in plan.items()}
    _refuse_two_in_one_adapter(lines)
    return lines


def quantised_problem(line: Line, kind: Kind) -> str | None:
    """Why a method can't work on quantised weights, and what can; None if it does.

    Args:
        line: Of a plan.
        kind: How the weights are quantised.

    >>> quantised_problem(Line("lora", Lora(dora=True)), "int8")
    "DoRA can't read the norms of int8 weights; quantise to nf4, or leave dora out"
    """
    settings = line.settings
    if line.method == "full":
        return "quantised weights can't train; use lora"
    if isinstance(settings, Lora) and settings.dora and kind == "int8":
        return "DoRA can't read the norms of int8 weights; quantise to nf4, or leave dora out"
    if isinstance(settings, Lora) and settings.init not in ("default", "gaussian"):
        return f"init: {settings.init} needs 16- or 32-bit weights; use init: default"
    return None


def refuse_on_quantised(lines: Mapping[str, Line], kind: Kind, quantised: Sequence[str]) -> None:
    """Refuse what can't work on weights that will be quantised, as far as selectors show it without a model.

    Args:
        lines: As from `read_plan`.
        kind: How weights will be quantised.
        quantised: Selectors of those.

    Raises:
        UserError: A method that they can't have.
    """
    for selector, line in lines.items():
        for part in quantised:
            below = selector.startswith((f"{part}.", f"{part}["))
            # A module below may be a norm, which isn't quantised and can train.
            problem = quantised_problem(line, kind)
            if problem and (selector == part or (below and line.method != "full")):
                raise UserError(f"plan[{selector!r}]: {part} will be quantised to {kind}; {problem}")


def expected(found: object, known: Sequence[str]) -> str:
    """The nearest of the known words, or all of them, as the end of a sentence."""
    near = difflib.get_close_matches(str(found), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(known)}"


def _read(selector: str, value: object) -> Line:
    where = f"plan[{selector!r}]"
    method: object = value
    given: object = {}
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise UserError(f"{where}: found keys {sorted(map(str, value))}; expected one, the method")
        ((method, given),) = value.items()
    if not isinstance(method, str) or method not in METHODS:
        reason = _REFUSED["prefix"] if method == "prefix" else expected(method, list(METHODS))
        raise UserError(f"{where}: found method {method!r}; {reason}")
    kind = METHODS[method]
    if kind is None:
        if isinstance(value, Mapping):
            raise UserError(f"{where}: {method!r} has no settings; write {selector}: {method}")
        return Line(method)
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: found {method}: {given!r}; expected keys {', '.join(kind._fields)}")
    for key in given:
        if key not in kind._fields:
            raise UserError(f"{where}: found {method} key {key!r}; {expected(key, kind._fields)}")
    settings = kind(**given)
    for key, (fine, wanted) in settings.checks().items():
        if not fine:
            raise UserError(f"{where}: found {method} {key}={getattr(settings, key)!r}; expected {wanted}")
    return Line(method, settings)


def _refuse_two_in_one_adapter(lines: Mapping[str, Line]) -> None:
    """PEFT keeps one method for a model, and of LoRA's settings some once for all of its layers."""
    lora = {selector: line.settings for selector, line in lines.items() if isinstance(line.settings, Lora)}
    ia3 = [selector for selector, line in lines.items() if line.method == "ia3"]
    if lora and ia3:
        raise UserError(
            f"plan: found lora ({next(iter(lora))!r}) and ia3 ({ia3[0]!r}); PEFT saves one of them for a "
            "model, so choose one"
        )
    for key in ("rslora", "dora", "init"):
        values = {selector: getattr(settings, key) for selector, settings in lora.items()}
        for selector, value in values.items():
            first = next(iter(values))
            if value != values[first]:
                raise UserError(
                    f"plan[{selector!r}]: found lora {key}={value!r}, but {values[first]!r} in {first!r}; "
                    "PEFT keeps it once for all layers, so write the same in every lora line"
                )


def _number(value: object, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _names(value: object) -> tuple[bool, str]:
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return value is None or listed, "a list of names such as [q_proj, v_proj]"


def _expected_init(found: object) -> str:
    if isinstance(found, str) and found in _REFUSED:
        return f"another, as {_REFUSED[found]}"
    return "one of " + ", ".join(_INIT.replace(r"\d+", "16").split("|"))
