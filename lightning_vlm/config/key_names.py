"""The keys of a parser, and the key that was most likely meant by one that isn't there."""

from collections.abc import Collection, Iterator
from typing import Any

from jsonargparse import ArgumentParser

from lightning_vlm.config.class_names import bare_name
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
    "packing": "data.batching",
    "padding_free": "data.batching",
    "group_by_length": "data.batching",
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
_LISTED = 8
"""At most so many arguments of a class are listed."""


def with_commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    """A parser, and the parsers of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            yield from action.choices.values()


def key_types(parser: ArgumentParser) -> dict[str, Any]:
    """The type of each key of a parser; None where the key has its own action."""
    return {
        action.dest: getattr(action, "_typehint", None) or getattr(action, "type", None)
        for action in parser._actions
        if bare_name(action.dest) != "help"
    }


def no_key(key: str, keys: Collection[str]) -> str:
    """The message for a key that isn't there, with the key that was most likely meant."""
    meant = nearest_key(key, keys)
    return f"there is no key {key}; did you mean {meant}?" if meant else f"there is no key {key}"


def no_argument(key: str, owner: str, arguments: Collection[str]) -> str:
    """The message for an argument that a class doesn't have, with the one meant, or else those that it has.

    Args:
        key: What was written.
        owner: The name of the class; empty for settings, which are written as their keys alone.
        arguments: Those that there are.

    >>> no_argument("learning_rate", "AdamW", ["lr", "betas"])
    'there is no key learning_rate in AdamW; did you mean lr?'
    >>> no_argument("zzz", "AdamW", ["lr", "betas"])
    'there is no key zzz in AdamW; it has lr, betas'
    """
    known = list(arguments)
    elsewhere = bare_name(ELSEWHERE.get(key, ""))
    hint = f"; did you mean {elsewhere}?" if elsewhere in known else did_you_mean(key, known)
    if not hint and known:
        more = ", ..." if len(known) > _LISTED else ""
        hint = f"; it has {', '.join(known[:_LISTED])}{more}"
    inside = f" in {owner}" if owner else ""
    return f"there is no key {key}{inside}{hint}"


def nearest_key(key: str, keys: Collection[str]) -> str | None:
    """The key that was most likely meant, or None where no key is near.

    A key in the same place comes first, then the name that other trainers use, then a key of the same name in
    another place, then the nearest key of the parent.

    >>> keys = ["trainer.max_epochs", "trainer.devices", "data.batch_size", "report"]
    >>> nearest_key("trainer.max_epoch", keys), nearest_key("gpus", keys), nearest_key("batch_size", keys)
    ('trainer.max_epochs', 'trainer.devices', 'data.batch_size')
    """
    folder, _, last = key.rpartition(".")
    prefix = f"{folder}." if folder else ""
    inside = [name.removeprefix(prefix) for name in keys if name.startswith(prefix)]
    near = nearest(last, [name.partition(".")[0] for name in inside])
    if near is not None:
        return f"{prefix}{near}"
    elsewhere = ELSEWHERE.get(last.replace("-", "_"))
    if elsewhere is not None and _section(elsewhere) in map(_section, keys):
        return elsewhere
    by_last = {bare_name(name): name for name in reversed(list(keys))}
    same_name = by_last.get(last.replace("-", "_"))
    if same_name is not None:
        return same_name
    if folder:
        is_known = folder in keys or bool(inside)
        return None if is_known else nearest_key(folder, keys)
    near = nearest(last, by_last)
    return by_last[near] if near is not None else None


def _section(key: str) -> str:
    return key.partition(".")[0]
