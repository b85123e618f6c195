"""What stages train in a model: their selectors as parameters with scales, and a table of them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple, NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import Parameter

from lightning_vlm_callbacks.selectors import select_parameters
from lightning_vlm_callbacks.staged_unfreezing.stages import Stage

__all__ = ["StageEntry", "depth_factors", "entries_of", "scales_by_selector", "scales_of", "table"]


class StageEntry(NamedTuple):
    """One selector of a stage, and the scales of the parameters that it decides about."""

    selector: str
    scale: float
    scales: dict[Parameter, float]


def entries_of(
    root: nn.Module,
    stages: Sequence[Stage],
    may_train: Collection[Parameter],
    layer_decay: float | None = None,
    may_lack: Collection[str] = (),
) -> list[list[StageEntry]]:
    """The entries of each stage. Where selectors of a stage overlap, the later one decides.

    Args:
        root: What selectors start from.
        stages: As from `parse`.
        may_train: The parameters that may train in any stage.
        layer_decay: See `depth_factors`.
        may_lack: Selectors that are left out where none of their parameters may train.

    Raises:
        MisconfigurationException: A selector takes only what may not train.
        SelectorError: A selector finds nothing.
    """
    of_stages: list[list[StageEntry]] = []
    for number, stage in enumerate(stages):
        entries: list[StageEntry] = []
        for selector, scale in stage.train.items():
            found = select_parameters(root, selector)
            factors = depth_factors(root, found, layer_decay)
            scales: dict[Parameter, float] = {}
            for name, parameter in found.items():
                if parameter in may_train:
                    scales[parameter] = scale * factors[name]
            if not scales and selector in may_lack:
                continue
            if not scales:
                _refuse_frozen(f"stages[{number}]", selector, found.values())
            for earlier in entries:
                for parameter in scales:
                    earlier.scales.pop(parameter, None)
            entries.append(StageEntry(selector, scale, scales))
        of_stages.append(entries)
    return of_stages


def scales_of(entries: Sequence[StageEntry]) -> dict[Parameter, float]:
    """The scale of each parameter that a stage trains."""
    scales: dict[Parameter, float] = {}
    for entry in entries:
        scales.update(entry.scales)
    return scales


def _refuse_frozen(where: str, selector: str, parameters: Collection[Parameter]) -> NoReturn:
    why = "quantised and can't train; give it LoRA, which can, or leave it out"
    if all(parameter.is_floating_point() for parameter in parameters):
        why = "frozen by the module; let them train there (VLMModule: adapt), the stages say when"
    raise MisconfigurationException(
        f"{where}: found {selector!r}, whose {len(parameters)} parameters are {why}"
    )


def depth_factors(
    root: nn.Module, parameters: Mapping[str, nn.Parameter], decay: float | None
) -> dict[str, float]:
    """The factor decay^(L + 1 - i) of each parameter, where i = 1..L is its place in a list of L layers.

    This is the layer decay of BEiT (https://arxiv.org/abs/2106.08254). What comes before the list in
    `named_parameters()` has i = 0, what comes after it L + 1. The list is the outermost module with numbered
    children on a parameter's path, of several the one with the most weights. It counts whole, also if only
    some of its layers are given. Without a list all factors are 1.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    >>> depth_factors(model, dict(model.named_parameters()), 0.5)
    {'0.weight': 0.25, '0.bias': 0.25, '1.weight': 0.5, '1.bias': 0.5}
    """
    if decay is None:  # a parameter may not have its shape yet
        return dict.fromkeys(parameters, 1.0)
    places = {name: _place(name) for name in parameters}
    weights: Counter[str] = Counter()
    for name, place in places.items():
        if place is not None:
            weights[place.layers] += parameters[name].numel()
    if not weights:
        return dict.fromkeys(parameters, 1.0)
    [(layers, _)] = weights.most_common(1)
    count = sum(child.isdigit() for child, _ in root.get_submodule(layers).named_children())
    factors: dict[str, float] = {}
    outside = 0  # until the first layer has come
    for name, place in places.items():
        depth = outside
        if place is not None and place.layers == layers:
            depth = place.number + 1
            outside = count + 1
        factors[name] = decay ** (count + 1 - depth)
    return factors


class _Place(NamedTuple):
    """The path of a numbered list of layers, and a layer's number there."""

    layers: str
    number: int


def _place(name: str) -> _Place | None:
    """Where a parameter is in the outermost numbered list on its path."""
    words = name.split(".")
    for position, word in enumerate(words[:-1]):
        if word.isdigit():
            layers = ".".join(words[:position])
            return _Place(layers, int(word))
    return None


def scales_by_selector(
    group: Sequence[Parameter],
    entries: Sequence[Sequence[StageEntry]],
    stage: int,
    scale: Callable[[Parameter], float],
) -> dict[str, list[float]]:
    """The scales of what trains in an optimizer's group, by the selector that decides about it.

    Args:
        group: The parameters of the group.
        entries: The entries of each stage, as from `entries_of`.
        stage: The stage that the run is in.
        scale: Gives the scale of a parameter at this moment.

    Returns:
        Selector -> scales. The selector is empty where only one decides about the group over the whole run.
    """
    members = set(group)
    deciding: set[str] = set()
    for entry in chain.from_iterable(entries):
        if not members.isdisjoint(entry.scales):
            deciding.add(entry.selector)
    scales: dict[str, list[float]] = {}
    for entry in entries[stage]:
        inside = [scale(parameter) for parameter in entry.scales if parameter in members]
        if inside:
            key = entry.selector if len(deciding) > 1 else ""
            scales[key] = inside
    return scales


def table(
    root: nn.Module,
    stages: Sequence[Stage],
    starts: Sequence[int | None],
    entries: Sequence[Sequence[StageEntry]],
    rates: Mapping[Parameter, float],
) -> str:
    """A table of what trains when; parameters of no stage are under "never"."""
    rows = [("stage", "from step", "trains", "scale", "parameters", "learning rate")]
    never = set(root.parameters())
    for number, stage in enumerate(stages):
        begin = _begin(stage, starts[number])
        for entry in entries[number]:
            never -= set(entry.scales)
            scale = f"{entry.scale:g}"
            size = _size(entry.scales)
            rows.append((str(number), begin, entry.selector, scale, size, _rates(entry, rates)))
    rows.append(("never", "", "(all else)", "", _size(never), ""))
    title = "StagedUnfreezing: what trains when (learning rates before the schedule and warm-up)"
    return "\n".join([title, *_aligned(rows)])


def _begin(stage: Stage, start: int | None) -> str:
    """The first step of a stage, or what it waits for."""
    if start is not None:
        return f"{start:,}"
    return f"{stage.on_plateau.monitor} at rest" if stage.on_plateau is not None else ""


def _rates(entry: StageEntry, rates: Mapping[Parameter, float]) -> str:
    """The learning rate of an entry, or the lowest and the highest."""
    scaled = [rates[parameter] * scale for parameter, scale in entry.scales.items()]
    if not scaled:
        return ""
    lowest = f"{min(scaled):.3g}"
    highest = f"{max(scaled):.3g}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _size(parameters: Iterable[Parameter]) -> str:
    numbers = sum(parameter.numel() for parameter in parameters)
    return f"{numbers:,}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of text, in which all cells of a column are equally wide."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
