"""Writes the pages of `docs/reference/`: the commands, every key, and the list of the API.

`python -m tools.docs_site.reference` writes them; tests/docs/test_reference.py says when they are old.
"""

import re
import types
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from lightning_vlm import StageData
from lightning_vlm.config import COMMANDS
from lightning_vlm.config.help import help_of, overview
from tools.docs_site import api

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
SECTIONS = {
    "model": "The model, what of it trains and how, the loss, and how answers are made.",
    "data": "Where samples come from, and how they become batches.",
    "trainer": "Lightning's own `Trainer`; defaults are ours where they differ from Lightning's.",
    "": "Beside the three sections.",
}


def pages() -> dict[str, str]:
    """Each page, by its name."""
    from tests.support.parsers import command_parsers

    parsers = command_parsers()
    return {"commands.md": commands(), "keys.md": keys(parsers), "api.md": api.index(ROOT)}


def commands() -> str:
    """What each command's `--help` prints."""
    lines = [
        "# Commands\n",
        "What `lightning-vlm COMMAND --help` prints, of each command; `--help-all` prints all keys, which",
        "[keys](keys.md) lists. This page is generated.\n",
        f"```text\n{overview().rstrip()}\n```\n",
    ]
    for name in COMMANDS:
        lines += [f"## {name}\n", f"```text\n{help_of(name).rstrip()}\n```\n"]
    return "\n".join(lines)


def keys(parsers: Mapping[str, ArgumentParser]) -> str:
    """Every key of a config, with its type, default and help; and the keys that only some commands have."""
    shared = {key.name: key for key in keys_of(parsers["fit"])}
    lines = [
        "# Every key of a config\n",
        "A key is written in a YAML file that `--config` names, or as `--KEY VALUE`. This page is",
        "generated from the parser; [commands](commands.md) has what people set most. Where a type is a",
        "class, the value is `{class_path: NAME, init_args: {...}}`; classes of [options](#options) are",
        "written as their keys.\n",
    ]
    for section, about in SECTIONS.items():
        lines += [f"## {section or 'more'}\n", f"{about}\n"]
        named = [key for name, key in shared.items() if _section(name) == section]
        lines += _table(named)
    lines += ["## Keys of single commands\n"]
    for name in COMMANDS:
        own = [key for key in keys_of(parsers[name]) if key.name not in shared]
        if own:
            lines += [f"### {name}\n", *_table(own)]
    lines += ["## Options\n", "The keys of keys whose type is one of these.\n"]
    for kind in options_of(parsers["fit"]):
        lines += [f"### {kind.__name__}\n", *_table(list(fields_of(kind)))]
    return "\n".join(lines)


class Key(NamedTuple):
    """A key as the parser has it."""

    name: str
    type: str
    default: str
    text: str


def keys_of(parser: ArgumentParser) -> Iterator[Key]:
    """The keys of a parser, in its order."""
    for action in parser._actions:
        names = [name.lstrip("-") for name in action.option_strings] or [action.dest.upper()]
        name = names[-1].removesuffix("+") if action.option_strings else names[0]
        if action.help == SUPPRESS or name in ("help", "help-all", "print_config", "config"):
            continue
        if name.endswith(".help") or (action.default == SUPPRESS and action.option_strings):
            continue
        hint = getattr(action, "_typehint", None) or action.type
        if action.choices:
            shown = ", ".join(f"`{choice}`" for choice in action.choices)
        elif action.nargs == 0:
            shown = "a switch"
        else:
            shown = type_name(hint) if hint is not None else "text"
        yield Key(name, shown, _written(action.default), _text(action.help or ""))


def options_of(parser: ArgumentParser) -> list[type]:
    """Our classes of options that keys of a parser take, and those that their own fields take, by name."""
    found: dict[str, type] = {}
    waiting = [getattr(action, "_typehint", None) for action in parser._actions]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        is_ours = getattr(hint, "__module__", "").startswith("lightning_vlm")
        if is_ours and is_dataclass(hint) and isinstance(hint, type) and hint.__name__ not in found:
            found[hint.__name__] = hint
            waiting += get_type_hints(hint).values()
    return [found[name] for name in sorted(found)]


def fields_of(kind: type) -> Iterator[Key]:
    """The fields of a class of options, with what its docstring says of each."""
    hints = get_type_hints(kind)
    said: dict[str, str] = {}
    for one in reversed(kind.__mro__[:-1]):
        said |= {param.arg_name: param.description or "" for param in parse(one.__doc__ or "").params}
    for field in fields(kind):
        default = "" if field.default is MISSING else _written(field.default)
        text = said.get(field.name) or (
            f"As `data.{field.name}`, in this stage." if kind is StageData else ""
        )
        yield Key(field.name, type_name(hints[field.name]), default, _text(text))


def type_name(hint: Any) -> str:
    """What a person writes for a type.

    >>> type_name(Union[int, Literal["auto"], None]), type_name(dict[str, float]), type_name(list[str] | None)
    ('a whole number, `auto`, or null', 'a mapping of numbers', 'a list of text, or null')
    """
    names = _names(hint)
    names = [name for name in dict.fromkeys(names) if name != "null"] + ["null"] * ("null" in names)
    if len(names) == 1:
        return names[0]
    return ", ".join(names[:-1]) + f"{',' if names[-1] == 'null' or len(names) > 2 else ''} or {names[-1]}"


_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _names(hint: Any) -> list[str]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return [name for one in arguments for name in _names(one)]
    if origin is Literal:
        return [f"`{value}`" for value in arguments]
    if hint in _PLAIN:
        return [_PLAIN[hint]]
    if hint is dict or origin is dict:
        return [f"a mapping of {_plural(arguments[1])}" if len(arguments) > 1 else "a mapping"]
    if origin is Callable or getattr(origin, "__name__", "") == "Callable":
        return _names(arguments[-1])
    if origin is not None:
        return [f"a list of {_plural(arguments[0])}"]
    return [f"`{getattr(hint, '__name__', str(hint).rpartition('.')[2])}`"]


def _plural(hint: Any) -> str:
    plain = {int: "whole numbers", float: "numbers", str: "text", Any: "anything"}
    if hint in plain:
        return plain[hint]
    names = _names(hint)
    return " or ".join(name.removeprefix("a ") for name in names) if len(names) < 4 else "these"


def _written(default: Any) -> str:
    if default is None or default == SUPPRESS:
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"


_ROLES = re.compile(r":\w+:`~?([^`]+)`")
_DEFAULT = re.compile(r"\s*Default: ``?[^`]*``?\.?|\s*Default: \d+\.")


def _text(help: str) -> str:
    """A help for a cell of a table. Lightning's is reStructuredText, with defaults that may not be ours."""
    text = _ROLES.sub(lambda match: f"`{match[1].rpartition('.')[2]}`", " ".join(help.split()))
    text = _DEFAULT.sub("", text.replace("``", "`"))
    text = re.sub(r"\(default: .*\)$|\(type: .*\)$", "", text)
    return re.sub(r"(?<![`\w])<(?=\w)", "&lt;", text.replace("|", "\\|")).strip()


def _table(keys: list[Key]) -> list[str]:
    rows = [f"| `{key.name}` | {key.type} | {key.default} | {key.text} |" for key in keys]
    return ["| key | type | default | |", "|---|---|---|---|", *rows, ""]


def _section(name: str) -> str:
    section = name.partition(".")[0]
    return section if section in SECTIONS and "." in name else ""


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, "utf-8")
