"""Statistics of gradients: few reductions on the device, and arithmetic on what they give."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed
from torch import Tensor

from lightning_vlm_callbacks.ddp import sum_over_ranks

__all__ = ["BIN_EDGES", "combine", "log2_histogram", "norms", "reductions", "statistics"]

BIN_EDGES = list(range(-40, 9))
"""Edges of the bins of `log2_histogram`, as powers of two."""
SAMPLE = 2**16
"""At most this many elements of a group are sorted into bins."""


def norms(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of each of n dense tensors: shape [n], float32, on their device."""
    # In half precision the sums would be rounded, and torch refuses to narrow float64.
    has_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    accurate = torch.float64 if has_double else torch.float32
    found = torch._foreach_norm(tensors, 2, dtype=accurate)
    return torch.stack(found).float()


def reductions(gradients: list[Tensor]) -> dict[str, Tensor]:
    """Norm, sum, largest magnitude and number of nonzero elements of each gradient.

    `torch._foreach_norm` isn't used for all of them: on a CPU order 0 stops counting at 2^24, order inf takes
    ten times as long as `torch.aminmax`, and no order is a sum.

    Args:
        gradients: n dense tensors, none of them empty, on one device.

    Returns:
        Name -> Tensor of shape [n], float32, on that device: nothing is copied to the host.
    """
    norm = norms(gradients)
    sums = []
    nonzero = []
    lowest = []
    highest = []
    for gradient in gradients:  # one after another, so that each is still in the cache for the next statistic
        accurate = torch.promote_types(gradient.dtype, torch.float32)
        sums.append(gradient.sum(dtype=accurate))
        nonzero.append(gradient.count_nonzero())
        if not gradient.is_cuda:
            low, high = torch.aminmax(gradient)
            lowest.append(low)
            highest.append(high)
    if gradients[0].is_cuda:
        largest = torch.stack(torch._foreach_norm(gradients, math.inf))
    else:
        largest = torch.maximum(torch.stack(highest), -torch.stack(lowest))
    return {
        "norm": norm,
        "sum": torch.stack(sums).float(),
        "max": largest.float(),
        "nonzero": torch.stack(nonzero).float(),
    }


def combine(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of tensors whose pieces lie on several ranks, from the rows of each rank's pieces.

    All ranks must call it. Squares of norms are added in float64, in which they don't overflow.

    Args:
        rows: As for `statistics`, each of shape [n] on the device.

    Returns:
        The same names and shapes, equal on all ranks.
    """
    summed = {}
    for name, row in rows.items():
        if name != "max":
            row = row.double()
            summed[name] = row if name in ("sum", "nonzero") else row.square()
    totals = dict(zip(summed, sum_over_ranks(*summed.values()), strict=True))
    found = {}
    for name, row in rows.items():
        if name == "max":
            largest = row.clone()
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
            found[name] = largest.where(~totals["norm"].isnan(), math.nan)  # MAX may lose a NaN
        else:
            total = totals[name]
            found[name] = (total if name in ("sum", "nonzero") else total.sqrt()).float()
    return found


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
    count = sum(sizes)
    norm = _root_of_squares(rows["norm"])
    mean = sum(rows["sum"]) / count
    variance = norm**2 / count - mean**2
    share_of_nonzero = sum(rows["nonzero"]) / count
    found = {
        "norm": norm,
        "mean": mean,
        "std": math.sqrt(max(variance, 0.0)),  # max returns a NaN if that is its first argument
        "max": _highest(rows["max"]),
        "zeros": max(1 - share_of_nonzero, 0.0),
    }
    if "clipped" in rows:
        found["clipped_norm"] = _root_of_squares(rows["clipped"])
    if "update" in rows:
        weight = _root_of_squares(rows["weight"])
        if weight > 0:
            found["update_ratio"] = _root_of_squares(rows["update"]) / weight
    return found


def _root_of_squares(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values))


def _highest(values: Sequence[float]) -> float:
    """The highest value, or NaN if there is one."""
    if any(map(math.isnan, values)):
        return math.nan
    return max(values)


def log2_histogram(gradients: list[Tensor]) -> Tensor:
    """How many elements of a sample have each order of magnitude: a histogram of log2|g|.

    The axis is logarithmic because gradients span many orders of magnitude. The edges are fixed, so that
    histograms of different steps can be compared.

    Args:
        gradients: Those of one group, dense, on one device. Of a large group every k-th element is taken.

    Returns:
        Tensor of shape [48], float32: from 2^-40 to 2^8. The first and the last bin also count what lies
        beyond them, zeros included. NaN is left out.

    >>> counts = log2_histogram([torch.tensor([0.3, -0.4, 1.0, 0.0, torch.nan])])
    >>> {BIN_EDGES[bin]: int(count) for bin, count in enumerate(counts) if count}
    {-40: 1, -2: 2, 0: 1}
    """
    size = sum(gradient.numel() for gradient in gradients)
    every = math.ceil(size / SAMPLE)
    sample = torch.cat([gradient.flatten()[::every].float() for gradient in gradients])
    low = BIN_EDGES[0]
    high = BIN_EDGES[-1]
    exponents = sample.abs().log2().clamp(low, high)
    return torch.histc(exponents, bins=high - low, min=low, max=high)
