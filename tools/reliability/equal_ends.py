"""Whether two runs ended alike, to the last bit: weights, optimizer, callbacks, loops and what was logged."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_vlm_callbacks.run_report.history import read_history

OF_THE_MOMENT = re.compile(
    r"throughput|/folder$|/file$|RunReport/run$|last_model_path|best_model_path|seconds|dirpath"
)
"""What says when, where or how fast, which no two runs have in common."""

STAGE = "staged_unfreezing/stage"
"""It is logged again where a run is resumed."""


def end_of(folder: Path) -> dict[str, Any]:
    """All that a run left: its last checkpoint, and the curves of its report.

    Args:
        folder: Of the run.
    Returns:
        Tensors, numbers and texts by their path in the checkpoint, and lists of points.
    """
    state = torch.load(folder / "checkpoints" / "latest.ckpt", weights_only=True)
    found = {name: value for name, value in _leaves(state, "") if not OF_THE_MOMENT.search(name)}
    for name, curve in read_history(folder / "report.jsonl").curves.items():
        if not OF_THE_MOMENT.search(name):
            points = _changes(curve.points()) if name == STAGE else curve.points()
            found[f"report/{name}"] = [number for point in points for number in point]
    return found


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What isn't the same, by name.

    >>> differences({"a": 1, "b": float("nan")}, {"a": 2, "b": float("nan"), "c": 3})
    ['a', 'c']
    """
    names = {**found, **expected}
    return [name for name in names if not _same(found.get(name), expected.get(name))]


def whole_checkpoints(folder: Path) -> tuple[int | None, list[str]]:
    """Look at every checkpoint of a run that was killed.

    Returns:
        The step of the latest; None if there is none yet. And what is wrong: files that can't be read.
    """
    checkpoints = folder / "checkpoints"
    step, wrong = None, []
    for file in sorted(checkpoints.glob("[!.]*.ckpt")):
        try:
            at = torch.load(file, weights_only=True)["global_step"]
        except Exception as error:
            wrong.append(f"{file.name}: {type(error).__name__}")
            continue
        if file.name == "latest.ckpt":
            step = at
    return step, wrong


def _changes(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Without points at which nothing has changed.

    >>> _changes([(0, 0.0), (3, 1.0), (4, 1.0), (7, 2.0)])
    [(0, 0.0), (3, 1.0), (7, 2.0)]
    """
    return [point for at, point in enumerate(points) if at == 0 or point[1] != points[at - 1][1]]


def _leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [leaf for key, one in value.items() for leaf in _leaves(one, f"{path}/{key}")]
    if isinstance(value, list | tuple):
        return _leaves(dict(enumerate(value)), path)
    return [(path, value)]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(_bits(one), _bits(other))
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """NaN is what it is, and +0 isn't -0."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def leftovers(folder: Path) -> list[str]:
    """Unfinished files that a run which has ended left in its folder."""
    found = []
    for place, folders, files in os.walk(folder):
        names = [*folders, *files]
        found += [str(Path(place, name).relative_to(folder)) for name in names if "unfinished" in name]
    return found
