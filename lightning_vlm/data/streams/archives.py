"""Shards that are tar archives, as webdataset writes them."""

import io
import os
import struct
import tarfile
from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from lightning_vlm.data.conversation import Conversation, Image, Message, Part, Video
from lightning_vlm.data.read.data_file import decode, open_file
from lightning_vlm.data.read.json_layout import JsonLayout
from lightning_vlm.data.read.picture_files import is_picture
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.row_media import COLUMNS
from lightning_vlm.data.read.rows import any_conversation
from lightning_vlm.data.read.words import quote
from lightning_vlm.data.streams.shard import Shard, open_once
from lightning_vlm.errors import DataError
from lightning_vlm.nearest import did_you_mean, shorten

_BLOCK = 512
_AHEAD = 1 << 18
_MOST_BYTES = 1 << 30
"""A larger sample is refused before it is read."""
_HEADER = struct.Struct("100s24x11s21xB100x5s83xB")
"""Of a header: the name, the octal length, the type, `ustar`, and whether the name is longer."""
_NEAR = 1 << 13
"""Headers that lie so near to each other are read together."""
_FILES = b"0\0" + b"7"
"""The types of members that are files; folders and links are none."""
_NAMES = b"Lx"
"""The types of what says the name of the member behind it: that of GNU, and that of POSIX."""
_VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
_LAYOUT = "a whole tar archive without compression"


class Archive(Shard):
    """A tar archive of samples as webdataset has them: members that follow each other and share a name.

    `0001.jpg` and `0001.json` are one sample. What ends in `.json` is its row in any dialect; without one,
    `.txt` is the caption of the picture. A row names pictures and videos by the names of members, and has all
    of its sample if it names none. They are read from the archive, and nothing outside of it ever is.

    Opening it goes from header to header, and 8 bytes a sample remain.

    Args:
        path: The file.

    Raises:
        DataError: It is no such archive, or a broken one.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._layout = JsonLayout(path, path)
        with open_file(path, path, _LAYOUT) as file:
            self._starts = np.array(_starts(file, path), np.int64)

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(self._starts) - 1

    def name_of(self, number: int) -> str:
        """`file:sample`, counted from 0; errors about what is in a sample have its name instead."""
        return f"{self.path}:{number}"

    def _row(self, number: int, source: str) -> Any:
        members = _Members(self._read(number, source), source)
        return members.row(self._layout)

    def _conversation(self, number: int, at: Location) -> Conversation:
        data = self._read(number, at.source)
        source = f"{self.path}:{_key(next(iter(data)))}"
        members = _Members(data, source)
        reading = replace(at.reading, check_image=members.check)
        conversation = any_conversation(members.row(self._layout), Location(source, reading))
        return members.with_bytes(conversation)

    def _read(self, number: int, source: str) -> dict[str, bytes]:
        """The members of a sample: name -> contents."""
        start, stop = int(self._starts[number]), int(self._starts[number + 1])
        if stop - start > _MOST_BYTES:
            raise DataError(source, "", f"a sample of {stop - start:,} bytes", f"at most {_MOST_BYTES:,}")
        try:
            data = os.pread(open_once(self.path).fileno(), stop - start, start)
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                found = {
                    member.name: opened.read()
                    for member in archive
                    if _is_wanted(member.name) and (opened := archive.extractfile(member)) is not None
                }
        except (OSError, tarfile.TarError, KeyError) as error:
            raise DataError(source, "", f"a sample that can't be read ({error})", _LAYOUT) from None
        if not found:
            raise DataError(source, "", "a sample without members", _LAYOUT)
        return found


class _Members:
    """The members of a sample.

    Args:
        data: Name -> contents.
        source: What errors call the sample.
    """

    def __init__(self, data: Mapping[str, bytes], source: str) -> None:
        self._source = source
        self._by_name = {**{os.path.basename(name): content for name, content in data.items()}, **data}
        self._names = [os.path.basename(name) for name in data]

    def row(self, layout: JsonLayout) -> Any:
        """What the sample says, with its pictures and videos if it doesn't name them itself."""
        row, written = self._words(layout)
        names = [name for name in self._names if is_picture(name) or name.lower().endswith(_VIDEOS)]
        is_named = any(name.encode() in written for name in names)
        if not isinstance(row, dict) or is_named or any(name in row for name in COLUMNS):
            return row
        videos = [name for name in names if not is_picture(name)]
        pictures = [name for name in names if is_picture(name)]
        media = {"images": pictures} if pictures else {}
        return {**row, **media, **({"videos": videos} if videos else {})}

    def _words(self, layout: JsonLayout) -> tuple[Any, bytes]:
        """The row without pictures, and its bytes."""
        for name in self._names:
            if name.lower().endswith(".json"):
                return layout.parse(self._by_name[name], self._source), self._by_name[name]
        for name in self._names:
            if name.lower().endswith(".txt"):
                return {"text": decode(self._by_name[name], self._source).strip()}, b""
        raise DataError(
            self._source,
            "",
            f"a sample of {quote(self._names)}",
            "a .json or .txt among its members, which must follow each other (`tar --sort=name` does that)",
        )

    def check(self, medium: Image | Video, source: str, key: str) -> None:
        """Raise if a picture or a video is no member."""
        if medium.path is not None and str(medium.path) not in self._by_name:
            near = did_you_mean(str(medium.path), self._names, quoted=True)
            expected = f"the name of a member of its sample: {quote(self._names)}{near}"
            raise DataError(source, key, shorten(str(medium.path)), expected, "missing_file")

    def with_bytes(self, conversation: Conversation) -> Conversation:
        """A conversation with the contents of members in place of their names."""
        messages = tuple(self._message(message) for message in conversation.messages)
        return conversation.with_messages(messages)

    def _message(self, message: Message) -> Message:
        parts = tuple(map(self._part, message.parts))
        return message if parts == message.parts else replace(message, parts=parts)

    def _part(self, part: Part) -> Part:
        if isinstance(part, Video) and part.frames:
            return replace(part, frames=tuple(map(self._filled, part.frames)))
        return self._filled(part) if isinstance(part, Image | Video) else part

    def _filled(self, medium: Any) -> Any:
        if medium.path is None:
            return medium
        return replace(medium, path=None, root=None, data=self._by_name[str(medium.path)])


def _key(name: str) -> str:
    """What the members of a sample share: all before the first dot of the file's name.

    >>> _key("images/0001.seg.png"), _key("./0001.json")
    ('images/0001', '0001')
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}"


def _is_wanted(name: str) -> bool:
    return not os.path.basename(name).startswith(".")


def _starts(file: BinaryIO, path: str) -> array:
    """Where each sample begins, and where the last one ends.

    A million samples have two million headers, so that names are compared as bytes and nothing is made of
    them. How much is read ahead follows how near headers lie: large pictures are jumped over.
    """
    size = os.fstat(file.fileno()).st_size
    handle = file.fileno()
    starts = array("q")
    key: bytes | None = None
    long_name: bytes | None = None
    begin = place = base = end = 0  # of a member with what stands before its header, its header, the buffer
    buffer, ahead = b"", _BLOCK
    while place < size:
        offset = place - base
        if offset + _BLOCK > len(buffer):
            ahead = min(2 * ahead, _AHEAD) if offset < len(buffer) + _NEAR else _BLOCK
            buffer, base, offset = os.pread(handle, ahead, place), place, 0
        if offset + _BLOCK > len(buffer):
            raise _broken(path, place, "an archive that breaks off")
        name, octal, kind, magic, is_long = _HEADER.unpack_from(buffer, offset)
        if magic != b"ustar":
            if not name[0]:
                break  # blocks of zeros end an archive
            raise _broken(path, place, "what is no header of a tar archive")
        try:
            length = int(octal, 8)
        except ValueError:
            length = _length(buffer[offset + 124 : offset + 136], path, place)
        stop = place + _BLOCK + -(-length // _BLOCK) * _BLOCK
        if length < 0 or place + _BLOCK + length > size:
            raise _broken(path, place, "an archive that breaks off")
        if kind in _NAMES:
            data = os.pread(handle, min(length, 1 << 20), place + _BLOCK)
            long_name = _long_name(kind, data) or long_name
            place = stop
            continue
        if kind in _FILES:
            if long_name is not None:
                name = long_name
            elif is_long:  # the beginning of a long path stands elsewhere
                name = buffer[offset + 345 : offset + 500].rstrip(b"\0") + b"/" + name
            last = name.rfind(b"/") + 1
            if name[last : last + 1] != b".":  # hidden, such as what macOS adds
                found = name[: name.find(b".", last)]
                if found != key:
                    starts.append(begin)
                    key = found
                end = stop
        long_name = None
        begin = place = stop
    starts.append(end)
    return starts


def _broken(path: str, place: int, found: str) -> DataError:
    return DataError(path, f"byte {place:,}", found, _LAYOUT)


def _length(field: bytes, path: str, place: int) -> int:
    """The length of a member, octal or, from 8 GiB on, binary."""
    try:
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        return int(field.rstrip(b" \0") or b"0", 8)
    except ValueError:
        raise _broken(path, place, "a broken header") from None


def _long_name(kind: int, data: bytes) -> bytes | None:
    """The name of the next member, if what stands before its header says it."""
    if kind == _NAMES[0]:
        return data.rstrip(b"\0")
    while data:
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            break
        key, _, value = data[len(length) + 1 : int(length)].partition(b"=")
        if key == b"path":
            return value.rstrip(b"\n")
        data = data[int(length) :]
    return None
