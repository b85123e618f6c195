"""A config with a plan's choice in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_vlm.errors import UserError
from lightning_vlm.outputs.writable import require_writable
from lightning_vlm.planning.planned import Planned
from lightning_vlm.planning.terminal import choice_lines
from lightning_vlm.training.memory.decide import gib

OWN_KEYS = (
    "memory",
    "batch",
    "aim",
    "scan",
    "compare",
    "measure",
    "out",
    "json",
    "ckpt_path",
    "weights_only",
)
"""The keys of the command, which aren't those of a fit."""


def check_out(out: str) -> Path:
    """The file to write.

    Raises:
        UserError: It is there, or its folder isn't.
    """
    file = Path(out)
    if file.exists():
        raise UserError(f"out: found {file}, which is there already; name a new file")
    if not file.parent.is_dir():
        raise UserError(f"out: found no folder {file.parent}; make it, or name another")
    require_writable("out", file)
    return file


def config_text(config: str, planned: Planned, out: str) -> str:
    """The config of a run with the choice in it, and why.

    Args:
        config: YAML of the run's config, only with what isn't default.
        planned: The plan.
        out: The file that it will be.
    """
    root: dict[str, Any] = yaml.safe_load(config) or {}
    for key in OWN_KEYS:
        root.pop(key, None)
    for key, value, _ in planned.changes:
        _set(root, key.split("."), value)
    lines = yaml.safe_dump(root, sort_keys=False, allow_unicode=True).splitlines()
    node = yaml.compose("\n".join(lines))
    for key, _, why in planned.changes:
        place = _line(node, key.split("."))
        if place is not None:
            lines[place] += f"  # {why}"
    head = [
        f"# Planned for {gib(planned.memory)}, {planned.device}:",
        f"#   lightning-vlm fit --config {out}",
    ]
    for title, text in choice_lines(planned):
        if title not in ("set", "config") and not text.startswith(
            tuple(key for key, _, _ in planned.changes)
        ):
            head.append(f"# {text}")
    return "\n".join([*head, *lines, ""])


def _set(root: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    if list(keys[:3]) == ["model", "optimizer", "init_args"] and not root.get("model", {}).get("optimizer"):
        root.setdefault("model", {})["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {}}
    inside = root
    if keys[0] == "stages":
        inside = next(stage for stage in root["stages"] if stage["name"] == keys[1])
        keys = keys[2:]
    for key in keys[:-1]:
        if not isinstance(inside.get(key), dict):
            inside[key] = {}
        inside = inside[key]
    inside[keys[-1]] = value


def _line(node: Any, keys: Sequence[str]) -> int | None:
    """The line of a key."""
    line = None
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(name, value) for name, value in pairs if name.value == key]
        if not found:
            return None
        name, node = found[0]
        line = name.start_mark.line
    return line
