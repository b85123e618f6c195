"""Which options streamed data can't have, and why."""

from collections.abc import Mapping
from typing import Any

from lightning_vlm.data.batch.batching_checks import Mode
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.read.reading import say
from lightning_vlm.data.streams.files import SUFFIXES, can_stream, is_shards
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.task_table import OTHER, TaskTable
from lightning_vlm.errors import UserError


def is_streamed(split: str, path: str, streaming: Streaming | None) -> bool:
    """Whether the path of a split is read as shards.

    Args:
        split: `train`, `val`, `test` or `predict`.
        path: As it was given.
        streaming: `data.streaming`.

    Raises:
        UserError: Shards without `data.streaming`, or training data that can't be streamed with it.
    """
    if path.startswith("[") and path.endswith("]"):
        raise UserError(
            f"data.{split}: found the list {path}; expected one file, or a Chain of several, each a DataFile "
            "with its path"
        )
    if streaming is None:
        if is_shards(path):
            raise UserError(
                f"data.{split}: found {path}, which names shards; they are read with data.streaming: true"
            )
        return False
    if can_stream(path) or (split == "train" and path.count("/") == 1):
        return True
    if split == "train":
        raise UserError(
            f"data.train: found {path}, which can't be streamed; expected shards that end in "
            f"{', '.join(SUFFIXES)}, or no data.streaming"
        )
    say(f"data.{split}: {path} is read as a whole; only what ends in {', '.join(SUFFIXES)} is streamed")
    return False


def check_splits(given: Mapping[str, Any], shares: Mapping[str, float], negatives: Any, skip: Any) -> None:
    """Check that nothing needs to go through all training data before it begins.

    Raises:
        UserError: Something does.
    """
    for split in shares:
        raise UserError(
            f"data.{split}: found {given[split]}, but to hold samples out all of them would have to be read "
            f"first, which data.streaming doesn't do; give data.{split} shards of its own, such as the first "
            "of them"
        )
    if negatives is not None:
        raise UserError(
            "data.negatives: to know what isn't in pictures all samples would have to be read first, which "
            "data.streaming doesn't do; leave one of them out"
        )
    if skip is not None:
        raise UserError(
            "data.skip: lists of rows are for files that are read as a whole; with data.streaming, "
            "data.on_bad_sample: skip leaves bad rows out as they come"
        )


def check_batches(mode: Mode, sampling: TaskSampling | None, table: TaskTable) -> None:
    """Check that batches can be made of samples that nobody has read.

    Raises:
        UserError: They can't.
    """
    if mode != "padded":
        raise UserError(
            f"data.batching: found {mode}, for which all samples would have to be measured first, which "
            "data.streaming doesn't do; leave it out, or read files without data.streaming"
        )
    if sampling is not None and OTHER in table.names:
        raise UserError(
            "data.sampling: found no task of samples that weren't read yet; say which shards are of which "
            "task, such as data.streaming: {tasks: {vqa: '*vqa*', ocr: '*ocr*'}}"
        )
