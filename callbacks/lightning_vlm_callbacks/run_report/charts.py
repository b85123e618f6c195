"""Which metrics are drawn together, and how: charts of curves, a map of ranks, bands and marks."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

from lightning_vlm_callbacks.run_report.history import Event, History

__all__ = ["Chart", "Frame", "RankMap", "Stage", "charts", "frame", "rank_map"]

Points = Sequence[tuple[int, float]]

MOST_CURVES = 24
MOST_MARKS = 200
UNMARKED = ("stage", "started", "ended", "checkpoint", "best")
"""Kinds of events without a mark; of the best checkpoints the last one has its own."""


class Family(NamedTuple):
    """Metrics that are drawn in one chart."""

    title: str
    pattern: str
    """Of a metric's whole name. Its groups are what the curve is called."""
    scale: str = "linear"
    """`log` or `linear`; `auto` is `log` if values lie far apart."""
    least: int = 1
    """How many metrics make a chart worth drawing."""
    place: str = "main"
    """`main`, or `details`, which the page shows only on request."""


FAMILIES = (
    Family("Loss", r"(.*?(?:^|[/_.-])loss(?:_step|_epoch)?)", "auto"),
    Family("Loss by task or part", r"(.*?(?:^|[/_.-])loss(?!_step$|_epoch$)[/_.-].+)", "auto"),
    Family("Learning rate", r"(lr)|lr/(.+)"),
    Family("Norm of the gradient", r"gradients/(.+)/norm|(.*grad_?norm(?!/).*|.*grad_norm/.*)", "log"),
    Family("Norm of all gradients before and after clipping", r"gradients/all/((?:clipped_)?norm)", "log", 2),
    Family("Update of the weights, ‖Δw‖/‖w‖", r"gradients/(.+)/update_ratio", "log"),
    Family("Weight of each task", r"gradnorm/weight/(.+)|train/task_weight/(.+)", "auto"),
    Family("Norm of each task's weighted gradient", r"gradnorm/weighted_norm/(.+)", "log"),
    Family("Relative training rate of each task", r"gradnorm/rate/(.+)", "auto"),
    Family("Weight of each kind of token", r"token_weights?/(.+)"),
    Family("Throughput", r"throughput/(.+)_per_second|((?!throughput/).*(?:throughput|per_sec).*)", "auto"),
    Family("Waiting for data, padding, utilisation", r"throughput/(waiting_share|padding_share|mfu)"),
    Family("Seconds of a step", r"throughput/(step_seconds)", "linear", 1, "details"),
    Family("Memory, GiB", r"throughput/(memory_gib)", "linear", 1, "details"),
    Family("TFLOP/s of a device", r"throughput/(tflops_per_device)", "linear", 1, "details"),
    Family("Norm of each task's gradient before its weight", r"gradnorm/norm/(.+)", "log", 1, "details"),
    Family("Cosine between gradients of tasks", r"gradnorm/cosine/(.+)", "linear", 1, "details"),
    Family("Mean of the gradient", r"gradients/(.+)/mean", "linear", 1, "details"),
    Family("Standard deviation of the gradient", r"gradients/(.+)/std", "log", 1, "details"),
    Family("Largest element of the gradient", r"gradients/(.+)/max", "log", 1, "details"),
    Family("Share of zeros in the gradient", r"gradients/(.+)/zeros", "linear", 1, "details"),
    Family("Norm of the gradient after clipping", r"gradients/(.+)/clipped_norm", "log", 1, "details"),
)
"""The order of the page. A metric may be in two of them; one that is in none has a place at the end."""

NOT_DRAWN = r"lr-.+|staged_unfreezing/stage"
"""What Lightning's LearningRateMonitor logs doesn't know of stages, and stages are bands."""


@dataclass(frozen=True)
class Chart:
    """Curves over steps, by their names."""

    title: str
    curves: Mapping[str, Points]
    is_log: bool = False
    place: str = "main"
    missing: int = 0
    """How many curves were too many."""


@dataclass(frozen=True)
class RankMap:
    """The rank of each layer from step to step."""

    title: str
    edges: Sequence[int]
    """The step of each change, and the end."""
    ranks: Mapping[str, Sequence[int]]
    """Of each layer, from each edge on but the last."""


class Stage(NamedTuple):
    """A band: what trains from one step to another."""

    start: int
    end: int
    text: str


class Frame(NamedTuple):
    """What all charts have in common."""

    start: int
    end: int
    stages: Sequence[Stage]
    marks: Sequence[Event]


def frame(history: History) -> Frame:
    """The axis of steps, the bands and the marks."""
    steps = [event.step for event in history.events]
    for curve in history.curves.values():
        steps += [step for step, _ in curve.points()[:1]]
    start = min(steps, default=0)
    end = max(history.last_step, 1)
    return Frame(start, end, _stages(history.events, end), _marks(history.events))


def _stages(events: Sequence[Event], end: int) -> list[Stage]:
    """The stages, each as long as no other begins; the last one up to `end`."""
    stages: list[Stage] = []
    for event in events:
        if event.kind != "stage":
            continue
        if stages and stages[-1].text == event.text:  # a resumed run names the stage that it is in
            continue
        if stages:
            stages[-1] = stages[-1]._replace(end=event.step)
        stages.append(Stage(event.step, end, event.text))
    return stages


def _marks(events: Sequence[Event]) -> list[Event]:
    """The events to mark, evenly thinned out where there are many, and the last of the best checkpoints."""
    marks = [event for event in events if event.kind not in UNMARKED]
    every = 1 + len(marks) // MOST_MARKS
    best = [event for event in events if event.kind == "best"]
    return [*marks[::every], *best[-1:]]


def charts(history: History) -> list[Chart]:
    """All charts of curves, in the order of the page."""
    points: dict[str, Points] = {}
    for name, curve in sorted(history.curves.items()):
        points[name] = curve.points()
    if points.keys() & {"gradients/all/norm", "train/grad_norm"}:
        points.pop("grad_norm", None)  # which is the same
    found = []
    others = {name for name in points if not re.fullmatch(NOT_DRAWN, name)}
    for family in FAMILIES:
        matches = _matches(family.pattern, points)
        others -= {match.string for match in matches}
        if len(matches) >= family.least:
            curves = {_label(match): points[match.string] for match in matches}
            found.append(_chart(family.title, curves, family.scale, family.place))
    groups: dict[str, dict[str, Points]] = defaultdict(dict)
    for name in sorted(others):
        groups[_group(name)][name] = points[name]
    for title, curves in sorted(groups.items()):
        found.append(_chart(title, curves, "auto", "other"))
    return found


def _matches(pattern: str, names: Iterable[str]) -> list[re.Match[str]]:
    found = [re.fullmatch(pattern, name) for name in names]
    return [match for match in found if match]


def _label(match: re.Match[str]) -> str:
    """What a curve is called: the part of the metric's name that a group matches, or all of it."""
    return next(filter(None, match.groups()), match.string)


def _group(name: str) -> str:
    """What is measured in training and validation belongs together, and so does what lies in a folder.

    >>> [_group(name) for name in ("train/accuracy", "val_accuracy", "data/epochs/captions", "temperature")]
    ['accuracy', 'accuracy', 'data/epochs', 'temperature']
    """
    rest = re.sub(r"^(train|training|val|valid|validation|test)[/_.]", "", name)
    if rest == name and name.count("/") > 1:
        return name.rpartition("/")[0]
    return rest


def _chart(title: str, curves: Mapping[str, Points], scale: str, place: str) -> Chart:
    shown = dict(islice(curves.items(), MOST_CURVES))
    missing = len(curves) - len(shown)
    return Chart(title, shown, _is_log(scale, shown), place, missing)


def _is_log(scale: str, curves: Mapping[str, Points]) -> bool:
    """Whether the axis is logarithmic; without a positive value it can't be."""
    values = []
    for points in curves.values():
        values += [value for _, value in points if math.isfinite(value)]
    positive = [value for value in values if value > 0]
    if scale == "linear" or not positive:
        return False
    if scale == "log":
        return True
    return len(positive) == len(values) and max(positive) > 20 * min(positive)


def rank_map(history: History) -> RankMap | None:
    """The ranks of layers, if any were recorded."""
    ranks_from: dict[int, dict[str, int]] = {}
    """Step -> layer -> the rank that it has from there on."""
    for event in history.events:
        ranks = event.values.get("ranks")
        if isinstance(ranks, dict):
            ranks_from[event.step] = ranks
    if not ranks_from:
        return None
    end = max(history.last_step, max(ranks_from) + 1)
    names = dict.fromkeys(chain.from_iterable(ranks_from.values()))
    rows = {}
    for name in names:
        rows[name] = [int(ranks.get(name, 0)) for ranks in ranks_from.values()]
    return RankMap("Rank of each layer", [*ranks_from, end], rows)
