"""How many directions the input of each LoRA layer has, measured in ordinary training steps."""

from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vlm_callbacks.adaptive_lora_rank.importance import Importance, Measured, add_tensors
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import LoraLayer

__all__ = ["Activation"]


class Activation(Importance):
    """EVA's importance (Paischer et al. 2024, https://arxiv.org/abs/2410.07170): how many directions the
    input of a layer has.

    Among all layers the directions that explain the largest part of their input's variance are taken, as many
    as there is rank; a layer scores the number of its directions among these. Variance is measured with a
    random sketch (Nyström), which is wide enough for all the rank that a layer may get.

    It needs no gradients. It keeps a matrix of shape [in, width] for each layer.

    Args:
        layers: As for `Importance`.
        width: The width of the sketch: a little more than the largest rank.
    """

    def __init__(self, layers: Mapping[str, LoraLayer], width: int) -> None:
        super().__init__(layers)
        self.width = width

    def begin(self) -> None:
        self._step: Measured = {}
        for name, lora in self.layers.items():
            hook = partial(self._add_input, name)
            self._handles.append(lora.layer.register_forward_pre_hook(hook))

    def _add_input(self, name: str, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():  # the first pass of a reentrant checkpoint, or generation
            return
        with torch.no_grad(), torch.autocast(args[0].device.type, enabled=False):
            x = args[0].detach().flatten(0, -2).float()  # [tokens, in]
            sketched = x @ self._sketch(x)
            product = x.T @ sketched
            count = torch.tensor(float(len(x)), device=x.device)
            squares = x.square().sum()
            sums = [product, x.sum(0), torch.stack((count, squares))]
            self._step[name] = add_tensors(self._step.get(name), sums)

    def _sketch(self, like: Tensor) -> Tensor:
        """A random matrix of shape [in, width], the same for all layers that are equally wide."""
        wide = like.shape[-1]
        shape = (wide, min(self.width, wide))
        generator = torch.Generator().manual_seed(wide)
        return torch.randn(shape, generator=generator).to(like.device)

    def step(self, scale: float) -> Measured:
        found: Measured = {}
        for name, lora in self.layers.items():
            found[name] = self._step.get(name) or self._zeros(lora)
        return found

    def _zeros(self, lora: LoraLayer) -> list[Tensor]:
        """The sums of a layer that wasn't called, as in a batch without pictures.

        Other ranks may have called it, so they still expect its sums.
        """
        wide = lora.layer.in_features
        shapes = [(wide, min(self.width, wide)), (wide,), (2,)]
        return [torch.zeros(shape, device=lora.a.device) for shape in shapes]

    def scores(self, names: Collection[str], budget: int) -> dict[str, float]:
        directions: list[tuple[float, str]] = []
        for name in names:
            if name not in self.kept:
                continue
            _, _, (count, _) = self.kept[name]
            if count > 0:
                explained = self._explained(name).tolist()
                directions += [(-part, name) for part in explained]
        directions.sort()  # the largest part first, equal ones by name
        taken = Counter(name for _, name in directions[:budget])
        return {name: float(taken[name]) for name in names}

    def _explained(self, name: str) -> Tensor:
        """The parts of the input's variance that its directions explain, the largest first."""
        product, total, (count, squares) = self.kept[name]
        sketch = self._sketch(total)
        mean = total / count
        centre = torch.outer(mean, mean @ sketch)
        covariance = (product / count - centre).double()  # times the sketch
        core = sketch.double().T @ covariance
        symmetric = (core + core.T) / 2
        values, vectors = torch.linalg.eigh(symmetric)
        least = values[-1].clamp(min=0) * 1e-7
        is_kept = values > least
        values = values[is_kept]
        vectors = vectors[:, is_kept]
        root = covariance @ vectors / values.sqrt()
        explained = torch.linalg.svdvals(root).square()
        variance = squares / count - mean.square().sum()
        return (explained / variance).cpu()
