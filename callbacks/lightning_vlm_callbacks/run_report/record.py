"""The file that a run's report is made from: JSON lines, only ever appended to."""

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_vlm_callbacks.whole_files import naming

__all__ = ["Record"]


class Record:
    """Appends lines to a file, each flushed at once, so that a killed process keeps what it has written.

    A line is either `{"time", "step", "epoch", "metrics": {name: value}}` or
    `{"time", "step", "event": kind, "text", ...}`. Values that JSON has no number for are the strings `NaN`,
    `Infinity` and `-Infinity`, which `float` reads.

    Args:
        file: Its folder is made. What is in it already stays.

    Raises:
        OSError: A line can't be written, such as on a full disk; nothing of it is in the file then.

    >>> import tempfile
    >>> record = Record(Path(tempfile.mkdtemp(), "report.jsonl"))
    >>> record.add_metrics(7, {"loss": float("nan"), "lr": 0.1})
    >>> record.close()
    >>> record.file.read_text()
    '{"time": ..., "step": 7, "metrics": {"loss": "NaN", "lr": 0.1}}\\n'
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_inside_a_line(file)
        self._stream = file.open("ab", buffering=0)
        if torn:
            self._append("\n")

    def add_metrics(self, step: int, values: Mapping[str, Any], epoch: int | None = None) -> None:
        """Append the metrics of a step; what isn't a number is left out."""
        numbers = {}
        for name, value in values.items():
            try:
                numbers[name] = _json_number(float(value))
            except (TypeError, ValueError, RuntimeError):  # text, a picture, a tensor of several numbers
                continue
        if numbers:
            self._write({"step": step, **({} if epoch is None else {"epoch": epoch}), "metrics": numbers})

    def add_event(self, step: int, kind: str, text: str, values: Mapping[str, Any]) -> None:
        """Append an event; `values` are written as they are, and must be what JSON can hold."""
        self._write({"step": step, "event": kind, "text": text, **values})

    def copy(self, other: Path) -> None:
        """Append all lines of another record."""
        with other.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._append(line if line.endswith("\n") else f"{line}\n")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, entry: dict[str, Any]) -> None:
        line = json.dumps({"time": round(time.time(), 3), **entry}, ensure_ascii=False)
        self._append(f"{line}\n")

    def _append(self, line: str) -> None:
        """Append all of a line or nothing of it."""
        end = self._stream.seek(0, os.SEEK_END)
        rest = line.encode("utf-8", "backslashreplace")
        with naming(self.file):
            try:
                while rest:
                    rest = rest[self._stream.write(rest) :]
            except OSError:
                with suppress(OSError):
                    self._stream.truncate(end)
                raise


def _json_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _ends_inside_a_line(file: Path) -> bool:
    """Whether a process was killed while it wrote the last line."""
    if not file.exists() or file.stat().st_size == 0:
        return False
    with file.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read() != b"\n"
