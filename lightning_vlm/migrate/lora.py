"""Which layers get LoRA, and what trains beside it: as each tool says it, as a plan of ours."""

from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.ours import Ours

_NAMED = {"lm_head": "head", "embed_tokens": "*.embed_tokens", "projector": "projector"}
"""Names of modules -> selectors of ours."""


def put_parts(
    ours: Ours, parts: list[str], how: Any, source: str, alike: str = "", differs: str = ""
) -> None:
    """Let parts of the model train in one way.

    Args:
        ours: Our config.
        parts: Such as `["vision", "language"]`.
        how: `full`, or `{lora: ...}`.
        source: Which key of theirs says so.
        alike: What is as there, and good to know.
        differs: What is different.

    Raises:
        UserError: All parts are frozen.
    """
    if not parts:
        raise UserError(f"{source}: found all parts frozen; expected one that trains")
    whole = f"{source} ({alike})" if alike else source
    for place, part in enumerate(parts):
        path = ("model", "adapt", part)
        if place:
            ours.put_path(path, how, "likewise")
        else:
            ours.put_path(path, how, whole, differs)


def put_names(ours: Ours, names: list[str], lora: dict[str, Any], source: str) -> None:
    """Give LoRA to all layers whose last name is one of some, wherever they are, as PEFT does."""
    where = "in the tower too, if it has such layers, as there"
    put_parts(ours, [f"*.{name}" for name in names], {"lora": lora}, source, where)


def put_whole(ours: Ours, names: list[str], source: str) -> None:
    """Train named modules in full beside LoRA."""
    for name in names:
        ours.put_path(("model", "adapt", _NAMED.get(name, f"*.{name}")), "full", source)


def settings(rank: int, alpha: float, dropout: float, **more: Any) -> dict[str, Any]:
    """The settings of LoRA, without what is off.

    >>> settings(8, 16, 0.0, dora=False)
    {'r': 8, 'alpha': 16, 'dropout': 0.0}
    """
    return {
        "r": rank,
        "alpha": alpha,
        "dropout": dropout,
        **{key: value for key, value in more.items() if value},
    }


def put_attention(ours: Ours, name: str | None, source: str) -> None:
    """How attention is computed, where it isn't left to the library."""
    if name in (None, "auto"):
        return
    names = {
        "fa2": "flash_attention_2",
        "fa3": "flash_attention_3",
        "flash_attn": "flash_attention_2",
        "disabled": "eager",
    }
    ours.put("model.attn_implementation", names.get(str(name), str(name)), source)


def put_quantization(ours: Ours, bits: int | None, double: bool, source: str) -> None:
    """Weights in 4 or 8 bits."""
    if not bits:
        return
    value: Any = "int8" if bits == 8 else "nf4"
    if bits == 4 and not double:
        value = {"method": "nf4", "double_quant": False}
    differs = "of the language model; there the tower's too (parts: [vision, projector, language])"
    ours.put("model.quantization", value, source, differs)
