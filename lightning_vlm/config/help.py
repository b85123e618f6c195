"""The help of the commands: short, of what people set, and printed without importing anything heavy.

Its text stands in help.yaml.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import yaml

from lightning_vlm.config import COMMANDS

WIDTH = 80
"""Lines are no longer."""
REQUIRED = "required"
_FILE = Path(__file__).with_name("help.yaml")

_OVERVIEW = """\
usage: lightning-vlm COMMAND --config FILE [--KEY VALUE ...]

Fine-tune vision-language models with PyTorch Lightning.

commands:
{commands}

options:
  --config FILE       a YAML file, or a name that `recipes` lists; several are
                      merged, later ones win, and so do --KEY VALUE pairs
  COMMAND --help      what a command does, and the keys that people set
  COMMAND --help-all  all keys of a command
  --debug             show the traceback of an error
  --version           print the version

example:
  lightning-vlm fit --config configs/quickstart.yaml \\
    --model.name_or_path HuggingFaceTB/SmolVLM-256M-Instruct
"""


class Key(NamedTuple):
    """A key of a command, or a switch."""

    value: str
    """What to write for its value; nothing for a switch."""
    default: Any
    """Its default, or `required`."""
    text: str
    """What it does."""


class CommandHelp(NamedTuple):
    """The short help of a command."""

    does: str
    """What the command does, in a sentence or two."""
    examples: Sequence[str]
    """Whole command lines."""
    keys: Mapping[str, Key]
    """The command's own keys."""
    shows: Sequence[str]
    """Sections and keys of the config that it uses, such as `trainer` and `data.test`."""
    usage: str
    """What may stand behind the command."""


def overview() -> str:
    """What `lightning-vlm --help` prints."""
    lines = (_column(f"  {name}", command.summary, 12) for name, command in COMMANDS.items())
    return _OVERVIEW.replace("{commands}", "\n".join(lines))


def help_of(command: str) -> str:
    """What `lightning-vlm COMMAND --help` prints.

    Args:
        command: One of `COMMANDS`.
    """
    text = command_help(command)
    blocks = [f"usage: lightning-vlm {command} {text.usage}".rstrip(), "\n".join(wrap(text.does, WIDTH))]
    for name, keys in sections(text.shows):
        blocks.append(f"{name}: in a config, or as --{name}.KEY VALUE\n{_key_lines(keys)}")
    if text.keys:
        own = {f"--{name}": key for name, key in text.keys.items()}
        blocks.append(f"{'more ' if text.shows else ''}keys:\n{_key_lines(own)}")
    examples = "\n".join(_example(example) for example in text.examples)
    blocks.append(f"example{'s' if len(text.examples) > 1 else ''}:\n{examples}")
    blocks.append(f"all keys: lightning-vlm {command} --help-all")
    return "\n\n".join(blocks) + "\n"


def command_help(command: str) -> CommandHelp:
    """What help.yaml has of a command."""
    found = _file()["commands"][command]
    keys = {name: Key(*key) for name, key in found.get("keys", {}).items()}
    shows = found.get("shows", [])
    usage = found.get("usage")
    if usage is None:
        needed = " ".join(f"--{name} {key.value}" for name, key in keys.items() if key.default == REQUIRED)
        usage = " ".join([*(["--config FILE"] if shows else [needed]), "[--KEY VALUE ...]"])
    return CommandHelp(found["does"], found["examples"], keys, shows, usage)


def sections(shows: Sequence[str]) -> Iterator[tuple[str, dict[str, Key]]]:
    """The keys of the config that a command shows, by section.

    >>> [(name, *keys) for name, keys in sections(["data.val", "data.test", "model.clip"])]
    [('data', 'val', 'test'), ('model', 'clip')]
    """
    for name in dict.fromkeys(shown.partition(".")[0] for shown in shows):
        every = {key: Key(*text) for key, text in _file()["sections"][name].items()}
        chosen = {key: text for key, text in every.items() if f"{name}.{key}" in shows}
        yield name, every if name in shows else chosen


@cache
def _file() -> Any:
    return yaml.safe_load(_FILE.read_text("utf-8"))


def _key_lines(keys: Mapping[str, Key]) -> str:
    names = [f"  {name} {key.value}".rstrip() for name, key in keys.items()]
    width = max(map(len, names)) + 2
    texts = [key.text + _default(key) for key in keys.values()]
    return "\n".join(_column(name, text, width) for name, text in zip(names, texts, strict=True))


def _default(key: Key) -> str:
    """The default in brackets; of switches and of keys that may be left out nothing."""
    if key.default is None or not key.value:
        return ""
    shown = str(key.default).lower() if isinstance(key.default, bool) else key.default
    return f" [{shown}]"


def _column(name: str, text: str, width: int) -> str:
    """A name, and a text beside it that goes on below itself."""
    first, *others = wrap(text, WIDTH - width, break_on_hyphens=False)
    return "\n".join([f"{name:{width}}{first}", *(" " * width + line for line in others)])


def _example(command: str) -> str:
    """A command line that can be copied, in lines that fit and begin with a key."""
    lines = [""]
    for piece in command.replace(" --", "\n--").split("\n"):
        longer = f"{lines[-1]} {piece}".strip()
        if lines[-1] and len(longer) > WIDTH - 6:
            lines.append(piece)
        else:
            lines[-1] = longer
    return " \\\n    ".join(["  " + lines[0], *lines[1:]])
