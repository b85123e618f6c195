"""Adapters in which text attends to the features of its own pictures once more, at chosen language layers."""

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.plan.plan import CrossModalAdapter


class Seen(NamedTuple):
    """What the pictures of a batch are to the language model. N is the most picture tokens of any row.

    Args:
        features: The projector's output for them: Tensor of shape [batch, N, width].
        there: Which of them a row has, the rest being padding: Tensor of shape [batch, N], bool.
        visible: Which of them each position may look at, those before it: [batch, length, N], bool.
        text: Which positions aren't a picture: [batch, length], bool.
    """

    features: Tensor
    there: Tensor
    visible: Tensor
    text: Tensor


class Pictures:
    """Finds the pictures in what goes through a model: where their placeholder tokens are, the projected
    features stand among the embeddings that the language model is given.

    Args:
        token: Id of the placeholder.
    """

    def __init__(self, token: int) -> None:
        self.token = token
        self.seen: Seen | None = None
        self._places: Tensor | None = None

    def find(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of the model: where the placeholders are."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UserError("cross_modal_adapter: found no input_ids, which say where the pictures are")
        self._places = ids == self.token

    def read(self, decoder: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of the language model: what stands there."""
        assert self._places is not None
        self.seen = look(kwargs["inputs_embeds"], self._places)

    def forget(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: a graph kept longer would only cost memory."""
        self.seen = self._places = None


def look(embeddings: Tensor, places: Tensor) -> Seen:
    """Gather the features of each row's pictures.

    Args:
        embeddings: Tensor of shape [batch, length, width].
        places: Which of them are pictures: Tensor of shape [batch, length], bool.

    >>> seen = look(torch.arange(3.0).view(1, 3, 1), torch.tensor([[False, True, False]]))
    >>> seen.features.tolist(), seen.visible.tolist()
    ([[[1.0]]], [[[False], [True], [True]]])
    """
    most = int(places.sum(1).max()) if places.numel() else 0
    order = places.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # pictures first, in order
    there = places.gather(1, order)
    at = torch.arange(places.shape[1], device=places.device)
    visible = there[:, None] & (order[:, None] <= at[:, None])
    return Seen(embeddings.take_along_dim(order[..., None], 1), there, visible, ~places)


class CrossModal(nn.Module):
    """Adds `out(attention(norm(text), norm(pictures)))` to the hidden states of text: zero at the start, as
    `out` is zero.

    A position attends to the pictures of its own row that stand before it: no sample sees another's, and no
    answer a picture that comes later. Rows without pictures, and the pictures themselves, stay as they are.
    With a key-value cache the keys and values of the pictures are kept with it.

    Args:
        width: Of the language model.
        settings: As in the plan.

    Raises:
        UserError: The heads don't divide the width of the attention.
    """

    def __init__(self, width: int, settings: CrossModalAdapter) -> None:
        super().__init__()
        inner = width // settings.reduction
        if not inner or inner % settings.heads:
            raise UserError(
                f"cross_modal_adapter: found heads={settings.heads} for a width of {inner} ({width} / "
                f"reduction {settings.reduction}); expected heads that divide it"
            )
        self.settings = settings
        self.pictures: Pictures | None = None
        """Shared by all of a model; set by `show_pictures`."""
        self.norm, self.picture_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.out = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, seen: Seen, cache: Any = None) -> Tensor:
        """What is added.

        Args:
            hidden: Tensor of shape [batch, length, width], of any floating dtype; computed in the weights'.
            seen: The pictures in these positions.
            cache: Key-value cache of transformers: earlier pictures are with it, these are added.
        Returns:
            Shape and dtype of `hidden`; zero where there is no picture to look at.
        """
        features = self.picture_norm(seen.features.to(self.norm.weight.dtype))
        k, v, there, visible = self.k(features), self.v(features), seen.there, seen.visible
        if cache is not None:
            k, v, there, visible = self._with_earlier(cache, k, v, there, visible)
        if not k.shape[1]:
            return torch.zeros_like(hidden)
        q = self.q(self.norm(hidden.to(self.norm.weight.dtype)))
        q, k, v = (x.unflatten(-1, (self.settings.heads, -1)).transpose(1, 2) for x in (q, k, v))
        looks = seen.text & visible.any(-1)
        # A softmax over a fully masked row is NaN, so such rows attend anywhere and their result is dropped.
        mask = (visible | ~looks[..., None])[:, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        added = self.out(mixed.transpose(1, 2).flatten(2)).to(hidden.dtype)
        return added.where(looks[..., None], 0)

    def _with_earlier(self, cache: Any, *new: Tensor) -> tuple[Tensor, ...]:
        """Keys, values, there, visible: those before and the new, which are kept with the cache."""
        k, v, there, visible = new
        length = visible.shape[1]
        kept = cache.__dict__.setdefault("_cross_modal", {})
        if cache.get_seq_length() > length:  # the cache already holds earlier tokens
            if id(self) not in kept:
                raise UserError(
                    "cross_modal_adapter: the key-value cache holds text whose pictures this model has not "
                    "seen; give it the whole text at once, or use_cache=False"
                )
            before = kept[id(self)]
            if len(before[0]) != len(k):
                raise UserError(
                    f"cross_modal_adapter: the key-value cache had {len(before[0])} rows and has {len(k)}; "
                    "this kind of generation isn't supported; use sampling or beams"
                )
            earlier = before[2][:, None].expand(-1, length, -1)
            k, v, there = (torch.cat(pair, 1) for pair in zip(before, (k, v, there), strict=True))
            visible = torch.cat((earlier, visible), 2)
        kept[id(self)] = k, v, there
        return k, v, there, visible

    def after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook of a layer."""
        seen = self.pictures.seen if self.pictures else None
        if seen is None:
            raise UserError(
                "cross_modal_adapter: the language model was called without the model that puts pictures "
                "into it (or again in the backward pass: gradient checkpointing needs a newer transformers)"
            )
        first = output[0] if isinstance(output, tuple) else output
        first = first + self(first, seen, kwargs.get("past_key_values"))
        return (first, *output[1:]) if isinstance(output, tuple) else first


def show_pictures(model: PreTrainedModel, adapters: Sequence[CrossModal]) -> None:
    """Let adapters see the pictures that go through a model.

    Args:
        model: Of a family that `refuse_cross_modal` lets pass.
        adapters: In its layers; none is fine.
    """
    if not adapters:
        return
    pictures = Pictures(model.config.image_token_id)
    for adapter in adapters:
        adapter.pictures = pictures
    base = getattr(model, model.base_model_prefix)
    base.register_forward_pre_hook(pictures.find, with_kwargs=True)
    model.get_decoder().register_forward_pre_hook(pictures.read, with_kwargs=True)
    base.register_forward_hook(pictures.forget, always_call=True)


def refuse_cross_modal(model: PreTrainedModel, path: str) -> None:
    """Whether a layer can have a cross-modal adapter.

    Args:
        model: Any of our families.
        path: Of the layer.

    Raises:
        UserError: No pictures stand among the words that go into the language model (Mllama), or the layer is
            outside of it.
    """
    decoder = model.get_decoder()
    if "cross_attention_states" in inspect.signature(decoder.forward).parameters:
        raise UserError(
            f"plan: found cross_modal_adapter for {type(model).__name__}, whose language model gets no "
            "pictures among its words: layers of its own attend to them; use lora or adapter on those"
        )
    layer = model.get_submodule(path)
    if not any(module is layer for module in decoder.modules()):
        raise UserError(f"plan: {path!r} is outside the language model; use adapter there")
