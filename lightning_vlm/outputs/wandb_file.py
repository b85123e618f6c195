"""Whether the file of an offline run of Weights & Biases is whole, which its own process writes."""

import atexit
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

_HEADER, _BLOCK = 7, 32768
"""Bytes before each piece of a record, and of a block, which no piece crosses."""
_WHOLE, _FIRST, _LAST = 1, 2, 4
"""Kinds of pieces: a whole record, the first of one, the last of one. Others are in between."""


def warn_of_lost_lines(logger: Logger) -> None:
    """Let this process say at its end if what an offline run has logged isn't all in its file.

    On a full disk the process of Weights & Biases writes nothing more, also when there is room again, and
    tells nobody. Call it before the run begins, so that this comes behind the end of that process.

    Args:
        logger: One of another kind is left alone.
    """
    if isinstance(logger, WandbLogger):
        atexit.register(say_if_cut, logger)


def say_if_cut(logger: WandbLogger) -> None:
    """Say it if the file of a logger's offline run, which has ended, isn't whole."""
    run = logger._experiment
    if run is None or not getattr(run, "offline", False):
        return
    for file in Path(run.dir).parent.glob("run-*.wandb"):
        if not has_end(file):
            print(
                f"warning: Weights & Biases: {file} has no end, as where the disk was full; what was "
                "logged last isn't in it",
                file=sys.stderr,
            )


def has_end(file: Path) -> bool:
    """Whether a file of Weights & Biases ends as one of a run that was written to its end.

    Args:
        file: `run-ID.wandb`; what it holds before its last two blocks isn't read.
    """
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    for content in _last_records(file):
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "exit":
            return True
    return False


def _last_records(file: Path) -> Iterator[bytes]:
    """The records in the last blocks of a file: a log as LevelDB writes it, behind seven bytes."""
    with open(file, "rb") as opened:
        size = opened.seek(0, 2)
        start = max(0, size // _BLOCK - 1) * _BLOCK
        opened.seek(start)
        content = opened.read()
    at = _HEADER if start == 0 else 0
    record: bytes | None = None
    while at + _HEADER <= len(content):
        if (room := _BLOCK - at % _BLOCK) < _HEADER:  # zeros fill the block
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        piece = content[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if len(piece) < length:
            return
        if kind in (_WHOLE, _FIRST):
            record = b""
        if record is not None:  # the first block may begin inside of one
            record += piece
            if kind in (_WHOLE, _LAST):
                yield record
                record = None
