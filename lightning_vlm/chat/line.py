"""A line that a person types: a command, or a question with the paths of pictures in it."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

_EXTENSIONS = "png|jpe?g|webp|gif|bmp|tiff?|ppm|avif|jp2"
_PATH = re.compile(
    rf"""
    '(?P<single>[^']+\.(?:{_EXTENSIONS}))'
  | "(?P<double>[^"]+\.(?:{_EXTENSIONS}))"
  | (?<![^\s'"])(?P<plain>(?:\\.|[^\s\\'"])+\.(?:{_EXTENSIONS}))(?=$|[\s,;:!?.)])
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""A path as it is typed, or as terminals write it when a file is dropped on them."""


class Piece(NamedTuple):
    """A stretch of a line.

    Args:
        text: Words, or the path of a picture.
        path: The file, if it is one that is there.
        is_missing: Whether it looks like the path of a picture, but there is no such file.
    """

    text: str
    path: Path | None = None
    is_missing: bool = False


def pieces(line: str) -> list[Piece]:
    r"""The words and the pictures of a question, in order.

    >>> pieces("what is this?")
    [Piece(text='what is this?', path=None, is_missing=False)]
    >>> [piece.is_missing for piece in pieces("look at gone.png now")]
    [False, True, False]
    """
    found: list[Piece] = []
    done = 0
    for match in _PATH.finditer(line):
        words = line[done : match.start()]
        if words.strip():
            found.append(Piece(words.strip()))
        path = _file(match)
        is_file = _is_there(path) and path.is_file()
        found.append(Piece(match[0], path if is_file else None, not is_file))
        done = match.end()
    if line[done:].strip():
        found.append(Piece(line[done:].strip()))
    return found


def paths(line: str) -> list[Path]:
    """The files that `/image` names: several, each quoted where it has spaces, or the whole line as one."""
    whole = Path(unquoted(line))
    if _is_there(whole):
        return [whole]
    quoted = re.findall(r"""'[^']*'|"[^"]*"|(?:\\.|[^\s\\])+""", line)
    return [Path(unquoted(word)) for word in quoted]


def unquoted(text: str) -> str:
    r"""A path without what terminals put around or into it.

    >>> unquoted("'a b.png'"), unquoted(r"a\ b.png"), unquoted("file:///tmp/a%20b.png")
    ('a b.png', 'a b.png', '/tmp/a b.png')
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    else:
        text = re.sub(r"\\(.)", r"\1", text)
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    return str(Path(text).expanduser()) if text else text


def _file(match: re.Match[str]) -> Path:
    return Path(unquoted(match[0]))


def _is_there(path: Path) -> bool:
    """Whether there is such a file or folder; words that no file system takes as a name are none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
