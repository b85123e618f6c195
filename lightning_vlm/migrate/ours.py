"""What comes out of a config of another tool: settings of ours, each with where it comes from."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CHOOSE = "CHOOSE"
"""The value of a line that the user has to write; the line is a comment."""


_SECRET = re.compile(r"(?:^|_)(?:token|secret|password|key)$|webhook", re.IGNORECASE)
"""Names of keys and variables whose values are nobody's business."""
_LONGEST = 60


def shown(key: str, value: Any) -> str:
    """A value as it stands in a comment: shortened, and not at all where it is a secret.

    >>> shown("hub_token", "hf_abc"), shown("optim", "lomo")
    ('(not shown)', 'lomo')
    """
    text = str(value)
    if value is not None and _SECRET.search(key):
        return "(not shown)"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


class Setting(NamedTuple):
    """A line of our config.

    Args:
        path: Such as `("trainer", "max_steps")`.
        value: A plain value, or `CHOOSE`.
        source: Which key of theirs it comes from.
        differs: What is different from there, as far as something is.
    """

    path: tuple[str, ...]
    value: Any
    source: str
    differs: str = ""

    @property
    def key(self) -> str:
        """The whole key."""
        return ".".join(self.path)


@dataclass
class Ours:
    """Our config as it grows."""

    settings: list[Setting] = field(default_factory=list)
    """The lines."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Keys of theirs, with their values, that nothing here is made of -> why."""
    notes: list[str] = field(default_factory=list)
    """What is different from there and belongs to no line."""

    def put(self, key: str, value: Any, source: str, differs: str = "") -> None:
        """Write a key of ours.

        Args:
            key: With dots, such as `trainer.max_steps`.
            value: Its value.
            source: Which key of theirs it comes from.
            differs: What is different from there.
        """
        self.put_path(tuple(key.split(".")), value, source, differs)

    def put_path(self, path: tuple[str, ...], value: Any, source: str, differs: str = "") -> None:
        """As `put`, for keys with dots in their names, such as selectors."""
        assert all(setting.path != path for setting in self.settings), path
        self.settings.append(Setting(path, value, source, differs))

    def choose(self, key: str, why: str) -> None:
        """Say that the user has to write a key."""
        self.settings.append(Setting(tuple(key.split(".")), CHOOSE, why))

    def leave(self, key: str, value: Any, why: str) -> None:
        """Say that a key of theirs can't be carried over."""
        self.left_out[f"{key}: {shown(key, value)}"] = why

    def value(self, key: str) -> Any:
        """What was put under a key; None if nothing was.

        >>> ours = Ours()
        >>> ours.put("trainer.max_steps", 3, "max_steps")
        >>> ours.value("trainer.max_steps"), ours.value("trainer.max_epochs")
        (3, None)
        """
        path = tuple(key.split("."))
        return next((setting.value for setting in self.settings if setting.path == path), None)
