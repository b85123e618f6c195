"""How often each task was drawn."""

from torch import Tensor

from lightning_vlm.data.batch.sampler import ResumableBatchSampler


class DrawsByTask(ResumableBatchSampler):
    """A sampler that draws samples by their tasks, and knows how many of each it has drawn."""

    names: tuple[str, ...]
    """The tasks."""
    task_sizes: list[int]
    """How many samples each of them has."""

    def drawn(self, place: int) -> list[int]:
        """How many samples of each task have been drawn, in all epochs.

        Args:
            place: Up to which sample of this epoch, all ranks together.
        """
        raise NotImplementedError

    def end_step(self, sums: Tensor, counts: Tensor, place: int) -> None:
        """Take in the losses of an optimizer step; the host doesn't wait for the device.

        Args:
            sums: Tensor of shape [tasks]: of losses, the same on all ranks.
            counts: Tensor of shape [tasks]: what they are sums of.
            place: Samples of this epoch that have been trained on, all ranks together.
        """

    def samples(self, place: int) -> dict[str, int]:
        """`drawn` by the names of tasks."""
        return dict(zip(self.names, self.drawn(place), strict=True))

    def epochs(self, place: int) -> dict[str, float]:
        """How often each task's data has been gone through up to a place; see `drawn`."""
        counts = zip(self.names, self.drawn(place), self.task_sizes, strict=True)
        return {name: count / size for name, count, size in counts}

    def metrics(self, place: int) -> dict[str, float]:
        """What is logged of what was drawn up to a place."""
        metrics: dict[str, float] = {}
        metrics |= {f"data/epochs/{task}": count for task, count in self.epochs(place).items()}
        metrics |= {f"data/samples/{task}": count for task, count in self.samples(place).items()}
        return metrics

    def summary(self, place: int) -> str:
        """What was drawn up to a place, in words."""
        samples, epochs = self.samples(place), self.epochs(place)
        each = [f"{task} {epochs[task]:.2f} ({samples[task]:,} samples)" for task in epochs]
        return f"Epochs of each task: {', '.join(each)}"
