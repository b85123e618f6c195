"""The check of a flash attention on the first batch: what it gives is what `sdpa` or `eager` gives."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning_vlm_callbacks.modes import eval_mode
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.attention.kernel import compute_dtype
from lightning_vlm.models.parts import vision_tower

TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float32: 1e-4}
"""How far outputs may be from those of the reference, as a share of the norm. Rounding alone makes about a
tenth of this in a deep model; pictures or samples that see one another make several times as much."""

EAGER_BYTES = 2**30
"""`eager` is the reference where the scores of a layer take no more than this; else `sdpa` is."""


class Distances(NamedTuple):
    """How far a flash attention is from a reference, as shares of the norm.

    Args:
        tower: Of the vision tower's features from those of `sdpa`; None if there was no picture, or if it has
            no flash attention.
        language: Of the hidden states of the sample that is farthest; None if the language model has no flash
            attention.
        reference: What those are compared with, `eager` or `sdpa`.
    """

    tower: float | None
    language: float | None
    reference: str


def check_attention(
    model: PreTrainedModel, forward: Callable[[], Tensor], lengths: Sequence[int]
) -> Distances | None:
    """Compare what a flash attention gives with a reference, on a batch.

    Args:
        model: In any mode; the check is in eval mode.
        forward: Computes the batch as training does, and gives the last hidden states.
        lengths: The tokens of each sample of the batch.

    Returns:
        The distances; None where no flash attention is in use.

    Raises:
        UserError: They are more than rounding can explain.
    """
    parts = _parts_with_flash(model)
    if not parts:
        return None
    distances = _distances(model, forward, lengths)
    weight: Any = model.get_input_embeddings().weight
    limit = TOLERANCE.get(compute_dtype(weight), TOLERANCE[torch.float32])
    for name, distance, reference in (
        ("vision tower", distances.tower, "sdpa"),
        ("language model", distances.language, distances.reference),
    ):
        if distance is not None and not distance <= limit:
            raise UserError(
                f"the {name} gives something else with {parts[name]} than with {reference}: found a distance "
                f"of {distance:.1%}, expected at most {limit:.1%}; set model.attn_implementation to sdpa"
            )
    return distances


@torch.no_grad()
def _distances(model: PreTrainedModel, forward: Callable[[], Tensor], lengths: Sequence[int]) -> Distances:
    parts = _parts_with_flash(model)
    with eval_mode(model), torch.compiler.set_stance("force_eager"), _features_of(model) as features:
        found = hidden_of_samples(forward(), lengths)
        found_features = list(features)
        features.clear()
        reference = _reference(model, lengths)
        with _attending_by(model, reference):
            expected = hidden_of_samples(forward(), lengths)
    tower = language = None
    if "vision tower" in parts and features:
        tower = _distance(torch.cat(found_features), torch.cat(features))
    if "language model" in parts:
        shares = [_distance(one, other) for one, other in zip(found, expected, strict=True)]
        language = max(shares)
    return Distances(tower, language, reference)


def _reference(model: PreTrainedModel, lengths: Sequence[int]) -> str:
    """`eager` if its scores have room, as in the widest batch that these samples may stand in."""
    heads = model.get_decoder().config.num_attention_heads
    scores = sum(lengths) ** 2 * heads
    return "eager" if 4 * scores <= EAGER_BYTES else "sdpa"


def _distance(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def hidden_of_samples(hidden: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """The hidden states of each sample, without padding."""
    rows = hidden.float()
    if len(rows) == len(lengths):
        return [row[:length] for row, length in zip(rows, lengths, strict=True)]
    return list(rows[0].split(list(lengths)))


def _parts_with_flash(model: PreTrainedModel) -> dict[str, str]:
    """The parts of a model that have a flash attention, and its name."""
    parts = {"vision tower": vision_tower(model), "language model": model.get_decoder()}
    found = {}
    for name, part in parts.items():
        attention: Any = part.config._attn_implementation if part is not None else None
        if attention is not None and "flash" in attention:
            found[name] = attention
    return found


@contextmanager
def _features_of(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """What the vision tower gives inside of this context."""
    features: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        features.append((output if isinstance(output, Tensor) else output[0]).float())

    tower = vision_tower(model)
    if tower is None:
        yield features
        return
    handle = tower.register_forward_hook(keep)
    try:
        yield features
    finally:
        handle.remove()


@contextmanager
def _attending_by(model: PreTrainedModel, reference: str) -> Iterator[None]:
    """In place of flash attention, `sdpa` in the vision tower, which may have many patches, and the reference
    elsewhere, inside of this context."""
    tower = vision_tower(model)
    in_tower = set(tower.modules()) if tower is not None else set()
    changed: dict[int, tuple[Any, str]] = {}
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        config: Any = module.config
        before = config._attn_implementation
        if before is not None and "flash" in before:
            changed[id(config)] = (config, before)
            config._attn_implementation_internal = "sdpa" if module in in_tower else reference
    try:
        yield
    finally:
        for config, before in changed.values():
            config._attn_implementation_internal = before
