"""Stages of training: ready plans, checks of given stages, and when each stage begins."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, NoReturn

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vlm_callbacks.run_length import Unit

__all__ = ["PLANS", "Plateau", "Stage", "plan"]

PLANS: dict[str, list[dict[str, Any]]] = {
    "projector-then-language": [
        {"at": 0.0, "train": {"projector": 1.0}},
        {"at": 0.2, "train": {"projector": 1.0, "language": 1.0, "head": 1.0}},
    ],
    "vision-last-layers": [
        {"at": 0.0, "train": {"projector": 1.0, "language": 1.0, "head": 1.0}},
        {"at": 0.5, "train": {"projector": 1.0, "language": 1.0, "head": 1.0, "vision.layers[50%:]": 0.1}},
        {"at": 0.8, "train": {"projector": 1.0, "language": 1.0, "head": 1.0, "vision": 0.1}},
    ],
    "medical": [
        {"at": 0.0, "train": {"projector": 1.0}},
        {"at": 0.3, "train": {"projector": 1.0, "vision.layers[50%:]": 0.1}},
        {"at": 0.7, "train": {"projector": 1.0, "vision": 0.01, "vision.layers[50%:]": 0.1}},
    ],
    "qwen-vl-3-stage": [
        {"at": 0.0, "train": {"vision": 1.0, "projector": 1.0}},
        {"at": 0.65, "train": {"vision": 0.25, "projector": 0.25, "language": 0.25, "head": 0.25}},
        {"at": 0.9, "train": {"projector": 0.05, "language": 0.05, "head": 0.05}},
    ],
}
"""Ready plans, in fractions of the run; `plan` says where each comes from."""


class Plateau(NamedTuple):
    """When a stage begins by a metric: `patience` validations without a better one in the stage before.

    Args:
        monitor: A logged metric.
        mode: Whether less or more of it is better.
        patience: Validations without improvement.
        min_delta: By how much a value must be better than the best to count.
        from_best: Begin from the weights that the stage before had at its best value.
    """

    monitor: str
    mode: Literal["min", "max"] = "min"
    patience: int = 3
    min_delta: float = 0.0
    from_best: bool = False


class Stage(NamedTuple):
    """What trains, as selector -> scale of its learning rate, and when that begins: `at` or `on_plateau`."""

    train: Mapping[str, float]
    at: float | None
    on_plateau: Plateau | None


def plan(name: str) -> list[dict[str, Any]]:
    """A ready plan, as a list to print and edit. Plans name the parts of a vision-language model.

    - `projector-then-language`: LLaVA's two stages (Liu et al. 2023, https://arxiv.org/abs/2304.08485) in one
      run. LLaVA has data and a learning rate for each; the share of 0.2 is ours.
    - `vision-last-layers`: all but the tower, then with the last half of its layers too, then with all of it.
      The tower trains at a tenth of the rate, as it has learned the most already.
    - `medical`: for images unlike those the tower was trained on: first the projector, then also the last
      half of the tower, then all of it, its low layers at a hundredth of the rate. The language model doesn't
      train.
    - `qwen-vl-3-stage`: Bai et al. 2023, https://arxiv.org/abs/2308.12966: first vision and projector, then
      all, then all but vision. Begins and scales follow from the paper's steps (50k, 19k, 8k) and rates
      (2e-4, 5e-5, 1e-5): with lr 2e-4 the rates are the paper's. Its data and picture sizes change between
      stages too, which is not in a plan.

    `head` counts only where the module lets it train. With LoRA or weights tied to the embeddings it has no
    trainable parameters of its own, and a ready plan then leaves it out.

    Args:
        name: One of `PLANS`.
    Raises:
        MisconfigurationException: There is no such plan.

    >>> for stage in plan("medical"):
    ...     print(stage)
    {'at': 0.0, 'train': {'projector': 1.0}}
    {'at': 0.3, 'train': {'projector': 1.0, 'vision.layers[50%:]': 0.1}}
    {'at': 0.7, 'train': {'projector': 1.0, 'vision': 0.01, 'vision.layers[50%:]': 0.1}}
    """
    if name not in PLANS:
        _refuse("stages", name, _one_of(name, PLANS))
    return deepcopy(PLANS[name])


def parse(stages: Sequence[Mapping[str, Any]] | str, unit: Unit) -> list[Stage]:
    """Check stages from a config.

    Raises:
        MisconfigurationException: Says which key of which stage is wrong, and what would be right.

    >>> written = [{"at": 0, "train": {"head": 1}}, {"on_plateau": {"monitor": "loss"}, "train": {"*": 0.1}}]
    >>> parse(written, "step")[1]
    Stage(train={'*': 0.1}, at=None,
          on_plateau=Plateau(monitor='loss', mode='min', patience=3, min_delta=0.0, from_best=False))
    """
    if unit not in ("fraction", "step", "epoch"):
        _refuse("unit", unit, _one_of(unit, ("fraction", "step", "epoch")))
    if isinstance(stages, str):
        stages = plan(stages)
        if unit != "fraction":
            _refuse("unit", unit, "'fraction', in which ready plans are written")
    if not isinstance(stages, Sequence) or not stages:
        _refuse("stages", stages, f"a list of stages, or the name of a plan: {', '.join(PLANS)}")
    parsed = [_stage(f"stages[{number}]", stage, unit) for number, stage in enumerate(stages)]
    if parsed[0].at != 0:
        _refuse("stages[0]", stages[0], "'at: 0': the first stage begins with the run")
    before = -1.0
    for number, stage in enumerate(parsed):
        if stage.at is None:
            continue
        if stage.at <= before:
            _refuse(f"stages[{number}]: at", stage.at, f"more than {before}, where the stage before begins")
        before = stage.at
    return parsed


def _stage(where: str, stage: Any, unit: Unit) -> Stage:
    if not isinstance(stage, Mapping):
        _refuse(where, stage, "keys 'train' and either 'at' or 'on_plateau'")
    _check_keys(where, stage, ("at", "on_plateau", "train"))
    if ("at" in stage) == ("on_plateau" in stage):
        _refuse(where, dict(stage), "one of 'at' and 'on_plateau'")
    train = stage.get("train")
    if not isinstance(train, Mapping) or not train:
        _refuse(f"{where}: train", train, "selector: scale of its learning rate, such as {projector: 1.0}")
    for selector, scale in train.items():
        if not _is_number(scale) or scale <= 0:
            _refuse(f"{where}: train[{selector!r}]", scale, "a number > 0; what isn't named is frozen")
    if "on_plateau" in stage:
        return Stage(train, None, _plateau(f"{where}: on_plateau", stage["on_plateau"]))
    _check_at(f"{where}: at", stage["at"], unit)
    return Stage(train, stage["at"], None)


def _check_at(where: str, at: Any, unit: Unit) -> None:
    is_right = _is_number(at) and at >= 0
    expected = "a number >= 0"
    if unit == "fraction":
        is_right = is_right and at < 1
        expected = "a number in [0, 1)"
    elif unit == "step":
        is_right = is_right and at == int(at)
        expected = "a whole number >= 0"
    if not is_right:
        _refuse(where, at, f"{expected} (unit: {unit})")


def _plateau(where: str, keys: Any) -> Plateau:
    if not isinstance(keys, Mapping) or not isinstance(keys.get("monitor"), str):
        _refuse(where, keys, "at least 'monitor', a logged metric such as val/loss")
    _check_keys(where, keys, Plateau._fields)
    plateau = Plateau(**keys)
    if plateau.mode not in ("min", "max"):
        _refuse(f"{where}: mode", plateau.mode, "min or max")
    is_whole = _is_number(plateau.patience) and plateau.patience == int(plateau.patience)
    if not is_whole or plateau.patience < 1:
        _refuse(f"{where}: patience", plateau.patience, "a whole number >= 1")
    if not _is_number(plateau.min_delta) or plateau.min_delta < 0:
        _refuse(f"{where}: min_delta", plateau.min_delta, "a number >= 0")
    if not isinstance(plateau.from_best, bool):
        _refuse(f"{where}: from_best", plateau.from_best, "true or false")
    return plateau


def stage_at(step: int, starts: Sequence[int | None]) -> int:
    """The stage that an optimizer step belongs to: the last one that has begun.

    Args:
        step: How many steps were made before it.
        starts: The first step of each stage, None where that isn't known yet; the first is 0.

    >>> [stage_at(step, [0, None, 2, 4]) for step in range(6)]
    [0, 0, 2, 2, 3, 3]
    """
    begun = [number for number, start in enumerate(starts) if start is not None and start <= step]
    return begun[-1]


def trains_since(step: int, starts: Sequence[int | None], trains: Sequence[bool]) -> int | None:
    """The step since which something has trained without a break; None: since the run began.

    Args:
        step: A step at which it trains.
        starts: As for `stage_at`.
        trains: Whether it trains, for each stage.

    >>> trains_since(9, [0, 3, 6], [False, True, True])
    3
    """
    since = step
    begun = {start for start in starts if start is not None and start <= step}
    for start in sorted(begun, reverse=True):
        if not trains[stage_at(start, starts)]:
            return since
        since = start
    return None


def warm_up(step: int, since: int | None, steps: int) -> float:
    """The factor on the learning rate of what trains since a step: 1/steps, 2/steps, ... 1.

    >>> [warm_up(step, 10, 4) for step in (10, 11, 12, 13, 14)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if since is None:
        return 1.0
    trained = step - since
    if trained >= steps:
        return 1.0
    return (trained + 1) / steps


def _check_keys(where: str, keys: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in keys:
        if key not in known:
            _refuse(where, key, _one_of(key, known))


def _one_of(found: object, known: Sequence[str] | Mapping[str, Any]) -> str:
    text = f"one of {', '.join(known)}"
    near = get_close_matches(str(found), known, n=1)
    if near:
        text += f"; did you mean {near[0]!r}?"
    return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(where: str, found: object, expected: str) -> NoReturn:
    raise MisconfigurationException(f"{where}: found {found!r}; expected {expected}")
