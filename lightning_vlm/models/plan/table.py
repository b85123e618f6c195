"""The table of a plan: what it made of a model, for the terminal and for Weights & Biases."""

import re
from collections.abc import Collection, Iterable, Mapping

from lightning_vlm_callbacks.selectors import select_parameters
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.models.experts import mixtures_of, router_parameters
from lightning_vlm.models.parts import Parts
from lightning_vlm.models.plan.methods import LoraSettings
from lightning_vlm.models.plan.plan import Plan, PlanEntry, read_plan

COLUMNS = ("part", "layers", "method", "rank", "trainable", "share")
_NOT_SHOWN = ("r", "expert_r", "alpha", "modules", "feedforward")
"""Settings that don't make a method another one."""


def plan_rows(
    model: PreTrainedModel, parts: Parts, plan: Plan
) -> list[tuple[str, str, str, str, int, float]]:
    """What `adapt` has made of a plan.

    Args:
        model: After `adapt`.
        parts: As for `adapt`.
        plan: As for `adapt`.

    Returns:
        A row of `COLUMNS` per selector: the part, which of its layers, method, rank, trainable parameters,
        and their share of those that it names. Then one for routers of experts, if the plan doesn't name
        them, one for all else that it doesn't name, and one for all.
    """
    rows = []
    named: set[int] = set()
    routers = router_parameters(model)
    for selector, entry in read_plan(plan).items():
        selected = select_parameters(model, [selector], parts)
        parameters = {name: weight for name, weight in selected.items() if name not in routers} or selected
        named.update(id(weight) for weight in parameters.values())
        layers = _layers(parameters, parts)
        rank = _rank(model, entry.settings, parameters) if isinstance(entry.settings, LoraSettings) else ""
        trainable, share = _trainable(parameters.values())
        rows.append((selector, layers, _method(entry), rank, trainable, share))
    rest = {name: weight for name, weight in model.named_parameters() if id(weight) not in named}
    frozen_routers = {name: rest.pop(name) for name in routers if name in rest}
    for place, left_out in (("language.routers", frozen_routers), ("(not named)", rest)):
        if left_out:
            trainable, share = _trainable(left_out.values())
            rows.append((place, _layers(left_out, parts), "frozen", "", trainable, share))
    trainable, share = _trainable(model.parameters())
    rows.append(("all", "", "", "", trainable, share))
    return rows


def plan_table(model: PreTrainedModel, parts: Parts, plan: Plan) -> Table:
    """The rows of `plan_rows` for the terminal. Arguments as there."""
    table = Table()
    table.add_column(COLUMNS[0], overflow="fold")  # a shortened selector would be wrong
    for column in COLUMNS[1:4]:
        table.add_column(column)
    for column in COLUMNS[4:]:
        table.add_column(column, justify="right")
    for part, layers, method, rank, trainable, share in plan_rows(model, parts, plan):
        if part == "all":
            table.add_section()
        table.add_row(part, layers, method, rank, f"{trainable:,}", f"{share:.2%}")
    return table


def _rank(model: PreTrainedModel, settings: LoraSettings, parameters: Mapping[str, nn.Parameter]) -> str:
    """The rank of linear layers, and that in each expert where experts have adapters too."""
    ranks = [str(settings.r)]
    for mixture in mixtures_of(model):
        inside = f"{mixture.path}.{mixture.experts}."
        for name, weight in parameters.items():
            if name.startswith(inside) and ".lora_A." in name:
                ranks.append(f"experts {len(weight) // mixture.number}")
    return ", ".join(dict.fromkeys(ranks))


def _method(entry: PlanEntry) -> str:
    """The method, with the settings that make it another one, such as `lora dora`."""
    if entry.settings is None:
        return entry.method
    defaults = type(entry.settings)()
    words = [entry.method]
    for key, value in entry.settings._asdict().items():
        if key in _NOT_SHOWN or value == getattr(defaults, key):
            continue
        if isinstance(value, bool):
            words.append(key)
        else:
            words.append(f"{key}={value}")
    return " ".join(words)


def _trainable(parameters: Iterable[nn.Parameter]) -> tuple[int, float]:
    """How many parameters train, and their share of all."""
    trained, total = count_parameters(parameters)
    return trained, trained / max(total, 1)


def count_parameters(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """How many parameters train, and how many there are; packed ones of 4 bits count as what they hold."""
    trained = 0
    total = 0
    for weight in parameters:
        size = _size(weight)
        total += size
        if weight.requires_grad:
            trained += size
    return trained, total


def methods_of(plan: Plan) -> str:
    """A plan in a line.

    >>> methods_of({"projector": "full", "language": {"lora": {"r": 8}}, "vision": "frozen"})
    'projector full, language lora r=8'
    """
    texts = []
    for selector, entry in read_plan(plan).items():
        if entry.method != "frozen":
            rank = getattr(entry.settings, "r", None)
            texts.append(f"{selector} {_method(entry)}" + (f" r={rank}" if rank else ""))
    return ", ".join(texts)


def _size(weight: nn.Parameter) -> int:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.numel()
    # bitsandbytes packs two weights of 4 bits into a byte and keeps the shape here.
    return state.shape.numel()


def _layers(names: Collection[str], parts: Parts) -> str:
    """Which items of the lists of layers some parameters are in: `language 0-7, 24-31`.

    >>> _layers(["m.h.0.w", "m.h.1.w", "m.h.3.w", "m.h.10.w"], {"language.layers": ["m.h"]})
    'language 0-1, 3, 10'
    """
    text = []
    for part in ("vision", "language"):
        for path in parts.get(f"{part}.layers", []):
            in_a_layer = re.compile(rf"{re.escape(path)}\.(\d+)\.")
            numbers = set()
            for name in names:
                match = in_a_layer.match(name)
                if match:
                    numbers.add(int(match[1]))
            if numbers:
                text.append(f"{part} {_ranges(numbers)}")
    return ", ".join(text)


def _ranges(numbers: set[int]) -> str:
    """Numbers as ranges: `0-1, 3`."""
    starts = sorted(number for number in numbers if number - 1 not in numbers)
    ends = sorted(number for number in numbers if number + 1 not in numbers)
    ranges = []
    for start, end in zip(starts, ends, strict=True):
        if start == end:
            ranges.append(str(start))
        else:
            ranges.append(f"{start}-{end}")
    return ", ".join(ranges)
