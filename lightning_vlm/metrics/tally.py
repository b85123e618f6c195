"""Sums per task, over steps and ranks."""

import torch
import torch.distributed
from torch import Tensor


class TaskTally:
    """Adds up named numbers for each task, such as a loss sum, a weight sum, a count.

    Not a torchmetrics `Metric`: its states have names fixed at the start and are reduced one by one across
    ranks, so a task that only one rank has seen would make that rank wait for the others for ever. Here
    one gather takes what each rank has.

    >>> tally = TaskTally()
    >>> tally.update("vqa", right=1, count=2)
    >>> tally.update("ocr", right=torch.tensor(3), count=4)
    >>> tally.update("vqa", right=0, count=1)
    >>> tally.totals()
    {'ocr': {'count': 4.0, 'right': 3.0}, 'vqa': {'count': 3.0, 'right': 1.0}}
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor | float]] = {}

    def update(self, task: str, **values: Tensor | float) -> None:
        """Add to the sums of one task.

        Args:
            task: Any task, new or known.
            values: What to add, by name: numbers, or tensors of one element, of any dtype and on any device.
                Sums of tensors stay on their device in float64, which counts exactly to 2^53 (float32 stops
                at 2^24), and nothing waits for the device. On Apple's GPU, which has no float64, tensors
                are moved to the CPU.

        Raises:
            RuntimeError: A tensor of more or fewer than one element.
        """
        sums = self._sums.setdefault(task, {})
        for name, value in values.items():
            if isinstance(value, Tensor):
                value = value.detach().reshape(())
                value = value.cpu().double() if value.device.type == "mps" else value.double()
            # A new tensor each time: the caller's is neither changed nor kept.
            sums[name] = sums.get(name, 0.0) + value

    def totals(self) -> dict[str, dict[str, float]]:
        """The sums over all ranks, by task and name, each in sorted order.

        Where torch.distributed is initialised, every rank must call it, at the same point, and every rank
        gets the same answer to the last bit.
        """
        here = self.state()
        ranks = [here]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks *= torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, here)
        merged: dict[str, dict[str, float]] = {}
        for rank in ranks:
            for task, sums in rank.items():
                total = merged.setdefault(task, {})
                for name, value in sums.items():
                    total[name] = total.get(name, 0.0) + value
        return {task: dict(sorted(merged[task].items())) for task in sorted(merged)}

    def state(self) -> dict[str, dict[str, float]]:
        """The sums of this process, by task and name."""
        return {
            task: {name: float(value) for name, value in sums.items()} for task, sums in self._sums.items()
        }

    def reset(self) -> None:
        """Forget all sums and all tasks."""
        self._sums.clear()
