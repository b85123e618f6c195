"""Compares names with texts in which `*` stands for any characters, in time in proportion to the name.

A regular expression, as `fnmatch` makes one, takes time to the power of the number of `*`.
"""

import re
from collections.abc import Sequence

__all__ = ["fits"]


def fits(name: str, starts: Sequence[str], glob: str) -> bool:
    """Whether a name begins with one of some texts and goes on as a glob says.

    Args:
        name: All of it is compared.
        starts: Any of them.
        glob: With at least one `*`, which stands for any characters or none, `.` included.

    >>> fits("model.layers.3.q_proj", ["model"], ".*.q_*"), fits("model.layers.3", ["model"], ".*.q_*")
    (True, False)
    """
    first, *inner, last = re.split(r"\*+", glob)
    begun = [len(start + first) for start in starts if name.startswith(start + first)]
    if not begun:
        return False
    at = min(begun)
    for text in inner:  # to take each where it comes first never keeps a later one from being found
        found = name.find(text, at)
        if found < 0:
            return False
        at = found + len(text)
    return name.endswith(last) and at <= len(name) - len(last)
