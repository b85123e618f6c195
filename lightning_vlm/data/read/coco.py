"""Detection data of COCO: one JSON file of pictures, annotations and categories."""

import json
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Nothing, Region, Text
from lightning_vlm.data.images import image_size
from lightning_vlm.data.read.bounds import OnBadBox, Placed, within_pictures
from lightning_vlm.data.read.box_format import BoxFormat
from lightning_vlm.data.read.coco_content import KEYS, CocoContent
from lightning_vlm.data.read.data_file import BYTE_ORDER_MARK, unpack
from lightning_vlm.data.read.located import located
from lightning_vlm.data.read.pictures import picture_of
from lightning_vlm.data.read.reading import Location, say
from lightning_vlm.data.read.source import OnBadSample, Source
from lightning_vlm.data.read.words import describe
from lightning_vlm.data.skip_list import fingerprint_of_file
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import shorten

_EMPTY = "pictures without annotations are left out; keep_empty: true keeps them"
_PIXELS = BoxFormat("pixels", "xywh")
QUESTIONS = {
    "picture": "Find all objects of these kinds: {categories}.",
    "category": "Find every {category}.",
}
"""What is asked where `question` isn't given."""


class COCO(Source):
    """Detection data of COCO: a sample for each picture, whose answer is all boxes in it.

    Boxes are written from top to bottom and from left to right. Those of crowds are ignored. The sizes that
    the file says of its pictures must be theirs, upright, or else boxes would lie elsewhere.

    Args:
        path: The JSON file.
        image_root: The folder that `file_name` begins at. None is the folder of the file.
        on_bad_sample: As in `DataFile`.
        by: `picture` asks for everything in a picture, `category` for one category that it has at a time.
        question: What is asked. `{categories}` are the names of all categories, `{category}` is that one.
        regions: Whether the outlines in `segmentation` are the answer instead of the boxes.
        keep_empty: Whether pictures without annotations are kept; their answer is that nothing is there.
            Those of crowds alone never are.
        task: The task of its samples.
        bad_boxes: As in `DataFile`; `clip` also leaves out boxes without width or height.
        skip: As in `DataFile`; a picture is left out with all its samples.

    Raises:
        DataError: As `DataFile`.
        UserError: As `DataFile`.

    >>> import tempfile, PIL.Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> PIL.Image.new("RGB", (64, 48)).save(folder / "1.png")
    >>> data = {
    ...     "images": [{"id": 7, "file_name": "1.png", "width": 64, "height": 48}],
    ...     "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [8, 16, 24, 32]}],
    ...     "categories": [{"id": 3, "name": "cat"}],
    ... }
    >>> _ = (folder / "instances.json").write_text(json.dumps(data))
    >>> COCO(str(folder / "instances.json"))[0].messages[1].parts
    (Box(xyxy=(8.0, 16.0, 32.0, 48.0), label='cat', image=None, pixels=True),)
    """

    place_length = 1

    def __init__(
        self,
        path: str,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        by: Literal["picture", "category"] = "picture",
        question: str | None = None,
        regions: bool = False,
        keep_empty: bool = False,
        task: str = "detection",
        bad_boxes: OnBadBox = "error",
        skip: str | None = None,
    ) -> None:
        path = os.fspath(path)
        if by not in QUESTIONS:
            raise UserError(f"COCO: by is {by!r}; choose 'picture' or 'category'")
        if keep_empty and by == "category":
            raise UserError(
                "COCO: keep_empty is for by: picture, as no category of an empty picture is asked for"
            )
        self._file = unpack(path)
        self._by = by
        self._regions = regions
        self._keep_empty = keep_empty
        self._clips = bad_boxes == "clip"
        self._rows: list[bytes] = []
        self.conversation_of = _Asking(question or QUESTIONS[by], task)
        self._empty = 0
        image_root = image_root or str(Path(path).parent)
        super().__init__(path, image_root, on_bad_sample, bad_boxes=bad_boxes, skip=skip)
        if self._empty:
            self.notes.append(f"{_EMPTY} (pictures: {self._empty:,})")
            say(f"{self.name}: {self.notes[-1]}")

    def fingerprint(self) -> str:
        """Of the contents of the file."""
        return fingerprint_of_file(self._file)

    def _records(self) -> Iterator[tuple[tuple[int, ...], bytes]]:
        content = CocoContent(self._file, self.name, self._regions, self._clips)
        for row in content.rows(self._by, self._keep_empty):
            self._rows.append(json.dumps(row).encode())
            yield (len(self._rows) - 1,), self._rows[-1]
        self._empty = content.empty

    def _record(self, place: tuple[int, ...]) -> bytes:
        return self._rows[place[0]]

    def _name_of(self, place: tuple[int, ...]) -> str:
        picture = json.loads(self._rows[place[0]])["place"]
        return f"{self.name}:images[{picture}]"

    def _row(self, record: bytes, source: str) -> Any:
        row = json.loads(record)
        if "fault" in row:
            raise DataError(source, *row["fault"])
        return row


class _Asking:
    """Makes a conversation of a row.

    Args:
        question: As of `COCO`.
        task: As of `COCO`.
    """

    def __init__(self, question: str, task: str) -> None:
        self._question = question
        self._task = task

    def __call__(self, row: dict[str, Any], at: Location) -> Conversation:
        for note in row["notes"]:
            at.tally(note, "annotations")
        image = picture_of(row["file_name"], at / "file_name")
        words = self._question.replace("{categories}", ", ".join(row["categories"]))
        words = words.replace("{category}", row["asked"] or "")
        asked: list[Placed] = [(image, at / "file_name"), (Text(words), at)]
        answer: list[Placed] = []
        for place, label, _, bbox, outlines in row["items"]:
            at_item = at / "annotations" / place
            if outlines:
                regions = [located(outline, label, None, True, outline=True) for outline in outlines]
                answer += [(region, at_item / "segmentation") for region in regions]
            else:
                answer.append((located(_PIXELS.numbers(bbox), label, None, True), at_item / "bbox"))
        sizes = _checked_size(image, row["size"], at)
        question, found = within_pictures([asked, answer or [(Nothing(), at)]], sizes)
        # Crowds and other categories are in no answer, but nobody may ask for them as if they weren't there.
        here = [part for part in found if isinstance(part, Box | Region)]
        labels = {part.label for part in here}
        others = [Box((0.0, 0.0, 1.0, 1.0), name) for name in row["there"] if name not in labels]
        messages = (Message("user", question), Message("assistant", found))
        return Conversation(messages, self._task, 1.0, at.source, shown=(*here, *others))


def _checked_size(image: Image, said: list[Any], at: Location) -> dict[int, tuple[float, float]]:
    """The size of the picture, if the file says one and its rows are opened for the first time.

    Raises:
        DataError: It isn't what the file says, so that boxes would lie elsewhere.
    """
    if not at.reading.opening or image.path is None or None in said:
        return {}
    size = image_size(image, at.source, "file_name")
    if list(size) != said:
        width, height = map(describe, said)
        shown = shorten(str(image.path), 60)
        found = f"width {width} and height {height}, but {shown} has {size[0]}×{size[1]} pixels upright"
        turned = (
            " (its EXIF says that it is to be turned: save it upright)" if list(size) == said[::-1] else ""
        )
        raise at.error(found, f"the picture that was annotated{turned}")
    return {0: size}


def is_coco(path: str) -> bool:
    """Whether a JSON file has the three lists of COCO, judged without reading it as JSON.

    Args:
        path: A file.
    """
    if not path.lower().endswith(".json") or not os.path.isfile(path) or not os.path.getsize(path):
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        beginning = content[:1024].removeprefix(BYTE_ORDER_MARK).lstrip()
        first = re.match(rb'\{\s*"(?:images|annotations|categories|info|licenses)"\s*:', beginning)
        return first is not None and all(content.find(f'"{key}"'.encode()) >= 0 for key in KEYS)
