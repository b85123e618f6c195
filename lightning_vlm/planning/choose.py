"""The choice for a model and the lengths of its samples, for `lightning-vlm init`."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import model_without_weights
from lightning_vlm.models.loading.quantize import Quantization, chosen_layers
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt
from lightning_vlm.models.plan.plan import expand
from lightning_vlm.planning.choice import (
    GLOBAL_BATCH,
    LEARNING_RATES,
    Choice,
    accumulation,
    scaled_learning_rate,
)
from lightning_vlm.training.memory.meter import MARGIN, available_memory


class _Try(NamedTuple):
    name: str
    quantization: str | None
    recompute: bool


_IN_TURN = (
    _Try("lora", None, False),
    _Try("lora", None, True),
    _Try("qlora", "nf4", False),
    _Try("qlora", "nf4", True),
    _Try("projector-only", "nf4", True),
)
"""What is tried, the better one first."""
_ENOUGH = 4
"""From so many samples of a batch on, recomputing to have more of them costs more than it gives."""


def choose(
    model: str,
    lengths: Sequence[int],
    memory: int | None = None,
    *,
    global_batch: int = GLOBAL_BATCH,
    **where: Any,
) -> Choice:
    """The method, batch and precision for a model on some data.

    Args:
        model: As `model.name_or_path`.
        lengths: The tokens of samples, pictures included; some hundreds are enough.
        memory: The bytes of the device; None is what this machine has.
        global_batch: Samples of an optimizer step.
        where: `revision`, `trust_remote_code` and `family`, as of `load_model`.

    Raises:
        UserError: No such model, or no lengths.
    """
    if not lengths or max(lengths) < 1:
        raise UserError("plan: found no lengths of samples; expected those of some training samples")
    on_gpu = memory is not None or torch.cuda.is_available()
    whole = memory if memory is not None else _there_is()
    room = whole * (1 - MARGIN)
    best = None
    for this in _IN_TURN:
        estimate = _Estimate(model, this, on_gpu, where)
        batch = estimate.most_samples(max(lengths), room)
        if best is None or batch > best[2]:
            best = (this, estimate, batch)
        if batch >= _ENOUGH or (batch >= 1 and this.recompute):
            best = (this, estimate, batch)
            break
    this, estimate, batch = best  # type: ignore[misc]
    size = max(1, min(batch, global_batch))
    if size > 1:
        size = 1 << (size.bit_length() - 1)
    need = estimate.bytes_of(size * max(lengths))
    accumulate = accumulation(global_batch, size)
    rate = scaled_learning_rate(LEARNING_RATES[this.name], size * accumulate)
    typical = int(statistics.median(lengths))
    reasons = (
        f"{estimate.total / 1e9:.2f} billion parameters, of which {estimate.trained:,} train ({this.name})",
        f"samples have up to {max(lengths):,} tokens, {typical:,} in the middle; {size} fit at a time",
        f"{size} × {accumulate} samples make a step; the learning rate is for all of them",
    )
    precision = "bf16-mixed" if on_gpu else "32-true"
    return Choice(
        adapt=this.name,
        quantization=this.quantization,
        batch_size=size,
        accumulate=accumulate,
        recompute=this.recompute,
        precision=precision,
        learning_rate=rate,
        gib=need / 2**30,
        fits=batch >= 1,
        reasons=reasons,
    )


def _there_is() -> int:
    """The bytes of this machine's GPU, or of the machine."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return available_memory()


class _Estimate:
    """A first estimate by closed forms."""

    def __init__(self, name: str, this: _Try, on_gpu: bool, where: dict[str, Any]) -> None:
        model = model_without_weights(name, **where)
        self.total = sum(weight.numel() for weight in model.parameters())
        parts = find_parts(model)
        quantised = set()
        if this.quantization:
            layers = chosen_layers(model, Quantization(), parts)
            quantised = {id(model.get_submodule(layer).weight) for layer in layers}
        with torch.device("meta"):
            adapt(model, expand(this.name), parts)
        width = 2 if on_gpu else 4
        self.held = 0.0
        self.trained = 0
        for weight in model.parameters():
            if weight.requires_grad:
                self.trained += weight.numel()
                self.held += 16 * weight.numel()
            else:
                self.held += weight.numel() * (4.127 / 8 if id(weight) in quantised else width)
        config: Any = model.config.get_text_config()
        hidden = config.hidden_size
        inner = getattr(config, "intermediate_size", None) or 4 * hidden
        layers = config.num_hidden_layers
        each = width * (10 * hidden + 4 * inner)
        self.per_token = layers * width * hidden + each if this.recompute else layers * each
        self.fixed = 2**28 if on_gpu else 2**26
        assert isinstance(model, nn.Module)

    def bytes_of(self, tokens: int) -> float:
        return self.held + self.fixed + self.per_token * tokens

    def most_samples(self, tokens: int, room: float) -> int:
        left = room - self.held - self.fixed
        return max(0, int(left // (self.per_token * tokens)))
