"""Tasks: what the config names and the data hasn't, names that are almost alike, and their balance."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.system_prompts import DEFAULT
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.errors import DataError
from lightning_vlm.lint.finding import Finding, Task
from lightning_vlm.module import VLMModule
from lightning_vlm.nearest import did_you_mean

_HARDLY = 0.1
"""A task is hardly seen if its share is less than this part of an equal one."""


def task_sizes(source: Conversations) -> Counter[str]:
    """How many samples of a source each task has. Those that are streamed are read for it."""
    names, of = source.task_table()
    if OTHER in names:
        return Counter(_read_tasks(source))
    counts = np.bincount(np.asarray(of, np.int64), minlength=len(names)).tolist()
    return Counter(dict(zip(names, counts, strict=True)))


def _read_tasks(source: Conversations) -> Iterator[str]:
    for index in range(len(source)):
        try:
            yield source[index].task
        except DataError:  # reading all rows finds it again and reports it
            continue


def balance(split: str, sizes: Mapping[str, int]) -> list[Task]:
    """How much of each task a split has, the largest first."""
    total = sum(sizes.values())
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return [Task(split, name, size, size / total) for name, size in ordered]


def effective_number(sizes: Sequence[int]) -> float:
    """How many tasks of equal size would be as varied: the exponential of their entropy.

    >>> round(effective_number([50, 50]), 2), round(effective_number([99, 1]), 2)
    (2.0, 1.06)
    """
    total = sum(sizes)
    shares = [size / total for size in sizes if size]
    return math.exp(-sum(share * math.log(share) for share in shares))


def about_tasks(
    module: VLMModule, data: VLMDataModule, sizes: Mapping[str, Mapping[str, int]]
) -> Iterator[Finding]:
    """What is wrong with the names and the balance of tasks.

    Args:
        module: Has weights and scores of tasks.
        data: Has weights for drawing them, and system prompts.
        sizes: How many samples of each task each split has.
    """
    train = list(sizes.get("train", {}))
    everywhere = list(dict.fromkeys(name for split in sizes.values() for name in split))
    if train:
        for key, names in _weights(module, data).items():
            yield from _unknown("unknown_task", key, names, train)
    if train and data.sampling is not None and data.sampling.weights is not None:
        for name in train:
            if name not in data.sampling.weights:
                found = f"no weight for the task {name!r}, which the training data has"
                yield Finding("unknown_task", "train", "config", "data.sampling.weights", found)
    if everywhere:
        for key, names in _others(module, data).items():
            yield from _unknown("unused_task", key, names, everywhere)
    yield from _similar(sizes)
    yield from _unbalanced(sizes.get("train", {}), data.sampling is not None)


def _weights(module: VLMModule, data: VLMDataModule) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {}
    if isinstance(module.task_weights, Mapping):
        found["model.task_weights"] = list(module.task_weights)
    if data.sampling is not None and data.sampling.weights is not None:
        found["data.sampling.weights"] = list(data.sampling.weights)
    return found


def _others(module: VLMModule, data: VLMDataModule) -> dict[str, Sequence[str]]:
    found: dict[str, Sequence[str]] = {"model.scores": module.callbacks.evaluation.choice.tasks}
    if data.system_prompts:
        found["data.system_prompts"] = [name for name in data.system_prompts if name != DEFAULT]
    return found


def _unknown(kind: str, key: str, names: Sequence[str], known: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        if name not in known:
            near = did_you_mean(name, known, quoted=True)
            found = f"the task {name!r}, which the data hasn't"
            yield Finding(kind, "", "config", f"{key}.{name}", found, f"one of {', '.join(known[:8])}{near}")


def _similar(sizes: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Names that are almost alike: the rarer of two is probably a slip."""
    total: Counter[str] = Counter()
    for of_split in sizes.values():
        total.update(of_split)
    for name, size in total.items():
        others = [other for other in total if other != name and (total[other], other) > (size, name)]
        near = next((other for other in others if _is_slip(name, other)), None)
        if near is not None:
            split = next(split for split, of_split in sizes.items() if name in of_split)
            found = f"the task {name!r} ({size:,} samples), almost {near!r} ({total[near]:,})"
            yield Finding("similar_tasks", split, "tasks", name, found)


def _is_slip(name: str, other: str) -> bool:
    """Whether two names are one but for case, signs between words, or a letter too many, missing or moved.

    >>> [_is_slip(name, "grounding") for name in ("grouding", "Grounding", "gruonding", "grounding2")]
    [True, True, True, False]
    >>> _is_slip("ocr_en", "ocr_de")
    False
    """
    one, two = (re.sub(r"[\W_]+", "", written).lower() for written in (name, other))
    if one == two:
        return True
    if min(len(one), len(two)) < 4:
        return False
    shorter, longer = sorted((one, two), key=len)
    places = range(len(longer))
    if len(longer) == len(shorter) + 1:
        return any(longer[:at] + longer[at + 1 :] == shorter and longer[at].isalpha() for at in places)
    if len(longer) != len(shorter):
        return False
    return any(one[:at] + one[at + 1 : at + 2] + one[at] + one[at + 2 :] == two for at in places)


def _unbalanced(sizes: Mapping[str, int], is_sampled: bool) -> Iterator[Finding]:
    if len(sizes) < 2 or is_sampled:
        return
    total = sum(sizes.values())
    for name, size in sizes.items():
        if size * len(sizes) < _HARDLY * total:
            found = f"the task {name!r} in {size:,} of {total:,} samples ({size / total:.1%})"
            yield Finding("unbalanced_tasks", "train", "tasks", name, found)
