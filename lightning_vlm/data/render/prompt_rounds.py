"""Which rounds of a long prompt are left out, so that its answer has room."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.conversation import Image, Video
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.fitting import turns_within
from lightning_vlm.data.render.turns import Turn, round_ends
from lightning_vlm.errors import UserError

LEFT_OUT = "early rounds of the prompt are left out, so that data.answer_tokens fit behind it"


def check_answer_tokens(answer_tokens: int | None, max_length: int | None) -> None:
    """Raise unless some tokens of `max_length` are left for a prompt.

    >>> check_answer_tokens(512, None)
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: data.answer_tokens is 512; expected data.max_length too, which they are
    part of
    """
    if answer_tokens is None:
        return
    found = f"data.answer_tokens is {answer_tokens}"
    if max_length is None:
        raise UserError(f"{found}; expected data.max_length too, which they are part of")
    if not 0 < answer_tokens < max_length:
        raise UserError(f"{found}; expected at least 1, and less than data.max_length {max_length}")


class RenderOnce:
    """Renders turns of one prompt, each number of them once.

    Args:
        render: Renders them.
    """

    def __init__(self, render: Callable[[Sequence[Turn]], Example]) -> None:
        self._render = render
        self._rendered: dict[int, Example] = {}

    def __call__(self, turns: Sequence[Turn]) -> Example:
        """The rendering of some turns."""
        if len(turns) not in self._rendered:
            self._rendered[len(turns)] = self._render(turns)
        return self._rendered[len(turns)]


def fitting_turns(
    render: RenderOnce, turns: list[Turn], tokenizer: PreTrainedTokenizerBase, most: int, answer_tokens: int
) -> tuple[list[Turn], tuple[str, ...]]:
    """The turns of a prompt without as many of its earliest rounds as don't fit.

    What the system says, rounds with pictures or videos, and the last question stay. No rendering is much
    longer than twice the limit.

    Args:
        render: Renders turns as a prompt.
        turns: Of a prompt.
        tokenizer: Of the model.
        most: The most tokens of the prompt and its answer.
        answer_tokens: Those of them that the answer may have; with 0 nothing is left out.

    Returns:
        The turns that fit, or the fewest that there can be; and what was done to them.
    """
    rounds = _words_alone(turns) if answer_tokens else []
    limit = most - answer_tokens
    if not rounds:
        return turns, ()

    def keeping(count: int) -> list[Turn]:
        """The turns with the last of the rounds that may be left out, so many of them."""
        dropped = {place for one in rounds[: len(rounds) - count] for place in one}
        return [turn for place, turn in enumerate(turns) if place not in dropped]

    def fits(count: int) -> bool:
        kept = keeping(count)
        _, counted = turns_within(kept, limit, tokenizer)
        return counted is None and len(render(kept).input_ids) <= limit

    if fits(len(rounds)):
        return turns, ()
    kept, too_many = 0, len(rounds)
    step = 1
    while kept + step < too_many and fits(kept + step):
        kept += step
        step *= 2
    too_many = min(too_many, kept + step)
    while too_many - kept > 1:
        middle = (kept + too_many) // 2
        kept, too_many = (middle, too_many) if fits(middle) else (kept, middle)
    return keeping(kept), (LEFT_OUT,)


def _words_alone(turns: Sequence[Turn]) -> list[range]:
    """The places of the turns of each round that has no pictures or videos."""
    start = next((place for place, turn in enumerate(turns) if turn.role != "system"), len(turns))
    rounds = []
    for end in round_ends(turns):
        shows = any(isinstance(part, Image | Video) for turn in turns[start:end] for part in turn.parts)
        if not shows:
            rounds.append(range(start, end))
        start = end
    return rounds
