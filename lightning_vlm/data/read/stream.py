"""Questions that come in over time, one a line, such as from a pipe."""

import os
import select
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from lightning_vlm.data.conversation import Conversation, Conversations, Image, TaskTable
from lightning_vlm.data.images import find_image
from lightning_vlm.data.read.bounds import OnBadBox
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.data_file import decode
from lightning_vlm.data.read.faults import Faults
from lightning_vlm.data.read.json_layout import JsonLayout
from lightning_vlm.data.read.limits import LONGEST_ROW
from lightning_vlm.data.read.picture_files import asked
from lightning_vlm.data.read.reading import AllowUrls, Location, Reading, say
from lightning_vlm.data.read.rows import any_conversation
from lightning_vlm.errors import DataError

STDIN = "-"
"""The path that stands for standard input."""
ENDLESS = 1_000_000_000
"""How long a stream says that it is: nobody knows."""
_CHUNK = 1 << 16


class Stream(Conversations):
    """Rows of JSON, or paths of pictures with one question for all, as they come.

    Each line is one sample, also an empty or a broken one, which raises when it is asked for. Only the lines
    that were taken last are there.

    Args:
        prompt: The question about each picture; then lines are paths. None: lines are rows in any dialect.
        image_root: Where paths of pictures begin; None is the working directory.
        columns: As of `read`; so are the others.
        allow_urls: For rows.
        bad_boxes: For rows.
        box_format: For rows.
        descriptor: Where lines come from; None is standard input.
    """

    def __init__(
        self,
        prompt: str | None = None,
        image_root: str | None = None,
        columns: Mapping[str, str] | None = None,
        allow_urls: AllowUrls = False,
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        descriptor: int | None = None,
    ) -> None:
        self._prompt = prompt
        self._reading = Reading(
            Path(image_root or "."),
            Faults("stdin").check_image,
            allow_urls,
            dict(columns or {}),
            bad_boxes=bad_boxes,
            box_format=BoxFormat.read(box_format),
        )
        self._layout = JsonLayout("stdin.jsonl", "stdin")
        self._descriptor = sys.stdin.fileno() if descriptor is None else descriptor
        self._begun = bytearray()
        self._whole: deque[bytes] = deque()
        self._is_over = False
        self._lines: dict[int, bytes] = {}
        self._taken = 0
        self.ids: dict[int, str | int] = {}
        """What the lines that were taken last call themselves, even those that are broken otherwise."""

    def take(self, most: int) -> list[int]:
        """The numbers of the next lines, from 1: those that are there, and at least one, which is waited for.

        Returns:
            At most so many; none at the end.
        """
        lines: list[bytes] = []
        while len(lines) < most:
            if self._whole:
                lines.append(self._whole.popleft())
            elif self._is_over or (lines and not self._is_ready()):
                break
            else:
                self._read()
        numbers = range(self._taken + 1, self._taken + len(lines) + 1)
        self._taken += len(lines)
        self._lines = dict(zip(numbers, lines, strict=True))
        self.ids = {}
        if not lines:
            for note in self._reading.notes.lines():
                say(f"stdin: {note}")
        return list(numbers)

    def _read(self) -> None:
        """Read what is there, at most a chunk. Of a line that is too long only the beginning is kept."""
        chunk = os.read(self._descriptor, _CHUNK)
        self._is_over = not chunk
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._begun += piece
            self._whole.append(bytes(self._begun))
            self._begun.clear()
        if len(self._begun) <= LONGEST_ROW:
            self._begun += rest
        if self._is_over and self._begun:
            self._whole.append(bytes(self._begun))
            self._begun.clear()

    def _is_ready(self) -> bool:
        """Whether more can be read at once."""
        try:
            return bool(select.select([self._descriptor], [], [], 0)[0])
        except (OSError, ValueError):  # on Windows only sockets can be asked
            return False

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        source = f"stdin:{index}"
        line = self._lines[index].removesuffix(b"\r")
        if not line.strip():
            raise DataError(source, "", "an empty line", "a question, which each line of the input is")
        if self._prompt is not None:
            return self._about_picture(decode(line, source), self._prompt, index)
        row = self._layout.parse(line, source)
        name = row.get(self._reading.columns.get("id", "id")) if isinstance(row, dict) else None
        if isinstance(name, str | int):
            self.ids[index] = name
        return any_conversation(row, Location(source, self._reading))

    def _about_picture(self, path: str, prompt: str, index: int) -> Conversation:
        self.ids[index] = path
        root = Path("/") if os.path.isabs(path) else self._reading.root
        image = Image(path=Path(path), root=root)
        find_image(image, f"stdin:{index}", "picture")
        return asked(image, prompt, f"stdin:{index}", path)

    def task_table(self) -> TaskTable:
        """Of none, as nobody knows what comes."""
        return TaskTable.of_samples(())
