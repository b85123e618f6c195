"""Values that a file leaves to what runs it."""

import re

VARIABLE = re.compile(r"\$(?:\{[^{}]*\}|\(.*\)|\w+|[@*#?!$-])|`[^`]*`", re.DOTALL)
"""What stays in a word of a shell where the script doesn't say what stands there."""


class Unsaid(str):
    """A value that the file doesn't say, as it is written there: `$MODEL`, or `args.lr` of Python."""


def of_shell(word: str) -> str:
    """A word of a command, as one that isn't said where a variable is left in it.

    >>> isinstance(of_shell("out/$RUN"), Unsaid), isinstance(of_shell("5$"), Unsaid)
    (True, False)
    """
    return Unsaid(word) if VARIABLE.search(word) else word
