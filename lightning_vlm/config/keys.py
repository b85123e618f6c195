"""Checks that the keys and classes of a config exist, at any depth, before the parser reads it.

The parser of jsonargparse ignores an unknown key whose value is empty, and reports other errors without their
line, so this check comes first.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_origin

import yaml
from jsonargparse import ArgumentParser
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_vlm.config import COMMANDS
from lightning_vlm.config.class_names import class_types, find_class, is_settings, members, takes_text
from lightning_vlm.config.key_names import ELSEWHERE, key_types, no_argument, no_key
from lightning_vlm.config.yaml_file import Config, pairs, read_config
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

_CLEARLY = 3
"""So many keys of other trainers make a config one of theirs."""
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
"""The keys of a value that is written as a class."""


def check_config(config: Config, parser: ArgumentParser) -> None:
    """Refuse unknown keys and classes of a config file.

    Args:
        config: The file.
        parser: The command's parser.

    Raises:
        UserError: With file and line, and the nearest key or class.
    """
    _Checker(config).check_keys(config.root, parser)


def check_value(key: str, text: str, parser: ArgumentParser, is_class: bool = False) -> None:
    """Refuse unknown keys and classes in a value on the command line.

    Args:
        key: Such as `trainer.callbacks`.
        text: Its value; what isn't YAML is left to the parser.
        parser: The command's parser.
        is_class: The value must be a class, though the key takes plain text too.

    Raises:
        UserError: With the nearest key or class.
    """
    hint = key_types(parser).get(key)
    if hint is None:
        return
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    if node is None:
        return
    checker = _Checker(None)
    bases = class_types(hint)
    if is_class and bases and isinstance(node, ScalarNode) and _is_name(node.value):
        checker.find_class(node, node.value, bases, key)
    checker.check_value(node, hint, key)


class _Checker:
    """Checks the values of one config.

    Args:
        config: The file, for places; None for a value of the command line.
    """

    def __init__(self, config: Config | None) -> None:
        self.config = config

    def fail(self, node: Node, message: str) -> NoReturn:
        place = f"{self.config.at(node)}: " if self.config else ""
        raise UserError(f"{place}{message}")

    def check_keys(
        self, node: MappingNode, parser: ArgumentParser, prefix: str = "", owner: str = ""
    ) -> None:
        """Check a mapping's keys against a parser's, below `prefix`; `owner` is the class they belong to."""
        types = key_types(parser)
        for key, value in pairs(node):
            path = prefix + key.value.removesuffix("+")
            section = f"{path}."
            inside = [name.removeprefix(section) for name in types if name.startswith(section)]
            if inside:
                self.check_section(key, value, parser, path, owner, inside)
            elif path in types:
                full_path = f"{owner}.{path}" if owner else path
                self.check_value(value, types[path], full_path)
            elif owner:
                self.fail(key, no_argument(path, owner, types))
            elif path in COMMANDS and isinstance(value, MappingNode):
                advice = "the command is no key: take what is under it one level up"
                self.fail(key, f"there is no key {path}; {advice}")
            else:
                hint = self.of_another_tool(node, prefix)
                self.fail(key, f"there is no key {path}; {hint}" if hint else no_key(path, types))

    def of_another_tool(self, node: MappingNode, prefix: str) -> str:
        """A hint for a file whose keys are those of another trainer, or of a model."""
        names = [key.value for key, _ in pairs(node)]
        if prefix or self.config is None:
            return ""
        if "architectures" in names and "model_type" in names:
            folder = Path(self.config.name).parent
            return f"this is the config of a model, which --model.name_or_path {folder} names"
        theirs = [name for name in names if name in ELSEWHERE]
        if len(theirs) < _CLEARLY:
            return ""
        migrate = f"lightning-vlm migrate {self.config.name}"
        return f"this looks like a config of another trainer: {migrate} makes one of ours"

    def check_section(
        self, key: Node, value: Node, parser: ArgumentParser, path: str, owner: str, inside: list[str]
    ) -> None:
        """Check the value of a key such as `trainer`: a mapping of keys, or the name of a file with them."""
        if isinstance(value, MappingNode):
            self.check_keys(value, parser, f"{path}.", owner)
            return
        config = self.file_of(value)
        if config is not None:
            _Checker(config).check_keys(config.root, parser, f"{path}.", owner)
            return
        expected = f"keys such as {', '.join(inside[:3])}, indented"
        if value.tag.endswith(":null"):
            self.fail(key, f"{path}: found nothing under it; expected {expected}, or no such line")
        found = "a list" if isinstance(value, SequenceNode) else repr(value.value)
        self.fail(key, f"{path}: found {found}; expected {expected}")

    def check_value(self, node: Node, hint: Any, key: str) -> None:
        """Check the classes and their keys in a value."""
        if isinstance(node, SequenceNode):
            for item in node.value:
                self.check_value(item, hint, key)
            return
        bases = class_types(hint)
        if not bases:
            return
        if isinstance(node, MappingNode):
            given = {name.value: value for name, value in pairs(node)}
            if "class_path" in given:
                self.check_class(node, given, bases, key)
            else:
                self.check_settings(node, hint, bases, key)
        elif isinstance(node, ScalarNode) and not takes_text(hint):
            config = self.file_of(node)
            if config is not None:
                _Checker(config).check_value(config.root, hint, key)
                return
            takes_settings_only = all(is_settings(kind) for kind in bases)
            is_text = node.tag.endswith(":str")
            if is_text and _is_name(node.value) and not takes_settings_only:
                self.find_class(node, node.value, bases, key)

    def file_of(self, node: Node) -> Config | None:
        """The config file that a value names instead of holding keys itself, or None."""
        if not isinstance(node, ScalarNode):
            return None
        if not node.value.endswith((".yaml", ".yml", ".json")):
            return None
        folder = Path(self.config.name).parent if self.config else Path()
        file = folder / node.value
        return read_config(str(file)) if file.is_file() else None

    def check_class(self, node: MappingNode, given: dict[str, Node], bases: list[type], key: str) -> None:
        """Check `class_path` and `init_args`."""
        for name, _ in pairs(node):
            if name.value not in CLASS_KEYS:
                hint = did_you_mean(name.value, CLASS_KEYS) or "; keys of the class stand under init_args"
                self.fail(name, f"{key}: there is no key {name.value} beside class_path{hint}")
        class_path = given["class_path"]
        kind = self.find_class(class_path, class_path.value, bases, key)
        parser = _parser_of(kind)
        arguments = given.get("init_args")
        if parser is not None and isinstance(arguments, MappingNode):
            owner = getattr(kind, "__name__", key)
            self.check_keys(arguments, parser, owner=owner)

    def check_settings(self, node: MappingNode, hint: Any, bases: list[type], key: str) -> None:
        """Check the keys of a value that is written without `class_path`."""
        for member in members(hint):
            if member in (dict, Any) or get_origin(member) is dict:
                return
        settings = [kind for kind in bases if is_settings(kind)]
        names = [name.value for name, _ in pairs(node)]
        if names and not settings and not any(name in CLASS_KEYS for name in names):
            found = ", ".join(names[:4])
            near = did_you_mean(names[0], CLASS_KEYS)
            self.fail(node, f"{key}: found the keys {found}; expected class_path and init_args{near}")
        parser = _parser_of(settings[0]) if len(settings) == 1 else None
        if parser is None:
            return
        types = key_types(parser)
        for name, _ in pairs(node):
            if name.value not in types and name.value not in CLASS_KEYS:
                near = did_you_mean(name.value, types)
                self.fail(name, f"there is no key {key}.{name.value}{near}")

    def find_class(self, node: Node, name: Any, bases: list[type], key: str) -> type | Callable:
        """The class of a `class_path`."""
        if not isinstance(name, str):
            self.fail(node, f"{key}: found a class_path that isn't a name; expected package.Class")
        try:
            return find_class(name, bases)
        except UserError as problem:
            self.fail(node, f"{key}: {problem}")


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


@cache
def _parser_of(kind: type | Callable) -> ArgumentParser | None:
    """A parser of the arguments of a class or function; None where its signature can't be read."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        if isinstance(kind, type):
            parser.add_class_arguments(kind, fail_untyped=False)
        else:
            parser.add_function_arguments(kind, fail_untyped=False)
    except Exception:  # the parser raises whatever reading the signature raises
        return None
    return parser
