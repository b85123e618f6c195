"""Messages of jsonargparse, which are prose, as one line: which key, what was found, what is expected."""

import re
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser

from lightning_vlm.config import COMMANDS
from lightning_vlm.config.class_names import is_settings
from lightning_vlm.config.help import command_help
from lightning_vlm.config.key_names import key_types, nearest_key, no_argument, no_key, with_commands
from lightning_vlm.config.type_words import describe, words_of
from lightning_vlm.nearest import did_you_mean

OPEN, CLOSE = "\x02", "\x03"
"""They enclose the message of an inner parser, which the message of the outer parser quotes."""
_ABOUT_A_TYPE = ("Expected", "Does not validate", "Not a valid subclass", "Problem")
"""Words of messages that say at length which types a value isn't of."""
PRECISIONS = {
    "32": "32-true",
    "fp32": "32-true",
    "float32": "32-true",
    "tf32": "32-true",
    "full": "32-true",
    "bf16": "bf16-mixed",
    "bfloat16": "bf16-mixed",
    "mixed": "bf16-mixed",
    "bf16-true": "bf16-true",
    "16": "16-mixed",
    "fp16": "16-mixed",
    "float16": "16-mixed",
    "half": "16-mixed",
    "amp": "16-mixed",
    "16-true": "16-true",
}
"""What people call a precision, and what Lightning calls it."""
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}
"""What people call a dtype."""
_SOURCES = ("data.train", "data.val", "data.test", "data.predict")
_QUOTED_VALUES = (
    r"Given value: (.*)",
    r"Got value: (.*?)(?: Subclass types expect|$)",
    r"Expected a dot import path string: (\S+)",
    r"given class_path '([\w.]+)'",
)


def reword(message: str, parser: ArgumentParser, owner: type | None = None) -> str:
    """Reword a message of jsonargparse.

    Args:
        message: One line or several.
        parser: The parser whose keys it is about.
        owner: The class whose arguments the parser reads, if it is an inner parser.

    >>> parser = ArgumentParser()
    >>> _ = parser.add_argument("--trainer.max_steps", type=int)
    >>> reword('Parser key "trainer.max_steps":\\n  Expected a <class \\'int\\'>. Got value: many', parser)
    'trainer.max_steps: found many; expected a whole number'
    >>> reword("unrecognized arguments: --trainer.max_step 3", parser)
    'there is no key trainer.max_step; did you mean trainer.max_steps?'
    """
    line = " ".join(message.split())
    for rule in _RULES:
        sentence = rule(line, parser, owner)
        if sentence:
            return sentence
    return innermost(line) or line


def innermost(message: str) -> str:
    """The message of the innermost parser, without the marks that enclose it; or nothing."""
    found = re.search(rf"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}", message)
    return " ".join(found[1].split()) if found else ""


def key_of(message: str) -> str | None:
    """The key that a message of jsonargparse is about."""
    found = re.search(r'Parser key "([\w.]+)":', message)
    return found[1] if found else None


def _unrecognized(line: str, parser: ArgumentParser, owner: type | None) -> str | None:
    """Reword `unrecognized arguments: --trainer.max_step 3`."""
    found = re.search(r"unrecognized arguments: (\S+)", line)
    if not found:
        return None
    word = found[1]
    if not word.startswith("-"):
        hint = f"; did you mean --config {word}?" if word.endswith((".yaml", ".yml")) else ""
        if word.endswith((".jsonl", ".json", ".csv", ".parquet")) and "data.train" in _all_types(parser):
            hint = f"; did you mean --data.train {word}?"
        return f"found {word} where an option was expected{hint}"
    option = word.partition("=")[0]
    key = option.lstrip("-")
    types = _all_types(parser)
    if key in types:  # which only its dashes keep from being found
        return f"found {option}; did you mean --{key}?"
    if "." in key:
        return no_key(key, types)
    others = _commands_with(key)
    if others:
        return f"there is no option --{key} here, only behind {', '.join(others)}"
    near = nearest_key(key, types)
    hint = f"; did you mean {_option(parser, near)}?" if near else ""
    return f"there is no option --{key}{hint}"


def _commands_with(key: str) -> list[str]:
    """The commands whose help has an option of this name."""
    return [name for name in COMMANDS if key in command_help(name).keys]


def _not_accepted(line: str, parser: ArgumentParser, owner: type | None) -> str | None:
    """Reword `Option 'alpa' is not accepted`, which an inner parser says."""
    found = re.search(r"Option '([\w.]+)' is not accepted", line)
    if not found or OPEN in line:
        return None
    key = found[1]
    if owner is not None and owner.__name__ == "Optimizer":  # any of them: only its class knows its keys
        return f"found {key} and no class; name the class before it, such as --model.optimizer AdamW"
    name = "" if owner is None or is_settings(owner) else owner.__name__
    return no_argument(key, name, key_types(parser))


def _required(line: str, parser: ArgumentParser, owner: type | None) -> str | None:
    """Reword `the following arguments are required: fit.model.name_or_path, --out`."""
    if "arguments are required" not in line:
        return None
    commands = "|".join(COMMANDS)
    listed = line.partition(": ")[2]
    missing = re.sub(rf"\b({commands})\.", "", listed)
    if owner is not None:
        return f"{owner.__name__} needs {missing}"
    if missing.isupper():  # an argument without a name
        return f"found no {missing}; --help shows how the command is written"
    options = " and ".join(f"--{name} VALUE" for name in missing.split(", "))
    in_config = ", or the key in a config" if "." in missing else ""
    if missing == "model.name_or_path":
        in_config = ", or a config of a model, such as --config models/smolvlm-256m"
    return f"found no {missing}; expected {options}{in_config}"


def _without_value(line: str, parser: ArgumentParser, owner: type | None) -> str | None:
    """Reword `argument --data.batch_size: expected one argument`."""
    found = re.match(r"argument (\S+): expected (?:one|at least one) argument", line)
    if not found:
        return None
    option = found[1].rpartition("/")[2]
    return f"{option}: found nothing; expected a value after it"


def _wrong_choice(line: str, parser: ArgumentParser, owner: type | None) -> str | None:
    """Reword `argument --dtype: invalid choice: 'f32' (choose from 'auto', 'float32')`."""
    found = re.match(r"argument --(\S+): invalid choice: '(.*?)' \(choose from (.*)\)", line)
    if not found:
        return None
    key, word, choices = found.groups()
    bare_choices = choices.replace("'", "").split(", ")
    near = did_you_mean(word, bare_choices)
    return f"{key}: found {word}; expected one of {choices}{near}"


def _wrong_value(line: str, parser: ArgumentParser, owner: type | None) -> str | None:
    """Reword `Parser key "trainer.max_steps": Expected a <class 'int'>. Got value: many`."""
    found = re.search(r'Parser key "([\w.]+)":? (.*)', line)
    if not found:
        return None
    key, text = found.groups()
    inner = innermost(line)
    if inner:
        return f"{key}: {inner}"
    if not any(words in text for words in _ABOUT_A_TYPE):
        return f"{key}: {text}"
    nested = re.search(r"NestedArg\(key='([\w.]+)'", text)
    if nested:
        return f"there is no key {key}.{nested[1]}; the value of {key} has no keys"
    types = _all_types(parser)
    without_command = key.partition(".")[2]
    hint = types.get(key) or types.get(without_command)
    value = _value_in(text)
    if hint is None or value is None:
        without_types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
        return f"{key}: {without_types}"
    if key.endswith("trainer.precision"):
        return f"{key}: {_wrong_precision(value)}"
    if key.endswith(_SOURCES) and value.startswith("["):
        return f"{key}: found a list; expected one file, or a Chain of several, each a DataFile with its path"
    meant = _DTYPES.get(value, value) if key.endswith("dtype") else value
    near = did_you_mean(meant, words_of(hint))
    return f"{key}: found {value}; expected {describe(hint)}{near}"


def _wrong_precision(value: str) -> str:
    names = dict.fromkeys(PRECISIONS.values())
    if value in names:
        return f"found {value} with a blank beside it; leave the blank out"
    near = did_you_mean(PRECISIONS.get(value.lower(), value), names)
    return f"found {value}; expected {', '.join(names)} or null{near}"


_Rule = Callable[[str, ArgumentParser, type | None], str | None]
_RULES: tuple[_Rule, ...] = (
    _unrecognized,
    _not_accepted,
    _required,
    _without_value,
    _wrong_choice,
    _wrong_value,
)


def _value_in(text: str) -> str | None:
    """The value that a message quotes."""
    for pattern in _QUOTED_VALUES:
        found = re.search(pattern, text)
        if found:
            return found[1]
    return None


def _all_types(parser: ArgumentParser) -> dict[str, Any]:
    """The types of the keys of a parser and of its commands."""
    types: dict[str, Any] = {}
    for command in with_commands(parser):
        types |= key_types(command)
    return types


def _option(parser: ArgumentParser, key: str) -> str:
    """A key as an option, spelt as the help spells it."""
    for action in parser._actions:
        for option in action.option_strings:
            if action.dest == key and option.startswith("--"):
                return option
    return f"--{key}"
