"""From one row of a data file, in any dialect, to a `Conversation`."""

from collections.abc import Iterator
from typing import Any

from lightning_vlm.data.conversation import (
    Conversation,
    Image,
    Message,
    Part,
    Text,
    Video,
    check_order,
    check_part,
)
from lightning_vlm.data.read.bounds import Placed, within_pictures
from lightning_vlm.data.read.columns import with_our_names
from lightning_vlm.data.read.dialects import DIALECTS, KNOWN, TOOLS, Dialect, Row, all_answers, dialect_of
from lightning_vlm.data.read.fields import check_spelling, task_and_weight, text_of
from lightning_vlm.data.read.identity import ID, any_id
from lightning_vlm.data.read.markup.names import boxes_of_pictures, named_pictures
from lightning_vlm.data.read.markup.objects import RowObjects
from lightning_vlm.data.read.parts import is_medium, part_of
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.right_answers import KEYS, any_level, any_references
from lightning_vlm.data.read.row_media import COLUMNS, PICTURES, VIDEOS, RowMedia, split
from lightning_vlm.data.read.tool_calls import definitions_of
from lightning_vlm.data.read.turns import Turn, text_turn
from lightning_vlm.nearest import did_you_mean

REFUSED = {
    "audio": "sound can't be read yet",
    "audios": "sound can't be read yet",
}
"""Keys of a row that would change what is learned, and that nothing here can honour."""
_PLACED_FIRST = "{}s without an '{}' stand before the first question, as TRL and ms-swift put them"
_IS_TEXT = "'<video>' is ordinary text in rows without a key for videos"
_STANDS_FOR_VIDEO = "'<image>' stands for videos in rows that have no pictures, as LLaVA writes them"


def any_conversation(row: Any, at: Location) -> Conversation:
    """The conversation of a row of any dialect, see `readers.read`.

    Args:
        row: The row as its file has it.
        at: Where the row stands.

    Raises:
        DataError: The row isn't a conversation; the key is the one that stands in the file.
    """
    row = _normalised(with_our_names(row, at.reading), at)
    dialect = _dialect(row, at)
    _check_other_keys(row, dialect, at)
    turns = _with_system(dialect.turns(row, at), row, at)
    row, turns = named_pictures(row, turns, at)
    pictures = RowMedia(PICTURES, row, at)
    videos = RowMedia(VIDEOS, row, at)
    _settle_places(turns, pictures, videos, at)
    has_pictures = bool(pictures.items) or any(map(_has_medium, turns))
    is_read = "objects" in dialect.needs
    objects = RowObjects({} if is_read else row, turns, has_pictures, at)
    messages = _messages(turns, pictures, videos, objects, dialect, at)
    objects.check_all_placed()
    check_order(messages, at.source, dialect.needs[0])
    task, weight = task_and_weight(row, at)
    tools = _tools(row, at)
    references, level = _references(row, dialect, at), any_level(row, at)
    named = any_id(row, at)
    return Conversation(messages, task, weight, at.source, tools, references, level, id=named)


def _references(row: Row, dialect: Dialect, at: Location) -> tuple[str, ...]:
    """All right answers: those under `references`, or the several that the key of the answer has."""
    references = any_references(row, at)
    if references is None and dialect.answer is not None:
        references = tuple(all_answers(row, dialect.answer, at) or ())
    return references or ()


def _normalised(row: Any, at: Location) -> Row:
    """A row with the keys of tables in small letters, and without its nulls."""
    if not isinstance(row, dict):
        needs = at.reading.needs
        wanted = f"the key '{needs}'" if needs else "keys such as 'messages' or 'question'"
        raise at.wrong(row, f"an object with {wanted}")
    normalised: Row = {}
    for name, value in row.items():
        lower = name.lower()  # CSV files have `Question` and `Answer`
        if lower in KNOWN and lower not in row and lower not in normalised:
            name = lower
        if value is not None or name in COLUMNS:
            normalised[name] = value
    return normalised


def _dialect(row: Row, at: Location) -> Dialect:
    needs = at.reading.needs
    if needs is None:
        for name in row:
            if name not in KNOWN:
                check_spelling(name, KNOWN, row, at)
        return dialect_of(row, at)
    if needs not in row:
        raise at.wrong(row, f"the key '{needs}'{did_you_mean(needs, row, quoted=True)}")
    return next(dialect for dialect in DIALECTS if dialect.needs == (needs,))


def _check_other_keys(row: Row, dialect: Dialect, at: Location) -> None:
    """Refuse what would change what is learned, and note the rest."""
    for name, value in row.items():
        if name in dialect.known or name in KEYS or name == ID:
            continue
        if name not in REFUSED:
            at.reading.notes.ignore(name)
        elif value and value != "[]":
            expected = f"only words, pictures and videos: {REFUSED[name]}; leave it out"
            raise (at / name).wrong(value, expected)


def _tools(row: Row, at: Location) -> tuple[dict[str, Any], ...]:
    """The definitions of tools beside the turns."""
    given = [name for name in TOOLS if row.get(name)]
    if len(given) > 1:
        raise (at / given[1]).error("both 'tools' and 'functions'", "one of them")
    return definitions_of(row[given[0]], at / given[0]) if given else ()


def _with_system(turns: list[Turn], row: Row, at: Location) -> list[Turn]:
    """The turns, after the system turn that stands beside them."""
    if not row.get("system"):
        return turns
    if turns and turns[0].role == "system":
        at.note("'system' is ignored where the first turn is one of the system")
        return turns
    return [text_turn("system", row["system"], at / "system"), *turns]


def _settle_places(turns: list[Turn], pictures: RowMedia, videos: RowMedia, at: Location) -> None:
    """Settle what stands for a video in the texts of a row, and say so where it is a choice."""
    texts = [turn.content for turn in turns if isinstance(turn.content, str)]
    if any(VIDEOS.place in text for text in texts):
        if not videos.has_column:
            at.note(_IS_TEXT)
    elif videos.items and not pictures.items and any(PICTURES.place in text for text in texts):
        videos.place = PICTURES.place
        at.note(_STANDS_FOR_VIDEO)


def _messages(
    turns: list[Turn],
    pictures: RowMedia,
    videos: RowMedia,
    objects: RowObjects,
    dialect: Dialect,
    at: Location,
) -> tuple[Message, ...]:
    """The messages that turns make with the pictures, videos and boxes of their row."""
    # Without a column of pictures, `<image>` is ordinary text; and so is `<video>`, which HTML has too.
    takes_pictures = (pictures.has_column or dialect.places_needed) and videos.place != pictures.place
    text_media = [pictures] * takes_pictures + [videos] * videos.has_column
    # In a list of parts, it is a place for one if no part is one.
    has_places = not any(map(_has_medium, turns))
    part_media = [media for media in (pictures, videos) if media.items and has_places]
    contents: list[list[Placed]] = []
    for turn in turns:
        parts = []
        for part, part_at in _parts(turn, pictures, videos, text_media, part_media):
            if isinstance(part, Image | Video):
                check_part(part, turn.role, part_at.source, part_at.key)
            if isinstance(part, Text) and not part.entity and turn.role != "tool":
                parts += [(found, part_at) for found in objects.parts(part.text, part_at)]
            else:
                parts.append((part, part_at))
        contents.append(parts)
    for media in (videos, pictures):
        if media.items and not dialect.places_needed:
            _place_before_first_question(turns, contents, media, dialect, at)
        media.check_all_placed()
    return tuple(
        Message(turn.role, parts, turn.weight, turn.reasoning, turn.calls, turn.call_id, turn.name)
        for turn, parts in zip(turns, within_pictures(boxes_of_pictures(contents)), strict=True)
    )


def _parts(
    turn: Turn,
    pictures: RowMedia,
    videos: RowMedia,
    text_media: list[RowMedia],
    part_media: list[RowMedia],
) -> Iterator[tuple[Part, Location]]:
    """The content of a turn, and where each part stands in the row.

    Args:
        turn: The turn.
        pictures: Of its row.
        videos: Of its row.
        text_media: Those that have places in a content that is a text.
        part_media: Those that have places in the texts of a list of parts.
    """
    content = turn.content
    if isinstance(content, str):
        if not content and (turn.calls or turn.reasoning):
            return
        if not text_media:
            yield Text(text_of(content, turn.at)), turn.at
            return
        for part in split(content, turn.at, text_media):
            yield part, turn.at
        return
    if not isinstance(content, list | dict):
        raise turn.at.wrong(content, "a text or a list of parts")
    for index, item in enumerate(content if isinstance(content, list) else [content]):
        at = turn.at / index
        part = part_of(item, at, pictures, videos)
        if part_media and isinstance(part, Text) and not part.entity:
            yield from ((piece, at) for piece in split(part.text, at, part_media))
        else:
            yield part, at


def _has_medium(turn: Turn) -> bool:
    return isinstance(turn.content, list) and any(map(is_medium, turn.content))


def _place_before_first_question(
    turns: list[Turn], contents: list[list[Placed]], media: RowMedia, dialect: Dialect, at: Location
) -> None:
    """Put the pictures or videos of the row before the first question if nothing says where they stand."""
    kind = Video if media.medium is VIDEOS else Image
    if media.placed or any(isinstance(part, kind) for parts in contents for part, _ in parts):
        return
    for turn, parts in zip(turns, contents, strict=True):
        if turn.role == "user":
            parts[:0] = [(item, media.at) for item in media.items]
            media.placed = len(media.items)
            if dialect.says_where:
                at.note(_PLACED_FIRST.format(media.medium.name, media.place))
            return
