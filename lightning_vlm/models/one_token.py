"""Pictures and videos in one batch, where a model finds the features of both by one token (GLM-4V).

Its own forward takes all such tokens for those of pictures, and for those of videos as well, so that it
refuses batches that have both. Types of tokens, which its processor makes, tell them apart.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.models.replaced import replaced

TYPES = "mm_token_type_ids"
"""The input that says which tokens stand for pictures (1) and which for videos (2)."""


def shares_token(model: PreTrainedModel) -> bool:
    """Whether the token of a picture stands for a frame of a video as well."""
    base: Any = model.base_model
    token = getattr(model.config, "image_token_id", None)
    if token is None or not hasattr(base, "get_video_features") or not hasattr(base, "get_placeholder_mask"):
        return False
    try:
        masks = base.get_placeholder_mask(torch.tensor([[token]]), inputs_embeds=torch.zeros(1, 1, 1))
    except TypeError:  # it has other arguments
        return False
    return isinstance(masks, tuple) and len(masks) == 2 and bool(masks[1].any())


@contextmanager
def told_apart(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Let forward passes inside of this context take pictures and videos together.

    Args:
        model: Whose base model is called.
        inputs: What it is called with.
    """
    both = "pixel_values" in inputs and "pixel_values_videos" in inputs
    if not both or TYPES not in inputs or not shares_token(model):
        yield
        return
    base: Any = model.base_model
    own = base.get_placeholder_mask
    types = inputs[TYPES]

    @functools.wraps(own)
    def find(input_ids: Tensor, inputs_embeds: Tensor, **features: Any) -> tuple[Tensor, Tensor]:
        # `generate` repeats rows for beams.
        of_rows = types.repeat_interleave(len(input_ids) // len(types), dim=0)
        return (of_rows == 1)[..., None], (of_rows == 2)[..., None]

    with replaced(base, "get_placeholder_mask", find):
        yield
