"""Names of things: which may name the same, and which are alike."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from random import Random
from typing import TypeAlias

Words: TypeAlias = frozenset[str]

_SAY_NOTHING = frozenset(
    (
        *("a", "an", "the", "some", "all", "any", "of", "in", "on"),
        *("thing", "object", "item", "one", "figure", "shape", "something", "everything"),
    )
)
_MOST_LOOKED_AT = 1000
"""How many names with a word are compared at most."""


@lru_cache(maxsize=65536)
def words_of(name: str) -> Words:
    """The words that tell a name from others, in the singular and in lower case.

    >>> sorted(words_of("All the Red Boxes"))
    ['box', 'red']
    """
    words = [_singular(word) for word in re.findall(r"\w+", name.lower())]
    return frozenset(word for word in words if word not in _SAY_NOTHING)


def _singular(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)es$", word):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def may_be_there(name: str, shown: Iterable[str]) -> bool:
    """Whether what is shown may have this name.

    It may where the words of one name are among those of the other: a red circle is a circle, and what is
    only known as a circle may be red.

    >>> may_be_there("circle", ["red circle"]), may_be_there("red circle", ["red square", "blue circle"])
    (True, False)
    """
    words = words_of(name)
    others = [other for other in map(words_of, shown) if other]  # that a thing is there says nothing of which
    return not words or any(words <= other or other <= words for other in others)


class Names:
    """All names that a data set has.

    Args:
        names: They.
        together: For two names, by their places, how many pictures show both. Empty where it isn't known.
    """

    def __init__(self, names: Sequence[str], together: Counter[tuple[int, int]] | None = None) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._place = {name: place for place, name in enumerate(self.names)}
        self._with_word: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(self.names):
            for word in sorted(words_of(name)):
                self._with_word[word].append(place)
        self._beside: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for (one, other), count in (together or {}).items():
            self._beside[one].append((count, other))

    def random(self, shown: Sequence[str], rng: Random) -> str | None:
        """Any name of nothing that is shown; None where there is none.

        Args:
            shown: The names of all that is shown.
            rng: Chooses.
        """
        for _ in range(20):
            name = rng.choice(self.names)
            if not may_be_there(name, shown):
                return name
        absent = [name for name in self.names if not may_be_there(name, shown)]
        return rng.choice(absent) if absent else None

    def hard(self, asked: str, shown: Sequence[str], rng: Random) -> str | None:
        """The name of nothing that is shown which is most like what is shown; None where none is alike.

        Names are alike by the words that they share; the one that is asked for counts twice. Where none
        shares a word, it is the name that most pictures show together with what is shown.

        Args:
            asked: The name of what is asked for in truth.
            shown: The names of all that is shown.
            rng: Chooses among equals.
        """
        near: set[int] = set()
        for name in shown:
            for word in sorted(words_of(name)):
                places = self._with_word.get(word, [])
                if len(places) > _MOST_LOOKED_AT:
                    places = rng.sample(places, _MOST_LOOKED_AT)
                near.update(places)
        likeness = {place: self._likeness(self.names[place], asked, shown) for place in near}
        found = self._best(likeness, shown, rng)
        if found is None:
            beside: Counter[int] = Counter()
            for name in shown:
                for count, place in self._beside.get(self._place.get(name, -1), []):
                    beside[place] += count
            found = self._best(beside, shown, rng)
        return found

    def _likeness(self, name: str, asked: str, shown: Sequence[str]) -> float:
        words = words_of(name)
        total = 0.0
        for other in (asked, *shown):
            others = words_of(other)
            total += len(words & others) / max(len(words | others), 1)
        return total

    def _best(self, values: dict[int, float] | Counter[int], shown: Sequence[str], rng: Random) -> str | None:
        absent = [place for place in sorted(values) if not may_be_there(self.names[place], shown)]
        if not absent:
            return None
        most = max(values[place] for place in absent)
        return self.names[rng.choice([place for place in absent if values[place] > most - 1e-9])]
