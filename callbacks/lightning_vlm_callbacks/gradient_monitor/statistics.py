"""Statistics of gradients: few reductions on the device, one copy to the host. For `GradientMonitor`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vlm_callbacks.host_copy import HostCopy

__all__ = ["OCTAVES", "Measurement", "norms", "octaves", "reductions", "statistics", "text_table"]

OCTAVES = list(range(-40, 9))
"""Edges of the bins of `octaves`, as powers of two."""
SMALL = 2**13
"""Tensors of at most so many elements are joined."""
SAMPLE = 2**16
"""At most so many elements of a group are sorted into bins."""


def norms(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of each of n dense tensors: shape [n], float32, on their device."""
    # In half precision the sums would be rounded; double may not be narrowed.
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    found = torch._foreach_norm(tensors, 2, dtype=torch.float64 if double else torch.float32)
    return torch.stack(found).float()


def reductions(gradients: list[Tensor]) -> dict[str, Tensor]:
    """Norm, sum, largest magnitude and number of nonzero elements of each gradient.

    Of `torch._foreach_norm` only the orders that are exact and fast are used: on a CPU order 0 stops counting
    at 2^24, and order inf takes ten times as long as `torch.aminmax`; sums it has none.

    Args:
        gradients: n dense tensors, none of them empty, on one device.
    Returns:
        Name -> Tensor of shape [n], float32, on that device: nothing is copied to the host.
    """
    norm = norms(gradients)
    sums, nonzero, lowest, highest = [], [], [], []
    for one in gradients:  # all statistics of one while it is in the cache
        sums.append(one.sum(dtype=torch.promote_types(one.dtype, torch.float32)))
        nonzero.append(one.count_nonzero())
        if not one.is_cuda:
            low, high = torch.aminmax(one)
            lowest.append(low)
            highest.append(high)
    if lowest:
        largest = torch.maximum(torch.stack(highest), -torch.stack(lowest))
    else:
        largest = torch.stack(torch._foreach_norm(gradients, math.inf))
    rows = {"norm": norm, "sum": torch.stack(sums), "max": largest, "nonzero": torch.stack(nonzero)}
    return {name: row.float() for name, row in rows.items()}


def statistics(rows: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> dict[str, float]:
    """The statistics of a group, all its elements taken together.

    Args:
        rows: As from `reductions`, of the group's n gradients, on the host. Perhaps also `clipped`, norms of
            the gradients after clipping; `weight` and `update`, norms of the weights and of their changes.
        sizes: Elements of each of the n gradients.
    Returns:
        `norm`, `mean`, `std` (of the population), `max` (of magnitudes), `zeros` (share of elements); perhaps
        `clipped_norm`, and `update_ratio` ‖Δw‖/‖w‖ unless all weights were zero.

    >>> gradients = [torch.tensor([3.0, 0.0]), torch.tensor([-4.0, 0.0, 0.0, 1.0])]
    >>> rows = {name: row.tolist() for name, row in reductions(gradients).items()}
    >>> {name: round(value, 3) for name, value in statistics(rows, [2, 4]).items()}
    {'norm': 5.099, 'mean': 0.0, 'std': 2.082, 'max': 4.0, 'zeros': 0.5}
    """
    total = {name: math.sqrt(sum(one * one for one in row)) for name, row in rows.items()}
    count = sum(sizes)
    mean = sum(rows["sum"]) / count
    variance = total["norm"] ** 2 / count - mean * mean
    found = {
        "norm": total["norm"],
        "mean": mean,
        "std": math.sqrt(max(variance, 0.0)),  # max keeps NaN, because it comes first
        "max": max(rows["max"], key=lambda one: (math.isnan(one), one)),
        "zeros": max(1 - sum(rows["nonzero"]) / count, 0.0),
    }
    if "clipped" in rows:
        found["clipped_norm"] = total["clipped"]
    if "update" in rows and total["weight"] > 0:
        found["update_ratio"] = total["update"] / total["weight"]
    return found


def octaves(gradients: list[Tensor]) -> Tensor:
    """How many elements of a sample have each order of magnitude: a histogram of log2|g|.

    Gradients span many orders of magnitude, which need a logarithmic axis; fixed edges don't depend on the
    data.

    Args:
        gradients: Of one group, dense, on one device. Of a large group every k-th element is taken.
    Returns:
        Tensor of shape [48], float32: from 2^-40 to 2^8. The first and the last also have what is beyond,
        zeros included; NaN is left out.

    >>> counts = octaves([torch.tensor([0.3, -0.4, 1.0, 0.0, torch.nan])])
    >>> {OCTAVES[bin]: int(count) for bin, count in enumerate(counts) if count}
    {-40: 1, -2: 2, 0: 1}
    """
    every = -(-sum(one.numel() for one in gradients) // SAMPLE)
    low, high = OCTAVES[0], OCTAVES[-1]
    sample = torch.cat([one.flatten()[::every].float() for one in gradients]).abs().log2().clamp(low, high)
    return torch.histc(sample, bins=high - low, min=low, max=high)


class Measurement:
    """One step, from gradients on the device to numbers on the host.

    Small tensors of the same groups are joined to one: of them a call costs more than what it computes.

    Args:
        step: Its number.
        groups: Parameters by group, none of them empty. Only those with a gradient count.
    """

    def __init__(self, step: int, groups: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self.step = step
        self.rows: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}
        self._before: list[Tensor] = []
        owned: dict[int, tuple[nn.Parameter, list[str]]] = {}
        for name, group in groups.items():
            for one in group:
                if one.grad is not None:
                    owned.setdefault(id(one), (one, []))[1].append(name)
        joined: dict[Any, list[nn.Parameter]] = {}
        self.places: dict[str, list[int]] = {name: [] for name in groups}
        """Where the gradients of each group are. Groups without any aren't there."""
        for key, (one, owners) in owned.items():
            bundle = joined.setdefault((one.dtype, *owners) if one.numel() <= SMALL else key, [])
            if not bundle:
                for name in owners:
                    self.places[name].append(len(joined) - 1)
            bundle.append(one)
        self.places = {name: places for name, places in self.places.items() if places}
        self._bundles = list(joined.values())
        self._sizes = [sum(_real(one).numel() for one in bundle) for bundle in self._bundles]
        self.gradients = self._gradients()

    def _gradients(self) -> list[Tensor]:
        """The gradient of each bundle; nothing if one of them is gone."""
        found = [[one.grad for one in bundle if one.grad is not None] for bundle in self._bundles]
        if any(len(some) < len(bundle) for some, bundle in zip(found, self._bundles, strict=True)):
            return []
        return [_join([one.to_dense() if one.is_sparse else one for one in some]) for some in found]

    def _weights(self) -> list[Tensor]:
        return [_join(bundle) for bundle in self._bundles]

    @torch.no_grad()
    def before_step(self, histogram: bool, spare: dict[int, Tensor] | None) -> None:
        """Measure the gradients before they are clipped.

        Args:
            histogram: Whether to compute `octaves`.
            spare: Where copies of the weights are kept from step to step; None for no copies.
        """
        self.rows = reductions(self.gradients)
        if histogram:
            for name, places in self.places.items():
                self.histograms[name] = octaves([self.gradients[place] for place in places])
        if spare is not None:
            weights = self._weights()
            self.rows["weight"] = norms(weights)
            self._before = self._copies(weights, spare)
        self.gradients = []  # so that they can be freed if the step is skipped

    def _copies(self, weights: list[Tensor], spare: dict[int, Tensor]) -> list[Tensor]:
        """Copies of the weights. On a GPU their memory is free for others between steps, and soon had again;
        on a CPU that takes longer than to copy, so it is kept."""
        if weights[0].is_cuda:
            return [weight.clone() for weight in weights]
        copies = []
        for (first, *_), weight in zip(self._bundles, weights, strict=True):
            if id(first) not in spare or spare[id(first)].shape != weight.shape:
                spare[id(first)] = torch.empty_like(weight)
            copies.append(spare[id(first)])
        torch._foreach_copy_(copies, weights)
        return copies

    @torch.no_grad()
    def after_step(self, clipped: bool) -> None:
        """Measure the gradients as they are now, if they are still there, and by how much the weights moved.
        Then begin the one copy to the host, which doesn't wait for it."""
        if clipped and (gradients := self._gradients()):
            self.rows["clipped"] = norms(gradients)
        if self._before:
            self.rows["update"] = _distances(self._before, self._weights())
            self._before = []
        self._packed = HostCopy(torch.cat([*self.rows.values(), *self.histograms.values()]))

    def read(self) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
        """`statistics` and histogram of each group that had a gradient. Waits for the copy."""
        packed = self._packed.read()
        cells = len(self.rows) * len(self._sizes)
        table = dict(zip(self.rows, packed[:cells].view(len(self.rows), -1).tolist(), strict=True))
        bins = packed[cells:].view(-1, len(OCTAVES) - 1).tolist()
        found = {}
        for name, places in self.places.items():
            rows = {key: [row[place] for place in places] for key, row in table.items()}
            found[name] = statistics(rows, [self._sizes[place] for place in places])
        return found, dict(zip(self.histograms, bins, strict=True))


def _distances(before: list[Tensor], now: list[Tensor]) -> Tensor:
    """The norm of each change. On a CPU one after another, so that a change isn't written to memory and read
    back."""
    if before[0].is_cuda:
        return norms(list(torch._foreach_sub(now, before)))
    return torch.stack([_norm(one - other) for one, other in zip(now, before, strict=True)]).float()


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _join(tensors: Sequence[Tensor]) -> Tensor:
    parts = [_real(one) for one in tensors]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as real and imaginary parts, each an element of its own."""
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor


def text_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each group, a column for each of its `statistics`.

    >>> print(text_table({"head": {"norm": 1.5, "zeros": 0.25}, "stem": {"norm": 20.0}}))
    group        norm       zeros
    head          1.5        0.25
    stem           20
    """
    columns = list(dict.fromkeys(name for one in found.values() for name in one))
    width = max(map(len, ["group", *found]))
    lines = [f"{'group':{width}}" + "".join(f"{name:>14}" for name in columns)]
    for group, one in found.items():
        cells = (f"{one[name]:>14.3g}" if name in one else " " * 14 for name in columns)
        lines.append((f"{group:{width}}" + "".join(cells)).rstrip())
    return "\n".join(lines)
