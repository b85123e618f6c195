"""How much rank each linear layer seems to need, measured in ordinary training steps."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import Lora
from lightning_vlm_callbacks.row_gradients import RowGradients

__all__ = ["Activation", "Fisher", "Importance", "Sensitivity", "squared_norms"]


def squared_norms(x: Tensor, dy: Tensor) -> Tensor:
    """‖G_n‖² of each sample n, where `G_n = Σ_t dY_ntᵀ X_nt` is its part of a linear layer's weight gradient.

    As the inner product of `X_n X_nᵀ` and `dY_n dY_nᵀ` or from G_n itself, whichever takes less (Goodfellow
    2015, https://arxiv.org/abs/1510.01799; for sequences "ghost norms").

    Args:
        x: Of shape [samples, ..., in]: what goes into the layer.
        dy: Of shape [samples, ..., out]: the gradient of what comes out.
    Returns:
        Of shape [samples], at least float32.

    >>> squared_norms(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))
    tensor([45.])
    """
    wide = torch.promote_types(torch.promote_types(x.dtype, dy.dtype), torch.float32)
    x, dy = (one.detach().to(wide).reshape(len(one), -1, one.shape[-1]) for one in (x, dy))
    tokens, into, out = x.shape[1], x.shape[2], dy.shape[2]
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if tokens * (into + out) <= into * out:
            return (torch.bmm(x, x.mT) * torch.bmm(dy, dy.mT)).sum((1, 2))
        # Sample by sample, because a batch of matrices as large as the weight may not fit.
        return torch.stack([(one_dy.T @ one_x).square().sum() for one_x, one_dy in zip(x, dy, strict=True)])


class Importance:
    """Measures layers over some training steps. Each kind fills `kept`, tensors by layer, which are sums.

    Args:
        layers: Whose ranks are to be chosen, by name.
    """

    def __init__(self, layers: Mapping[str, Lora]) -> None:
        self.layers = dict(layers)
        self.kept: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []

    def begin(self) -> None:
        """Watch the batches of a step."""

    def stop(self) -> None:
        """Watch no more."""
        while self._handles:
            self._handles.pop().remove()

    def end(self, scale: float, world: int) -> None:
        """Add a step, when its gradients are complete. With several ranks all must come here.

        Args:
            scale: What a GradScaler multiplied the loss by.
            world: The number of ranks.
        """
        self.stop()
        step = self.step(scale)
        if world > 1 and self.local:
            flat = torch.cat([one.flatten() for some in step.values() for one in some])
            torch.distributed.all_reduce(flat)
            pieces = iter(flat.split([one.numel() for some in step.values() for one in some]))
            step = {name: [next(pieces).view_as(one) for one in some] for name, some in step.items()}
        if not all(
            map(math.isfinite, _floats(step, {name: some[0].sum() for name, some in step.items()}).values())
        ):
            return  # after an overflow in half precision the optimizer makes no step either
        for name, some in step.items():
            old = self.kept.get(name)
            self.kept[name] = some if old is None else [a + b for a, b in zip(old, some, strict=True)]

    local = True
    """Whether a rank measures its own batches only, so that ranks must be summed."""

    def step(self, scale: float) -> dict[str, list[Tensor]]:
        """Return the scores of the step by layer, and reset them."""
        raise NotImplementedError

    def scores(self, names: Iterable[str], budget: int) -> dict[str, float]:
        """The importance of some layers: how much rank each should have, in relation to the others.

        Args:
            names: Of layers. What wasn't met counts as 0.
            budget: Their total rank.
        """
        raise NotImplementedError


class Fisher(Importance):
    """How many directions a layer uses, times the root of what the largest is worth to the loss.

    The first is the stable rank of `s B A`, Σσ² / σ₁², to which little ones add nothing. The second is σ₁ √F,
    to second order the root of what losing that direction costs: it separates noise from what was learned. F
    is the empirical Fisher information of the layer's weights, on average: the sum over samples of their
    squared gradients, exact for each sample, though it takes one backward.

    F alone says how much a layer matters and not how much rank it needs: with it a problem of known ranks
    went no better than with equal ranks. The stable rank alone gives rank to layers that need none.

    A sample is an item of the first dimension of a layer's input; where a model lays the tokens of all
    samples in a row, as Qwen-VL's vision tower does, a token. Samples' gradients are of the batch's loss.
    """

    def begin(self) -> None:
        self._sums: dict[str, Tensor] = {}
        for name, lora in self.layers.items():
            self._handles.append(RowGradients(lora.layer, partial(self._take, name)))

    def _take(self, name: str, x: Tensor, dy: Tensor, label: Any) -> None:
        found = squared_norms(x, dy).sum()
        self._sums[name] = self._sums[name] + found if name in self._sums else found

    def step(self, scale: float) -> dict[str, list[Tensor]]:
        found = {}
        for name, lora in self.layers.items():
            none = lora.a.new_zeros((), dtype=torch.promote_types(lora.a.dtype, torch.float32))
            found[name] = [(none + self._sums.get(name, 0.0)) / scale**2]
        return found

    def scores(self, names: Iterable[str], budget: int) -> dict[str, float]:
        found = {}
        for name in names:
            if name in self.kept:
                layer, values = self.layers[name].layer, singular_values(self.layers[name])
                mean, most = self.kept[name][0] / (layer.in_features * layer.out_features), values[0]
                found[name] = (
                    values.square().sum() / most.square().clamp(min=1e-30) * (most * mean.sqrt()).sqrt()
                )
        return _floats(names, found)


class Sensitivity(Importance):
    """The sensitivity of AdaLoRA (https://arxiv.org/abs/2303.10512, equation 8): Σ |w ∂L/∂w| over A and B.

    It is averaged over the steps that are measured. AdaLoRA also multiplies it by its uncertainty, which
    roughly squares it, so that a few layers get all the rank. For whole layers that did worse than equal
    ranks.
    """

    local = False  # the gradients are those that all ranks step with

    def step(self, scale: float) -> dict[str, list[Tensor]]:
        found = {}
        for name, lora in self.layers.items():
            pairs = [(one.detach(), one.grad) for one in (lora.a, lora.b) if one.grad is not None]
            products = [torch.sum((one.float() * grad.float()).abs()) for one, grad in pairs]
            found[name] = [torch.stack(products).sum() if products else torch.zeros((), device=lora.a.device)]
        return found

    def scores(self, names: Iterable[str], budget: int) -> dict[str, float]:
        return _floats(names, {name: self.kept[name][0] for name in names if name in self.kept})


class Activation(Importance):
    """EVA's (Paischer et al. 2024, https://arxiv.org/abs/2410.07170): how many directions a layer's input
    has.

    Of all layers the directions that explain the largest part of their input's variance are taken, as many as
    there is rank; a layer counts what it has of these. Variance is measured with a random sketch (Nyström),
    which is wide enough for all the rank that a layer may get.

    Needs no gradients. What is kept is a matrix of shape [in, width] for each layer.

    Args:
        layers: As for `Importance`, or any linear layers that are called as modules.
        width: Of the sketch: a little more than the largest rank.
    """

    def __init__(self, layers: Mapping[str, Any], width: int) -> None:
        super().__init__(layers)
        self.width = width

    def begin(self) -> None:
        self._met: dict[str, list[Tensor]] = {}
        for name, lora in self.layers.items():
            layer = lora.layer if isinstance(lora, Lora) else lora
            self._handles.append(layer.register_forward_pre_hook(partial(self._take, name)))

    def _take(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():  # the first pass of a reentrant checkpoint, or generation
            return
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            x = args[0].detach().flatten(0, -2).float()
            sums = torch.stack((torch.tensor(float(len(x)), device=x.device), x.square().sum()))
            found = [x.T @ (x @ self._sketch(x)), x.sum(0), sums]
            old = self._met.get(name)
            self._met[name] = found if old is None else [a + b for a, b in zip(old, found, strict=True)]

    def _sketch(self, x: Tensor) -> Tensor:
        wide = x.shape[-1]
        chance = torch.Generator().manual_seed(wide)
        return torch.randn(wide, min(self.width, wide), generator=chance).to(x.device)

    def step(self, scale: float) -> dict[str, list[Tensor]]:
        for name, lora in self.layers.items():
            if name not in self._met:  # as in a batch without pictures; other ranks may have used the layer
                place = lora.a.device if isinstance(lora, Lora) else None
                layer = lora.layer if isinstance(lora, Lora) else lora
                wide = layer.in_features
                shapes = (wide, min(self.width, wide)), (wide,), (2,)
                self._met[name] = [torch.zeros(shape, device=place) for shape in shapes]
        return {name: self._met[name] for name in self.layers}

    def scores(self, names: Iterable[str], budget: int) -> dict[str, float]:
        names = list(names)
        met = [name for name in names if name in self.kept and self.kept[name][2][0] > 0]
        explained = {name: self._explained(name) for name in met}
        ranked = sorted(
            ((part, name) for name, parts in explained.items() for part in parts.tolist()),
            key=lambda one: (-one[0], one[1]),
        )
        taken = [name for _, name in ranked[:budget]]
        return {name: float(taken.count(name)) for name in names}

    def _explained(self, name: str) -> Tensor:
        """The parts of the input's variance that its directions explain, the largest first."""
        product, total, (count, squares) = self.kept[name]
        sketch, mean = self._sketch(total), total / count
        product = (product / count - torch.outer(mean, mean @ sketch)).double()
        small = sketch.double().T @ product
        values, vectors = torch.linalg.eigh((small + small.T) / 2)
        kept = values > values[-1].clamp(min=0) * 1e-7
        root = product @ vectors[:, kept] / values[kept].sqrt()
        variance = squares / count - mean.square().sum()
        return (torch.linalg.svdvals(root).square() / variance).cpu()


def singular_values(lora: Lora) -> Tensor:
    """Of `s B A`: at most as many as its rank."""
    with torch.no_grad():
        a, b = lora.a.float(), lora.b.float()
        inner = torch.linalg.qr(b, mode="r")[1] @ torch.linalg.qr(a.T, mode="r")[1].T
        return torch.linalg.svdvals(inner) * lora.layer.scaling[lora.adapter]


def _floats(names: Iterable[str], found: Mapping[str, Tensor]) -> dict[str, float]:
    """All at once, so that the host waits but once; 0 for what wasn't found."""
    values = list(found.values())
    listed = torch.stack([one.float().to(values[0].device) for one in values]).tolist() if values else []
    known = dict(zip(found, listed, strict=True))
    return {name: known.get(name, 0.0) for name in names}
