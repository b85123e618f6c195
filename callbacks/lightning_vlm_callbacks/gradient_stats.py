"""Statistics of gradients: few reductions on the device, one copy to the host. For `GradientMonitor`."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["OCTAVES", "History", "Measurement", "norms", "octaves", "reductions", "statistics", "text_table"]

OCTAVES = list(range(-40, 9))
"""Edges of the bins of `octaves`, as powers of two."""
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
    if gradients[0].is_cuda:
        largest = torch.stack(torch._foreach_norm(gradients, math.inf))
    else:
        lowest, highest = zip(*map(torch.aminmax, gradients), strict=True)
        largest = torch.maximum(torch.stack(highest), -torch.stack(lowest))
    sums = [one.sum(dtype=torch.promote_types(one.dtype, torch.float32)) for one in gradients]
    return {
        "norm": norms(gradients),
        "sum": torch.stack(sums).float(),
        "max": largest.float(),
        "nonzero": torch.stack([one.count_nonzero() for one in gradients]).float(),
    }


def statistics(rows: Mapping[str, Tensor], sizes: Tensor) -> dict[str, float]:
    """The statistics of a group, all its elements taken together.

    Args:
        rows: As from `reductions`, of the group's n gradients, on the host. Perhaps also `clipped`, norms of
            the gradients after clipping; `weight` and `update`, norms of the weights and of their changes.
        sizes: Tensor of shape [n]: elements of each.
    Returns:
        `norm`, `mean`, `std` (of the population), `max` (of magnitudes), `zeros` (share of elements); perhaps
        `clipped_norm`, and `update_ratio` ‖Δw‖/‖w‖ unless all weights were zero.

    >>> gradients = [torch.tensor([3.0, 0.0]), torch.tensor([-4.0, 0.0, 0.0, 1.0])]
    >>> found = statistics(reductions(gradients), torch.tensor([2, 4]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'norm': 5.099, 'mean': 0.0, 'std': 2.082, 'max': 4.0, 'zeros': 0.5}
    """
    rows = {name: row.double() for name, row in rows.items()}
    total = {name: row.square().sum().sqrt() for name, row in rows.items()}
    count = sizes.sum()
    mean = rows["sum"].sum() / count
    found = {
        "norm": total["norm"],
        "mean": mean,
        "std": (total["norm"].square() / count - mean.square()).clamp(min=0).sqrt(),
        "max": rows["max"].max(),
        "zeros": (1 - rows["nonzero"].sum() / count).clamp(min=0),
    }
    if "clipped" in rows:
        found["clipped_norm"] = total["clipped"]
    if "update" in rows and total["weight"] > 0:
        found["update_ratio"] = total["update"] / total["weight"]
    return {name: value.item() for name, value in found.items()}


def octaves(gradients: list[Tensor]) -> Tensor:
    """How many elements of a sample have each order of magnitude: a histogram of log2|g|.

    Gradients span many orders, of which a linear axis shows one; and fixed edges need no look at the data.

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

    Args:
        step: Its number.
        parameters: All that may have a gradient, none of them empty.
    """

    def __init__(self, step: int, parameters: Sequence[nn.Parameter]) -> None:
        self.step = step
        self.parameters = [one for one in parameters if one.grad is not None]
        self.gradients = self._gradients()
        self.rows: dict[str, Tensor] = {}
        self.histograms: dict[str, Tensor] = {}
        self._sizes = torch.tensor([one.numel() for one in self.gradients], dtype=torch.int64)
        self._place = {id(one): place for place, one in enumerate(self.parameters)}
        self._before: list[Tensor] = []

    def _gradients(self) -> list[Tensor]:
        found = [one.grad for one in self.parameters if one.grad is not None]
        return [one.to_dense() if one.is_sparse else one for one in found]

    def places(self, groups: Mapping[str, Sequence[nn.Parameter]]) -> Iterator[tuple[str, list[int]]]:
        """Where the gradients of each group are among all. Groups without any are left out."""
        for name, group in groups.items():
            if found := [self._place[id(one)] for one in group if id(one) in self._place]:
                yield name, found

    @torch.no_grad()
    def before_step(
        self, histograms_of: Mapping[str, Sequence[nn.Parameter]], spare: dict[int, Tensor] | None
    ) -> None:
        """Measure the gradients before they are clipped.

        Args:
            histograms_of: Groups whose `octaves` are wanted.
            spare: Where copies of the weights may be kept from step to step; None if none are wanted.
        """
        self.rows = reductions(self.gradients)
        for name, places in self.places(histograms_of):
            self.histograms[name] = octaves([self.gradients[place] for place in places])
        if spare is not None:
            self._before = _copies(self.parameters, spare)
        self.gradients = []  # they may be set free, if the step is skipped

    @torch.no_grad()
    def after_step(self, clipped: bool) -> None:
        """Measure the gradients as they are now, if they are still there, and by how much the weights moved.
        Then begin the one copy to the host, which doesn't wait for it."""
        if clipped and all(one.grad is not None for one in self.parameters):
            self.rows["clipped"] = norms(self._gradients())
        if self._before:
            self.rows["weight"] = norms(self._before)
            torch._foreach_sub_(self._before, [one.detach() for one in self.parameters])
            self.rows["update"] = norms(self._before)
            self._before = []
        packed = torch.cat([*self.rows.values(), *self.histograms.values()])
        self._host = packed.to("cpu", non_blocking=packed.is_cuda)  # into pinned memory, if non-blocking
        self._arrived = torch.cuda.current_stream(packed.device).record_event() if packed.is_cuda else None

    def read(
        self, groups: Mapping[str, Sequence[nn.Parameter]]
    ) -> tuple[dict[str, dict[str, float]], dict[str, list[float]]]:
        """`statistics` of each group that had a gradient, and the histograms. Waits for the copy."""
        if self._arrived is not None:
            self._arrived.synchronize()
        names, count = list(self.rows), len(self.parameters)
        table = self._host[: len(names) * count].view(len(names), count)
        bins = self._host[len(names) * count :].view(-1, len(OCTAVES) - 1).tolist()
        found = {
            group: statistics(dict(zip(names, table[:, places], strict=True)), self._sizes[places])
            for group, places in self.places(groups)
        }
        return found, dict(zip(self.histograms, bins, strict=True))


def _copies(parameters: list[nn.Parameter], spare: dict[int, Tensor]) -> list[Tensor]:
    """Copies of parameters. On a GPU their memory is free for others between steps, and soon had again; on a
    CPU that takes longer than to copy, so it is kept."""
    weights = [one.detach() for one in parameters]
    if weights[0].is_cuda:
        return [one.clone() for one in weights]
    for one in parameters:
        if id(one) not in spare:
            spare[id(one)] = torch.empty_like(one)
    copies = [spare[id(one)] for one in parameters]
    torch._foreach_copy_(copies, weights)
    return copies


class History:
    """Values over steps, thinned out evenly when there are too many.

    >>> history = History(most=4)
    >>> for step in range(10):
    ...     history.add(step, {"all": step / 10})
    >>> history.curve("all")
    ([0, 4, 8], [0.0, 0.4, 0.8])
    """

    def __init__(self, most: int = 1000) -> None:
        self.most, self.every, self.offered = most, 1, 0
        self.points: list[tuple[int, dict[str, float]]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step, if its turn has come."""
        if self.offered % self.every == 0:
            self.points.append((step, dict(values)))
        self.offered += 1
        if len(self.points) > self.most:
            self.points, self.every = self.points[::2], 2 * self.every

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps, and the values of one name; NaN where a step has none."""
        return [step for step, _ in self.points], [values.get(name, math.nan) for _, values in self.points]


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
