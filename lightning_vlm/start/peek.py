"""The first rows of a data file, whether they can be read or not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_vlm.data.conversation import Conversation, Image, Video
from lightning_vlm.data.read.dialects import KNOWN, Dialect, find_dialect
from lightning_vlm.data.read.folders import TABLE_FILES
from lightning_vlm.data.read.hf_dataset import HFDataset
from lightning_vlm.data.read.readers import DataFile
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.rows import any_conversation
from lightning_vlm.data.read.source import Source
from lightning_vlm.errors import DataError, UserError

ROWS = 400
"""How many rows are looked at."""


@dataclass
class Peek:
    """What the first rows of a file are.

    Args:
        rows: As the file has them; what isn't an object is left out.
        media: The pictures and videos that they name, whether or not these are there.
        conversations: Those of the rows that can be read.
        errors: Those of the others.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    media: list[Image | Video] = field(default_factory=list)
    conversations: list[Conversation] = field(default_factory=list)
    errors: list[DataError] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The paths of pictures and videos, as they are written."""
        return [str(medium.path) for medium in self.media if medium.path is not None]

    def read(self, row: Any, at: Location, finds_media: bool) -> Conversation:
        """Read a row, as `conversation_of` of a source does.

        Args:
            row: The row.
            at: Where it stands.
            finds_media: Whether pictures must be there.
        """
        if len(self.rows) >= ROWS:
            raise _Enough
        if isinstance(row, dict):
            self.rows.append(row)
        look = at.reading.check_image

        def note(medium: Image | Video, source: str, key: str) -> None:
            self.media.append(medium)
            if finds_media:
                look(medium, source, key)

        try:
            conversation = any_conversation(row, at._replace(reading=replace(at.reading, check_image=note)))
        except DataError as error:
            self.errors.append(error)
            raise
        self.conversations.append(conversation)
        return conversation


class _Enough(Exception):  # noqa: N818  # not an error
    """So many rows were read."""


def peek(
    path: str,
    columns: Mapping[str, str] | None = None,
    image_root: str | None = None,
    box_format: str | None = None,
    split: str | list[str] | None = None,
    finds_media: bool = False,
) -> Peek:
    """Read the first rows of a file or a data set of rows.

    Args:
        path: As of `readers.read`, but no file of COCO.
        columns: As there.
        image_root: As there.
        box_format: As there.
        split: Of a data set that has several.
        finds_media: Whether pictures must be there.

    Raises:
        DataError: There is no such file, or not a single row can be found in it.
        UserError: As `readers.read`.
    """
    found = Peek()
    kind: type[Source] = HFDataset if is_table(path) else DataFile

    class Peeking(kind):  # type: ignore[misc,valid-type]
        conversation_of = staticmethod(lambda row, at: found.read(row, at, finds_media))

    more = {"split": split} if kind is HFDataset else {}
    try:
        Peeking(
            path,
            image_root=image_root,
            on_bad_sample="skip",
            columns=columns,
            allow_urls=True,
            box_format=box_format,
            **more,
        )
    except _Enough:
        pass
    except UserError as error:  # a DataError too: what is wrong with single rows is in `errors`
        if not found.rows:
            raise found.errors[0] if found.errors else error from None
    return found


def is_table(path: str) -> bool:
    """Whether `datasets` reads it, and not we."""
    return not Path(path).is_file() or path.lower().endswith(TABLE_FILES)


def dialect_in(row: Mapping[str, Any]) -> Dialect | None:
    """The dialect of a row, whose keys may be in capital letters; None where none is known."""
    lower = {name.lower() if name.lower() in KNOWN else name: value for name, value in row.items()}
    return find_dialect({name: value for name, value in lower.items() if value is not None})
