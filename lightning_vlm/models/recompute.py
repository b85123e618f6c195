"""Gradient checkpointing: activations are computed again in the backward pass, for less memory."""

import warnings
from typing import Any

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_vlm.models.parts import find_parts


def use_gradient_checkpointing(model: PreTrainedModel, on: bool = True) -> None:
    """Compute activations again in the backward pass, language and vision, or keep them.

    It is the kind that is not reentrant: adapters learn under it in the vision tower too, though nothing that
    enters the tower has a gradient. Therefore embeddings are not made to require gradients, which only the
    reentrant kind needs: it would keep the activations of a frozen tower and send the backward pass through
    it. It acts only on modules in train mode; a warning says so where it changes nothing.

    Args:
        model: Adapted or not.
        on: Whether to compute again.
    """
    name = "enable" if on else "disable"
    # The name up to transformers 5.17, which newer ones warn of.
    old = getattr(model, f"gradient_checkpointing_{name}", None)
    switch: Any = getattr(model, f"activation_checkpointing_{name}", old)
    if not on:
        switch()
        return
    switch({"use_reentrant": False})
    model.disable_input_require_grads()  # transformers has switched that on; see above
    _warn_where_none(model)


def _warn_where_none(model: PreTrainedModel) -> None:
    """Say so where gradient checkpointing changes nothing (Mllama's vision, int8 layers)."""
    parts = find_parts(model)
    for part in ("vision", "language"):
        for blocks in map(model.get_submodule, parts[f"{part}.layers"]):
            if not any(isinstance(module, GradientCheckpointingLayer) for module in blocks.modules()):
                name = type(next(blocks.children())).__name__
                warnings.warn(
                    f"gradient_checkpointing: {name} in {part} doesn't support it and keeps all activations",
                    stacklevel=3,
                )
    quantization: Any = getattr(model.config, "quantization_config", None)
    if getattr(quantization, "load_in_8bit", False):
        warnings.warn(
            "gradient_checkpointing: int8 layers keep what goes into them all the same; nf4 doesn't",
            stacklevel=3,
        )
