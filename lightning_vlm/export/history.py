"""What a checkpoint and the files beside it say of the training, for people who get the model."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_vlm.data.read.hf_dataset import is_hub_name
from lightning_vlm.outputs.secrets import is_secret, without_credentials

_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val", "devices")
"""Of `trainer`: what changes the result."""


class History(NamedTuple):
    """What is known of a training.

    Args:
        steps: Of the optimizer.
        samples: Of each task in the training data; empty where nothing says it.
        config: The part of the run's config that made the model, without places on the machine; None where no
            config lies beside the checkpoint.
        datasets: Names of data sets on the hub.
        scores: Of the last validation up to the checkpoint, without `val/`.
        scores_step: When that was.
        speed: In words; empty where nothing was measured.
    """

    steps: int
    samples: dict[str, int]
    config: dict[str, Any] | None
    datasets: list[str]
    scores: dict[str, float]
    scores_step: int | None
    speed: str


def history_of(checkpoint: Path, saved: Mapping[str, Any]) -> History:
    """Look at a checkpoint and at what its run wrote beside it.

    Args:
        checkpoint: The file.
        saved: What is in it.
    """
    steps = int(saved.get("global_step", 0))
    config = _config(checkpoint, saved)
    scores, at, speed = _report(checkpoint, saved, steps)
    return History(
        steps,
        dict(saved.get("lightning_vlm", {}).get("tasks", {}).get("samples", {})),
        None if config is None else _public_config(config),
        [] if config is None else sorted(set(_hub_names(config.get("data") or {}))),
        scores,
        at,
        speed,
    )


def _beside(checkpoint: Path, name: str) -> Path | None:
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        if (folder / name).is_file():
            return folder / name
    return None


def _config(checkpoint: Path, saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config of the run that wrote a checkpoint: one of another base model is another's."""
    file = _beside(checkpoint, "config.yaml")
    try:
        found = None if file is None else yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("model"), dict):
        return None
    given = saved.get("hyper_parameters", {})
    return found if found["model"].get("name_or_path") == given.get("name_or_path") else None


def _report(
    checkpoint: Path, saved: Mapping[str, Any], steps: int
) -> tuple[dict[str, float], int | None, str]:
    """Scores and speed, from the record of the run if it is the checkpoint's own."""
    file = _beside(checkpoint, "report.jsonl")
    if file is None or "RunReport" not in saved.get("callbacks", {}):
        return {}, None, ""
    scores: dict[str, float] = {}
    at = None
    speed = ""
    for row in _rows(file):
        step = row.get("step")
        if not isinstance(step, int) or step > steps:
            continue
        metrics = row.get("metrics")
        found = {}
        for name, value in (metrics if isinstance(metrics, dict) else {}).items():
            if name.startswith("val/") and isinstance(value, int | float):
                found[name.removeprefix("val/")] = float(value)
        if found:
            scores, at = (scores | found if at == step else found), step
        if row.get("event") == "throughput" and row.get("figures"):
            speed = str(row.get("text", ""))
    return scores, at, speed


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    trainer = config.get("trainer") or {}
    parts = {
        "seed_everything": config.get("seed_everything"),
        "model": config.get("model"),
        "data": config.get("data"),
        "trainer": {name: trainer.get(name) for name in _TRAINER},
    }
    return public(parts)


def public(value: Any) -> Any:
    """A config without nulls, secrets, and places on the machine: of a path only its last part stays.

    >>> public({"train": "/home/me/pets/train.jsonl", "max_length": None, "val": "HuggingFaceM4/A-OKVQA"})
    {'train': '.../train.jsonl', 'val': 'HuggingFaceM4/A-OKVQA'}
    """
    if isinstance(value, Mapping):
        kept = {}
        for name, inner in value.items():
            if inner is not None and not is_secret(str(name)):
                kept[name] = public(inner)
        return kept
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    text = without_credentials(text)
    if "://" in text:
        return text
    is_path = "/" in text or "\\" in text or text.startswith("~")
    if not is_path or is_hub_name(text):
        return text
    if "\n" in text or "{" in text:  # a template or a prompt, in which places may still stand
        return text.replace(str(Path.home()), "...").replace(str(Path.cwd()), "...")
    last = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
    return f".../{last}"


def _hub_names(value: Any) -> Iterator[str]:
    """Names of data sets on the hub, in the part of a config that names data."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if (
                isinstance(inner, str)
                and name in ("train", "val", "test", "path", "of")
                and is_hub_name(inner)
            ):
                yield inner
            elif name != "predict":
                yield from _hub_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _hub_names(inner)
