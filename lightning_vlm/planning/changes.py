"""What a choice changes in a config, how it is said, and what a person should know beside it."""

from collections.abc import Iterator
from typing import Any

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.asked import Asked, Room
from lightning_vlm.planning.choice import Choice
from lightning_vlm.planning.methods import OWN
from lightning_vlm.planning.written import key_in, stage_of

NOTHING_FITS = (
    "no method fits: take smaller pictures (data.max_pixels), a smaller data.max_length or a smaller model"
)


def batch_words(size: int, accumulate: int, devices: int, samples: int, wished: int) -> str:
    """How micro-batches make a step.

    >>> batch_words(2, 16, 1, 32, 32)
    "2 × 16 samples make steps of 32; accumulation doesn't change the learning rate"
    """
    on = f" × {devices} devices" if devices > 1 else ""
    near = f", the nearest to {wished}" if samples != wished else ""
    words = f"{size} × {accumulate}{on} samples make steps of {samples}{near}"
    return f"{words}; accumulation doesn't change the learning rate"


def changes_of(
    module: VLMModule, data: VLMDataModule, asked: Asked, choice: Choice, name: str, was: int, tokens: int
) -> tuple[tuple[str, Any, str], ...]:
    """Keys of the config that the choice changes, with their new values and why.

    Args:
        module: As configured.
        data: As configured.
        asked: As configured.
        choice: What was chosen.
        name: Of the method.
        was: The samples of a step as configured.
        tokens: Of a batch that is made by tokens.
    """
    changes: list[tuple[str, Any, str]] = []
    if name != OWN:
        changes.append(("model.adapt", choice.adapt, name))
        changes.append(("model.quantization", choice.quantization, "of the language model's frozen weights"))
        rate = f"where to begin with {name}"
        changes.append(("model.optimizer.init_args.lr", choice.learning_rate, rate))
    samples = choice.batch_size * choice.accumulate * asked.devices
    if name == OWN and samples != was:
        rate = f"for {samples} samples a step in place of {was}"
        changes.append(("model.optimizer.init_args.lr", choice.learning_rate, rate))
    if module.source.gradient_checkpointing is not choice.recompute:
        why = "activations are computed again" if choice.recompute else "there is room for activations"
        changes.append(("model.gradient_checkpointing", choice.recompute, why))
    peak = f"expected peak {choice.gib:.2f} GiB"
    if data.batching.by_tokens:
        if data.batching.max_tokens != tokens:
            changes.append(("data.max_tokens", tokens, peak))
    elif data.batch_size != choice.batch_size:
        changes.append(("data.batch_size", choice.batch_size, peak))
    if asked.accumulate != choice.accumulate:
        words = f"steps of {samples} samples"
        changes.append(("trainer.accumulate_grad_batches", choice.accumulate, words))
    stage = stage_of(data)
    return tuple((key_in(stage, key), value, why) for key, value, why in changes)


def notes_of(module: VLMModule, data: VLMDataModule, room: Room, unusable: int) -> Iterator[str]:
    """What a person should know about a plan, a line each.

    Args:
        module: As configured.
        data: As configured.
        room: What there is.
        unusable: How many samples can't be used.
    """
    if unusable:
        yield f"{unusable} samples can't be used; lightning-vlm lint says why"
    if room.on_gpu:
        yield "counted as on a CPU; CUDA's own 0.5 GiB are added, fragments have the 10% that stay free"
    if module.source.compile or module.source.kernels:
        yield "model.compile and model.kernels need less; that isn't counted"
    if module.callbacks.masks.options is not None:
        yield "the mask head isn't counted"
    stage = stage_of(data)
    if stage is not None:
        yield f"this is stage {stage.name}; all that model.adapt names is counted, whatever the stage trains"
