"""Samples and pictures that come twice, and those of validation and test that are learned from too."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from lightning_vlm.lint.finding import Finding
from lightning_vlm.lint.hashes import Looks, alike
from lightning_vlm.lint.rows import PictureUse

SourceOf = Callable[[str, int], str]
"""The row of a sample, given its split and number."""


def picture_groups(looks: Looks, plain: np.ndarray) -> np.ndarray:
    """For each picture, the first one that looks like it; a plain one looks like none.

    Args:
        looks: Of all pictures.
        plain: Array of shape [pictures], bool: which of them have nothing on them, or can't be opened.
    """
    groups = np.arange(len(plain))
    places = np.flatnonzero(~plain)
    if len(places):
        groups[places] = places[alike(Looks(looks.bits[places], looks.colours[places]))]
    return groups


def repeated(
    words: Mapping[str, np.ndarray],
    uses: Mapping[str, Iterable[PictureUse]],
    pictures: Mapping[int, int],
    groups: np.ndarray,
    source_of: SourceOf,
) -> Iterator[Finding]:
    """Samples and pictures that come twice.

    Args:
        words: Of each split's samples, as of `Rows`; training first.
        uses: The pictures of each split's samples.
        pictures: The number of each picture, by its key.
        groups: As of `picture_groups`.
        source_of: Names samples.
    """
    seen = _signatures(words, uses, pictures, groups)
    leaked: set[tuple[str, int]] = set()
    for split, signatures in seen.items():
        for first, others in _twice(signatures):
            row = source_of(split, first)
            for other in others:
                source = source_of(split, other)
                if source != row:
                    found = f"the same words and pictures as in {row}"
                    yield Finding("duplicate_sample", split, source, "", found, "", (row,), (source,))
        if split == "train" or "train" not in seen:
            continue
        _, of_train, of_split = np.intersect1d(seen["train"], signatures, return_indices=True)
        in_train = _places(seen["train"], seen["train"][of_train])
        for place in np.flatnonzero(np.isin(signatures, signatures[of_split]) & (signatures != 0)).tolist():
            learned = in_train.get(int(signatures[place]))
            if not learned:
                continue
            rows = tuple(dict.fromkeys(source_of("train", number) for number in learned))
            leaked.add((split, place))
            found = f"the same words and pictures as in {rows[0]}, of data.train"
            yield Finding("leaked_sample", split, source_of(split, place), "", found, "", rows, rows)
    yield from _leaked_pictures(uses, pictures, groups, leaked, source_of)


def _signatures(
    words: Mapping[str, np.ndarray],
    uses: Mapping[str, Iterable[PictureUse]],
    pictures: Mapping[int, int],
    groups: np.ndarray,
) -> dict[str, np.ndarray]:
    """What tells samples from others: their words, and what their pictures look like; 0 tells nothing."""
    signatures = {}
    with np.errstate(over="ignore"):
        for split, of_words in words.items():
            mixed = of_words.copy()
            for use in uses[split]:
                number = np.uint64(int(groups[pictures[use.key]]) * 2 + 1)
                mixed[use.sample] = mixed[use.sample] * np.uint64(0x9E3779B97F4A7C15) + number
            mixed[of_words == 0] = 0
            signatures[split] = mixed
    return signatures


def _twice(signatures: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """The first place of each signature that comes several times, and its other places."""
    values, counts = np.unique(signatures, return_counts=True)
    several = values[(counts > 1) & (values != 0)]
    for places in _places(signatures, several).values():
        yield places[0], places[1:]


def _places(signatures: np.ndarray, wanted: np.ndarray) -> dict[int, list[int]]:
    """Where each of some signatures stands."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(np.isin(signatures, wanted) & (signatures != 0)).tolist():
        places[int(signatures[place])].append(place)
    return dict(sorted(places.items(), key=lambda item: item[1]))


def _leaked_pictures(
    uses: Mapping[str, Iterable[PictureUse]],
    pictures: Mapping[int, int],
    groups: np.ndarray,
    leaked: set[tuple[str, int]],
    source_of: SourceOf,
) -> Iterator[Finding]:
    """Pictures of validation and test that training has too, but for those of samples that it has as well."""
    in_train: dict[int, int] = {}
    for use in uses.get("train", ()):
        in_train.setdefault(int(groups[pictures[use.key]]), use.sample)
    for split, those in uses.items():
        if split == "train":
            continue
        said: set[int] = set()
        for use in those:
            group = int(groups[pictures[use.key]])
            if group in in_train and group not in said and (split, use.sample) not in leaked:
                said.add(group)
                row = source_of("train", in_train[group])
                found = f"picture {use.place + 1}, which looks like one of {row}, of data.train"
                yield Finding("leaked_picture", split, source_of(split, use.sample), "", found, "", (row,))


def same_pictures(
    firsts: Sequence[tuple[str, PictureUse]], groups: np.ndarray, source_of: SourceOf
) -> Iterator[Finding]:
    """Files of one split that show the same picture.

    Args:
        firsts: Of each picture, its split, and the first sample that has it.
        groups: As of `picture_groups`.
        source_of: Names samples.
    """
    for place in np.flatnonzero(groups != np.arange(len(groups))).tolist():
        split, use = firsts[place]
        first_split, first = firsts[int(groups[place])]
        row, source = source_of(first_split, first.sample), source_of(split, use.sample)
        if split == first_split and source != row:
            found = f"picture {use.place + 1}, which looks like picture {first.place + 1} of {row}"
            yield Finding("duplicate_picture", split, source, "", found, "", (row,))
