"""The sets of samples that models are compared on."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_vlm.compare.settings import Settings, data_module
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.held_out import Picked, share_of
from lightning_vlm.data.read.hf_dataset import is_hub_name
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import nearest

GENERAL = "general"
"""The name of a set on which forgetting is measured."""
_NAMED = re.compile(r"([\w.+-]{1,40})=(.+)", re.DOTALL)


class SampleSet(NamedTuple):
    """A set of samples.

    Args:
        name: Of the set.
        where: It came from.
        source: Its samples; None where they are known from files of answers alone.
    """

    name: str
    where: str
    source: Conversations | None


def named(word: str) -> tuple[str | None, str]:
    """A word of the command line as a name and a path; one that is the path of a file has no name.

    >>> named("general=data/general.jsonl"), named("data/general.jsonl")
    (('general', 'data/general.jsonl'), (None, 'data/general.jsonl'))
    """
    found = _NAMED.fullmatch(word)
    return (found[1], found[2]) if found and not Path(word).exists() else (None, word)


def open_sets(words: Sequence[str], settings: Settings, samples: int | None) -> list[SampleSet]:
    """Open the sets that are named.

    Args:
        words: Of `--data`: files, folders or names on the hub, or splits of the config, each with or without
            a name in front. Without any it is the validation data of the config.
        settings: Of the comparison.
        samples: The most samples of each.

    Raises:
        UserError: No data, or no such file.
        DataError: Bad data.
    """
    if not words:
        if "val" not in settings.splits:
            raise UserError(_no_data(settings))
        words = ["val"]
    sets: dict[str, SampleSet] = {}
    for word in words:
        name, path = named(word)
        name = name or (path if path in settings.splits else Path(path).name.partition(".")[0] or path)
        if name in sets:
            raise UserError(f"--data: found two sets of the name {name}; give one another, as NAME=FILE")
        source = _open(path, settings)
        if samples is not None:
            source = spread(source, samples)
        sets[name] = SampleSet(name, path, source)
    return list(sets.values())


def spread(source: Conversations, most: int) -> Conversations:
    """At most so many items of a source, evenly spread over it."""
    count = min(most, len(source))
    return Picked(source, [place * len(source) // count for place in range(count)], skipped=True)


def _open(path: str, settings: Settings) -> Conversations:
    if path in settings.splits and not Path(path).exists():
        value = settings.data[path]
        of_train = {"train": settings.data.get("train")} if share_of(value) is not None else {}
        return data_module(settings, **{**of_train, path: value}).source(path)
    if not Path(path).exists() and not is_hub_name(path):
        raise UserError(f"--data {path}: found no such file{_meant(path, settings.splits)}")
    return data_module(settings, test=path).source("test")


def _meant(path: str, splits: Sequence[str]) -> str:
    folder, name = Path(path).parent, Path(path).name
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    near = nearest(name, [*files, *splits])
    if near is not None:
        return f"; did you mean {near if near in splits else folder / near}?"
    return f"; the config has {', '.join(splits)}" if splits else "; expected a file of samples"


def _no_data(settings: Settings) -> str:
    if settings.config is None:
        return "--data: found none, and no config of a run beside a checkpoint; give --data FILE"
    return f"--data: found none, and no data.val in {settings.config}; give --data FILE"
