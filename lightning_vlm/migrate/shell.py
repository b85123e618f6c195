"""The words of a command of another tool, as people have it in a shell script."""

import re
import shlex
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.theirs import Launch

_STARTERS = (
    "swift",
    "llamafactory-cli",
    "llamafactory",
    "trl",
    "torchrun",
    "accelerate",
    "python",
    "python3",
    "deepspeed",
)
"""What a command begins with."""
_TOOLS = {
    "swift": "ms-swift",
    "llamafactory-cli": "llama-factory",
    "llamafactory": "llama-factory",
    "trl": "trl",
}
_PROCESSES = ("nproc_per_node", "nproc-per-node", "num_processes", "num_gpus")
_VARIABLE = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_USED = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
_LONGEST = 100_000
"""The most characters of what variables put into a word."""


class Command(NamedTuple):
    """A command of another tool.

    Args:
        tool: Which one, where its name says so.
        given: Its keys.
        configs: Files that it reads keys from.
        launch: What stands around it.
    """

    tool: str | None
    given: dict[str, Any]
    configs: list[str]
    launch: Launch


def read_script(text: str, name: str) -> Command:
    r"""The command of a shell script.

    Args:
        text: The script.
        name: Its path, for messages.

    Raises:
        UserError: There is no such command, several, or quotes that don't end.

    >>> text = "# 22 GB\nMAX_PIXELS=1003520 \\\nswift sft --model a --dataset b c \\\n  --packing\n"
    >>> command = read_script(text, "a.sh")
    >>> command.tool, command.given, command.launch.environment
    ('ms-swift', {'model': 'a', 'dataset': ['b', 'c'], 'packing': True}, {'MAX_PIXELS': '1003520'})
    """
    lines = re.sub(r"\\\r?\n", " ", text).splitlines()
    environment: dict[str, str] = {}
    variables: dict[str, str] = {}
    found: list[list[str]] = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"{name}: it can't be read as shell: {error}") from None
        exported = words[:1] == ["export"]
        place = int(exported)
        new: dict[str, str] = {}
        values = ChainMap(variables, environment)
        while place < len(words) and (variable := _VARIABLE.fullmatch(words[place])):
            new[variable[1]] = _filled(variable[2], values, name)
            place += 1
        values = ChainMap(variables, new, environment)
        words = [_filled(word, values, name) for word in words[place:]]
        if words or exported:
            environment |= new
        else:  # variables of the script alone
            variables |= new
        if words and words[0].rpartition("/")[2] in _STARTERS and _is_training(words):
            found.append(words)
    if len(found) != 1:
        what = "no training command" if not found else f"{len(found)} training commands"
        raise UserError(
            f"{name}: found {what}; expected one: swift sft, llamafactory-cli train, trl sft, or a script"
        )
    return read_words(found[0], environment)


def read_words(words: Sequence[str], environment: dict[str, str]) -> Command:
    """A command from its words.

    >>> read_words(["torchrun", "--nproc_per_node", "4", "sft_vlm.py", "--lora_r", "8"], {}).launch
    Launch(environment={}, script='sft_vlm.py', devices=4, launcher='torchrun', options={})
    """
    rest = list(words)
    first = rest.pop(0).rpartition("/")[2]
    tool = _TOOLS.get(first)
    devices = _count(environment.get("NPROC_PER_NODE"))
    script: str | None = None
    options: dict[str, Any] = {}
    launcher = first
    if tool is None:
        script, options, rest = _script(rest)
        for name in _PROCESSES:
            count = _count(options.get(name))
            devices = devices if count is None else count
        if script and script.rpartition("/")[2].startswith("sft") and not script.endswith("cli/sft.py"):
            tool = "trl"
        elif script and "swift/cli" in script:
            tool = "ms-swift"
        elif script and script.endswith(("src/train.py", "llamafactory/launcher.py")):
            tool = "llama-factory"
    elif rest and not rest[0].startswith("-"):
        task = rest.pop(0)
        script = task if tool == "ms-swift" else None
        if tool == "trl" and task != "sft":
            script = f"{task}.py"
    configs = [
        word for word in rest[:1] if word.endswith((".yaml", ".yml", ".json")) and not word.startswith("-")
    ]
    given = _options(rest[len(configs) :])
    config = given.pop("config", None)
    if isinstance(config, str):
        configs.append(config)
    options = {name: value for name, value in options.items() if name not in _PROCESSES}
    return Command(tool, given, configs, Launch(environment, script, devices, launcher, options))


def _is_training(words: Sequence[str]) -> bool:
    asked = {"sft", "pt", "train", "rlhf", "dpo", "grpo", "kto", "reward"}
    return bool(asked & {*words[1:3]}) or any(word.endswith(".py") for word in words)


def _script(words: list[str]) -> tuple[str | None, dict[str, Any], list[str]]:
    """The Python file that is run, the options before it, and the words behind it."""
    for place, word in enumerate(words):
        if word.endswith(".py"):
            return word, _options(words[:place]), words[place + 1 :]
    if "-m" in words:
        place = words.index("-m")
        return words[place + 1].replace(".", "/") + ".py", _options(words[:place]), words[place + 2 :]
    return None, {}, words


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--key a b`, `--switch`, and `key=value`."""
    given: dict[str, Any] = {}
    key: str | None = None
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            given[key] = value if equals else True
        elif key is not None:
            before = given[key]
            if before is True:
                given[key] = word
            else:
                given[key] = [*(before if isinstance(before, list) else [before]), word]
        elif variable := _VARIABLE.fullmatch(word):
            given[variable[1]] = variable[2]
    return given


def _count(value: Any) -> int | None:
    """The number of processes that a word says; None for other words."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else None


def _filled(word: str, values: Mapping[str, str], name: str) -> str:
    """A word with the script's own variables filled in.

    Raises:
        UserError: It becomes too long, as where each variable is made of the one before it, twice.
    """
    if sum(len(values.get(variable, "")) for variable in _USED.findall(word)) > _LONGEST:
        raise UserError(f"{name}: found variables that make a word of more than {_LONGEST:,} characters")
    return _USED.sub(lambda match: values.get(match[1], match[0]), word)
