"""What a config takes as it is written, before anything is chosen."""

from typing import NamedTuple

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.asked import CONTEXT, Asked, Room
from lightning_vlm.planning.search import SEVERAL, Counts
from lightning_vlm.training.stages.stage import Stage


class Written(NamedTuple):
    """The micro-batch of a config, made of the longest samples.

    Args:
        samples: In it.
        recompute: Whether activations are computed again.
        bytes: The most at once, those of CUDA itself included.
        fits: Whether there is room for it.
    """

    samples: int
    recompute: bool
    bytes: int
    fits: bool


def count_written(
    module: VLMModule, data: VLMDataModule, counts: Counts, longest: int, room: Room
) -> Written | None:
    """Count the step of a config as it is.

    Args:
        module: As configured.
        data: As configured.
        counts: Of the config's own method.
        longest: The tokens of the longest sample.
        room: What there is.

    Returns:
        None where the config leaves the batch or the recomputing to the device (`auto`).
    """
    recompute, samples = module.source.gradient_checkpointing, data.batch_size
    if data.batching.by_tokens:
        most = data.batching.max_tokens
        if not isinstance(most, int):
            return None
        samples = max(1, most // longest)
    if isinstance(recompute, str):
        return None
    peak = round(counts.line(recompute).at(samples)) if samples > SEVERAL else 0
    if peak <= room.room:  # else it is far too much, and its real tensors may be more than this machine has
        peak = counts.need(recompute, samples).peak
    return Written(samples, recompute, peak + (CONTEXT if room.on_gpu else 0), peak <= room.room)


def stage_of(data: VLMDataModule) -> Stage | None:
    """The stage that is planned, if the config has stages."""
    stage = data.stages.stage if data.stages is not None else None
    return stage if isinstance(stage, Stage) else None


def key_in(stage: Stage | None, key: str) -> str:
    """The key of a config that decides in a stage.

    >>> key_in(Stage(name="align", steps=9, learning_rate=1e-3), "model.optimizer.init_args.lr")
    'stages.align.learning_rate'
    >>> key_in(Stage(name="align", steps=9), "data.batch_size")
    'stages.align.data.batch_size'
    """
    if stage is None:
        return key
    if key == "trainer.accumulate_grad_batches":
        return f"stages.{stage.name}.accumulate"
    if key == "model.optimizer.init_args.lr" and stage.learning_rate is not None:
        return f"stages.{stage.name}.learning_rate"
    return f"stages.{stage.name}.{key}" if key.startswith("data.") else key


def asked_of_stage(asked: Asked, data: VLMDataModule) -> Asked:
    """What is asked of the Trainer in the stage that is planned."""
    stage = stage_of(data)
    if stage is None or stage.accumulate is None:
        return asked
    return asked._replace(accumulate=stage.accumulate)
