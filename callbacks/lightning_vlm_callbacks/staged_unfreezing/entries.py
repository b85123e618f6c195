"""What the stages train in a model: selectors turned into parameters and scales, and a table of them."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import Parameter

from lightning_vlm_callbacks.selectors import select_parameters
from lightning_vlm_callbacks.staged_unfreezing.stages import Stage

__all__ = ["Line", "depth_factors", "resolve", "scales_by_selector", "table"]


class Line(NamedTuple):
    """One selector of a stage, and the scales of the parameters that it decides about."""

    selector: str
    scale: float
    scales: dict[Parameter, float]


def resolve(
    root: nn.Module,
    stages: Sequence[Stage],
    ever: Collection[Parameter],
    layer_decay: float | None = None,
    may_lack: Collection[str] = (),
) -> list[list[Line]]:
    """The lines of each stage. Where selectors of a stage overlap, the later one decides.

    Args:
        root: What selectors start from.
        stages: As from `parse`.
        ever: The parameters that may train.
        layer_decay: See `depth_factors`.
        may_lack: Selectors that are left out where they have none of those.

    Raises:
        MisconfigurationException: A selector takes only what may not train.
        SelectorError: A selector finds nothing.
    """
    resolved: list[list[Line]] = []
    for i, stage in enumerate(stages):
        lines: list[Line] = []
        for selector, scale in stage.train.items():
            found = select_parameters(root, selector)
            factors = depth_factors(root, found, layer_decay)
            scales = {one: scale * factors[name] for name, one in found.items() if one in ever}
            if not scales and selector in may_lack:
                continue
            if not scales:
                _refuse_frozen(f"stages[{i}]", selector, found.values())
            for line in lines:
                for one in scales:
                    line.scales.pop(one, None)
            lines.append(Line(selector, scale, scales))
        resolved.append(lines)
    return resolved


def _refuse_frozen(where: str, selector: str, parameters: Collection[Parameter]) -> NoReturn:
    if all(one.is_floating_point() for one in parameters):
        why = "frozen by the module; let them train there (VLMModule: adapt), the stages say when"
    else:
        why = "quantised and can't train; give it LoRA, which can, or leave it out"
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
    if decay is None:
        return dict.fromkeys(parameters, 1.0)
    places = {name: place for name in parameters if (place := _place(name))}
    weights: Counter[str] = Counter()
    for name, (layers, _) in places.items():
        weights[layers] += parameters[name].numel()
    if not weights:
        return dict.fromkeys(parameters, 1.0)
    chosen = weights.most_common(1)[0][0]
    count = sum(child.isdigit() for child, _ in root.get_submodule(chosen).named_children())
    depths = {name: number + 1 for name, (layers, number) in places.items() if layers == chosen}
    factors, outside = {}, 0
    for name in parameters:
        if name in depths:
            outside = count + 1
        factors[name] = decay ** (count + 1 - depths.get(name, outside))
    return factors


def scales_by_selector(
    group: Sequence[Parameter],
    lines: Sequence[Sequence[Line]],
    stage: int,
    scale: Callable[[Parameter], float],
) -> dict[str, list[float]]:
    """The scales of what trains in an optimizer's group, by the selector that decides about it.

    Args:
        group: The parameters of the group.
        lines: Of each stage, as from `resolve`.
        stage: The one that the run is in.
        scale: The scale of a parameter at this moment.

    Returns:
        Selector -> scales. The selector is empty where only one decides about the group over the whole run.
    """
    members = set(group)
    deciding = {line.selector for one in lines for line in one if not members.isdisjoint(line.scales)}
    scales: dict[str, list[float]] = {}
    for line in lines[stage]:
        inside = [scale(parameter) for parameter in line.scales if parameter in members]
        if inside:
            scales[line.selector if len(deciding) > 1 else ""] = inside
    return scales


def _place(name: str) -> tuple[str, int] | None:
    """Path of the outermost numbered list that a parameter is in, and its number there."""
    words = name.split(".")
    number = next((i for i, word in enumerate(words[:-1]) if word.isdigit()), None)
    return None if number is None else (".".join(words[:number]), int(words[number]))


def table(
    root: nn.Module,
    stages: Sequence[Stage],
    starts: Sequence[int | None],
    lines: Sequence[Sequence[Line]],
    rates: Mapping[Parameter, float],
) -> str:
    """A table of what trains when; parameters of no stage are under "never"."""
    rows = [("stage", "from step", "trains", "scale", "parameters", "learning rate")]
    for i, (stage, start) in enumerate(zip(stages, starts, strict=True)):
        waits = stage.on_plateau is not None and start is None
        begin = f"{stage.on_plateau.monitor} at rest" if stage.on_plateau and waits else f"{start:,}"
        for line in lines[i]:
            scaled = sorted(rates[one] * scale for one, scale in line.scales.items())
            ends = dict.fromkeys(f"{rate:.3g}" for rate in (scaled[:1] + scaled[-1:]))
            row = str(i), begin, line.selector, f"{line.scale:g}", _size(line.scales), " to ".join(ends)
            rows.append(row)
    staged = {one for stage_lines in lines for line in stage_lines for one in line.scales}
    rows.append(("never", "", "(all else)", "", _size(set(root.parameters()) - staged), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    title = "StagedUnfreezing: what trains when (learning rates before the schedule and warm-up)"
    return "\n".join([title, *map(str.rstrip, texts)])


def _size(parameters: Iterable[Parameter]) -> str:
    return f"{sum(one.numel() for one in parameters):,}"
