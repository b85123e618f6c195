"""Samples that share a row of a model beside the same samples alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_vlm_callbacks.modes import without_dropout
from torch import Tensor

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.batch_loss import target_losses
from lightning_vlm.training.packing_verdict import Distances, Verdict, tolerance_of

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


def prove(module: "VLMModule", packed: Batch, alone: Sequence[Batch]) -> Verdict:
    """Compare samples that share a row with each of them alone, in the precision of the run.

    Alone they go through the model's own forward: its attention, its masks, its positions. Then the first and
    the last sample are changed, which must not change the others, and the gradients of what the others give
    must be 0 by all that isn't theirs. Nothing of it is left behind: no gradient, no random number drawn, and
    no block compiled.

    Args:
        module: About to train, on its device, not wrapped by a strategy.
        packed: Several samples in one row, on its device, with targets.
        alone: The same samples in the same order, each in a batch of its own.
    """
    model = module.model
    base: Any = getattr(model, model.base_model_prefix, model)
    rope_deltas = getattr(base, "rope_deltas", None)
    try:
        # Compiled blocks would be compiled again for the shapes of samples alone.
        with (
            torch.enable_grad(),
            isolate_rng(),
            without_dropout(model),
            torch.compiler.set_stance("force_eager"),
        ):
            return _compare(module, packed, [_own_forward(batch) for batch in alone])
    finally:
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = rope_deltas


def _compare(module: "VLMModule", packed: Batch, alone: Sequence[Batch]) -> Verdict:
    of_each = [_answers(module, batch) for batch in alone]
    longest = max(range(len(alone)), key=lambda place: alone[place].tokens)
    padded = _answers(module, _twice_and_padded(alone[longest]))
    together = _answers(module, packed)
    first, last = 0, len(alone) - 1
    moved = []
    seen = []
    for place, other in ((first, last), (last, first)):
        changed = _changed(packed, alone, place)
        hidden, share = _seen_by(module, changed, other)
        outside = (packed.samples != place).flatten()
        moved.append(_distance(hidden[outside], together.hidden[outside]))
        seen.append(share)
    return Verdict(
        model=type(module.model).__name__,
        samples=len(alone),
        distances=_worst(together, of_each),
        rounding=_worst(padded, [of_each[longest]]),
        tolerance=tolerance_of(together.hidden),
        same_positions=_same_positions(together.positions, [one.positions for one in of_each]),
        moved=max(moved),
        seen=max(seen),
    )


class _Answers(NamedTuple):
    """What a model makes of a batch.

    Args:
        hidden: Tensor of shape [tokens, hidden]: what the head gets.
        losses: Tensor of shape [targets].
        gradients: Tensor of shape [tokens, hidden]: of the loss, by what enters the language model.
        positions: Tensor of shape [axes, tokens], int64: of the first row, as the language model gets them.
    """

    hidden: Tensor
    losses: Tensor
    gradients: Tensor
    positions: Tensor


class _Entered(NamedTuple):
    """What enters the language model.

    Args:
        embeddings: Tensor of shape [rows, length, hidden], of words and features of pictures; has a graph.
        positions: Tensor of shape [axes, length], int64.
    """

    embeddings: Tensor
    positions: Tensor


def _answers(module: "VLMModule", batch: Batch) -> _Answers:
    assert batch.targets is not None
    hidden, entered = _forward(module, batch)
    sums = target_losses(module.model, hidden, batch.targets)
    (gradients,) = torch.autograd.grad(sums.loss_sum, entered.embeddings)
    return _Answers(
        hidden.detach().flatten(0, 1), sums.token_losses, gradients.flatten(0, 1), entered.positions
    )


def _forward(module: "VLMModule", batch: Batch) -> tuple[Tensor, _Entered]:
    """What the head gets, and what its gradients can be taken by."""
    entered: list[_Entered] = []

    def keep(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        embeddings = kwargs["inputs_embeds"]
        if not embeddings.requires_grad:
            embeddings.requires_grad_()
        entered.append(_Entered(embeddings, _positions(kwargs.get("position_ids"), embeddings)))

    handle = module.model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    try:
        hidden = module.hidden_states(batch)
    finally:
        handle.remove()
    return hidden, entered[0]


def _positions(given: Tensor | None, embeddings: Tensor) -> Tensor:
    """Those of the first row, along the axes that embeddings are rotated by."""
    if given is None:
        return torch.arange(embeddings.shape[1], device=embeddings.device)[None]
    if given.ndim == 2:
        return given[:1]
    has_text_axis = len(given) > 3  # by which masks are made
    return given[1:, 0] if has_text_axis else given[:, 0]


def _same_positions(packed: Tensor, alone: Sequence[Tensor]) -> bool:
    parts = packed.split([one.shape[1] for one in alone], dim=1)
    for part, own in zip(parts, alone, strict=True):
        # A text may have one axis alone and several in a row.
        if not torch.equal(*torch.broadcast_tensors(part, own)):
            return False
    return True


def _seen_by(module: "VLMModule", batch: Batch, sample: int) -> tuple[Tensor, float]:
    """What the head gets, and how much a sample's share of it depends on what isn't in this sample."""
    hidden, entered = _forward(module, batch)
    hidden = hidden.flatten(0, 1)
    own = (batch.samples == sample).flatten()
    values = hidden[own].float()
    # Of different size in each dimension, for a norm would have kept their plain sum where it is.
    factors = torch.linspace(-1, 1, values.shape[1], device=values.device)
    (gradients,) = torch.autograd.grad((values * factors).sum(), entered.embeddings)
    sizes = gradients.detach().flatten(0, 1).abs().amax(1).float()
    by_own = sizes[own].max().clamp(min=torch.finfo(torch.float32).tiny)
    by_others = sizes[~own].max()
    return hidden.detach(), (by_others / by_own).item()


def _own_forward(batch: Batch) -> Batch:
    """A batch without what workers find for a model: positions, lengths, what its tower makes of sizes."""
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    return batch._replace(inputs=inputs, sequences=None, picture_inputs=None)


def _twice_and_padded(batch: Batch) -> Batch:
    """A sample as the first of two rows, the other of which is the same, each with a token of padding."""
    rows, length = batch.inputs["input_ids"].shape
    inputs = {"attention_mask": torch.ones_like(batch.inputs["input_ids"])}
    for name, value in {**inputs, **batch.inputs}.items():
        if value.shape[:2] == (rows, length):
            padding = torch.zeros_like(value[:, :1]) if name == "attention_mask" else value[:, -1:]
            value = torch.cat([value, padding], dim=1)
        inputs[name] = torch.cat([value, value])
    return batch._replace(inputs=inputs)


def _changed(packed: Batch, alone: Sequence[Batch], place: int) -> Batch:
    """A packed batch with other words and other pictures in one of its samples, of the same sizes."""
    inputs = dict(packed.inputs)
    ids = inputs["input_ids"].clone()
    are_words = packed.kinds >= Kind.INSTRUCTION
    words = ids[are_words].unique()
    own = are_words & (packed.samples == place)
    places = torch.searchsorted(words, ids[own])
    ids[own] = words[(places + 1) % len(words)]
    inputs["input_ids"] = ids
    for name, values in packed.inputs.items():
        if not name.startswith("pixel_values"):
            continue
        counts = [len(batch.inputs[name]) if name in batch.inputs else 0 for batch in alone]
        start = sum(counts[:place])
        pixels = values.clone()
        pixels[start : start + counts[place]] *= -1
        inputs[name] = pixels
    return packed._replace(inputs=inputs)


def _worst(found: _Answers, expected: Sequence[_Answers]) -> Distances:
    """How far samples are that stand one after the other at the beginning of a batch."""
    worst = []
    for name in ("hidden", "losses", "gradients"):
        values = [getattr(sample, name) for sample in expected]
        lengths = [len(value) for value in values]
        parts = getattr(found, name)[: sum(lengths)].split(lengths)
        worst.append(max(_distance(part, value) for part, value in zip(parts, values, strict=True)))
    return Distances(*worst)


def _distance(found: Tensor, expected: Tensor) -> float:
    """As a share of the norm of what is expected."""
    found, expected = found.double(), expected.double()
    norm = expected.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return ((found - expected).norm() / norm).item()
