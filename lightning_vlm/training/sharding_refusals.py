"""What can't be right where a strategy cuts the model into pieces, refused at setup with the reason."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.family_hooks import is_of_transformers

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

_CALLBACKS = {
    "ScheduledSampling": "reads the head between steps, when no process has all of it",
    "VisualGainWeights": "runs the model between steps, and only where a batch has answers",
}
"""Callbacks of ours by name, for this module can't import theirs, and why they can't work."""


def refuse_when_sharded(trainer: Trainer, *, fits: bool) -> None:
    """Refuse what a model in pieces can't be right with.

    Args:
        trainer: Is set up, with a ModelParallelStrategy.
        fits: Whether the module is going to be trained.

    Raises:
        UserError: Names each option, why it can't work, and what to do.
    """
    module: Any = trainer.lightning_module
    for problem in _problems(trainer, module, fits):
        raise UserError(f"ModelParallelStrategy: {problem}")


def refuse_to_shard(model: PreTrainedModel) -> None:
    """Refuse a model whose blocks not all processes would call equally often.

    Raises:
        UserError: Processes would wait for each other for ever.
    """
    name = type(model).__name__
    reason = None
    if getattr(model, model.base_model_prefix, None) is None:
        reason = "leaves its language model out where a batch is empty"
    elif getattr(model.config.get_text_config(), "cross_attention_layers", None):
        reason = "leaves layers out where a batch has no pictures"
    elif not is_of_transformers(model):
        reason = "isn't a class of transformers, and its logits are checked between steps"
    if reason is not None:
        raise UserError(
            f"ModelParallelStrategy: {name} {reason}, so that processes would wait for each other for ever; "
            "use ddp, or one device"
        )


def _problems(trainer: Trainer, module: "VLMModule", fits: bool) -> Iterator[str]:
    mesh = module.device_mesh
    assert mesh is not None
    tensor_parallel = mesh["tensor_parallel"].size()
    if tensor_parallel > 1:
        yield (
            f"found tensor_parallel_size {tensor_parallel}, with which a layer computes a part of its "
            "outputs and PEFT's adapters all of them, and full weights would have to be cut twice; set "
            f"tensor_parallel_size: 1 and data_parallel_size: {trainer.world_size}"
        )
    source = module.source
    if source.quantization and source.quantization.method != "nf4":
        yield (
            "found model.quantization int8, whose scales bitsandbytes keeps in the weight, where they are "
            "lost as it is cut; use nf4"
        )
    if source.compile:
        yield "found model.compile, which would trace the gathering of weights; leave it out"
    if source.kernels:
        yield "found model.kernels liger, whose layers read weights outside of a block's call; leave it out"
    if source.new_tokens:
        yield (
            "found model.new_tokens, whose rows alone train: their gradients are cut into pieces before the "
            "other rows are set to zero; leave new_tokens out, or use ddp"
        )
    if module.callbacks.masks.options is not None:
        yield "found model.mask_head, which runs only where a batch has masks; use ddp, or one device"
    if module.task_weights == "uncertainty":
        yield "found model.task_weights uncertainty, whose weights train outside of the model; give numbers"
    if not fits:
        return
    if source.gradient_checkpointing == "auto":
        yield (
            "found model.gradient_checkpointing auto, whose trial steps need the whole model; set true or "
            "false"
        )
    batching = getattr(getattr(trainer, "datamodule", None), "batching", None)
    if getattr(batching, "max_tokens", None) == "auto":
        yield "found data.max_tokens auto, whose trial steps need the whole model; set a number"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = type(callback).__name__
        if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
            yield f"found {name}, which copies the weights that a process has only a part of; leave it out"
        if name in _CALLBACKS:
            yield f"found {name}, which {_CALLBACKS[name]}; leave it out"
