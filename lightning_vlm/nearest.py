"""What error messages say of names: the known one that is nearest, and long ones shortened."""

import difflib
from collections.abc import Collection, Iterable

from lightning_vlm.errors import UserError


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None where none is near.

    Upper case, `-` and `_` make no difference, and the beginning of a name that fits only one is near.

    Args:
        name: What was written.
        known: What could have been written.

    >>> nearest("GradientMonitr", ["GradNorm", "GradientMonitor"])
    'GradientMonitor'
    >>> nearest("evry", ["name", "every_n_steps"])
    'every_n_steps'
    >>> nearest("IMG_1O03.jpg", ["IMG_1013.jpg", "IMG_1003.jpg", "IMG_1023.jpg"])
    'IMG_1003.jpg'
    >>> nearest("ckpt", ["ckpt_path", "config"]), nearest("Val", ["train", "val"]), nearest("x", ["train"])
    ('ckpt_path', 'val', None)
    """
    by_spelling = {_spelling(candidate): candidate for candidate in reversed(list(known))}
    wanted = _spelling(name)
    if wanted in by_spelling:
        return by_spelling[wanted]
    beginnings = [spelling for spelling in by_spelling if wanted and spelling.startswith(wanted)]
    if len(beginnings) == 1:
        return by_spelling[beginnings[0]]
    close = _closest(wanted[:80], by_spelling, cutoff=0.6)
    if close is not None:
        return by_spelling[close]
    by_word: dict[str, str] = {}
    for spelling in reversed(by_spelling):
        by_word |= {word: by_spelling[spelling] for word in spelling.split("_") if len(word) > 2}
    close = _closest(wanted[:80], by_word, cutoff=0.75)
    return None if close is None else by_word[close]


def refuse_unknown_keys(given: Iterable[object], known: Collection[str], where: str) -> None:
    """Refuse the first key that there isn't.

    Args:
        given: Keys that were written.
        known: Those that there are.
        where: What they are keys of, for the error.

    Raises:
        UserError: It names the nearest key.

    >>> refuse_unknown_keys(["max_frame"], ["fps", "max_frames"], "data.video")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: data.video: there is no key max_frame; did you mean max_frames?
    """
    for key in given:
        if key not in known:
            raise UserError(f"{where}: there is no key {key}{did_you_mean(str(key), known)}")


def did_you_mean(name: str, known: Iterable[str], quoted: bool = False) -> str:
    """`; did you mean ...?` for the end of a message, or nothing where no known name is near.

    Args:
        name: What was written.
        known: What could have been written.
        quoted: Whether the message quotes names, as those about data do.

    >>> did_you_mean("nf5", ["nf4", "int8"])
    '; did you mean nf4?'
    """
    found = nearest(name, known)
    if found is None:
        return ""
    return f"; did you mean {shorten(found, 40) if quoted else found}?"


def shorten(text: str, length: int = 80) -> str:
    """A text in quotes, on one line, with its middle left out where it is long.

    >>> shorten("data:image/png;base64," + 200 * "A", 40)
    "'data:image/png;ba...AAAAAAAAAAAAAAAAA'"
    """
    if len(text) > length:
        half = (length - 3) // 2
        text = f"{text[:half]}...{text[-half:]}"
    return repr(text)


def one_line(text: str, length: int) -> str:
    """A text on one line, cut off where it is too long.

    >>> one_line("two  lines\\nof text", 12)
    'two lines o…'
    """
    line = " ".join(text.split())
    if len(line) > length:
        line = f"{line[: length - 1]}…"
    return line


def _spelling(name: str) -> str:
    return name.lower().replace("-", "_")


def _closest(wanted: str, candidates: Collection[str], cutoff: float) -> str | None:
    """The candidate that difflib finds closest; of equally close ones, that with most characters in place.

    A wrong letter is likelier than a moved one, and the names of numbered files are often equally close.
    """
    close = difflib.get_close_matches(wanted, candidates, max(len(candidates), 1), cutoff)

    def likeness(candidate: str) -> tuple[float, int]:
        in_place = sum(ours == theirs for ours, theirs in zip(candidate, wanted, strict=False))
        return difflib.SequenceMatcher(None, candidate, wanted).ratio(), in_place

    return max(close, key=likeness, default=None)
