"""Which of our names the columns of a file have, where they are called otherwise: `data.columns`."""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning_vlm.data.read.dialects import KNOWN
from lightning_vlm.data.read.fields import json_list
from lightning_vlm.data.read.right_answers import KEYS
from lightning_vlm.data.read.row_media import PICTURES, VIDEOS
from lightning_vlm.nearest import nearest
from lightning_vlm.start.peek import dialect_in

_NAMES = {
    "question": "ask asked q frage pergunta pregunta domanda human user_prompt user_input input_text inputs "
    "request instruct query_text question_text context",
    "answer": "a reply antwort reponse resposta respuesta risposta gpt target targets ground_truth gt gold "
    "output_text answer_text label_text expected result",
    "caption": "captions_text alt alt_text title beschreibung legende summary sentence_text",
    "messages": "chat chats dialog dialogue turns conversation_turns messages_list",
    "task": "task_name task_type tasktype",
}
"""Names that others use for ours; a whole word of a name counts, such as `frage` in `frage_text`."""
_PICTURE = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|ppm|jp2)$", re.IGNORECASE)
_VIDEO = re.compile(r"\.(?:mp4|mkv|mov|avi|webm|m4v)$", re.IGNORECASE)
_MOST_TASKS = 50


def guess_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Our names of columns that are called otherwise, found by their names and by what is in them.

    Args:
        rows: Some rows.

    Returns:
        Our name -> the name in the file; nothing where all are called as we call them, or none can be known.

    >>> guess_columns([{"frage": "What?", "antwort": "A cat.", "bild": "a.png"}])
    {'image': 'bild', 'question': 'frage', 'answer': 'antwort'}
    >>> guess_columns([{"qestion": "What?", "answer": "A cat."}]), guess_columns([{"foo": 1}])
    ({'question': 'qestion'}, {})
    """
    filled: Counter[str] = Counter(
        name for row in rows for name, value in row.items() if value not in (None, "")
    )
    names = [name for name in filled if name.lower() not in KNOWN and name.lower() not in KEYS]
    values = {name: [row[name] for row in rows if row.get(name) not in (None, "")] for name in names}
    known = {name.lower() for name in filled} & set(KNOWN)
    columns: dict[str, str] = {}
    for medium, looks in ((PICTURES, _PICTURE), (VIDEOS, _VIDEO)):
        if not known & set(medium.columns):
            found = [name for name in names if _mostly(values[name], partial(_names_a, looks))]
            if found:
                columns[medium.columns[0][:-1]] = found[0]
    rest = [name for name in names if name not in columns.values()]
    if not _has_dialect(rows, columns):
        columns |= _of_texts(rest, values, known, rows, columns)
    if "task" not in known:
        of_task = [name for name in rest if _called(name, "task") and name not in columns.values()]
        few = [name for name in of_task if len({str(value) for value in values[name]}) <= _MOST_TASKS]
        if few and _has_dialect(rows, columns):
            columns["task"] = few[0]
    return columns if _has_dialect(rows, columns) else {}


def _of_texts(
    names: Sequence[str],
    values: Mapping[str, list[Any]],
    known: set[str],
    rows: Sequence[Mapping[str, Any]],
    media: Mapping[str, str],
) -> dict[str, str]:
    """The columns of turns, or of question and answer, or of captions; those by name first."""
    turns = [name for name in names if _mostly(values[name], _are_turns)]
    if turns:
        return {"messages": turns[0]}
    texts = [name for name in names if _mostly(values[name], _is_text)]
    columns: dict[str, str] = {}
    for ours in ("question", "answer"):
        meant = [name for name in texts if _called(name, ours) and name not in columns.values()]
        if meant and ours not in known:
            columns[ours] = meant[0]
    if _has_dialect(rows, {**media, **columns}):
        return columns
    rest = [name for name in texts if name not in columns.values()]
    captions = [name for name in rest if _called(name, "caption")]
    if captions and "answer" not in columns:
        return {"caption": captions[0]}
    if len(rest) == 1 and "question" in columns:
        return {**columns, "answer": rest[0]}
    if len(rest) == 1 and "answer" in columns:
        return {**columns, "question": rest[0]}
    if len(rest) == 2 and not columns:
        asked, answered = sorted(rest, key=lambda name: _like_questions(values[name]), reverse=True)
        if _like_questions(values[asked]) > max(0.5, 2 * _like_questions(values[answered])):
            return {"question": asked, "answer": answered}
    has_picture = media or known & {*PICTURES.columns, *VIDEOS.columns}
    if len(rest) == 1 and not columns and has_picture and _are_sentences(values[rest[0]]):
        return {"caption": rest[0]}
    return columns


def _has_dialect(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
    """Whether most rows are of a known format with an answer, with some of their columns renamed."""
    renamed = {theirs: ours for ours, theirs in columns.items()}
    fits = [dialect_in({renamed.get(name, name): value for name, value in row.items()}) for row in rows]
    learned = [dialect for dialect in fits if dialect is not None and not dialect.name.endswith(" alone")]
    return 2 * len(learned) > len(rows)


def _called(name: str, ours: str) -> bool:
    spelled = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    words = set(spelled.split("_"))
    also = set(_NAMES.get(ours, "").split())
    if spelled in also or ours in words or words & {word for word in also if len(word) > 3}:
        return True
    return len(spelled) > 4 and nearest(spelled, [ours]) == ours and abs(len(spelled) - len(ours)) <= 2


def _mostly(values: Sequence[Any], fits: Any) -> bool:
    return bool(values) and sum(map(fits, values)) >= 0.8 * len(values)


def _names_a(looks: re.Pattern[str], value: Any) -> bool:
    """Whether a value names pictures or videos, or holds them as `datasets` stores them."""
    value = json_list(value)
    if isinstance(value, list):
        return bool(value) and all(_names_a(looks, item) for item in value)
    if isinstance(value, dict):
        return looks is _PICTURE and {"bytes", "path"} <= value.keys()
    if isinstance(value, bytes):
        return looks is _PICTURE
    return isinstance(value, str) and bool(looks.search(value)) and "\n" not in value


def _are_turns(value: Any) -> bool:
    value = json_list(value)
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(turn, dict) and ({"role", "content"} <= turn.keys() or "from" in turn) for turn in value
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _like_questions(values: Sequence[Any]) -> float:
    return statistics.fmean(str(value).rstrip().endswith("?") for value in values)


def _are_sentences(values: Sequence[Any]) -> bool:
    return statistics.fmean(" " in str(value).strip() for value in values) > 0.5
