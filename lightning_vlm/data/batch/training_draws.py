"""The loader of a training in progress: what it draws of each task."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from torch import Tensor

from lightning_vlm.data.batch.draws_by_task import DrawsByTask
from lightning_vlm.data.batch.loader import ResumableLoader, load_saved_state


class TrainingDraws:
    """The loader of a training in progress, if there is one."""

    def __init__(self) -> None:
        self._loader: ResumableLoader | None = None

    def start(self, loader: ResumableLoader, trainer: Trainer | None) -> ResumableLoader:
        """Train with a loader, which goes on where a resumed run was."""
        self._loader = loader
        if trainer:
            load_saved_state(trainer, loader)
        return loader

    def end_step(self, trainer: Trainer | None, sums: Tensor, counts: Tensor, batch_idx: int) -> None:
        """Take in the losses of each task after an optimizer step, and log how much of each was drawn.

        Args:
            trainer: Of the run.
            sums: Tensor of shape [tasks]: the losses of each task of the training data, over all ranks.
            counts: Tensor of shape [tasks]: what they are sums of.
            batch_idx: The last batch of the step.
        """
        sampler = self._by_task()
        if trainer is None or sampler is None:
            return
        place = sampler.passed(batch_idx + 1)
        sampler.end_step(sums, counts, place)
        if logs_at(trainer, trainer.global_step + 1):
            log_metrics(trainer, sampler.metrics(place), trainer.global_step)

    def end(self) -> None:
        """Say what was drawn of each task."""
        sampler = self._by_task()
        if self._loader is not None and sampler is not None:
            rank_zero_info(sampler.summary(self._loader.passed))
        self._loader = None

    def _by_task(self) -> DrawsByTask | None:
        """The sampler, if it draws by task."""
        sampler = self._loader.sampler if self._loader else None
        return sampler if isinstance(sampler, DrawsByTask) else None
