"""Keeps the pictures of a prompt in their order where each prompt gets several answers.

For beams, or several answers to a prompt, transformers encodes pictures once and repeats what comes out. Some
families (GLM-4V's line and Granite Vision in 5.23) repeat each picture by itself: of two pictures A and B two
beams get A, A and B, B instead of A, B and A, B, and nothing is said. For one picture a prompt there is no
difference. Llama 4 keeps its features where transformers repeats nothing, and stops.
"""

from collections.abc import Sequence
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

_NAME = "_expand_multimodal_outputs"
_IN_LAST_HIDDEN_STATE = ("llama4",)
"""Types of models whose features are in `last_hidden_state`, tile by tile."""


def install(model: Any) -> None:
    """Give a model a method that keeps the order. Does nothing where it is kept.

    Args:
        model: As `from_pretrained` gives it.
    """
    if hasattr(model, _NAME) and _is_broken(model):
        setattr(model, _NAME, MethodType(_expand, model))


def _is_broken(model: Any) -> bool:
    token = getattr(model.config, "image_token_id", None)
    if token is None:
        return False
    if model.config.model_type in _IN_LAST_HIDDEN_STATE:
        return True
    pictures = [torch.tensor([[1.0]]), torch.tensor([[2.0]])]
    return _mixes(model, token, {"pooler_output": list(pictures)}) or _mixes(
        model, token, {"pooler_output": None, "deepstack_features": [(0, list(pictures))]}
    )


def _mixes(model: Any, token: int, outputs: dict[str, Any]) -> bool:
    """Whether two pictures of a prompt come out as the first twice, then the second twice."""
    encoded = {"image": SimpleNamespace(**outputs)}
    try:
        found = getattr(type(model), _NAME)(model, torch.tensor([[token, token]]), encoded, 2)["image"]
        features = found.pooler_output
        if features is None:
            ((_, features),) = found.deepstack_features
        return [int(one.sum()) for one in features] == [1, 1, 2, 2]
    except Exception:  # another signature, or it needs more than there is
        return False


def _expand(
    self: Any,
    input_ids: Tensor,
    mm_encoder_output: dict[str, Any],
    expand_size: int = 1,
    inputs_embeds: Tensor | None = None,
) -> dict[str, Any]:
    """As of `GenerationMixin`, for pictures; the family's own for everything else."""
    own = getattr(type(self), _NAME)
    pictures = mm_encoder_output.get("image")
    place = "last_hidden_state" if self.config.model_type in _IN_LAST_HIDDEN_STATE else "pooler_output"
    features = getattr(pictures, place, None)
    deeper = getattr(pictures, "deepstack_features", None)
    if features is None and deeper:  # Granite Vision 4 has them for some layers, each with its number
        features = deeper[0][1]
    if features is None or input_ids is None or input_ids.numel() == 0:
        return own(self, input_ids, mm_encoder_output, expand_size, inputs_embeds)
    tokens = (input_ids == self.config.image_token_id).sum(-1).tolist()
    groups = _pictures_of_prompts(features, tokens)
    if groups is None:
        return own(self, input_ids, mm_encoder_output, expand_size, inputs_embeds)
    others = {medium: output for medium, output in mm_encoder_output.items() if medium != "image"}
    own(self, input_ids, others, expand_size, inputs_embeds)
    if getattr(pictures, place) is None:
        pictures.deepstack_features = [  # type: ignore[union-attr]
            (layer, _repeated(_pictures_of_prompts(each, tokens) or [], expand_size))
            for layer, each in deeper  # type: ignore[union-attr]
        ]
        return mm_encoder_output
    repeated = _repeated(groups, expand_size)
    setattr(pictures, place, torch.stack(repeated) if isinstance(features, Tensor) else repeated)
    return mm_encoder_output


def _repeated(groups: Sequence[Sequence[Tensor]], times: int) -> list[Tensor]:
    """The pictures of each prompt so many times, in their order."""
    return [one for group in groups for one in [*group] * times]


def _pictures_of_prompts(features: Sequence[Tensor], tokens: Sequence[int]) -> list[list[Tensor]] | None:
    """The pictures of each prompt, by how many tokens it has for them; None where they don't fit.

    >>> one, two = torch.zeros(1, 4), torch.zeros(2, 4)
    >>> [len(group) for group in _pictures_of_prompts([one, two, two], [3, 0, 2])]
    [2, 0, 1]
    """
    waiting = list(features)
    groups = []
    for count in tokens:
        group: list[Tensor] = []
        while count > 0 and waiting:
            group.append(waiting.pop(0))
            count -= len(group[-1])
        if count:
            return None
        groups.append(group)
    return None if waiting else groups
