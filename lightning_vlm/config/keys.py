"""Checks that the keys and classes of a config exist, at any depth, before the parser reads it.

The parser of jsonargparse ignores an unknown key whose value is empty, and reports other errors without their
line, so this check comes first.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_origin

import yaml
from jsonargparse import ArgumentParser
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lightning_vlm.commands import COMMANDS
from lightning_vlm.config.class_names import (
    ClassNameError,
    class_types,
    find_class,
    is_settings,
    members,
    takes_text,
)
from lightning_vlm.config.yaml_file import Config, pairs, read_config
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean, nearest

ELSEWHERE = {
    "learning_rate": "model.optimizer.init_args.lr",
    "lr": "model.optimizer.init_args.lr",
    "weight_decay": "model.optimizer.init_args.weight_decay",
    "warmup_ratio": "model.schedule",
    "epochs": "trainer.max_epochs",
    "num_epochs": "trainer.max_epochs",
    "num_train_epochs": "trainer.max_epochs",
    "per_device_train_batch_size": "data.batch_size",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_seq_length": "data.max_length",
    "max_grad_norm": "model.clip",
    "gpus": "trainer.devices",
    "fp16": "trainer.precision",
    "bf16": "trainer.precision",
    "load_in_4bit": "model.quantization",
    "lora_r": "model.adapt",
    "lora": "model.adapt",
    "seed": "seed_everything",
    "output_dir": "trainer.default_root_dir",
    "resume": "ckpt_path",
    "resume_from_checkpoint": "ckpt_path",
    "model_name_or_path": "model.name_or_path",
    "dataset": "data.train",
}
"""What other trainers call a key, and our key for it."""


def check_config(config: Config, parser: ArgumentParser) -> None:
    """Refuse unknown keys and classes of a config file.

    Args:
        config: The file.
        parser: Of the command.

    Raises:
        UserError: With file and line, and the nearest key or class.
    """
    _Keys(config).check(config.root, parser, "", "")


def check_value(key: str, text: str, parser: ArgumentParser, is_class: bool = False) -> None:
    """Refuse unknown keys and classes in a value on the command line.

    Args:
        key: Such as `trainer.callbacks`.
        text: Its value; what isn't YAML is left to the parser.
        parser: Of the command.
        is_class: The value must be a class, though the key takes plain text too.

    Raises:
        UserError: With the nearest key or class.
    """
    hint = _hints(parser).get(key)
    if hint is None:
        return
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return
    if node is not None:
        walk = _Keys(None)
        bases = class_types(hint)
        if is_class and bases and isinstance(node, ScalarNode) and _is_name(node.value):
            walk.find(node, node.value, bases, key)
        walk.check_value(node, hint, key)


def no_key(key: str, keys: list[str]) -> str:
    """The message for a key that isn't there, with the key that was most likely meant."""
    known = ELSEWHERE.get(key.rpartition(".")[2].replace("-", "_"))
    if known is not None and known.partition(".")[0] in {name.partition(".")[0] for name in keys}:
        siblings = _siblings(key, keys)
        if nearest(key.rpartition(".")[2], siblings) is None:
            return f"there is no key {key}; did you mean {known}?"
    return f"there is no key {key}{_near_key(key, keys)}"


def _near_key(key: str, keys: list[str]) -> str:
    """The nearest key: in the same place, else with the same last name anywhere, else that of its parent."""
    folder, _, last = key.rpartition(".")
    prefix = f"{folder}." if folder else ""
    near = nearest(last, _siblings(key, keys))
    if near is not None:
        return f"; did you mean {prefix}{near}?"
    by_last = {name.rpartition(".")[2]: name for name in reversed(keys)}
    exact = by_last.get(last) or by_last.get(last.replace("-", "_"))
    if exact is not None:
        return f"; did you mean {exact}?"
    if folder and folder not in keys and not any(name.startswith(prefix) for name in keys):
        return _near_key(folder, keys)
    if not folder and (near := nearest(last, by_last)) is not None:
        return f"; did you mean {by_last[near]}?"
    return ""


def _siblings(key: str, keys: list[str]) -> set[str]:
    folder = key.rpartition(".")[0]
    prefix = f"{folder}." if folder else ""
    return {name[len(prefix) :].partition(".")[0] for name in keys if name.startswith(prefix)}


class _Keys:
    """Walks through one config.

    Args:
        config: The file, for places; None for a value of the command line.
    """

    def __init__(self, config: Config | None) -> None:
        self.config = config

    def fail(self, node: Node, message: str) -> None:
        place = f"{self.config.at(node)}: " if self.config else ""
        raise UserError(f"{place}{message}")

    def check(self, node: MappingNode, parser: ArgumentParser, prefix: str, owner: str) -> None:
        """Check a mapping's keys against a parser's, below `prefix`; `owner` is the class they belong to."""
        hints = _hints(parser)
        for key, value in pairs(node):
            path = prefix + key.value.removesuffix("+")
            if any(name.startswith(f"{path}.") for name in hints):
                self.check_section(key, value, parser, path, owner)
            elif path in hints:
                self.check_value(value, hints[path], f"{owner}.{path}" if owner else path)
            elif owner:
                self.fail(key, f"there is no key {path} in {owner}{did_you_mean(path, hints)}")
            elif path in COMMANDS and isinstance(value, MappingNode):
                self.fail(
                    key, f"there is no key {path}; the command is no key: take what is under it one level up"
                )
            else:
                self.fail(key, no_key(path, list(hints)))

    def check_section(self, key: Node, value: Node, parser: ArgumentParser, path: str, owner: str) -> None:
        """Check what stands under a key such as `trainer`: its keys, or the name of a file with them."""
        if isinstance(value, MappingNode):
            self.check(value, parser, f"{path}.", owner)
            return
        if isinstance(value, ScalarNode) and (file := self.file_of(value.value)) is not None:
            config = read_config(str(file))
            _Keys(config).check(config.root, parser, f"{path}.", owner)
            return
        names = [name.removeprefix(f"{path}.") for name in _hints(parser) if name.startswith(f"{path}.")]
        nothing = isinstance(value, ScalarNode) and value.tag.endswith(":null")
        kind = "a list" if isinstance(value, SequenceNode) else repr(value.value)
        found = "nothing under it" if nothing else kind
        expected = f"keys such as {', '.join(names[:3])}, indented"
        self.fail(
            key, f"{path}: found {found}; expected {expected}" + (", or no such line" if nothing else "")
        )

    def check_value(self, node: Node, hint: Any, key: str) -> None:
        """Check the classes and their keys in a value."""
        bases = class_types(hint)
        if isinstance(node, SequenceNode):
            for item in node.value:
                self.check_value(item, hint, key)
        elif isinstance(node, MappingNode) and bases:
            given = {name.value: value for name, value in pairs(node)}
            if "class_path" in given:
                self.check_class(node, given, bases, key)
            else:
                self.check_settings(node, hint, bases, key)
        elif isinstance(node, ScalarNode) and bases and not takes_text(hint):
            if (file := self.file_of(node.value)) is not None:
                config = read_config(str(file))
                _Keys(config).check_value(config.root, hint, key)
                return
            settings = all(map(is_settings, bases))
            if node.tag == "tag:yaml.org,2002:str" and not settings and _is_name(node.value):
                self.find(node, node.value, bases, key)

    def file_of(self, text: str) -> Path | None:
        """The file that a value names in place of a class, or None."""
        if not text.endswith((".yaml", ".yml", ".json")):
            return None
        file = Path(text)
        if self.config is not None and not file.is_absolute():
            file = Path(self.config.name).parent / file
        return file if file.is_file() else None

    def check_class(self, node: MappingNode, given: dict[str, Node], bases: list[type], key: str) -> None:
        """Check `class_path` and `init_args`."""
        for name, _ in pairs(node):
            if name.value not in _CLASS_KEYS:
                hint = did_you_mean(name.value, _CLASS_KEYS)
                hint = hint or "; keys of the class stand under init_args"
                self.fail(name, f"{key}: there is no key {name.value} beside class_path{hint}")
        kind = self.find(given["class_path"], given["class_path"].value, bases, key)
        arguments = given.get("init_args")
        if kind is not None and isinstance(arguments, MappingNode):
            parser = _parser_of(kind)
            if parser is not None:
                self.check(arguments, parser, "", getattr(kind, "__name__", key))

    def check_settings(self, node: MappingNode, hint: Any, bases: list[type], key: str) -> None:
        """Check the keys of a value that is written without `class_path`."""
        settings = [kind for kind in bases if is_settings(kind)]
        names = [name.value for name, _ in pairs(node)]
        if any(get_origin(member) is dict or member in (dict, Any) for member in members(hint)):
            return
        if not settings and names and not set(names) & set(_CLASS_KEYS):
            near = "".join(did_you_mean(name, _CLASS_KEYS) for name in names[:1])
            shown = ", ".join(names[:4])
            self.fail(node, f"{key}: found the keys {shown}; expected class_path and init_args{near}")
        if len(settings) != 1:
            return
        parser = _parser_of(settings[0])
        if parser is None:
            return
        hints = _hints(parser)
        for name, _ in pairs(node):
            if name.value not in hints and name.value not in _CLASS_KEYS:
                self.fail(name, f"there is no key {key}.{name.value}{did_you_mean(name.value, hints)}")

    def find(self, node: Node, name: Any, bases: list[type], key: str) -> type | Callable | None:
        """The class of a `class_path`."""
        if not isinstance(name, str):
            self.fail(node, f"{key}: found a class_path that isn't a name; expected package.Class")
        try:
            return find_class(name, bases)
        except ClassNameError as problem:
            self.fail(node, f"{key}: {problem}")
            return None


_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


def _is_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _hints(parser: ArgumentParser) -> dict[str, Any]:
    """The types of a parser's keys; None where it has its own action."""
    return {
        action.dest: getattr(action, "_typehint", None) or getattr(action, "type", None)
        for action in parser._actions
        if action.dest.rpartition(".")[2] != "help"
    }


@cache
def _parser_of(kind: type | Callable) -> ArgumentParser | None:
    """A parser of the arguments of a class or function; None where only calling it can say."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        if isinstance(kind, type):
            parser.add_class_arguments(kind, fail_untyped=False)
        else:
            parser.add_function_arguments(kind, fail_untyped=False)
    except Exception:  # the parser reports a signature that can't be read
        return None
    return parser
