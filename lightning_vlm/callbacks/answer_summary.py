"""What `predict` prints at its end."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import PIL.Image
from rich import get_console

from lightning_vlm.callbacks.answer_pictures import show_picture
from lightning_vlm.metrics.score_table import heading, score_table
from lightning_vlm.terminal import answer_blocks, print_line, print_lines, say, wrapped

NAMED = 5
"""How many of those that were skipped are named."""


class End(NamedTuple):
    """What a run came to.

    Args:
        where: The answers are, in words.
        answers: How many there are.
        first: The first of them, as their lines say.
        skipped: The errors of what was skipped.
        scores: Of all answers, and for each task.
        kept: What was kept to train on, in lines.
        pictures: Those of the first answers, with boxes in them.
        page: Where the page is, in words.
    """

    where: str
    answers: int
    first: Sequence[dict[str, Any]]
    skipped: Sequence[str]
    scores: dict[str, float]
    kept: Sequence[str] = ()
    pictures: Sequence[PIL.Image.Image | None] = ()
    page: str | None = None


def print_end(end: End) -> None:
    """Print the first answers, the scores, what was skipped, and where the answers are."""
    console = get_console()
    for block, picture in zip_longest(answer_blocks(end.first, console.width), end.pictures):
        if block is None:
            break
        say("", block)
        if picture is not None:
            show_picture(picture, console)
    if end.first:
        say("")
    of_all = {name: value for name, value in end.scores.items() if "/" not in name}
    if of_all:
        texts = [f"{heading(name)} {value:.3f}" for name, value in of_all.items()]
        print_line("scores", ", ".join(texts))
    if len(end.scores) > len(of_all):
        table = score_table("Scores", {f"test/{name}": value for name, value in end.scores.items()}, "test")
        if table is not None:
            say(table)
    print_lines("skipped", wrapped(_first(end.skipped)))
    print_lines("kept", wrapped(end.kept))
    if end.page is not None:
        print_line("page", end.page)
    more = f"; {len(end.skipped):,} skipped" if end.skipped else ""
    print_line("answers", f"{end.answers:,} {end.where}{more}")


def _first(errors: Sequence[str]) -> Iterator[str]:
    """The first errors, and how many more there are."""
    yield from errors[:NAMED]
    if len(errors) > NAMED:
        yield f"and {len(errors) - NAMED:,} more"
