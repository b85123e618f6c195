"""Plans of what trains: selector -> method, read and checked before any model is loaded."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.quantize import QuantMethod
from lightning_vlm.models.plan.methods import IA3, METHODS, REFUSED, LoraSettings, Settings
from lightning_vlm.nearest import nearest

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


class PlanEntry(NamedTuple):
    """What a plan says of one selector: the method, and its settings if it has any."""

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
    if not isinstance(plan, Mapping):
        names = ", ".join(SHORTCUTS)
        raise UserError(
            f"plan: found a {type(plan).__name__}; expected {names}, or a method for each part, such as "
            '{"projector": "full", "language": {"lora": {"r": 16}}}'
        )
    return copy.deepcopy(dict(plan))


def read_plan(plan: Plan) -> dict[str, PlanEntry]:
    """The entries of a plan by selector, checked as far as that goes without a model.

    Args:
        plan: Selector -> method, such as `{"projector": "full", "language": {"lora": {"r": 8}}}`.

    Raises:
        UserError: An unknown method, key or value, or entries that PEFT can't have in one model.

    >>> read_plan({"language": {"lora": {"r": 8}}})["language"].settings.scale
    16
    """
    entries = {selector: _read_entry(selector, value) for selector, value in plan.items()}
    _refuse_two_in_one_adapter(entries)
    return entries


def quantised_problem(entry: PlanEntry, method: QuantMethod) -> str | None:
    """Why an entry can't work on quantised weights, and what can; None if it does.

    Args:
        entry: Of a plan.
        method: How the weights are quantised.

    >>> quantised_problem(PlanEntry("lora", LoraSettings(dora=True)), "int8")
    "DoRA can't read the norms of int8 weights; quantise to nf4, or leave dora out"
    """
    settings = entry.settings
    if entry.method == "full":
        return "quantised weights can't train; use lora"
    if not isinstance(settings, LoraSettings):
        return None
    if settings.dora and method == "int8":
        return "DoRA can't read the norms of int8 weights; quantise to nf4, or leave dora out"
    if settings.init not in ("default", "gaussian"):
        return f"init: {settings.init} needs 16- or 32-bit weights; use init: default"
    return None


def refuse_on_quantised(
    entries: Mapping[str, PlanEntry], method: QuantMethod, quantised: Sequence[str]
) -> None:
    """Refuse what can't work on weights that will be quantised, as far as selectors show it without a model.

    Args:
        entries: As from `read_plan`.
        method: How weights will be quantised.
        quantised: Selectors of those.

    Raises:
        UserError: A method that they can't have.
    """
    for selector, entry in entries.items():
        problem = quantised_problem(entry, method)
        if problem is None:
            continue
        for part in quantised:
            # A module below the part may be a norm, which isn't quantised and can train in full.
            below = selector.startswith((f"{part}.", f"{part}[")) and entry.method != "full"
            if selector == part or below:
                raise UserError(f"plan[{selector!r}]: {part} will be quantised to {method}; {problem}")


def expected(found: object, known: Sequence[str]) -> str:
    """The nearest of the known words, or all of them, as the end of a sentence."""
    near = nearest(str(found), known)
    return f"expected one of: {', '.join(known)}" if near is None else f"did you mean {near!r}?"


def _read_entry(selector: str, value: object) -> PlanEntry:
    where = f"plan[{selector!r}]"
    method: object = value
    given: object = {}
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise UserError(f"{where}: found keys {sorted(map(str, value))}; expected one, the method")
        ((method, given),) = value.items()
    if not isinstance(method, str) or method not in METHODS:
        reason = REFUSED["prefix"] if method == "prefix" else expected(method, list(METHODS))
        raise UserError(f"{where}: found method {method!r}; {reason}")
    kind = METHODS[method]
    if kind is None:
        if isinstance(value, Mapping):
            raise UserError(f"{where}: {method!r} has no settings; write {selector}: {method}")
        return PlanEntry(method)
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: found {method}: {given!r}; expected keys {', '.join(kind._fields)}")
    for key in given:
        if key not in kind._fields:
            raise UserError(f"{where}: found {method} key {key!r}; {expected(key, kind._fields)}")
    settings = kind(**given)
    for key, wanted in settings.wrong().items():
        raise UserError(f"{where}: found {method} {key}={getattr(settings, key)!r}; expected {wanted}")
    return PlanEntry(method, settings)


def _refuse_two_in_one_adapter(entries: Mapping[str, PlanEntry]) -> None:
    """PEFT keeps one method for a model, and of LoRA's settings some once for all of its layers."""
    settings_of = {selector: entry.settings for selector, entry in entries.items()}
    lora = {selector: found for selector, found in settings_of.items() if isinstance(found, LoraSettings)}
    ia3 = [selector for selector, found in settings_of.items() if isinstance(found, IA3)]
    if not lora:
        return
    first = next(iter(lora))
    if ia3:
        raise UserError(
            f"plan: found lora ({first!r}) and ia3 ({ia3[0]!r}); PEFT saves one of them for a model, "
            "so choose one"
        )
    for key in ("rslora", "dora", "init"):
        common = getattr(lora[first], key)
        for selector, settings in lora.items():
            value = getattr(settings, key)
            if value != common:
                raise UserError(
                    f"plan[{selector!r}]: found lora {key}={value!r}, but {common!r} in {first!r}; "
                    "PEFT keeps it once for all layers, so write the same in every lora entry"
                )
