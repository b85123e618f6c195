"""Pictures without a data file: each is asked the same question."""

import os
from pathlib import Path

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, TaskTable, Text
from lightning_vlm.data.images import image_size
from lightning_vlm.data.read.folders import TABLE_FILES, TEXT_FILES, all_files
from lightning_vlm.data.read.reading import say
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"),
    *(".heic", ".heif"),  # they aren't read, and are named as such
)
"""The names of pictures end in these."""
_DATA = (*TEXT_FILES, *TABLE_FILES)


class PictureFiles(Conversations):
    """A picture, or all pictures of a folder and of its folders, each with the same question.

    They are sorted by their paths, which are their ids. Hidden files and folders are left out, links to
    folders aren't followed, and a picture that can't be opened is skipped when its turn comes.

    Args:
        path: The picture or the folder.
        prompt: What is asked about each.

    Raises:
        UserError: There is no picture, or the question is empty.
        DataError: A picture that is named alone can't be opened.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.png", "a.jpg", "notes.txt"):
    ...     (folder / name).touch()
    >>> pictures = PictureFiles(str(folder), "What is this?")
    >>> [picture.id for picture in pictures]
    ['a.jpg', 'b.png']
    """

    only_words = True

    def __init__(self, path: str, prompt: str) -> None:
        if not prompt.strip():
            raise UserError("prompt: found an empty text; expected a question, such as 'What is this?'")
        self.path = path
        """As it was given."""
        self._prompt = prompt
        self._root = path
        if os.path.isfile(path):
            self._root, name = os.path.split(path)
            self._names = [name]
            image_size(self._image(name), path, "picture")
            return
        if not os.path.isdir(path):
            raise UserError(f"data.predict: found no picture or folder {path}{_near(path)}")
        files = [os.path.relpath(file, path) for file in all_files(path)]
        self._names = sorted(name for name in files if is_picture(name))
        others = len(files) - len(self._names)
        left = "1 other file is" if others == 1 else f"{others:,} other files are"
        also = f"; {left} left out" if others else ""
        if not self._names:
            found = f"none among {counted(others, 'file')}" if others else "no file"
            raise UserError(
                f"data.predict: found no picture in {path}, {found}; expected .jpg, .png and such"
            )
        count = len(self._names)
        say(f"{path}: {counted(count, 'picture')}{also}")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        name = self._names[index]
        return asked(self._image(name), self._prompt, os.path.join(self._root, name), Path(name).as_posix())

    def paths(self) -> list[Path]:
        """The pictures, as paths."""
        return [Path(self._root, name) for name in self._names]

    def _image(self, name: str) -> Image:
        return Image(path=Path(name), root=Path(self._root or "."))

    def task_table(self) -> TaskTable:
        """All of one task."""
        return TaskTable.of_samples("default" for _ in self._names)


def asked(image: Image, prompt: str, source: str, name: str | None = None) -> Conversation:
    """A question about a picture.

    Args:
        image: The picture, which stands before the words.
        prompt: The words.
        source: What errors call it.
        name: Its id.
    """
    return Conversation((Message("user", (image, Text(prompt))),), source=source, id=name)


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its name."""
    return name.lower().endswith(SUFFIXES)


def has_only_pictures(path: str) -> bool:
    """Whether a path is a picture, or a folder of pictures without a data file."""
    if os.path.isfile(path):
        return is_picture(path)
    if not os.path.isdir(path):
        return False
    files = all_files(path)
    has_data = any(name.lower().removesuffix(".gz").endswith(_DATA) for name in files)
    return not has_data and any(map(is_picture, files))


def _near(path: str) -> str:
    """What was probably meant by a path that isn't there."""
    folder, name = os.path.split(path.rstrip(os.sep))
    try:
        return did_you_mean(name, os.listdir(folder or "."))
    except OSError:
        return ""
