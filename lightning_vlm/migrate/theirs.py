"""A run's settings as another tool has them: what its config says, and else the tool's defaults."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_vlm.migrate.kinds import checked, is_switch
from lightning_vlm.migrate.tools import Tool, table
from lightning_vlm.migrate.unsaid import Unsaid
from lightning_vlm.nearest import nearest


class Launch(NamedTuple):
    """What stands around a tool's own words in a command.

    Args:
        environment: Variables that are set for it.
        script: The Python file that is run, if it is one.
        devices: How many processes it starts, where it says so.
        launcher: What starts it: `torchrun`, `accelerate`, the tool's own command, or `python`.
        options: Other options of the launcher.
        remarks: What was read over, or left out, as sentences.
    """

    environment: Mapping[str, str] = {}
    script: str | None = None
    devices: int | None = None
    launcher: str | None = None
    options: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()


class Theirs:
    """The settings of a run of another tool.

    Args:
        tool: Which one.
        given: Its keys, as the config or the command has them.
        file: The config's path, for messages.
        launch: What stands around them, if they come from a command.

    >>> from lightning_vlm.migrate.tools import tool
    >>> theirs = Theirs(tool("trl"), {"learning_rate": "1e-4", "max_seq_length": 512}, Path("a.yaml"))
    >>> theirs["learning_rate"], theirs["max_length"], theirs["num_train_epochs"]
    (0.0001, 512, 3.0)
    >>> theirs.said("max_length"), theirs.said("num_train_epochs")
    ('max_seq_length', 'default of num_train_epochs')
    """

    def __init__(
        self, tool: Tool, given: Mapping[str, Any], file: Path, launch: Launch | None = None
    ) -> None:
        self.tool = tool
        self.file = file
        self.launch = launch or Launch()
        self.given: dict[str, Any] = {}
        """Today's names of the keys that were given -> their values."""
        self._said: dict[str, str] = {}
        self._read: set[str] = set()
        self.unknown: dict[str, str | None] = {}
        """Keys that the tool doesn't have -> the nearest that it has."""
        self.own_values: dict[str, Any] = {}
        """The same keys -> their values."""
        self.unsaid: dict[str, str] = {}
        """Keys whose value the file doesn't say -> what is written there, such as `$MODEL`."""
        for name, value in given.items():
            key, value = self._key(name, value)
            if key not in tool.defaults:
                self.unknown[name] = nearest(name, tool.names)
                self.own_values[name] = value
                continue
            if isinstance(value, Unsaid) or (
                isinstance(value, list) and any(isinstance(one, Unsaid) for one in value)
            ):
                self.unsaid[name] = value if isinstance(value, str) else " ".join(map(str, value))
                continue
            value = checked(f"{file}: {name}", key, plain(value), tool)
            nothing = (None, tool.defaults[key])
            if key in self.given and (value in nothing or (name != key and self.given[key] not in nothing)):
                continue  # saved arguments have a key under several names, of which one was set
            self.given[key] = value
            self._said[key] = name
        self._defaults = dict(tool.defaults)
        second = table()[tool.name].get("version_2")
        self.is_version_2 = second is not None and any(mark in given for mark in second["marks"])
        if self.is_version_2:
            self._defaults |= second["defaults"]

    def _key(self, name: str, value: Any) -> tuple[str, Any]:
        """Today's name of a key, and its value: `--lora-r` and `--no_packing` are names, too."""
        name = name.replace("-", "_")
        key = self.tool.earlier.get(name, name)
        if key not in self.tool.defaults and name.startswith("no_"):
            positive = self.tool.earlier.get(name[3:], name[3:])
            if positive in self.tool.defaults and is_switch(positive, self.tool.defaults[positive]):
                return positive, not plain(value)
        return key, value

    @property
    def own_script(self) -> str | None:
        """The script of one's own that the keys are of, which may read others than the tool's."""
        script = self.launch.script
        own = script is not None and script.endswith(".py") and self.tool.name == "trainer"
        return Path(script).name if own and script else None

    def __getitem__(self, key: str) -> Any:
        """A key's value: as given, else its default."""
        assert key in self.tool.defaults, key
        self._read.add(key)
        return self.given.get(key, self._defaults[key])

    def has(self, *keys: str) -> bool:
        """Whether any of some keys was given."""
        return any(key in self.given for key in keys)

    def said(self, *keys: str) -> str:
        """For a comment: the names of keys as they were given, or that their defaults are meant."""
        given = [self._said[key] for key in keys if key in self.given]
        if given:
            return ", ".join(given)
        return f"default of {', '.join(keys)}"

    def name(self, key: str) -> str:
        """The name under which a key was given."""
        return self._said.get(key, key)

    def left_out(self) -> dict[str, str]:
        """Keys that were given, and that something is lost with -> why they can't be carried over."""
        return {key: self.tool.left_out[key] for key in self._not_carried() if not self._is_idle(key)}

    def idle(self) -> list[str]:
        """The names of keys that were given, aren't carried over, and that nothing is lost with."""
        return [self.name(key) for key in self._not_carried() if self._is_idle(key)]

    def unread(self) -> list[str]:
        """The names of keys that were given, and that have no effect beside the others."""
        return [self.name(key) for key in self.given if key in self.tool.carried and key not in self._read]

    def read_silently(self, comments: str) -> list[str]:
        """The names of keys that were given and read, and that no comment names: as they are here anyway.

        Args:
            comments: All comments of the config.
        """
        read = [self.name(key) for key in self.given if key in self.tool.carried and key in self._read]
        return [name for name in read if not re.search(rf"\b{re.escape(name)}\b", comments)]

    def _not_carried(self) -> list[str]:
        read_here = ("group_by_length", "adafactor")
        return [
            key
            for key in self.given
            if key in self.tool.left_out and not (key in read_here and self.given[key])
        ]

    def _is_idle(self, key: str) -> bool:
        return key in self.tool.harmless or same(self.given[key], self._defaults[key])

    def path(self, text: str) -> Path:
        """A path of theirs, which begins at the working directory or at the config's folder."""
        path = Path(text).expanduser()
        beside = self.file.parent / path
        return beside if not path.exists() and beside.exists() else path


def plain(value: Any) -> Any:
    """A value as it is meant: numbers, truth values and JSON that were written as text.

    >>> plain("1e-4"), plain("True"), plain("null"), plain('{"min_lr": 1e-6}'), plain("a"), plain(["2", "b"])
    (0.0001, True, None, {'min_lr': 1e-06}, 'a', [2, 'b'])
    """
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, str):
        return value
    text = value.strip()
    words = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text.lower() in words:
        return words[text.lower()]
    if text == "None":
        return None
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text) if len(text) <= 100 else text  # Python refuses to read the longest ones
    try:
        return float(text) if re.match(r"[-+.\d]", text) else _nested(text)
    except ValueError:
        return text


def _nested(text: str) -> Any:
    """JSON, or lists and mappings as Python and YAML write them."""
    if text[0] not in "[{":
        return text
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def same(value: Any, default: Any) -> bool:
    """Whether a value is the default, where nothing can be written in several ways.

    >>> same([], None), same(False, None), same("", None), same(["wandb"], "wandb"), same(0, False)
    (True, True, True, True, True)
    """
    empty: tuple[Any, ...] = (None, False, 0, "", [], {}, "no", "none")
    if value in empty and default in empty:
        return True
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(default, list) and len(default) == 1:
        (default,) = default
    return value == default


def listed(value: Any) -> list[str]:
    """Names: of a list, or of a text with commas.

    >>> listed("a, b"), listed(["q_proj,", "v_proj"]), listed(None), listed("all")
    (['a', 'b'], ['q_proj', 'v_proj'], [], ['all'])
    """
    if value is None:
        return []
    parts = value if isinstance(value, list) else [value]
    names = [name.strip() for part in parts for name in str(part).split(",")]
    return [name for name in names if name]
