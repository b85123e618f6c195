"""Rows of tables as `datasets` stores them: pictures stay encoded, classes get their names."""

import dataclasses
from typing import Any

_OF_TOOLS = ("tools", "functions", "tool_calls", "function_call")
"""Keys whose objects differ from row to row, so that a table fills them up with nulls."""


class TableRows:
    """Turns what a table holds into rows for `any_conversation`.

    Args:
        features: The columns, as a `datasets.Features`.
    """

    def __init__(self, features: Any) -> None:
        self.stored = _stored(features)
        """The columns, with pictures as they are stored."""
        self._class_names = {name: kind for name, kind in features.items() if _has_names(kind)}

    def row(self, record: dict[str, Any]) -> dict[str, Any]:
        """The row of a record of the table."""
        row: dict[str, Any] = self.stored.decode_example(record)  # some columns are stored as JSON
        for name, kind in self._class_names.items():
            row[name] = _named(row[name], kind)
        return _without_filled_nulls(row)


def _without_filled_nulls(row: Any, of_tools: bool = False) -> Any:
    """A row whose calls and definitions of tools lack the nulls with which a table fills absent keys."""
    if isinstance(row, list):
        return [_without_filled_nulls(item, of_tools) for item in row]
    if not isinstance(row, dict):
        return row
    cleared = {}
    for name, value in row.items():
        if value is not None or not of_tools:
            cleared[name] = _without_filled_nulls(value, of_tools or name in _OF_TOOLS)
    return cleared


def _has_names(kind: Any) -> bool:
    """Whether a column holds numbers of classes, at any depth."""
    import datasets

    if isinstance(kind, dict):
        return any(map(_has_names, kind.values()))
    return isinstance(kind, datasets.ClassLabel) or _has_names(getattr(kind, "feature", {}))


def _named(value: Any, kind: Any) -> Any:
    """A value with the names of classes in place of their numbers."""
    if isinstance(value, dict) and isinstance(kind, dict):
        return {name: _named(item, kind.get(name)) for name, item in value.items()}
    if isinstance(value, dict):  # a list of objects, stored as an object of lists
        inner = getattr(kind, "feature", {})
        of = inner if isinstance(inner, dict) else {}
        return {
            name: [_named(item, of.get(name)) for item in items] if isinstance(items, list) else items
            for name, items in value.items()
        }
    if isinstance(value, list):
        return [_named(item, getattr(kind, "feature", None)) for item in value]
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return kind.int2str(value) if is_number and hasattr(kind, "int2str") else value


def _stored(features: Any) -> Any:
    """The same features, but with pictures as they are stored instead of decoded, at any depth."""
    import datasets

    is_medium = hasattr(features, "decode") and type(features).__name__ != "Json"
    if is_medium:  # a picture, a sound or a video
        return dataclasses.replace(features, decode=False)
    if isinstance(features, dict):
        stored = {name: _stored(feature) for name, feature in features.items()}
        return datasets.Features(stored) if isinstance(features, datasets.Features) else stored
    if isinstance(features, datasets.List | datasets.LargeList):
        return dataclasses.replace(features, feature=_stored(features.feature))
    return features
