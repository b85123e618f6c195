"""What a token is. One int8 per token travels in every batch; weights don't."""

from enum import IntEnum


class Kind(IntEnum):
    """The kind of a token.

    >>> Kind.RESPONSE.name.lower()
    'response'
    """

    PAD = 0
    """Padding after (or, in prompts for generation, before) a sample."""
    SPECIAL = 1
    """What the chat template adds around the words: role markers, separators, begin-of-sequence."""
    IMAGE = 2
    """Everything an image expands to: patch placeholders, row and column marks."""
    INSTRUCTION = 3
    """The words of system and user turns."""
    RESPONSE = 4
    """The words of assistant turns, each with its end-of-turn token."""
    BOX = 5
    """A marked box inside an assistant turn."""
    ENTITY = 6
    """A marked key entity inside an assistant turn."""
