"""In which numbers weights are kept: what trains exact enough to learn, what doesn't as it is used.

A bfloat16 has 8 bits of precision, so that a change of less than 0.2% of a weight is rounded away, and
AdamW's changes are about as large as the learning rate: at 1e-5 most of them are. Mixed precision therefore
keeps what trains in float32. But published models are saved in bfloat16, and loaded so.
"""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from lightning_vlm.models.experts import expert_parameters
from lightning_vlm.models.parts import vision_tower

_HALF = (torch.bfloat16, torch.float16)


def autocast_dtype(trainer: Trainer | None) -> torch.dtype | None:
    """What matrices are multiplied in under a Trainer's mixed precision; None without such."""
    if trainer is None:
        return None
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))


def keep_weights(model: PreTrainedModel, autocast: torch.dtype) -> None:
    """Keep what trains in float32, and what is frozen in the dtype that autocast turns it into. In place.

    Frozen weights then give the same numbers to the bit, in half the memory and without being turned at each
    use. Only those of linear layers and experts do: a norm or an embedding is computed with as it is, and
    stays so.

    Args:
        model: Loaded and adapted; what the plan trains requires gradients.
        autocast: As from `autocast_dtype`.
    """
    others = {id(weight) for module in model.modules() for weight in _used_as_they_are(module)}
    others -= {id(weight) for weight in expert_parameters(model).values()}
    for weight in model.parameters():
        if weight.requires_grad:
            _to_float32(weight)
        elif weight.is_floating_point() and id(weight) not in others:
            weight.data = weight.data.to(autocast)
    _keep_batch_norms(model)
    # Many families turn features into the dtype of the model, which is that of its first weight, to put them
    # in the places of embeddings. Where one of the two trains and the other doesn't, all is as in a model
    # that was loaded in float32, but for what autocast turns anyway.
    embeddings: Any = model.get_input_embeddings().weight
    dtypes = {embeddings.dtype, _first_dtype(model), _first_dtype(vision_tower(model) or model)}
    if len(dtypes) > 1:
        for weight in model.parameters():
            if id(weight) in others:
                _to_float32(weight)


def give_pixels_their_dtype(model: PreTrainedModel) -> None:
    """Let a model take pixels in any dtype. Most vision towers do so by themselves (LFM3-VL's doesn't)."""
    tower = vision_tower(model)
    if tower is not None:
        tower.register_forward_pre_hook(_cast_pixels, with_kwargs=True)


def _cast_pixels(tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook of a vision tower: pixels get the dtype of its first weight."""
    pixels = args[0] if args else kwargs.get("pixel_values")
    if not isinstance(pixels, torch.Tensor) or not pixels.is_floating_point():
        return args, kwargs
    pixels = pixels.to(_first_dtype(tower))
    if args:
        return (pixels, *args[1:]), kwargs
    return args, {**kwargs, "pixel_values": pixels}


def _first_dtype(module: nn.Module) -> torch.dtype:
    return next(weight.dtype for weight in module.parameters() if weight.is_floating_point())


def _to_float32(weight: nn.Parameter) -> None:
    if weight.dtype in _HALF:
        weight.data = weight.data.float()


def _keep_batch_norms(model: nn.Module) -> None:
    """Have weights and statistics of batch norms in float32: they must share a dtype, and only float32 goes
    with features in either dtype."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.dtype in _HALF:
                    tensor.data = tensor.data.float()


def _used_as_they_are(module: nn.Module) -> Iterator[nn.Parameter]:
    """Weights that something else than a multiplication reads: an embedding that is tied, DoRA's base."""
    if type(module) is not nn.Linear:
        yield from module.parameters(recurse=False)
    base: Any = getattr(module, "base_layer", None)
    if base is not None and len(getattr(module, "lora_magnitude_vector", ())):
        yield from base.parameters(recurse=False)


def costs_of_precision(model: nn.Module, trainer: Trainer) -> Iterator[str]:
    """What the precision of a fit costs, a line each; nothing where there is nothing to say.

    Args:
        model: At the start of the fit, on its device.
        trainer: That fits it.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    half = [weight for weight in trained if weight.dtype in _HALF]
    if half:
        share = sum(weight.numel() for weight in half) / sum(weight.numel() for weight in trained)
        dtype = str(half[0].dtype).removeprefix("torch.")
        yield (
            f"{share:.0%} of what trains is kept in {dtype}, where changes of less than 0.2% of a weight are "
            "lost, as most are at small learning rates; trainer.precision: bf16-mixed with model.dtype: auto "
            "keeps it in float32, in twice the memory"
        )
    on_gpu = [weight for weight in model.parameters() if weight.is_cuda]
    if on_gpu and all(weight.dtype == torch.float32 for weight in on_gpu) and autocast_dtype(trainer) is None:
        yield (
            f"all is computed in float32 (trainer.precision: {trainer.precision}); bf16-mixed is several "
            "times as fast on a GPU, and keeps what trains in float32"
        )
