"""Pictures that texts name: `<image id='img1'>`, `<image 1>`, `Picture 1: <img>a.png</img>`."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Box, Image, Point, Region, Text
from lightning_vlm.data.read.bounds import Placed
from lightning_vlm.data.read.fields import json_list
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.row_media import COLUMNS, PICTURES
from lightning_vlm.data.read.turns import Turn
from lightning_vlm.data.read.words import quote
from lightning_vlm.nearest import shorten

_NAMED = re.compile(
    r"<image(?:\s+id\s*=\s*(?:'(?P<single>[^'<>]+)'|\"(?P<double>[^\"<>]+)\"|(?P<bare>[^\s'\"<>/]+))\s*/?"
    r"|[ _](?P<number>\d{1,4}))>"
)
_FILE = re.compile(r"<img>([^<>\n]+\.(?:jpe?g|png|webp|bmp|gif|tiff?))</img>", re.IGNORECASE)
_PICTURE = re.compile(r"\n?Picture (\d{1,4}): ?\Z")
_SHOWN = "pictures with a name or a number have it written before them, such as 'Picture 1: '"
_IS_TEXT = "'<image id=...>' and '<image 1>' are ordinary text in rows without a key for pictures"
_FILES = "'<img>a path</img>' is read as a picture, as Qwen-VL writes it"


def named_pictures(row: dict[str, Any], turns: list[Turn], at: Location) -> tuple[dict[str, Any], list[Turn]]:
    """A row and its turns with `<image>` where a named picture comes, and its name where it comes again.

    The pictures are put in the order in which their names come. Names are written before pictures where there
    are several of them, or where one comes again.

    Args:
        row: The row.
        turns: Its turns.
        at: Where the row stands.

    Raises:
        DataError: A number without a picture, or `<image>` beside names.
    """
    texts = list(_texts(turns))
    column = next((name for name in PICTURES.columns if row.get(name)), None)
    if column is None:
        return _with_files(row, turns, texts, at)
    found = [match for text in texts for match in _NAMED.finditer(text)]
    if not found:
        return row, turns
    order = list(dict.fromkeys(map(_name, found)))
    if any(PICTURES.place in text for text in texts):
        raise at.error(f"both '{found[0][0]}' and '{PICTURES.place}'", "one way to say where pictures stand")
    pictures = _ordered(row[column], order, at / column)
    shown = len(order) > 1 or len(found) > len(order)
    if shown:
        at.note(_SHOWN)
    seen: set[str] = set()

    def placed(match: re.Match[str]) -> str:
        name = _name(match)
        words = f"Picture {name}" if match["number"] else name
        if name in seen:
            return words
        seen.add(name)
        is_written = match.string[: match.start()].rstrip().endswith(f"{words}:")
        return f"{words}: {PICTURES.place}" if shown and not is_written else PICTURES.place

    rewritten = [_rewritten(turn, lambda text: _NAMED.sub(placed, text)) for turn in turns]
    return row | {column: pictures}, rewritten


def boxes_of_pictures(contents: list[list[Placed]]) -> list[list[Placed]]:
    """The parts of turns, whose boxes lie in the picture that `Picture 2: ` directly before them names.

    The words are left out, as boxes in conversations of several pictures are written with them.
    """
    count = sum(isinstance(part, Image) for parts in contents for part, _ in parts)
    return contents if count < 2 else [_of_named(parts, count) for parts in contents]


def _of_named(parts: list[Placed], count: int) -> list[Placed]:
    done: list[Placed] = []
    image: int | None = None
    for place, (part, at) in enumerate(parts):
        following = parts[place + 1][0] if place + 1 < len(parts) else None
        if isinstance(part, Box | Point | Region):
            done.append((part if part.image is not None else replace(part, image=image), at))
            continue
        image = None
        match = _PICTURE.search(part.text) if isinstance(part, Text) and not part.entity else None
        if match and isinstance(following, Box | Point | Region) and 1 <= int(match[1]) <= count:
            assert isinstance(part, Text)
            image = int(match[1]) - 1
            if words := part.text[: match.start()]:
                done.append((Text(words), at))
            continue
        done.append((part, at))
    return done


def _name(match: re.Match[str]) -> str:
    return (match["single"] or match["double"] or match["bare"] or match["number"]).strip()


def _ordered(value: Any, order: list[str], at: Location) -> Any:
    """The pictures of a row in the order of their names; as they are where names say nothing of it."""
    value = json_list(value)
    if isinstance(value, dict) and all(name in value for name in order):
        if len(value) > len(order):
            expected = f"an '<image id=...>' for each, not {quote(order)} alone"
            raise at.error(f"the pictures {quote(value)}", expected)
        return [value[name] for name in order]
    if not all(name.isdecimal() for name in order):
        return value
    value = value if isinstance(value, list) else [value]
    wrong = next((name for name in order if len(name) > 9 or not 1 <= int(name) <= len(value)), None)
    if wrong is not None:
        found = f"'<image {shorten(wrong, 20)[1:-1]}>', but {counted(len(value), 'picture')}"
        raise at.error(found, "the number of a picture, from 1")
    places = [int(name) - 1 for name in order]
    if len(places) < len(value):  # its place is missed when pictures are counted
        return value
    return [value[place] for place in places]


def _with_files(
    row: dict[str, Any], turns: list[Turn], texts: list[str], at: Location
) -> tuple[dict[str, Any], list[Turn]]:
    """Of a row without pictures beside its texts: those whose paths stand in them."""
    files = [path.strip() for text in texts for path in _FILE.findall(text)]
    if any(name in row for name in COLUMNS) or not files:
        if any(_NAMED.search(text) for text in texts):
            at.note(_IS_TEXT)
        return row, turns
    at.note(_FILES)
    rewritten = [_rewritten(turn, lambda text: _FILE.sub(PICTURES.place, text)) for turn in turns]
    return row | {"images": files}, rewritten


def _texts(turns: list[Turn]) -> list[str]:
    """The texts of turns, in order."""
    texts: list[str] = []
    for turn in turns:
        if isinstance(turn.content, str):
            texts.append(turn.content)
        elif isinstance(turn.content, list):
            texts += [item["text"] for item in turn.content if _is_text(item)]
    return texts


def _is_text(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str)


def _rewritten(turn: Turn, rewrite: Callable[[str], str]) -> Turn:
    """A turn with other texts, in order."""
    content = turn.content
    if isinstance(content, str):
        return turn._replace(content=rewrite(content))
    if isinstance(content, list):
        items = [{**item, "text": rewrite(item["text"])} if _is_text(item) else item for item in content]
        return turn._replace(content=items)
    return turn
