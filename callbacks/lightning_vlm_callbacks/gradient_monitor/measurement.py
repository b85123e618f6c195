"""One step's gradients, from the device to numbers on the host with one copy. For `GradientMonitor`."""

from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_vlm_callbacks.gradient_monitor.statistics import (
    BIN_EDGES,
    log2_histogram,
    norms,
    reductions,
    statistics,
)
from lightning_vlm_callbacks.host_copy import HostCopy

__all__ = ["Measurement"]

SMALL = 2**13
"""Tensors of at most so many elements are joined."""


class Measurement:
    """One step, from gradients on the device to numbers on the host.

    Small tensors of the same groups are joined to one bundle: each call costs more than what it computes of
    them.

    Args:
        step: Its number.
        groups: Parameters by group, none of them empty. Only those with a gradient count.
    """

    def __init__(self, step: int, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.step = step
        self.rows: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}
        self.places: dict[str, list[int]] = {}
        """Which bundles belong to each group. Groups without a gradient aren't there."""
        self._bundles: list[list[nn.Parameter]] = []
        self._bundle(groups)
        self._sizes = [sum(_as_real(parameter).numel() for parameter in bundle) for bundle in self._bundles]
        self._weights_before: list[Tensor] = []
        self.gradients = self._gradients()

    def _bundle(self, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        owners: dict[nn.Parameter, list[str]] = {}
        for name, group in groups.items():
            for parameter in group:
                if parameter.grad is not None:
                    owners.setdefault(parameter, []).append(name)
        bundles: dict[Hashable, list[nn.Parameter]] = {}
        places: dict[str, list[int]] = {name: [] for name in groups}
        for parameter, names in owners.items():
            is_small = parameter.numel() <= SMALL
            key: Hashable = (parameter.dtype, *names) if is_small else id(parameter)
            if key not in bundles:
                bundles[key] = []
                for name in names:
                    places[name].append(len(bundles) - 1)
            bundles[key].append(parameter)
        self._bundles = list(bundles.values())
        self.places = {name: own for name, own in places.items() if own}

    def norms(self) -> dict[str, float]:
        """The norm of each group before the step is made. The host waits for it."""
        if not self.gradients:
            return {}
        found = norms(self.gradients).cpu().double()
        return {name: float(found[places].norm()) for name, places in self.places.items()}

    @torch.no_grad()
    def before_step(self, histogram: bool, buffers: dict[int, Tensor] | None) -> None:
        """Measure the gradients before they are clipped.

        Args:
            histogram: Whether to compute `log2_histogram`.
            buffers: Where copies of the weights are kept from step to step; None for no copies.
        """
        self.rows = reductions(self.gradients)
        if histogram:
            for name, places in self.places.items():
                self.histograms[name] = log2_histogram([self.gradients[place] for place in places])
        if buffers is not None:
            weights = self._weights()
            self.rows["weight"] = norms(weights)
            self._weights_before = self._copies(weights, buffers)
        self.gradients = []  # so that they can be freed if the step is skipped

    @torch.no_grad()
    def after_step(self, clipped: bool) -> None:
        """Measure the gradients as they are now, if they are still there, and by how much the weights moved.
        Then begin the one copy to the host, which doesn't wait for it."""
        gradients = self._gradients() if clipped else []
        if gradients:
            self.rows["clipped"] = norms(gradients)
        if self._weights_before:
            self.rows["update"] = _distances(self._weights_before, self._weights())
            self._weights_before = []
        self._packed = HostCopy(torch.cat([*self.rows.values(), *self.histograms.values()]))

    def read(self) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
        """`statistics` and histogram of each group that had a gradient. Waits for the copy."""
        packed = self._packed.read()
        cells = len(self.rows) * len(self._sizes)
        rows = packed[:cells].view(len(self.rows), -1).tolist()
        bins = packed[cells:].view(-1, len(BIN_EDGES) - 1).tolist()
        found = {}
        for name, places in self.places.items():
            own_rows = {
                key: [row[place] for place in places] for key, row in zip(self.rows, rows, strict=True)
            }
            found[name] = statistics(own_rows, [self._sizes[place] for place in places])
        return found, dict(zip(self.histograms, bins, strict=True))

    def _gradients(self) -> list[Tensor]:
        """The gradient of each bundle; nothing if one of them is gone."""
        joined = []
        for bundle in self._bundles:
            found = [parameter.grad for parameter in bundle if parameter.grad is not None]
            if len(found) < len(bundle):
                return []
            dense = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in found]
            joined.append(_join(dense))
        return joined

    def _weights(self) -> list[Tensor]:
        return [_join(bundle) for bundle in self._bundles]

    def _copies(self, weights: list[Tensor], buffers: dict[int, Tensor]) -> list[Tensor]:
        """Copies of the weights. On a GPU their memory is free for others between steps, and soon had again;
        on a CPU that takes longer than to copy, so it is kept."""
        if weights[0].is_cuda:
            return [weight.clone() for weight in weights]
        copies = []
        for bundle, weight in zip(self._bundles, weights, strict=True):
            key = id(bundle[0])
            if key not in buffers or buffers[key].shape != weight.shape:
                buffers[key] = torch.empty_like(weight)
            copies.append(buffers[key])
        torch._foreach_copy_(copies, weights)
        return copies


def _distances(before: list[Tensor], now: list[Tensor]) -> Tensor:
    """The norm of each change. On a CPU one after another, so that a change isn't written to memory and read
    back."""
    if before[0].is_cuda:
        return norms(list(torch._foreach_sub(now, before)))
    return torch.stack([_norm(new - old) for new, old in zip(now, before, strict=True)]).float()


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _join(tensors: Sequence[Tensor]) -> Tensor:
    parts = [_as_real(tensor) for tensor in tensors]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


def _as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as real and imaginary parts, each an element of its own."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
