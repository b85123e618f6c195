"""A logger of the Trainer that passes on what all of its loggers get."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from typing_extensions import override

if TYPE_CHECKING:
    from lightning_vlm_callbacks.run_report.callback import RunReport

__all__ = ["ReportLogger"]


class ReportLogger(DummyLogger):
    """A logger of the Trainer that passes all that is logged to a RunReport.

    It is one that code which uses `trainer.logger` or `trainer.loggers` can't trip over: a DummyLogger takes
    any call, as in `fast_dev_run`.
    """

    def __init__(self, report: "RunReport", trainer: Trainer) -> None:
        super().__init__()
        self._report, self._trainer = report, trainer
        self._best: str | None = None

    @property
    @override
    def save_dir(self) -> str:
        """So that `trainer.log_dir` is what it is without a logger."""
        return self._trainer.default_root_dir

    @override
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._report.add_metrics(self._trainer, metrics, step)

    @override
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        trainer, best = self._trainer, checkpoint_callback.best_model_path
        score = checkpoint_callback.best_model_score
        if best and best != self._best and score is not None:
            self._best = best
            text = f"{checkpoint_callback.monitor} {float(score):.4g} ({Path(best).name})"
            self._report.add_event(trainer, "best", text, path=best)
        else:
            path = checkpoint_callback.last_model_path or best
            self._report.add_event(trainer, "checkpoint", Path(path).name, path=path)

    @override
    def finalize(self, status: str) -> None:
        """Called when the run ends by an exception, after all callbacks have heard of it."""
        self._report.finish(self._trainer)
