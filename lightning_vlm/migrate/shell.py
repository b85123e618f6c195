"""The words of a command of another tool, as people have it in a shell script."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.others import COMMANDS, refuse_command
from lightning_vlm.migrate.shell_words import ASSIGNED, Simple, simple_commands
from lightning_vlm.migrate.theirs import Launch
from lightning_vlm.migrate.unsaid import of_shell

_TOOLS = {
    "swift": "ms-swift",
    "llamafactory-cli": "llama-factory",
    "llamafactory": "llama-factory",
    "trl": "trl",
}
_LAUNCHERS = ("torchrun", "accelerate", "python", "python3", "deepspeed")
_TASKS = {"sft", "pt", "train"}
"""Commands of the tools that learn answers."""
_OTHER_TASKS = {"rlhf", "dpo", "grpo", "kto", "reward", "rloo", "gkd"}
"""Those that train otherwise, and are refused by name."""
_USUAL = re.compile(
    r"--(?:learning_rate|num_train_epochs|max_steps|per_device_train_batch_size|gradient_accumulation_steps)\b"
)
"""Options by which a script of one's own is known to train."""
_TALK = {"echo", "printf", "which", "cat", "ls", "cd", "pip", "git", "mkdir", "tee", "grep", "for", "alias"}
"""Commands whose words are no commands."""
_PROCESSES = ("nproc_per_node", "nproc-per-node", "num_processes", "num_gpus")
_OF_ACCELERATE = ("num_processes", "accelerate_config", "config_file", "main_process_port", "num_machines")
_KNOWN = ("HOME", "PWD", "USER")
"""Variables that each script finds set."""
_KEYS = re.compile(r"\.(?:ya?ml|json)$")


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
    r"""The command of a shell script that trains.

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
    known = {key: os.environ[key] for key in _KNOWN if key in os.environ}
    found = [one for command in simple_commands(text, name, known) if (one := _training(command))]
    first = max(map(_rank, found), default=0)
    best = [one for one in found if _rank(one) == first]
    if not best:
        commands = simple_commands(text, name, known)
        starts = [
            (one.rpartition("/")[2], *command.words[place + 1 : place + 2])
            for command in commands
            for place, one in enumerate(command.words)
            if one.rpartition("/")[2] in _TOOLS
        ]
        there = (
            f"found {' '.join(starts[0])} and no training command" if starts else "found no training command"
        )
        raise UserError(
            f"{name}: {there}; expected swift sft, llamafactory-cli train, trl sft, or a script in Python"
        )
    if len(best) > 1 and best[0].words[0] not in COMMANDS:
        lines = ", ".join(str(one.line) for one in best)
        raise UserError(
            f"{name}: found {len(best)} training commands, in lines {lines}; expected one: put the one that "
            "you mean into a file of its own"
        )
    command = best[0]
    remarks = [
        f"line {line} ends the command in a shell (a comment inside of it, or a blank behind its \\); what "
        "follows was read, too"
        for line in command.broken
    ]
    if len(found) > 1:
        others = ", ".join(str(one.line) for one in found if one is not command)
        remarks.append(f"the command in line {command.line} was read, and not the one in line {others}")
    read = read_words(command.words, dict(command.environment))
    return read._replace(launch=read.launch._replace(remarks=tuple(remarks)))


def read_words(words: Sequence[str], environment: dict[str, str]) -> Command:
    """A command from its words.

    Raises:
        UserError: It is of a tool whose configs can't be read.

    >>> launch = read_words(["torchrun", "--nproc_per_node", "4", "sft_vlm.py", "--lora_r", "8"], {}).launch
    >>> launch.script, launch.devices, launch.launcher
    ('sft_vlm.py', 4, 'torchrun')
    """
    rest = list(words)
    first = rest.pop(0).rpartition("/")[2]
    refuse_command(first)
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
        tool = _tool_of(script or "")
    elif rest and not rest[0].startswith("-"):
        task = rest.pop(0)
        script = task if tool == "ms-swift" else None
        if tool == "trl" and task != "sft":
            script = f"{task}.py"
    if tool == "llama-factory" and rest[:1] == ["train"]:
        rest.pop(0)
    configs = [word for word in rest[:1] if _KEYS.search(word) and not word.startswith("-")]
    given = _options(rest[len(configs) :])
    config = given.pop("config", None)
    if isinstance(config, str):
        configs.append(config)
    if tool == "trl" and launcher == "trl":  # which passes what it doesn't know itself to accelerate
        options = {name: given.pop(name) for name in _OF_ACCELERATE if name in given}
        devices = _count(options.get("num_processes")) or devices
    options = {
        name: value for name, value in options.items() if name not in _PROCESSES or _count(value) is None
    }
    return Command(tool, given, configs, Launch(environment, script, devices, launcher, options))


def _training(command: Simple) -> Simple | None:
    """A command from the word that starts a tool or a script, without what stands before it."""
    words, environment = command.words, dict(command.environment)
    if words[0].rpartition("/")[2] in _TALK:
        return None
    launcher: int | None = None
    for place, word in enumerate(words):
        name = word.rpartition("/")[2]
        following = {*words[place + 1 : place + 2]}
        if assigned := ASSIGNED.fullmatch(word):  # behind env or eval
            environment[assigned[1]] = assigned[3]
        elif name in COMMANDS or (name in _TOOLS and following & {*_TASKS, *_OTHER_TASKS}):
            for option, value in (_options(words[:place]) if launcher is not None else {}).items():
                if option in _PROCESSES:
                    environment["NPROC_PER_NODE"] = str(value)
            return command._replace(words=words[place:], environment=environment)
        elif launcher is None and name in _LAUNCHERS:
            launcher = place
    if launcher is None or _script(words[launcher + 1 :])[0] is None:
        return None
    return command._replace(words=words[launcher:], environment=environment)


def _rank(command: Simple) -> int:
    """How sure a command is the one that is meant: 3 learns answers, 1 is some other script."""
    words = command.words
    if words[0].rpartition("/")[2] in _TOOLS and words[1] in _TASKS:
        return 3
    script = _script(words[1:])[0] or ""
    if _tool_of(script) or any(map(_USUAL.match, words)):
        return 2 if words[0].rpartition("/")[2] in _LAUNCHERS else 1
    return 1


def _tool_of(script: str) -> str | None:
    """The tool of a Python file."""
    if "swift/cli" in script:
        return "ms-swift"
    if script.endswith(("src/train.py", "llamafactory/launcher.py", "llamafactory/cli.py")):
        return "llama-factory"
    return "trl" if script.rpartition("/")[2].startswith("sft") else None


def _script(words: list[str]) -> tuple[str | None, dict[str, Any], list[str]]:
    """The Python file that is run, the options before it, and the words behind it."""
    for place, word in enumerate(words):
        if word.endswith(".py"):
            return word, _options(words[:place]), words[place + 1 :]
    for flag in ("-m", "--module"):
        if flag in words[:-1]:
            place = words.index(flag)
            return words[place + 1].replace(".", "/") + ".py", _options(words[:place]), words[place + 2 :]
    for place, word in enumerate(words[:-1]):  # a script that a variable names
        if of_shell(word) is not word and words[place + 1].startswith("--"):
            return word, _options(words[:place]), words[place + 1 :]
    return None, {}, words


def _options(words: Sequence[str]) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--key a b`, `--switch`, and `key=value`."""
    given: dict[str, Any] = {}
    key: str | None = None
    for word in map(of_shell, words):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            given[key] = of_shell(value) if equals else True
        elif key is not None:
            before = given[key]
            if before is True:
                given[key] = word
            else:
                given[key] = [*(before if isinstance(before, list) else [before]), word]
        elif variable := ASSIGNED.fullmatch(word):
            given[variable[1]] = of_shell(variable[3])
    return given


def _count(value: Any) -> int | None:
    """The number of processes that a word says; None for other words."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else None
