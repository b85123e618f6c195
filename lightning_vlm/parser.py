"""The parser of the command line: LightningCLI's, but its errors are one line that says what to write."""

import re
import traceback
from collections.abc import Sequence
from itertools import product
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_vlm.config.class_names import bare_name
from lightning_vlm.config.key_names import with_commands
from lightning_vlm.config.keys import check_config, check_value
from lightning_vlm.config.messages import CLOSE, OPEN, innermost, key_of, reword
from lightning_vlm.config.moved import modernize
from lightning_vlm.config.yaml_file import Config, find, find_class_path, read_config
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.failures.describe import causes_of

_REFUSALS = (UserError, MisconfigurationException)
"""What classes raise whose arguments can't be right."""


class Parser(LightningArgumentParser):
    """Raises errors, refuses shortened keys, and keeps the path of a data file as a path.

    (LightningCLI prints the usage and exits, takes `--model.learning_rate` for `--model.learning_rates`, and
    reads any file that an option names as a config, so that an empty data file means no data.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.owner: type | None = None
        """The class whose arguments this parser reads, if it is an inner parser."""
        self.configs: list[Config] = []
        """The config files read so far, to find the line of a value."""
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
        """Raise a `UserError`, whose message names the file and line that it is about, if there is one."""
        sentence = reword(message, self, self.owner)
        if self.owner is not None:
            raise UserError(f"{OPEN}{sentence}{CLOSE}") from ex
        raise UserError(f"{self._place_of_error(message)}{sentence}") from ex

    def instantiate_classes(self, cfg: Any, **options: Any) -> Any:
        """As in jsonargparse, but what a class refuses names it, and its place in a config."""
        try:
            return super().instantiate_classes(cfg, **options)
        except Exception as error:  # jsonargparse wraps what a class in a list refuses
            refusals = (cause for cause in causes_of(error) if isinstance(cause, _REFUSALS))
            refusal = next(refusals, None)
            if refusal is None or isinstance(refusal, DataError):
                raise
            parsers = [parser for parser in with_commands(self) if isinstance(parser, Parser)]
            for name, parser in product(_constructed(refusal), parsers):
                place = parser._place_of_class(name)
                if place:
                    of = "" if str(refusal).startswith(name) else f"{name}: "
                    raise UserError(f"{place}{of}{refusal}") from error
            raise

    def _place_of_class(self, name: str) -> str:
        """`file:line: ` where the last config names a class; or nothing."""
        for config in reversed(self.configs):
            node = find_class_path(config.root, name)
            if node is not None:
                return f"{config.at(node)}: "
        return ""

    def place_of(self, message: str) -> str:
        """`file:line: ` of the key that a message of ours begins with; or nothing."""
        plan = re.match(r"plan(?:\['([^']+)'\])?: ", message)
        if plan:
            part = [plan[1]] if plan[1] else []
            return self._place(["model", "adapt", *part])
        named = re.match(r"([\w.]+): ", message)
        if not named:
            return ""
        keys = named[1].split(".")
        paths = [[*section, *keys] for section in ([], ["model"], ["data"])]
        if any(self._is_option(path) for path in paths):
            return ""
        for path in paths:
            place = self._place(path, section=len(path) - len(keys))
            if place:
                return place
        return ""

    def _place_of_error(self, message: str) -> str:
        """`file:line: ` of the key that a message of jsonargparse is about; or nothing."""
        key = key_of(message)
        if key is None:
            return ""
        inner = re.match(r"([\w.]+): ", innermost(message))
        inside = inner[1].split(".") if inner else []
        return self._place(key.split("."), inside)

    def _is_option(self, keys: list[str]) -> bool:
        """Whether the command line gives a key, or one inside of it, or one that it is inside of."""
        path = ".".join(keys)
        return any(f"{given}.".startswith(f"{path}.") or path.startswith(f"{given}.") for given in self.given)

    def _place(self, keys: list[str], inside: Sequence[str] = (), section: int = 0) -> str:
        """Where the last config with a key has it, or a key inside of it; nothing if an option sets it.

        Args:
            keys: The way to the key. Of a key that isn't there the place is that of the last key above it.
            inside: The way on from there.
            section: So many keys at its beginning are no place for it.
        """
        if self._is_option(keys):
            return ""
        for config in reversed(self.configs):
            above = find(config.root, keys[:section])
            node = find(above, keys[section:]) if above is not None else None
            if node is not None:
                deeper = find(node, inside) if inside else None
                return f"{config.at(deeper or node)}: "
        return ""


class StrictConfigFile(ActionConfigFile):
    """Reads a config file with `read_config`, and checks its keys, before jsonargparse merges it."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Check the file and merge it."""
        if isinstance(values, str):
            config = read_config(values)
            before = yaml.serialize(config.root)
            for sentence in modernize(config.root):
                rank_zero_warn(f"{config.name}: {sentence}")
            check_config(config, parser)
            parser.configs.append(config)
            after = yaml.serialize(config.root)
            if after != before:
                values = after
            elif config.file is not None:
                values = str(config.file)
        before = _classes(cfg)
        super().__call__(parser, cfg, values, option_string)
        gone = [name for name in before if name not in _classes(cfg)]
        if gone:
            rank_zero_warn(
                f"{parser.configs[-1].name}: its trainer.callbacks take the place of those before it, so "
                f"{' and '.join(gone)} won't run; write callbacks+ to add, or put this config first"
            )


def _constructed(error: BaseException) -> list[str]:
    """The classes whose constructors an error came through, the innermost first."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    made = [
        frame.f_locals["self"]
        for frame in reversed(frames)
        if frame.f_code.co_name in ("__init__", "__post_init__") and "self" in frame.f_locals
    ]
    return [type(one).__name__ for one in made]


def _classes(config: Any) -> list[str]:
    """The classes in `trainer.callbacks`, without the packages."""
    callbacks = config.get("trainer.callbacks")
    found = callbacks if isinstance(callbacks, list) else []
    return [bare_name(str(one.get("class_path"))) for one in found if hasattr(one, "get")]


def check_words(words: Sequence[str], parser: Parser) -> None:
    """Check the classes and keys in the values of a command line.

    Args:
        words: All words after the command.
        parser: The command's parser.

    Raises:
        UserError: With the nearest name.
    """
    for index, word in enumerate(words):
        if re.match(r"-[A-Za-z][\w.]", word):
            raise UserError(f"found {word}; did you mean -{word}?")
        if not word.startswith("--"):
            continue
        option, has_value, value = word[2:].partition("=")
        rest = list(words[index + 1 :])
        if not has_value:
            value = rest.pop(0) if rest else ""
        key = option.removesuffix("+")
        parser.given.append(key)
        has_argument = bool(rest) and rest[0].startswith(f"--{key}.")  # so the value is a class
        check_value(key, value, parser, is_class=has_argument)


def value_of(key: str, words: Sequence[str]) -> str | None:
    """The value of a key on a command line; of several the last.

    >>> value_of("out", ["--show=2", "--out", "a.jsonl"])
    'a.jsonl'
    """
    found = None
    for index, word in enumerate(words):
        if word.startswith(f"--{key}="):
            found = word.partition("=")[2]
        elif word == f"--{key}" and index + 1 < len(words):
            found = words[index + 1]
    return found
