"""How much of a long conversation fits: found by rendering a few times, for any length."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.conversation import Text
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.turns import Turn

WITHOUT_LIMIT = 262_144
"""The most tokens of a sample where no `max_length` is set and the tokenizer names no larger limit."""
_PIECE = 32_768
"""How many characters are tokenized at once to count them."""
_SLACK = 8
"""Tokens by which the length of a round, read off a longer rendering, may be too large."""


def turns_within(
    turns: Sequence[Turn], limit: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int | None]:
    """How many of the first turns could fit into a limit, judged by their words and without a template.

    Short conversations are not looked at. Long texts are tokenized piece by piece, up to well over the limit,
    and what comes behind is not read. Cutting a text into pieces can only add tokens, few for each piece, so
    what might fit is never given up.

    Returns:
        The number of turns before the one that certainly exceeds the limit, and how many tokens there are at
        least up to there; None if all might fit.
    """
    texts = [_texts(turn) for turn in turns]
    characters = sum(len(text or "") for texts_of_turn in texts for text in texts_of_turn)
    pictures = sum(texts_of_turn.count(None) for texts_of_turn in texts)
    if characters <= 4 * limit + _PIECE and pictures <= limit:
        return len(turns), None
    most = 2 * limit + 1000
    total = 0
    for place, texts_of_turn in enumerate(texts):
        for text in texts_of_turn:
            if text is None:  # a picture, a video or a box has a token at least
                total += 1
                continue
            for start in range(0, len(text), _PIECE):
                piece = text[start : start + _PIECE]
                total += len(tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids)
                most += _SLACK
                if total > most:
                    return place, total
    return len(turns), None


def _texts(turn: Turn) -> list[str | None]:
    """The texts of a turn, and None for each picture, video or box."""
    return [part.text if isinstance(part, Text) else None for part in turn.parts]


def longest_fit(
    render: Callable[[int], Example], last_answers: Sequence[int], limit: int
) -> tuple[int, Example]:
    """How many of the first rounds of a conversation fit, and their rendering.

    The lengths of all rounds are read off one rendering. They are not exact: a round is longer when it comes
    last, by what ends a turn, or where a picture gets more tokens because it is alone. So what should fit is
    rendered alone, and shortened until it fits.

    Args:
        render: Renders so many rounds.
        last_answers: Of each round, the place of its last answer among all answers.
        limit: The most tokens.
    Returns:
        The number of rounds, and their rendering; 0 and the first round if not even that fits.
    """
    rounds = len(last_answers)
    example = render(rounds)
    expected = 0
    too_many = rounds + 1
    while len(example.input_ids) > limit:
        if rounds == 1:
            return 0, example
        too_many = rounds
        ends = [example.answer_ends[answer] for answer in last_answers[:rounds]]
        rounds = min(rounds - 1, max(1, sum(end - _SLACK <= limit for end in ends)))
        expected = ends[rounds - 1]
        example = render(rounds)
    # A template may write less in front of a shorter chat, so that more rounds fit than the long one shows.
    while len(example.input_ids) < expected and rounds + 1 < too_many:
        longer = render(rounds + 1)
        if len(longer.input_ids) > limit:
            break
        rounds += 1
        example = longer
    return rounds, example
