"""Adapters in which text attends to the features of its own images once more, at chosen language layers."""

import inspect
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.plan.methods import CrossModalAdapter


class ImageFeatures(NamedTuple):
    """The images of a batch as the language model is given them. N is the most image tokens of any row.

    Args:
        features: The projector's output for them: Tensor of shape [batch, N, width].
        present: Which of them a row has, the rest being padding: Tensor of shape [batch, N], bool.
        visible: Which of them each position may attend to, those before it: [batch, length, N], bool.
        text: Which positions aren't an image: [batch, length], bool.
    """

    features: Tensor
    present: Tensor
    visible: Tensor
    text: Tensor


class ImageHooks:
    """Hooks that find the images and the frames of videos in what goes through a model.

    Where their placeholder tokens are, the projected features are among the embeddings that the language
    model is given.

    Args:
        tokens: Ids of the placeholders.
    """

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens
        self.images: ImageFeatures | None = None
        """Those of the forward pass that is under way."""
        self._is_image: Tensor | None = None
        self._samples: Tensor | None = None

    def find(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of the model: where the placeholders are."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise UserError("cross_modal_adapter: found no input_ids, which say where the images are")
        self._is_image = reduce(or_, [ids == token for token in self.tokens])
        self._samples = samples_of_row(kwargs.get("position_ids"), kwargs.get("attention_mask"))

    def read(self, decoder: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook of the language model: the features in those places."""
        assert self._is_image is not None
        self.images = gather_images(kwargs["inputs_embeds"], self._is_image, self._samples)

    def forget(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the model: a graph kept longer would only cost memory."""
        self.images = None
        self._is_image = None
        self._samples = None


def samples_of_row(positions: Tensor | None, attention_mask: Tensor | None) -> Tensor | None:
    """Which sample each token belongs to, in rows that several samples share without a mask.

    Positions begin again with each sample, by which transformers tells samples apart too.

    Args:
        positions: Tensor of shape [batch, length], or [4, batch, length] with those of text in front.
        attention_mask: Each row is a sample if there is one.
    Returns:
        Tensor of shape [batch, length]; None if each row is a sample.

    >>> samples_of_row(torch.tensor([[0, 1, 2, 0, 1]]), None)
    tensor([[1, 1, 1, 2, 2]])
    """
    if positions is None or attention_mask is not None:
        return None
    if positions.ndim == 3:
        if len(positions) != 4:  # the axes of rows that hold one sample each
            return None
        positions = positions[0]
    return (positions == 0).cumsum(1)


def gather_images(embeddings: Tensor, is_image: Tensor, samples: Tensor | None = None) -> ImageFeatures:
    """Gather the features of each row's images.

    Args:
        embeddings: Tensor of shape [batch, length, width].
        is_image: Which of them are images: Tensor of shape [batch, length], bool.
        samples: Which sample each of them belongs to: Tensor of shape [batch, length]; None if each row is
            one.

    >>> images = gather_images(torch.arange(3.0).view(1, 3, 1), torch.tensor([[False, True, False]]))
    >>> images.features.tolist(), images.visible.tolist()
    ([[[1.0]]], [[[False], [True], [True]]])
    """
    most = int(is_image.sum(1).max()) if is_image.numel() else 0
    images_first = is_image.int().argsort(dim=1, descending=True, stable=True)
    places = images_first[:, :most]
    present = is_image.gather(1, places)
    positions = torch.arange(is_image.shape[1], device=is_image.device)
    visible = present[:, None] & (places[:, None] <= positions[:, None])
    if samples is not None:
        visible &= samples.gather(1, places)[:, None] == samples[..., None]
    features = embeddings.take_along_dim(places[..., None], 1)
    return ImageFeatures(features, present, visible, ~is_image)


class CrossModal(nn.Module):
    """Adds `out(attention(norm(text), norm(images)))` to the hidden states of text: zero at the start, as
    `out` is zero.

    A position attends to the images of its own sample that stand before it: none sees another sample's, also
    where several share a row, and no answer an image that comes later. Samples without images, and the images
    themselves, stay as they are.
    With a key-value cache the keys and values of the images are kept with it.

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
        self.hooks: ImageHooks | None = None
        """Shared by all of a model; set by `connect_images`."""
        self.norm = nn.LayerNorm(width)
        self.picture_norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, images: ImageFeatures, cache: Any = None) -> Tensor:
        """What is added.

        Args:
            hidden: Tensor of shape [batch, length, width], of any floating dtype; computed in the weights'.
            images: Those in these positions.
            cache: Key-value cache of transformers: earlier images are with it, these are added.
        Returns:
            Shape and dtype of `hidden`; zero where there is no image to attend to.
        """
        dtype = self.norm.weight.dtype
        features = self.picture_norm(images.features.to(dtype))
        k = self.k(features)
        v = self.v(features)
        visible = images.visible
        if cache is not None:
            k, v, visible = self._with_earlier(cache, k, v, images)
        if not k.shape[1]:
            return torch.zeros_like(hidden)
        # Where it generates, Gemma 4 computes only the last token in layers that use keys of earlier ones.
        length = hidden.shape[1]
        text = images.text[:, -length:]
        visible = visible[:, -length:]
        q = self.q(self.norm(hidden.to(dtype)))
        attends = text & visible.any(-1)
        # A softmax over a fully masked row is NaN, so such rows attend anywhere and their result is dropped.
        mask = (visible | ~attends[..., None])[:, None]
        mixed = nn.functional.scaled_dot_product_attention(
            self._heads(q), self._heads(k), self._heads(v), attn_mask=mask
        )
        added = self.out(mixed.transpose(1, 2).flatten(2)).to(hidden.dtype)
        return added.where(attends[..., None], 0)

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, length, inner] -> [batch, heads, length, inner / heads]."""
        return x.unflatten(-1, (self.settings.heads, -1)).transpose(1, 2)

    def _with_earlier(
        self, cache: Any, k: Tensor, v: Tensor, images: ImageFeatures
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and what is visible, with those of earlier images; all are kept with the cache."""
        present = images.present
        visible = images.visible
        length = visible.shape[1]
        kept = cache.__dict__.setdefault("_cross_modal", {})
        if cache.get_seq_length() > length:  # the cache already holds earlier tokens
            if id(self) not in kept:
                raise UserError(
                    "cross_modal_adapter: the key-value cache holds text whose images this model has not "
                    "seen; give it the whole text at once, or use_cache=False"
                )
            earlier_k, earlier_v, earlier_present = kept[id(self)]
            if len(earlier_k) != len(k):
                raise UserError(
                    f"cross_modal_adapter: the key-value cache had {len(earlier_k)} rows and has {len(k)}; "
                    "this kind of generation isn't supported; use sampling or beams"
                )
            k = torch.cat((earlier_k, k), 1)
            v = torch.cat((earlier_v, v), 1)
            present = torch.cat((earlier_present, present), 1)
            visible = torch.cat((earlier_present[:, None].expand(-1, length, -1), visible), 2)
        kept[id(self)] = k, v, present
        return k, v, visible

    def after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Forward hook of a layer."""
        images = self.hooks.images if self.hooks else None
        if images is None:
            raise UserError(
                "cross_modal_adapter: the language model was called without the model that puts images "
                "into it (or again in the backward pass: gradient checkpointing needs a newer transformers)"
            )
        cache = kwargs.get("past_key_values")
        return with_first(output, lambda hidden: hidden + self(hidden, images, cache))


def with_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A layer's output with changed hidden states, which are the output itself or the first of a tuple."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def connect_images(model: PreTrainedModel, adapters: Sequence[CrossModal]) -> None:
    """Let adapters see the images that go through a model.

    Args:
        model: Of a family that `refuse_cross_modal` lets pass.
        adapters: In its layers; none is fine.
    """
    if not adapters:
        return
    named = [getattr(model.config, f"{medium}_token_id", None) for medium in ("image", "video")]
    hooks = ImageHooks(*[token for token in named if token is not None])
    for adapter in adapters:
        adapter.hooks = hooks
    base = getattr(model, model.base_model_prefix, model)
    base.register_forward_pre_hook(hooks.find, with_kwargs=True)
    model.get_decoder().register_forward_pre_hook(hooks.read, with_kwargs=True)
    base.register_forward_hook(hooks.forget, always_call=True)


def refuse_cross_modal(model: PreTrainedModel, path: str) -> None:
    """Whether a layer can have a cross-modal adapter.

    Args:
        model: Any of our families.
        path: Of the layer.

    Raises:
        UserError: No pictures stand among the words that go into the language model (Mllama, Granite Vision
            4), no token says where they stand (Kosmos-2), layers have several streams (Gemma 3n), or the
            layer is outside of it.
    """
    decoder = model.get_decoder()
    if "cross_attention_states" in inspect.signature(decoder.forward).parameters:
        raise UserError(
            f"plan: found cross_modal_adapter for {type(model).__name__}, whose language model gets no "
            "pictures among its words: layers of its own attend to them; use lora or adapter on those"
        )
    if "deepstack_features" in inspect.signature(decoder.forward).parameters:
        raise UserError(
            f"plan: found cross_modal_adapter for {type(model).__name__}, which adds its pictures to the "
            "words in several layers and not before the first; use lora or adapter"
        )
    if hasattr(decoder.config, "altup_num_inputs"):
        raise UserError(
            f"plan: found cross_modal_adapter for {type(model).__name__}, whose layers hand on several "
            "streams of hidden states; use lora or adapter"
        )
    if getattr(model.config, "image_token_id", None) is None:
        raise UserError(
            f"plan: found cross_modal_adapter for {type(model).__name__}, which has no token that stands for "
            "a picture; use lora or adapter"
        )
    layer = model.get_submodule(path)
    if not any(module is layer for module in decoder.modules()):
        raise UserError(f"plan: {path!r} is outside the language model; use adapter there")
