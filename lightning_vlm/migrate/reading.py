"""Opening what people have of another tool: YAML, JSON, a script; and which tool it is of."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_vlm.config.yaml_file import MAX_BYTES, broken
from lightning_vlm.errors import UserError
from lightning_vlm.migrate.others import refuse_others
from lightning_vlm.migrate.python_calls import read_python
from lightning_vlm.migrate.shell import Command, read_script, read_words
from lightning_vlm.migrate.theirs import Launch, Theirs
from lightning_vlm.migrate.tools import LABELS, tool
from lightning_vlm.migrate.unsaid import Unsaid, of_shell
from lightning_vlm.nearest import did_you_mean, one_line

_NESTED = ("training_args", "training_arguments", "args")
"""Keys under which people keep the arguments of a Trainer."""


def read(name: str, asked: str | None) -> Theirs:
    """What a file says.

    Args:
        name: Its path.
        asked: Which tool it is of, as `--from` has it; None is found out.

    Raises:
        UserError: It can't be read, or isn't known to be of a tool.
    """
    path = Path(name)
    _check(path)
    text = _text(path)
    if path.suffix in (".yaml", ".yml", ".json"):
        given = _mapping(text, path)
        return _theirs(Command(None, given, [], Launch()), path, asked)
    command = read_python(text, name) if path.suffix in (".py", ".ipynb") else read_script(text, name)
    return _theirs(command, path, asked)


def read_line(words: Sequence[str], asked: str | None) -> Theirs:
    """What a command says, by its words; see `read`.

    Raises:
        UserError: As in `read`.
    """
    environment: dict[str, str] = {}
    rest = list(words)
    while rest and "=" in rest[0] and not rest[0].startswith("-"):
        key, _, value = rest.pop(0).partition("=")
        environment[key] = value
    if not rest:
        raise UserError("migrate: found no command behind --; expected one such as swift sft --model ...")
    return _theirs(read_words(rest, environment), Path(shlex.quote(rest[0])), asked)


def _theirs(command: Command, path: Path, asked: str | None) -> Theirs:
    given: dict[str, Any] = {}
    environment = dict(command.launch.environment)
    for config in command.configs:
        file = path.parent / config if (path.parent / config).exists() else Path(config)
        _check(file)
        given |= _mapping(_text(file), file)
    given |= command.given
    given = _flat(given)
    refuse_others(given, path, is_training=command.tool is not None)
    _refuse_ours(given, path)
    for key in ("env", "ENV"):
        variables = given.pop(key, None)
        if isinstance(variables, Mapping):
            environment |= {str(name): str(value) for name, value in variables.items()}
    said = {key: value for key, value in environment.items() if not isinstance(of_shell(value), Unsaid)}
    launch = command.launch._replace(environment=said)
    if launch.devices is None and environment.get("NPROC_PER_NODE", "").isdigit():
        launch = launch._replace(devices=int(environment["NPROC_PER_NODE"]))
    name = asked or _tool(command, given, path)
    if name not in LABELS:
        raise UserError(
            f"--from: found {name}; expected one of {', '.join(LABELS)}{did_you_mean(name, LABELS)}"
        )
    if name == "ms-swift" and "global_world_size" in given:  # an args.json
        launch = launch._replace(devices=launch.devices or max(1, int(given["global_world_size"] or 1)))
        known = tool(name)
        names = {*known.defaults, *known.earlier}
        given = {key: value for key, value in given.items() if key in names}
    return Theirs(tool(name), given, path, launch)


def _refuse_ours(given: Mapping[str, Any], path: Path) -> None:
    """The tools' configs have no sections of these names."""
    for section in ("model", "data", "trainer"):
        if isinstance(given.get(section), Mapping):
            raise UserError(
                f"{path}: found the section {section}, as in a config of ours; fit takes it as it is"
            )


def _flat(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that are kept under a key of their own, beside the others."""
    flat: dict[str, Any] = {}
    for key, value in given.items():
        nested = key.lower() in _NESTED and isinstance(value, Mapping)
        flat |= dict(value) if nested else {str(key): value}
    return flat


def _tool(command: Command, given: Mapping[str, Any], path: Path) -> str:
    """The tool of a command, or else the one whose keys these are.

    Raises:
        UserError: They are of none, or of several.
    """
    script = command.launch.script or ""
    is_own = script.endswith(".py") and command.launch.launcher not in ("trl", "swift")
    if command.tool is not None and not (is_own and command.tool == "trl"):
        return command.tool
    points = {}
    keys = {key.replace("-", "_") for key in given}
    for one in map(tool, LABELS):  # a mark says as much as ten other keys
        points[one.name] = len(one.own & keys) + 10 * len(one.marks & keys)
    if is_own and command.tool == "trl":  # by the name of its script alone
        points["trl"] += 10
    elif is_own and points["trl"] < 20 and "use_peft" not in keys:
        points["trl"] = 0  # scripts of one's own have some of its keys, and Trainer's defaults
    most = max(points.values())
    best = [name for name, number in points.items() if number == most]
    if most < 10:
        base = tool("trainer")
        if any(key in base.defaults or key in base.earlier for key in keys):
            return "trainer"
        some = ", ".join(list(given)[:4]) or "nothing"
        raise UserError(
            f"{path}: found the keys {some}; expected a config of {', '.join(LABELS)}: see --from"
        )
    if len(best) > 1:
        raise UserError(f"{path}: its keys are known to {' and '.join(best)}; say which it is of with --from")
    return best[0]


def _check(path: Path) -> None:
    if path.is_dir():
        raise UserError(
            f"{path}: found a folder; expected a YAML or JSON config, args.json or a shell script"
        )
    if not path.exists():
        near = did_you_mean(
            path.name, [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        )
        raise UserError(f"{path}: found no such file{near}")
    if path.suffix in (".bin", ".pt", ".pkl", ".pickle"):
        raise UserError(
            f"{path}: found a pickle, which runs code as it is opened; write its keys as JSON, in the script "
            "that has them: json.dump(training_args.to_dict(), file)"
        )
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{path}: found {path.stat().st_size / 1e6:,.1f} MB; expected a config of at most 1 MB"
        )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: it can't be read as text: {error}") from None


def _mapping(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    except yaml.YAMLError as error:
        if isinstance(error, yaml.MarkedYAMLError):
            raise UserError(broken(str(path), text, error)) from None
        raise UserError(f"{path}: broken YAML: {one_line(str(error), 200)}") from None
    if not isinstance(found, dict):
        what = "nothing in it" if found is None else type(found).__name__
        raise UserError(f"{path}: found {what}; expected keys such as learning_rate")
    return found
