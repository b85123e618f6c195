"""The page of answers, one HTML file that needs no other: `page.html` is its template."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm_callbacks.whole_files import write_whole

from lightning_vlm.callbacks.prediction_table.history import Answer, Validation
from lightning_vlm.callbacks.prediction_table.marks import Mark
from lightning_vlm.callbacks.prediction_table.samples import SIDE, Row
from lightning_vlm.outputs.html import data_uri, templates
from lightning_vlm.terminal import visible

EXACT = 96 * 96
"""A picture of so many pixels at most keeps them exactly."""
TITLE = "What the model answers"
WIDTH = 230
"""How wide a picture is shown, in pixels of the page."""


class Card(NamedTuple):
    """What was answered to a sample at one validation.

    Args:
        step: After how many steps.
        answer: What was answered; None if the sample had no answer then.
    """

    step: int
    answer: Answer | None


class Section(NamedTuple):
    """A sample on the page.

    Args:
        row: What stays the same of it.
        prompt: What is asked.
        target: The right answer; None if it is unknown.
        cards: Its answers, the first validation first.
    """

    row: Row
    prompt: str
    target: str | None
    cards: list[Card]


def write_page(
    path: Path, rows: Sequence[Row], validations: Sequence[Validation], intro: str | None = None
) -> None:
    """Write the page; others see it whole or not at all.

    Args:
        path: The file. Its folder is made.
        rows: The samples.
        validations: Their answers, the first validation first.
        intro: What they are, where they aren't those of validations.
    """
    write_whole(path, page(rows, validations, intro))


def page(rows: Sequence[Row], validations: Sequence[Validation], intro: str | None = None) -> str:
    """The whole page."""
    filters: dict[str, Any] = {
        "data_uri": lambda picture: data_uri(picture, SIDE, EXACT),
        "path": svg_path,
        "short": "{:.4g}".format,
        "visible": visible,
    }
    sections = []
    for row in rows:
        cards = [Card(step, answers.get(row.place)) for step, answers in validations]
        last = next((card.answer for card in reversed(cards) if card.answer is not None), None)
        if last is not None:
            sections.append(Section(row, last.prompt, last.target, cards))
    template = templates(Path(__file__).parent, filters).get_template("page.html")
    steps = [step for step, _ in validations]
    return template.render(sections=sections, steps=steps, width=WIDTH, title=TITLE, intro=intro)


def svg_path(mark: Mark, width: int, height: int) -> str:
    """The outline of a mark in a picture of a size; a point is a small diamond.

    >>> svg_path(Mark("box", (0.0, 0.5, 0.5, 1.0)), 100, 50)
    'M0 25L50 25L50 50L0 50Z'
    """
    corners = mark.in_pixels(width, height)
    if mark.kind == "point":
        ((x, y),) = corners
        half = max(width, height) / 50
        corners = [(x - half, y), (x, y - half), (x + half, y), (x, y + half)]
    return "M" + "L".join(f"{x:.4g} {y:.4g}" for x, y in corners) + "Z"
