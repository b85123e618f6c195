"""What a run is made with, as plain values that its checkpoints keep."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Text, Video
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import DataError
from lightning_vlm.training.box_facts import box_codec

_SAMPLES = 32
"""So many samples of the training data are looked at to see whether they are the same."""


def describe_run(trainer: Trainer, model: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """All that matters to a run, as plain values under the names that a config has for them.

    Args:
        trainer: Of the run.
        model: Arguments of the module, by name.
        steps: The optimizer steps of the whole run.

    >>> describe_run(Trainer(logger=False, barebones=True), {"clip": 1.0}, 12)["model.clip"]
    1.0
    """
    accumulate: Any = trainer.accumulate_grad_batches
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            accumulate = callback.scheduling
    facts: dict[str, Any] = {
        "trainer.accumulate_grad_batches": accumulate,
        "trainer.precision": trainer.precision,
        "the number of processes": trainer.world_size,
        "the number of optimizer steps in the whole run": steps,
        "seed_everything": os.environ.get("PL_GLOBAL_SEED"),
    }
    for name, value in model.items():
        facts[f"model.{name}"] = value
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, VLMDataModule) and data.stages is not None:
        facts |= _of_stages(data, facts)
    elif isinstance(data, VLMDataModule):
        facts |= _of_data(data)
    return flat(facts)


def _of_stages(data: VLMDataModule, of_run: dict[str, Any]) -> dict[str, Any]:
    """What each stage says, and the data of each."""
    del of_run["trainer.accumulate_grad_batches"]  # each stage has its own
    facts: dict[str, Any] = {}
    assert data.stages is not None
    for stage in data.stages.each():
        for field in fields(stage):
            if field.name not in ("name", "data"):
                facts[f"stages.{stage.name}.{field.name}"] = getattr(stage, field.name)
        facts |= {f"stages.{stage.name}.{name}": value for name, value in _of_data(data).items()}
    return facts


def facts_of_data(data: VLMDataModule) -> dict[str, Any]:
    """What a data module, or the stage that it is in, gives to a run, under the names that a config has."""
    return flat(_of_data(data))


def _of_data(data: VLMDataModule) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name in ("batch_size", "max_length", "shuffle", "seed"):
        facts[f"data.{name}"] = getattr(data, name)
    facts["data.batching"] = data.batching.mode
    facts["data.max_tokens"] = data.batching.max_tokens
    facts["data.max_patches"] = data.batching.max_patches
    facts["data.sampling"] = None if data.sampling is None else str(data.sampling)
    facts["data.video"] = str(data.video)
    facts["data.max_pixels"] = str(data.pixels)
    facts["data.boxes"] = box_codec(data)
    facts["data.system_prompts"] = data.system_prompts or None
    facts["data.train"] = describe_data(data.source("train"))
    return facts


def flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts whose values are plain: what is inside of one has a name of its own, behind a dot."""
    plain: dict[str, Any] = {}
    for name, value in facts.items():
        plain.update(_flat(name, value))
    return plain


def describe_data(source: Conversations) -> str:
    """How many samples there are, and a fingerprint of some of them: what they say, not where they lie."""
    digest = hashlib.sha256()
    count = len(source)
    sampled = min(count, _SAMPLES)
    for number in range(sampled):
        try:
            conversation = source[number * count // sampled]
        except DataError:
            continue
        for text in _texts(conversation):
            digest.update(text.encode() + b"\0")
    fingerprint = digest.hexdigest()[:8]
    return f"{counted(count, 'sample')} with the fingerprint {fingerprint}"


def _texts(conversation: Conversation) -> Iterator[str]:
    yield f"{conversation.task} {conversation.weight}"
    for message in conversation.messages:
        yield message.role
        for part in message.parts:
            yield part.text if isinstance(part, Text) else type(part).__name__
        if message.reasoning is not None or message.calls:
            yield repr((message.reasoning, message.calls))
    if conversation.tools:
        yield repr(conversation.tools)
    frames = [frame for video in conversation.videos for frame in video.frames]
    media: list[Image | Video] = [*conversation.images, *conversation.videos, *frames]
    for medium in media:
        if medium.path:
            yield medium.path.name
        else:
            yield hashlib.sha256(medium.data or b"").hexdigest()


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = {"class": type(value).__name__, **asdict(value)}
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, value
    else:
        yield name, str(value)
