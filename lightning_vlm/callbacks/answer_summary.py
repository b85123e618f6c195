"""What `predict` prints at its end."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rich import get_console

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
    """

    where: str
    answers: int
    first: Sequence[dict[str, Any]]
    skipped: Sequence[str]
    scores: dict[str, float]
    kept: Sequence[str] = ()


def print_end(end: End) -> None:
    """Print the first answers, the scores, what was skipped, and where the answers are."""
    for block in answer_blocks(end.first, get_console().width):
        say("", block)
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
    more = f"; {len(end.skipped):,} skipped" if end.skipped else ""
    print_line("answers", f"{end.answers:,} {end.where}{more}")


def _first(errors: Sequence[str]) -> Iterator[str]:
    """The first errors, and how many more there are."""
    yield from errors[:NAMED]
    if len(errors) > NAMED:
        yield f"and {len(errors) - NAMED:,} more"
