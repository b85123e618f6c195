"""The first answers of `predict` with their pictures: for a page, and for a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image

from lightning_vlm.callbacks.prediction_table.drawing import drawn_into
from lightning_vlm.callbacks.prediction_table.history import Answer, Validation, shorten
from lightning_vlm.callbacks.prediction_table.marks import LABEL, MOST, Mark
from lightning_vlm.callbacks.prediction_table.page import TITLE, write_page
from lightning_vlm.callbacks.prediction_table.samples import Place, Row, row_of
from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.images import image_size
from lightning_vlm.errors import DataError
from lightning_vlm.metrics.text import exact_match

MOST_SHOWN = 24
"""How many answers the page has."""


class Shown(NamedTuple):
    """An answer and its sample, as they are drawn."""

    row: Row
    answer: Answer

    @property
    def picture(self) -> PIL.Image.Image | None:
        """Its first picture with the boxes in it; None where there is none."""
        pictures = self.row.pictures
        if not pictures or pictures[0] is None:
            return None
        return drawn_into(pictures[0], self.row, self.answer, 0)


def shown_answer(number: int, line: Mapping[str, Any], asked: Conversation) -> Shown:
    """What is drawn of an answer.

    Args:
        number: Its place among those that are shown.
        line: Of the file of answers.
        asked: The sample.
    """
    sizes = _sizes(asked)
    found = []
    for box in (line["boxes"] or ())[:MOST]:
        size = sizes[box["image"]] if box["image"] < len(sizes) else None
        if size is not None:
            kind = box["type"]
            mark = Mark(kind, tuple(box[kind]), (box.get("label") or "")[:LABEL], box["image"])
            found.append(mark.scaled(size))
    reference = line["reference"]
    numbers = {name: value for name, value in line["scores"].items() if value is not None}
    numbers.pop("exact_match", None)
    reasoning = f"({line['reasoning'].strip()})\n" if line["reasoning"] else ""
    answer = Answer(
        text=shorten(reasoning + line["answer"]),
        right=None if reference is None else bool(exact_match(line["answer"], reference)),
        scores={name: round(value, 4) for name, value in numbers.items()},
        found=found,
        faults=[shorten(fault, 200) for fault in (line["unread"] or ())[:5]],
        prompt=shorten(line["prompt"]),
        target=None if reference is None else shorten(reference),
    )
    return Shown(row_of(Place(0, number), asked), answer)


def _sizes(asked: Conversation) -> list[tuple[int, int] | None]:
    sizes: list[tuple[int, int] | None] = []
    for image in asked.images:
        try:
            sizes.append(image_size(image, asked.source, "image"))
        except DataError:  # it could be opened before; an address may fail the second time
            sizes.append(None)
    return sizes


def save_page(answers: Path, shown: Sequence[Shown], count: int) -> Path | None:
    """Write the page beside the file of answers, under its name.

    Args:
        answers: The file of answers.
        shown: The first of them.
        count: How many there are.

    Returns:
        The page; None if a file that is no such page has its name, and stays.
    """
    path = answers.with_suffix(".html")
    if path.exists() and TITLE.encode() not in path.read_bytes()[:1000]:
        return None
    which = f"The {count:,}" if len(shown) == count else f"The first {len(shown):,} of {count:,}"
    intro = f"{which} answer{'s' * (count != 1)} in {answers.name}."
    write_page(
        path, [one.row for one in shown], [Validation(0, {one.row.place: one.answer for one in shown})], intro
    )
    return path


def first_places(
    lengths: Sequence[Sequence[int]], places: Sequence[Sequence[int]], most: int = MOST_SHOWN
) -> list[int]:
    """Which samples the first lines of a file of answers are about.

    Args:
        lengths: How many lines each batch of each process has.
        places: Of each process, the samples of its lines, or at least of the first ones.
        most: How many.

    >>> first_places([[2, 1], [1, 2]], [[0, 1, 4], [2, 5, 6]], most=5)
    [0, 1, 2, 4, 5]
    """
    found: list[int] = []
    left = [list(of_rank) for of_rank in places]
    for batch in range(max(map(len, lengths), default=0)):
        for counts, of_rank in zip(lengths, left, strict=True):
            count = counts[batch] if batch < len(counts) else 0
            found += of_rank[:count]
            del of_rank[:count]
        if len(found) >= most:
            break
    return found[:most]
