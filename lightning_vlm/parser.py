"""The parser of the command line: LightningCLI's, but its errors are one line that says what to write."""

import difflib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from lightning_vlm.errors import UserError


class Parser(LightningArgumentParser):
    """Raises what it refuses, takes no shortened keys, and takes the path of a data file for a path.

    (LightningCLI prints the usage and exits, takes `--model.learning_rate` for `--model.learning_rates`, and
    reads whatever file an option names as a config, so that an empty data file means no data.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def add_class_arguments(self, theclass: type, nested_key: str | None = None, **kwargs: Any) -> Any:
        """As jsonargparse's, without `sub_configs` for the data."""
        if nested_key == "data":
            kwargs["sub_configs"] = False
        return super().add_class_arguments(theclass, nested_key, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UserError`."""
        raise UserError(plain(message, list(_keys(self)))) from ex


def plain(message: str, keys: list[str]) -> str:
    """A message of jsonargparse in one line: which key, what was found, what is expected.

    Args:
        message: Some lines, or one.
        keys: All keys that there are, for the nearest one to an unknown one.

    >>> plain('Parser key "trainer.max_steps":\\n  Expected a <class \\'int\\'>. Got value: many', [])
    'trainer.max_steps: found many; expected int'
    >>> plain("unrecognized arguments: --data.trian pets.jsonl", ["data.train", "data.test"])
    'there is no key data.trian; did you mean data.train?'
    """
    line = " ".join(message.split())
    for pattern in (
        r"unrecognized arguments: --(?P<key>[\w.-]+)",
        r"Group '(?P<group>[\w.]+)' does not accept option '(?P<key>[\w.]+)'",
        r"Subcommand '\w+' does not accept option '(?P<key>[\w.]+)'",
    ):
        if unknown := re.search(pattern, line):
            return _no_key(".".join(filter(None, unknown.groupdict().values())), keys)
    named = re.match(r'(?:.*?)Parser key "([\w.]+)": ', line)
    if named is None:
        return line
    key, line = named[1], line[named.end() :]
    for pattern, reason in _REASONS:
        if found := re.search(pattern, line):
            return f"{key}: {found.expand(reason)}"
    expected = re.search(r"Subtypes: \[(.*?)\] Errors:|Expected an? (.*?)\. Got value", line)
    value = re.search(r"(?:Given value|Got value): (.*)", line)
    if not (expected and value):
        return f"{key}: {line}"
    types = re.sub(r"<class '([\w.]+)'>", r"\1", expected[1] or expected[2])
    types = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", types).replace("NoneType", "null")
    return f"{key}: found {value[1]}; expected {types}"


_REASONS = (
    (r"- (\w+: found .*?; expected .*?)(?: - |$)", r"\1"),  # of init_args, through here before
    (r"Expected a dot import path string: (\S+)", r"there is no class \1"),
    (r"Problem with given class_path '([\w.]+)'", r"there is no class \1"),
    (r"(module '[\w.]+' has no attribute '\w+')", r"\1"),
    (r"Option '(\w+)' is not accepted", r"there is no key \1 in its init_args"),
)
"""What jsonargparse says inside of longer messages that is all one needs to know."""


def _no_key(key: str, keys: list[str]) -> str:
    parts = key.split(".")
    near: list[str] = []
    for count in range(len(parts), 0, -1):  # model.adpat.projector is near to model.adapt
        near = near or difflib.get_close_matches(".".join(parts[:count]), keys, 1, cutoff=0.7)
    return f"there is no key {key}" + (f"; did you mean {near[0]}?" if near else "")


def _keys(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield action.dest
        choices = action.choices if isinstance(action.choices, dict) else {}
        for one in choices.values():
            yield from _keys(one)
