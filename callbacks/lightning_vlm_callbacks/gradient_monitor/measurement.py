"""One step's gradients, from the device to numbers on the host with one copy. For `GradientMonitor`."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from lightning_vlm_callbacks.ddp import sum_over_ranks
from lightning_vlm_callbacks.gradient_monitor.statistics import (
    BIN_EDGES,
    combine,
    log2_histogram,
    norms,
    reductions,
    statistics,
)
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.shards import own_part

__all__ = ["Measurement"]

Number = TypeVar("Number", int, float)

SMALL = 2**13
"""Tensors of at most this many elements are joined."""


class Measurement:
    """One step, from gradients on the device to numbers on the host.

    Small tensors that belong to the same groups are joined to one bundle, because for them the overhead of a
    call takes longer than its computation. Any other tensor is a bundle of its own.

    Under FSDP2 each rank measures the pieces that it holds, and one or two collectives combine them, so all
    ranks must measure the same steps.

    Args:
        step: Its number.
        groups: Parameters by group, none of them empty. Only those with a gradient count.
        spread: Whether tensors may lie over several ranks.
    """

    def __init__(self, step: int, groups: Mapping[str, Sequence[nn.Parameter]], spread: bool = False) -> None:
        self.step = step
        self._spread = spread
        self.rows: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}
        self.places: dict[str, list[int]] = {}
        """Which bundles belong to each group. Groups without a gradient aren't there."""
        self._bundles: list[list[nn.Parameter]] = []
        self._make_bundles(groups)
        self._sizes = [sum(map(_size, bundle)) for bundle in self._bundles]
        self._weights_before: list[Tensor] = []
        self.gradients = self._gradients()

    def _make_bundles(self, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        bundles: dict[Hashable, list[nn.Parameter]] = {}
        places: dict[str, list[int]] = {name: [] for name in groups}
        for parameter, names in _owners(groups).items():
            key: Hashable = id(parameter)
            if parameter.numel() <= SMALL:
                key = (parameter.dtype, *names)
            if key not in bundles:
                for name in names:
                    places[name].append(len(bundles))
                bundles[key] = []
            bundles[key].append(parameter)
        self._bundles = list(bundles.values())
        self.places = {name: own for name, own in places.items() if own}

    def norms(self) -> dict[str, float]:
        """The norm of each group before the step is made. The host waits for it."""
        if not self.gradients:
            return {}
        rows = {"norm": norms(self.gradients)}
        of_bundles = (combine(rows) if self._spread else rows)["norm"].cpu().double()
        return {name: float(of_bundles[places].norm()) for name, places in self.places.items()}

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
            self._shapes = self._shapes_now()
        self.gradients = []  # so that they can be freed if the step is skipped

    @torch.no_grad()
    def after_step(self, clipped: bool) -> None:
        """Measure by how much the step moved the weights, and begin the one copy to the host.

        The host doesn't wait for the copy. Where another callback has given weights another shape since, as
        AdaptiveLoRARank does, the step's move can't be separated from that change and isn't measured.

        Args:
            clipped: Whether the gradients are the clipped ones now. They are measured unless one is gone.
        """
        if clipped:
            gradients = self._gradients()
            if gradients:
                self.rows["clipped"] = norms(gradients)
        if self._weights_before and self._shapes == self._shapes_now():
            self.rows["update"] = _distances(self._weights_before, self._weights())
        self._weights_before = []
        if self._spread:
            self.rows = combine(self.rows)
            if self.histograms:
                counts = sum_over_ranks(*self.histograms.values())
                self.histograms = dict(zip(self.histograms, counts, strict=True))
        self._packed = HostCopy(torch.cat([*self.rows.values(), *self.histograms.values()]))

    def read(self) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
        """`statistics` and histogram of each group that had a gradient. Waits for the copy."""
        row_count = len(self.rows)
        bin_count = len(BIN_EDGES) - 1
        in_rows = row_count * len(self._bundles)
        in_histograms = bin_count * len(self.histograms)
        rows, bins = self._packed.read().split([in_rows, in_histograms])
        rows_by_name = dict(zip(self.rows, rows.view(row_count, -1).tolist(), strict=True))
        found = {}
        for name, places in self.places.items():
            own_rows = {key: _at(places, row) for key, row in rows_by_name.items()}
            found[name] = statistics(own_rows, _at(places, self._sizes))
        histograms = bins.view(-1, bin_count).tolist()
        return found, dict(zip(self.histograms, histograms, strict=True))

    def _gradients(self) -> list[Tensor]:
        """The gradient of each bundle; nothing if one of them is gone."""
        joined = []
        for bundle in self._bundles:
            gradients = []
            for parameter in bundle:
                if parameter.grad is None:
                    return []
                gradients.append(self._part(_dense(parameter.grad)))
            joined.append(_join(gradients))
        return joined

    def _shapes_now(self) -> list[torch.Size]:
        return [parameter.shape for bundle in self._bundles for parameter in bundle]

    def _weights(self) -> list[Tensor]:
        return [_join([self._part(weight.detach()) for weight in bundle]) for bundle in self._bundles]

    def _part(self, tensor: Tensor) -> Tensor:
        return own_part(tensor) if self._spread else tensor

    def _copies(self, weights: list[Tensor], buffers: dict[int, Tensor]) -> list[Tensor]:
        """Copies of the weights.

        On a GPU their memory is freed after the step, because torch soon finds it again. On a CPU finding
        memory takes longer than copying, so it is kept in `buffers`.
        """
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


def _owners(groups: Mapping[str, Sequence[nn.Parameter]]) -> dict[nn.Parameter, list[str]]:
    """The names of the groups of each parameter that has a gradient."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, group in groups.items():
        for parameter in group:
            if parameter.grad is not None:
                owners.setdefault(parameter, []).append(name)
    return owners


def _at(places: Sequence[int], values: Sequence[Number]) -> list[Number]:
    return [values[place] for place in places]


def _distances(before: list[Tensor], now: list[Tensor]) -> Tensor:
    """The norm of each change.

    On a CPU one change is computed after another, so that it is still in the cache when its norm is taken.
    """
    if before[0].is_cuda:
        return norms(list(torch._foreach_sub(now, before)))
    return torch.stack(list(map(_distance, now, before))).float()


def _distance(new: Tensor, old: Tensor) -> Tensor:
    change = new - old  # a local variable, so that its memory is free again for the next change
    accurate = torch.promote_types(change.dtype, torch.float32)
    return torch.linalg.vector_norm(change, dtype=accurate)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor as it is, several as one flat tensor."""
    parts = [_as_real(tensor) for tensor in tensors]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.flatten() for part in parts])


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def _size(tensor: Tensor) -> int:
    """The number of elements, two for each complex number."""
    return _as_real(tensor).numel()


def _as_real(tensor: Tensor) -> Tensor:
    """A complex tensor as real and imaginary parts, each an element of its own."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
