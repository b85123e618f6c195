"""How much rank each LoRA layer seems to need, measured in ordinary training steps."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import LoraLayer
from lightning_vlm_callbacks.ddp import sum_over_ranks
from lightning_vlm_callbacks.row_gradients import RowGradients

__all__ = ["Fisher", "Importance", "Measured", "Sensitivity", "add_tensors", "squared_norms"]

Measured = dict[str, list[Tensor]]
"""Tensors by layer, which are sums over steps and ranks."""


def squared_norms(x: Tensor, dy: Tensor) -> Tensor:
    """‖G_n‖² of each sample n, where `G_n = Σ_t dY_ntᵀ X_nt` is its part of a linear layer's weight gradient.

    It is computed as the inner product of `X_n X_nᵀ` and `dY_n dY_nᵀ`, or from G_n itself, whichever takes
    less (Goodfellow 2015, https://arxiv.org/abs/1510.01799; for sequences "ghost norms").

    Args:
        x: Tensor of shape [samples, ..., in]: the layer's input.
        dy: Tensor of shape [samples, ..., out]: the gradient of the layer's output.

    Returns:
        Tensor of shape [samples], at least float32.

    >>> squared_norms(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    tensor([45.])
    """
    dtype = torch.promote_types(x.dtype, dy.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    x = _by_sample(x, dtype)  # [samples, tokens, in]
    dy = _by_sample(dy, dtype)  # [samples, tokens, out]
    _, tokens, width_in = x.shape
    width_out = dy.shape[2]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if tokens * (width_in + width_out) <= width_in * width_out:
            products = torch.bmm(x, x.mT) * torch.bmm(dy, dy.mT)
            return products.sum((1, 2))
        # Sample by sample, because a batch of matrices as large as the weight may not fit into memory.
        norms = []
        for x_n, dy_n in zip(x, dy, strict=True):
            gradient = dy_n.T @ x_n
            norms.append(gradient.square().sum())
        return torch.stack(norms)


def _by_sample(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """[samples, ..., width] -> [samples, all between, width]."""
    return tensor.detach().to(dtype).reshape(len(tensor), -1, tensor.shape[-1])


class Importance:
    """Measures layers over some training steps.

    Args:
        layers: The layers whose ranks are to be chosen, by name.
    """

    local = True
    """Whether each rank measures its own batches only, so that ranks must be summed."""

    def __init__(self, layers: Mapping[str, LoraLayer]) -> None:
        self.layers = dict(layers)
        self.kept: Measured = {}
        """What was measured since the last change of ranks."""
        self._handles: list[Any] = []
        self.packed_lengths: Sequence[int] | None = None
        """The lengths of the samples that share the row of the next forward pass; None: a row is a sample."""

    def begin(self) -> None:
        """Watch the batches of a step."""

    def stop(self) -> None:
        """Stop watching."""
        while self._handles:
            self._handles.pop().remove()

    def end(self, scale: float, world: int) -> None:
        """Add a step, when its gradients are complete. With several ranks all must call this.

        Args:
            scale: What a GradScaler multiplied the loss by.
            world: The number of ranks.
        """
        self.stop()
        step = self.step(scale)
        if world > 1 and self.local:
            step = _summed_over_ranks(step)
        if not _is_finite(step):
            return  # after an overflow in half precision the optimizer makes no step either
        for name, tensors in step.items():
            self.kept[name] = add_tensors(self.kept.get(name), tensors)

    def reset(self, layers: Mapping[str, LoraLayer]) -> None:
        """Forget what was measured, after ranks have changed.

        Args:
            layers: The layers that still have an adapter.
        """
        self.kept.clear()
        self.layers = dict(layers)

    def state_dict(self) -> Measured:
        """What a checkpoint keeps."""
        state: Measured = {}
        for name, tensors in self.kept.items():
            state[name] = [tensor.clone() for tensor in tensors]
        return state

    def load_state_dict(self, state: Measured) -> None:
        """Continue from a checkpoint."""
        for name, tensors in state.items():
            device = self.layers[name].a.device
            self.kept[name] = [tensor.to(device).clone() for tensor in tensors]

    def step(self, scale: float) -> Measured:
        """Return what was measured in the step, and reset it."""
        raise NotImplementedError

    def scores(self, names: Collection[str], budget: int) -> dict[str, float]:
        """The importance of some layers: how much rank each should have, in relation to the others.

        Args:
            names: The names of the layers. A layer that was never called scores 0.
            budget: The total rank of these layers.
        """
        raise NotImplementedError


class Fisher(Importance):
    """How many directions a layer uses, times the root of what the largest is worth to the loss.

    The first is the stable rank of `s B A`, Σσ² / σ₁², to which small directions add nothing. The second is
    σ₁ √F, to second order the root of what losing that direction costs: it separates noise from what was
    learned. F is the empirical Fisher information of the layer's weights, on average: the sum over samples of
    their squared gradients. It is exact for each sample, though it takes one backward pass.

    F alone says how much a layer matters and not how much rank it needs: on a problem of known ranks it did
    no better than equal ranks. The stable rank alone gives rank to layers that need none.

    A sample is an item of the first dimension of a layer's input, or a stretch of a row that holds several
    (`PacksSamples`); where a model lays the tokens of all samples in a row, as Qwen-VL's vision tower does,
    it is a token. Samples' gradients are of the batch's loss.
    """

    def begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        for name, lora in self.layers.items():
            take = partial(self._add_gradients, name)
            self._handles.append(RowGradients(lora.layer, take, lambda: self.packed_lengths))

    def _add_gradients(self, name: str, x: Tensor, dy: Tensor, lengths: Sequence[int] | None) -> None:
        if lengths and x.shape[:-1] == (1, sum(lengths)):
            samples = zip(x.split(lengths, dim=1), dy.split(lengths, dim=1), strict=True)
        else:
            samples = zip([x], [dy], strict=True)
        total = torch.stack([squared_norms(x_n, dy_n).sum() for x_n, dy_n in samples]).sum()
        if name in self._sums:
            total = self._sums[name] + total
        self._sums[name] = total

    def step(self, scale: float) -> Measured:
        found = {}
        for name, lora in self.layers.items():
            dtype = torch.promote_types(lora.a.dtype, torch.float32)
            zero = lora.a.new_zeros((), dtype=dtype)  # a layer may not have been called
            total = zero + self._sums.get(name, 0.0)
            found[name] = [total / scale**2]
        return found

    def scores(self, names: Collection[str], budget: int) -> dict[str, float]:
        measured = {name: self._score(name) for name in names if name in self.kept}
        return _floats(names, measured)

    def _score(self, name: str) -> Tensor:
        lora = self.layers[name]
        values = singular_values(lora)
        largest = values[0]
        squared = largest.square().clamp(min=1e-30)
        stable_rank = values.square().sum() / squared
        weights = lora.layer.in_features * lora.layer.out_features
        fisher = self.kept[name][0] / weights
        worth = largest * fisher.sqrt()
        return stable_rank * worth.sqrt()


class Sensitivity(Importance):
    """The sensitivity of AdaLoRA (https://arxiv.org/abs/2303.10512, equation 8): Σ |w ∂L/∂w| over A and B.

    It is averaged over the steps that are measured. AdaLoRA also multiplies it by its uncertainty, which
    roughly squares it, so that a few layers get all the rank. For whole layers that did worse than equal
    ranks.
    """

    local = False  # the gradients are those that all ranks step with

    def step(self, scale: float) -> Measured:
        return {name: [_sensitivity(lora)] for name, lora in self.layers.items()}

    def scores(self, names: Collection[str], budget: int) -> dict[str, float]:
        measured = {name: self.kept[name][0] for name in names if name in self.kept}
        return _floats(names, measured)


def singular_values(lora: LoraLayer) -> Tensor:
    """The singular values of `s B A`, at most as many as its rank."""
    with torch.no_grad():
        _, r_a = torch.linalg.qr(lora.a.float().T, mode="r")
        _, r_b = torch.linalg.qr(lora.b.float(), mode="r")
        values = torch.linalg.svdvals(r_b @ r_a.T)
        return values * lora.layer.scaling[lora.adapter]


def _sensitivity(lora: LoraLayer) -> Tensor:
    total = torch.zeros((), device=lora.a.device)
    for parameter in (lora.a, lora.b):
        if parameter.grad is not None:
            products = parameter.detach().float() * parameter.grad.float()
            total = total + products.abs().sum()
    return total


def add_tensors(kept: list[Tensor] | None, tensors: list[Tensor]) -> list[Tensor]:
    """The sums of two lists of tensors; None is nothing yet."""
    if kept is None:
        return tensors
    return [old + new for old, new in zip(kept, tensors, strict=True)]


def _summed_over_ranks(step: Measured) -> Measured:
    flat = chain.from_iterable(step.values())
    summed = iter(sum_over_ranks(*flat))
    return {name: list(islice(summed, len(tensors))) for name, tensors in step.items()}


def _is_finite(step: Measured) -> bool:
    sums = [tensors[0].sum() for tensors in step.values()]
    return bool(_stacked(sums).isfinite().all())


def _floats(names: Collection[str], found: Mapping[str, Tensor]) -> dict[str, float]:
    """Values by name, 0 where none was found. All come to the host at once, so that it waits only once."""
    values = _stacked(list(found.values())).tolist()
    known = dict(zip(found, values, strict=True))
    return {name: known.get(name, 0.0) for name in names}


def _stacked(values: list[Tensor]) -> Tensor:
    if not values:
        return torch.zeros(0)
    device = values[0].device  # a model may lie on several devices
    return torch.stack([value.float().to(device) for value in values])
