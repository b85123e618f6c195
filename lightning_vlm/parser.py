"""The parser of the command line: LightningCLI's, but its errors are one line that says what to write."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vlm.commands import COMMANDS
from lightning_vlm.config.class_names import ClassNameError, class_types, find_class, is_settings, takes_text
from lightning_vlm.config.keys import check_config, check_value, no_key
from lightning_vlm.config.moved import modernize
from lightning_vlm.config.type_words import choices, describe
from lightning_vlm.config.yaml_file import Config, find, read_config
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import did_you_mean

OPEN, CLOSE = "\x02", "\x03"
"""They enclose the message of a parser inside of another, which quotes it among other things."""


class Parser(LightningArgumentParser):
    """Raises errors, refuses shortened keys, and keeps the path of a data file as a path.

    (LightningCLI prints the usage and exits, takes `--model.learning_rate` for `--model.learning_rates`, and
    reads any file that an option names as a config, so that an empty data file means no data.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.owner: Any = None
        """The class whose arguments this parses, where it is a parser inside of another."""
        self.configs: list[Config] = []
        """The config files read so far, to say where a value stands."""
        self.given: list[str] = []
        """The keys on the command line, whose values stand in no file."""
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, **kwargs: Any) -> Any:
        """As jsonargparse's, without `sub_configs` for the data."""
        if nested_key == "data":
            kwargs["sub_configs"] = False
        if nested_key is None:
            self.owner = theclass
        return super().add_class_arguments(theclass, nested_key, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse's, but config files are read strictly."""
        if kwargs.get("action") is ActionConfigFile:
            kwargs["action"] = StrictConfigFile
        return super().add_argument(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UserError`, whose message says which file and line it is about, where it is about one."""
        if self.owner is not None:
            raise UserError(f"{OPEN}{plain(message, self)}{CLOSE}") from ex
        raise UserError(f"{self._place(message)}{plain(message, self)}") from ex

    def instantiate_classes(self, cfg: Any, **options: Any) -> Any:
        """As in jsonargparse, but errors of our classes name the place of their key in a config."""
        try:
            return super().instantiate_classes(cfg, **options)
        except UserError as error:
            if isinstance(error, DataError):
                raise
            place = next(
                (place for parser in _with_commands(self) if (place := parser.place_of(str(error)))), ""
            )
            if not place:
                raise
            raise UserError(f"{place}{error}") from error

    def place_of(self, message: str) -> str:
        """`file:line: ` of the key that a message of ours begins with; or nothing."""
        if found := re.match(r"plan(?:\['([^']+)'\])?: ", message):
            paths = [["model", "adapt", *filter(None, found.groups())]]
        elif found := re.match(r"([\w.]+): ", message):
            keys = found[1].split(".")
            paths = [keys, ["model", *keys], ["data", *keys]]
        else:
            return ""
        return next((place for path in paths if (place := self._place_of_key(path))), "")

    def _place(self, message: str) -> str:
        """`file:line: ` of the key that a message of jsonargparse is about; or nothing."""
        named = re.search(r'Parser key "([\w.]+)":', message)
        if named is None:
            return ""
        inside = re.match(r"([\w.]+): ", _innermost(message))
        return self._place_of_key(named[1].split("."), inside[1].split(".") if inside else [])

    def _place_of_key(self, keys: list[str], inside: Sequence[str] = ()) -> str:
        """Where the last config with a key has it, or a key inside of it; nothing if an option sets it."""
        path = ".".join(keys)
        if any(f"{key}.".startswith(f"{path}.") or path.startswith(f"{key}.") for key in self.given):
            return ""
        for config in reversed(self.configs):
            node = find(config.root, keys)
            if node is not None:
                deeper = find(node, inside) if inside else None
                return f"{config.at(deeper or node)}: "
        return ""


def _with_commands(parser: Any) -> Iterator["Parser"]:
    """A parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            yield from (command for command in action.choices.values() if isinstance(command, Parser))


class StrictConfigFile(ActionConfigFile):
    """Reads a config file with `read_config`, and checks its keys, before jsonargparse merges it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check the file and merge it."""
        if isinstance(values, str) and "://" not in values:
            config = read_config(values)
            before = yaml.serialize(config.root)
            for sentence in modernize(config.root):
                rank_zero_warn(f"{config.name}: {sentence}")
            check_config(config, parser)
            parser.configs.append(config)
            if (after := yaml.serialize(config.root)) != before:
                values = after
        super().__call__(parser, cfg, values, option_string)


def check_words(words: Sequence[str], parser: Parser) -> None:
    """Look at the classes and keys in the values of a command line.

    Args:
        words: All words after the command.
        parser: Of the command.

    Raises:
        UserError: With the nearest name.
    """
    keys = [word[2:].partition("=")[0].removesuffix("+") for word in words if word.startswith("--")]
    parser.given += keys
    for index, word in enumerate(words):
        if word.startswith("--"):
            key, has_value, value = word[2:].partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            key = key.removesuffix("+")
            rest = words[index + 1 + (not has_value) :]
            is_class = bool(rest) and rest[0].startswith(f"--{key}.")  # an argument of the class
            check_value(key, value if has_value else following, parser, is_class)


def plain(message: str, parser: ArgumentParser) -> str:
    """A message of jsonargparse in one line: which key, what was found, what is expected.

    Args:
        message: Some lines, or one.
        parser: Whose keys it is about.

    >>> parser = Parser()
    >>> _ = parser.add_argument("--trainer.max_steps", type=int)
    >>> plain('Parser key "trainer.max_steps":\\n  Expected a <class \\'int\\'>. Got value: many', parser)
    'trainer.max_steps: found many; expected a whole number'
    >>> plain("unrecognized arguments: --trainer.max_step 3", parser)
    'there is no key trainer.max_step; did you mean trainer.max_steps?'
    """
    hints = dict(_hints(parser))
    owner = getattr(parser, "owner", None)
    line = " ".join(message.split())
    if unknown := _unknown(line, hints, parser):
        return unknown
    if "arguments are required" in line:
        missing = re.sub(rf"\b({'|'.join(COMMANDS)})\.", "", line.partition(": ")[2])
        if owner is not None:
            return f"{owner.__name__} needs {missing}"
        options = " and ".join(f"--{name} VALUE" for name in missing.split(", "))
        return f"found no {missing}; expected {options}{', or the key in a config' if '.' in missing else ''}"
    if lacking := re.match(r"argument (\S+): expected (?:one|at least one) argument", line):
        return f"{lacking[1].rpartition('/')[2]}: found nothing; expected a value after it"
    if wrong := re.match(r"argument --(\S+): invalid choice: '(.*?)' \(choose from (.*)\)", line):
        near = did_you_mean(wrong[2], re.findall(r"'([^']+)'", wrong[3]))
        return f"{wrong[1]}: found {wrong[2]}; expected one of {wrong[3]}{near}"
    named = re.match(r'(?:.*?)Parser key "([\w.]+)":? ', line)
    inner = _innermost(line)
    if named is None:
        return inner or line
    key, rest = named[1], line[named.end() :]
    if inner:
        return f"{key}: {inner}"
    if "Expected" not in rest and "Does not validate" not in rest and "Problem" not in rest:
        return f"{key}: {rest}"
    if nested := re.search(r"Given value: NestedArg\(key='([\w.]+)'", rest):
        return f"there is no key {key}.{nested[1]}; the value of {key} has no keys"
    value = re.search(r"Given value: (.*)", rest) or re.search(r"Got value: (.*)", rest)
    found = value[1] if value else _quoted(rest)
    hint = _hint_of(key, hints)
    if hint is None or found is None:
        return f"{key}: {_without_types(rest)}"
    return f"{key}: {_mismatch(found, hint)}"


def _unknown(line: str, hints: dict[str, Any], parser: ArgumentParser) -> str | None:
    """The message where a key isn't known, else None."""
    owner = getattr(parser, "owner", None)
    if found := re.search(r"unrecognized arguments: (?P<words>.+)", line):
        word = found["words"].split()[0]
        if not word.startswith("-"):
            hint = f"; did you mean --config {word}?" if word.endswith((".yaml", ".yml")) else ""
            return f"found {word} where an option was expected{hint}"
        key = word.lstrip("-").partition("=")[0]
        if "." in key:
            return no_key(key, list(hints))
        text = no_key(key, list(hints)).replace("there is no key ", "there is no option --")
        text, _, near = text.partition("did you mean ")
        return f"{text}did you mean {_option(parser, near.removesuffix('?'))}?" if near else text
    for pattern in (
        r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
        r"Subcommand '\w+' does not accept option '(?P<key>[\w.]+)'",
    ):
        if found := re.search(pattern, line):
            return no_key(".".join(filter(None, found.groupdict().values())), list(hints))
    if OPEN not in line and (found := re.search(r"Option '([\w.]+)' is not accepted", line)):
        inside = "" if owner is None or is_settings(owner) else f" in {owner.__name__}"
        return f"there is no key {found[1]}{inside}{did_you_mean(found[1], hints)}"
    return None


def _option(parser: ArgumentParser, key: str) -> str:
    """An option as its help spells it."""
    spelled = [action.option_strings for action in parser._actions if action.dest == key]
    return spelled[0][-1] if spelled and spelled[0] else f"--{key}"


def _mismatch(found: str, hint: Any) -> str:
    """What was found and what is expected, for a value of the wrong type."""
    bases = [kind for kind in class_types(hint) if not is_settings(kind)]
    if bases and not takes_text(hint) and re.fullmatch(r"[A-Za-z_][\w.]*", found):
        try:
            find_class(found, bases)
        except ClassNameError as problem:
            return str(problem)
    if bases and "{" in found and "class_path" not in found:
        return f"found {found}; expected {describe(hint)}{did_you_mean_class_path(found)}"
    return f"found {found}; expected {describe(hint)}{did_you_mean(found, choices(hint))}"


def did_you_mean_class_path(found: str) -> str:
    """A hint for a mapping with a key that looks like `class_path`."""
    keys = re.findall(r"'(\w+)':", found)
    return next((near for key in keys if (near := did_you_mean(key, ["class_path", "init_args"]))), "")


def _innermost(message: str) -> str:
    """What the first parser inside of this one said, without its enclosing marks."""
    found = re.search(rf"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}", message)
    return " ".join(found[1].split()) if found else ""


def _quoted(text: str) -> str | None:
    found = re.search(r"Expected a dot import path string: (\S+)|given class_path '([\w.]+)'", text)
    return (found[1] or found[2]) if found else None


def _without_types(line: str) -> str:
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line)


def _hint_of(key: str, hints: dict[str, Any]) -> Any:
    found = hints.get(key)
    return found if found is not None else hints.get(key.partition(".")[2])


def _hints(parser: ArgumentParser) -> Iterator[tuple[str, Any]]:
    """The keys and their types; also those of all commands."""
    for action in parser._actions:
        if action.dest.rpartition(".")[2] != "help":
            yield action.dest, getattr(action, "_typehint", None) or getattr(action, "type", None)
        commands = action.choices if isinstance(action.choices, dict) else {}
        for command in commands.values():
            yield from _hints(command)
