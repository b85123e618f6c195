"""Configs that were saved by earlier versions: what has moved is found, and what is gone is left out."""

import re
from collections.abc import Iterator, Sequence

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOVED = {
    "lightning_vlm.data.easy_vqa.EasyVQA": "lightning_vlm.data.read.easy_vqa.EasyVQA",
    "lightning_vlm.data.hf_dataset.HFDataset": "lightning_vlm.data.read.hf_dataset.HFDataset",
    "lightning_vlm.data.readers.DataFile": "lightning_vlm.data.read.readers.DataFile",
    "lightning_vlm.data.readers.LLaVA": "lightning_vlm.data.read.readers.LLaVA",
    "lightning_vlm.data.readers.Messages": "lightning_vlm.data.read.readers.Messages",
    "lightning_vlm.data.readers.OpenAIMessages": "lightning_vlm.data.read.readers.OpenAIMessages",
    "lightning_vlm.losses.scheduled_sampling.ScheduledSampling": "lightning_vlm.ScheduledSampling",
    "lightning_vlm.token_weight_schedule.TokenWeightSchedule": "lightning_vlm.TokenWeightSchedule",
}
"""Class paths of earlier versions, and where those classes are now."""

_OPTIMIZERS = ("Adagrad", "Adam", "AdamW", "RMSprop", "SGD")

MEANT = {
    "ThroughputMonitor": "lightning_vlm_callbacks.ThroughputMonitor",
    **{name: f"torch.optim.{name}" for name in _OPTIMIZERS},
}
"""Bare names of classes that Lightning or bitsandbytes has too, and which is meant."""


def with_meant_classes(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the whole path of each class in `MEANT`.

    >>> with_meant_classes(["--trainer.callbacks+", "ThroughputMonitor"])
    ['--trainer.callbacks+', 'lightning_vlm_callbacks.ThroughputMonitor']
    >>> with_meant_classes(["--model.optimizer=AdamW", "--model.optimizer.lr", "1e-4"])
    ['--model.optimizer=torch.optim.AdamW', '--model.optimizer.lr', '1e-4']
    >>> with_meant_classes(["--out", "ThroughputMonitor"])
    ['--out', 'ThroughputMonitor']
    """
    whole = list(words)
    for place, word in enumerate(words):
        option = word if word.startswith("--") else words[place - 1] if place else ""
        if option.startswith(("--trainer.callbacks", "--model.optimizer")):
            for name, path in MEANT.items():
                whole[place] = re.sub(rf"(?<![\w.]){name}(?!\w)", path, whole[place])
    return whole


_DRAWN = ("true", "RunReport draws what is logged, for all callbacks")
_DRAWN_IN = ("null", "RunReport writes what is logged; it has a dirpath of its own")

REMOVED: dict[str, dict[str, tuple[str, str]]] = {
    "AdaptiveLoRARank": {"dirpath": _DRAWN_IN, "picture": _DRAWN},
    "EarlyStopCheckpoint": {
        "history": ("['*loss*']", "RunReport records all that is logged in report.jsonl"),
        "picture": _DRAWN,
    },
    "GradientMonitor": {
        "dead_after": ("10", "a group is always dead after 10 measured steps without a gradient"),
        "dirpath": _DRAWN_IN,
        "min_norm": ("1.0e-07", "a norm below 1e-7 always counts as vanishing"),
        "picture": _DRAWN,
        "table": ("false", "RunReport shows the last values"),
    },
    "GradNorm": {
        "dirpath": _DRAWN_IN,
        "initial_losses": ("null", "L(0) is always the mean of a task's first 10 measured losses"),
        "initial_steps": ("10", "L(0) is always the mean of a task's first 10 measured losses"),
        "picture": _DRAWN,
        "packed": ("false", "each row of a batch belongs to one task"),
        "sketch": ("null", "choose a smaller layer if the gradients of all tasks take too much memory"),
        "unbiased": ("false", "use larger batches, or every_n_steps, if gradients of rare tasks are noisy"),
    },
    "HFDataset": {"preferred": ("[]", "split takes a list, of which the first split that there is is read")},
    "NonFiniteGuard": {
        "leave_out": ("100", "a rollback leaves out as many steps as snapshot_every_n_steps"),
        "max_bundles": ("3", "the first 3 events are always reported"),
        "max_scale_drops": ("10", "10 reductions of the loss scale within 100 steps are always reported"),
        "snapshots": ("2", "a rollback always goes back to the older of 2 copies"),
    },
}
"""Class name -> key that it no longer has -> the key's default, as YAML writes it, and what to do instead."""


def modernize(root: Node) -> list[str]:
    """Bring a config that an earlier version saved up to date, in place.

    A saved config holds all defaults. So a removed key goes without a word if it has its old default.

    Args:
        root: The nodes of the config.

    Returns:
        A sentence for each removed key that was set to something else, and so no longer has an effect.

    >>> import yaml
    >>> root = yaml.compose("{class_path: lightning_vlm.token_weight_schedule.TokenWeightSchedule}")
    >>> modernize(root)
    []
    >>> yaml.serialize(root)
    '{class_path: lightning_vlm.TokenWeightSchedule}\\n'
    """
    sentences: list[str] = []
    for node in _mappings(root):
        values = {key.value: value for key, value in node.value}
        path = values.get("class_path")
        if not isinstance(path, ScalarNode):
            continue
        path.value = {**MOVED, **MEANT}.get(path.value, path.value)
        name = path.value.rpartition(".")[2]
        arguments = values.get("init_args")
        if name in REMOVED and isinstance(arguments, MappingNode):
            sentences += _drop_keys(arguments, name)
    return sentences


def _mappings(node: Node) -> Iterator[MappingNode]:
    if isinstance(node, MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, SequenceNode):
        for item in node.value:
            yield from _mappings(item)


def _drop_keys(arguments: MappingNode, name: str) -> Iterator[str]:
    """Remove the keys that a class no longer has."""
    kept = []
    for key, value in arguments.value:
        if key.value not in REMOVED[name]:
            kept.append((key, value))
            continue
        default, instead = REMOVED[name][key.value]
        if yaml.safe_load(yaml.serialize(value)) != yaml.safe_load(default):
            yield f"{name} no longer has the key {key.value}, which is ignored; {instead}"
    arguments.value = kept
