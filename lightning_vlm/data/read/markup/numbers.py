"""Numbers between tags, such as `[[125, 235, 200, 310]]` or `(125,235),(200,310)`."""

import itertools
import re
from collections.abc import Sequence

NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:e[-+]?\d+)?|\.\d+|nan|inf(?:inity)?)"
"""A number, also one that no box may have, so that it is refused and not taken for a word.

Digits belong to it in one way alone, as patterns of several numbers would otherwise try every way of each.
"""
_NUMBERS = rf"{NUMBER}(?:[\s,]+{NUMBER})*\s*(?:,\s*)?"
_GROUP = re.compile(rf"(?:[\[({{]\s*)?({_NUMBERS})[\])}}]?", re.IGNORECASE)
_ONE = re.compile(NUMBER, re.IGNORECASE)
_AROUND = re.compile(r"[\s,;\[\](){}]*")


def groups_in(text: str) -> list[tuple[float, ...]] | None:
    """The groups of numbers of a text that holds nothing else; None for words.

    >>> groups_in("[[125, 235, 200, 310], [1, 2, 3, 4]]")
    [(125.0, 235.0, 200.0, 310.0), (1.0, 2.0, 3.0, 4.0)]
    >>> groups_in("(125,235),(200,310)"), groups_in("a red ball"), groups_in("")
    ([(125.0, 235.0), (200.0, 310.0)], None, None)
    """
    groups = [tuple(float(number) for number in _ONE.findall(group)) for group in _GROUP.findall(text)]
    if not groups or not _AROUND.fullmatch(_GROUP.sub("", text)):
        return None
    return groups


def shapes_of(groups: Sequence[tuple[float, ...]], kind: str) -> list[tuple[float, ...]] | None:
    """The shapes that groups of numbers are; None where they have no right number of numbers.

    Args:
        groups: The groups.
        kind: What the tag is for: `box`, `point`, `outline`, or `area`, a box or an outline.

    >>> shapes_of([(1, 2), (3, 4)], "box"), shapes_of([(1, 2), (3, 4)], "point")
    ([(1, 2, 3, 4)], [(1, 2), (3, 4)])
    >>> shapes_of([(1, 2), (3, 4), (5, 6)], "area"), shapes_of([(1, 2, 3)], "box")
    ([(1, 2, 3, 4, 5, 6)], None)
    """
    if any(len(group) % 2 for group in groups):
        return None
    pairs = all(len(group) == 2 for group in groups)
    flat = tuple(itertools.chain.from_iterable(groups))
    if kind == "outline":
        return [flat] if len(flat) >= 4 else None
    if pairs and kind == "area":
        return [flat]
    if pairs and kind == "box" and len(groups) > 1:
        if len(groups) % 2:
            return None
        return [flat[place : place + 4] for place in range(0, len(flat), 4)]
    return list(groups)
