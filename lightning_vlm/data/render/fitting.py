"""How much of a long conversation fits: found by rendering a few times, for any length."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.render.turns import Turn, plain_text, text_spans

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
    characters = sum(len(plain_text(turn)) for turn in turns)
    pictures = sum(span is None for turn in turns for span in text_spans(turn))
    if characters <= 4 * limit + _PIECE and pictures <= limit:
        return len(turns), None
    backend = tokenizer.backend_tokenizer
    most, total = 2 * limit + 1000, 0
    for place, turn in enumerate(turns):
        for span in text_spans(turn):
            if span is None:  # a picture has a token at least
                total += 1
                continue
            for start in range(0, len(span.text), _PIECE):
                total += len(backend.encode(span.text[start : start + _PIECE], add_special_tokens=False).ids)
                most += _SLACK
                if total > most:
                    return place, total
    return len(turns), None


def longest_fit(rounds: int, limit: int, render: Callable[[int], tuple[int, Sequence[int]]]) -> int:
    """How many of the first rounds of a conversation fit.

    The lengths of all rounds are read off one rendering. They are not exact: a round is longer when it comes
    last, by what ends a turn, or where a picture gets more tokens because it is alone. So what should fit is
    rendered alone, and shortened until it fits.

    Args:
        rounds: How many there are.
        limit: The most tokens.
        render: Renders so many rounds; gives the number of tokens, and up to which token each round goes,
            without what ends its last turn.
    Returns:
        The number of rounds; 0 if not even the first fits.
    """
    expected, too_many = 0, rounds + 1
    while rounds:
        length, ends = render(rounds)
        if length <= limit:
            break
        too_many = rounds
        rounds = min(rounds - 1, max(1, sum(end - _SLACK <= limit for end in ends)))
        expected = ends[rounds - 1]
    # A template may write less in front of a shorter chat, so that more rounds fit than the long one shows.
    while rounds and length < expected and rounds + 1 < too_many:
        longer, _ = render(rounds + 1)
        if longer > limit:
            break
        rounds += 1
    return rounds
