"""The models that are compared: what was typed, and what each is."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_vlm_callbacks.sharded_checkpoints import is_sharded

from lightning_vlm.callbacks.answer_rows import holds_answers
from lightning_vlm.compare.checkpoint import Checkpoint, open_checkpoint
from lightning_vlm.compare.sets import named
from lightning_vlm.data.read.hf_dataset import is_hub_name
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.checkpoint import newest_in
from lightning_vlm.models.shipped import SHIPPED
from lightning_vlm.nearest import nearest

BASE = "base"
"""The word for the base model of the first checkpoint."""
TUNED = "tuned"
"""What a single checkpoint is called."""
_KINDS = "a checkpoint, an exported folder, a name on the hub, base, or a file of answers of predict"
_DATA = (".json", ".csv", ".tsv", ".parquet")

Kind = Literal["base", "checkpoint", "model", "answers"]


class Entrant(NamedTuple):
    """A model of a comparison.

    Args:
        label: What it is called.
        kind: Base of a checkpoint, a checkpoint, a folder or name, or a file of answers.
        path: The checkpoint, the folder, the name, or the file.
        checkpoint: That it is, or is the base of.
        quantized: The method by which it is quantised for the comparison.
        against: The number of the model that it is compared with; None for the first.
    """

    label: str
    kind: Kind
    path: str
    checkpoint: Checkpoint | None = None
    quantized: str | None = None
    against: int | None = 0


def read_entrants(words: Sequence[str], quantized: str | None = None) -> list[Entrant]:
    """The models that are named, the one that others are compared with first.

    Args:
        words: What was typed. One checkpoint alone is compared with its base.
        quantized: A method by which each is quantised as well.

    Raises:
        UserError: One isn't there or isn't a model, or there is only one.
    """
    found = [_read(word) for word in words]
    checkpoints = [one.checkpoint for _, one in found if one.checkpoint is not None]
    if len(found) == 1 and checkpoints:
        found.insert(0, (None, _of_base(checkpoints[0])))
    if not found or (len(found) == 1 and quantized is None):
        what = f"one model, {words[0]}" if words else "no model"
        raise UserError(f"compare: found {what}; expected two or more, or one checkpoint: {_KINDS}")
    if any(one.kind == "base" for _, one in found) and not checkpoints:
        raise UserError(
            f"compare: found {BASE}, but no checkpoint that it could be the base of; name the model"
        )
    entrants = []
    for name, one in found:
        if one.kind == "base":
            one = _of_base(checkpoints[0])
        elif one.kind == "model" and checkpoints and one.path == checkpoints[0].base:
            one = one._replace(checkpoint=checkpoints[0])
        entrants.append(one._replace(label=name or one.label))
    entrants = _with_labels(entrants, [name is not None for name, _ in found], len(checkpoints))
    entrants[0] = entrants[0]._replace(against=None)
    return entrants + _quantized(entrants, quantized)


def _quantized(entrants: Sequence[Entrant], method: str | None) -> list[Entrant]:
    if method is None:
        return []
    more = []
    for number, one in enumerate(entrants):
        if one.kind != "answers":
            label = f"{one.label} {method}"
            more.append(one._replace(label=label, quantized=method, against=number))
    if not more:
        raise UserError("--quantized: found only files of answers; expected a model to quantise")
    return more


def _of_base(checkpoint: Checkpoint) -> Entrant:
    return Entrant(BASE, "base", checkpoint.base, checkpoint)


def _read(word: str) -> tuple[str | None, Entrant]:
    """The name that a word gives, and the model."""
    name, text = named(word)
    path = Path(text).expanduser()
    if path.is_dir() and not is_sharded(path):
        return name, _read_folder(path)
    if path.exists():
        return name, _read_file(path)
    if text == BASE:
        return name, Entrant(BASE, "base", "")
    if text in SHIPPED or (is_hub_name(text) and path.suffix not in (".ckpt", ".yaml")):
        return name, Entrant(text.rpartition("/")[2], "model", text)
    raise UserError(f"compare: found no such model: {text}{_meant(path)}")


def _meant(path: Path) -> str:
    folder = path.parent
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    words = (BASE, *SHIPPED) if str(folder) == "." else ()
    near = nearest(path.name, [*files, *words])
    if near is not None:
        return f"; did you mean {near if near in words else folder / near}?"
    return newest_in(folder) or f"; expected {_KINDS}"


def _read_folder(path: Path) -> Entrant:
    if (path / "config.json").exists():
        return Entrant(path.resolve().name, "model", str(path))
    if (path / "adapter_config.json").exists():
        raise UserError(
            f"compare: found adapters without their model in {path}; give their checkpoint, or what export "
            "writes without --adapter-only"
        )
    newest = newest_in(path) or newest_in(path / "checkpoints")
    raise UserError(f"compare: found no model in the folder {path} (no config.json){newest}")


def _read_file(path: Path) -> Entrant:
    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"compare: found the config {path}; give a checkpoint of its run, and it as --config")
    if path.suffix == ".jsonl" or path.suffix in _DATA:
        if path.stat().st_size and holds_answers(path):
            return Entrant(path.stem, "answers", str(path))
        raise UserError(
            f"compare: found {path}, which isn't a file of answers that predict wrote; give samples by --data"
        )
    return Entrant(path.stem, "checkpoint", str(path), open_checkpoint(path))


def _with_labels(entrants: Sequence[Entrant], given: Sequence[bool], checkpoints: int) -> list[Entrant]:
    """With labels that differ."""
    labels = [one.label for one in entrants]
    free = [number for number, is_given in enumerate(given) if not is_given]
    trained = [number for number in free if entrants[number].kind == "checkpoint"]
    if checkpoints == 1 and len(trained) == 1:
        labels[trained[0]] = TUNED
    twice = [number for number in free if labels.count(labels[number]) > 1]
    parts = {number: list(Path(entrants[number].path).absolute().parts) for number in twice}
    for number in twice:
        others = {part for other in twice if other != number for part in parts[other]}
        own = [part for part in parts[number] if part not in others]
        if own:
            labels[number] = own[0].removesuffix(Path(own[0]).suffix if own[0] == parts[number][-1] else "")
    seen: list[str] = []
    for label in labels:
        number = 1
        while (label if number == 1 else f"{label} {number}") in seen:
            number += 1
        seen.append(label if number == 1 else f"{label} {number}")
    return [one._replace(label=label) for one, label in zip(entrants, seen, strict=True)]


def read_rows(path: Path) -> list[dict]:
    """The lines of a file of answers.

    Raises:
        UserError: A line isn't one, with its number.
    """
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not {"source", "answer", "scores"} <= row.keys():
                raise UserError(f"{path}:{number}: found no answer; expected a line as predict writes it")
            rows.append(row)
    return rows
