"""Data that another tool's config names, as sources of ours."""

import json
from pathlib import Path
from typing import Any

from lightning_vlm.migrate.ours import Ours

_LOOKED_AT = 1_000_000
"""Characters of a file that are looked at for its first row."""


def put_sources(ours: Ours, key: str, sources: list[dict[str, Any]], source: str, differs: str = "") -> None:
    """Write what a split reads: a path where that says all, one class, or several one after the other.

    >>> ours = Ours()
    >>> file = {"class_path": "DataFile", "init_args": {"path": "a.jsonl"}}
    >>> put_sources(ours, "data.train", [file], "dataset")
    >>> ours.value("data.train")
    'a.jsonl'
    """
    if not sources:
        return
    value: Any = {"class_path": "Chain", "init_args": {"sources": sources}}
    if len(sources) == 1:
        (value,) = sources
        if value["class_path"] == "DataFile" and set(value["init_args"]) == {"path"}:
            value = value["init_args"]["path"]
    ours.put(key, value, source, differs)


def first_rows(source: dict[str, Any], number: int | None) -> dict[str, Any]:
    """The first rows of a source alone."""
    if not number or number < 0:
        return source
    return {"class_path": "Slice", "init_args": {"of": source, "stop": int(number)}}


def first_row(path: Path) -> dict[str, Any]:
    """The first row of a file of JSON or JSON lines, as far as it is one; nothing else is opened.

    >>> first_row(Path("no such file"))
    {}
    """
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_LOOKED_AT)
    start = text.find("{")
    try:
        row, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else (None, 0)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}
