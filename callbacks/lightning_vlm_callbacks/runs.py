"""What several callbacks need of a Trainer's run: when and how it logs, where it writes, its loss scaler."""

import os
from collections.abc import Mapping
from pathlib import Path
from weakref import WeakKeyDictionary

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.amp import GradScaler
from typing_extensions import override

from lightning_vlm_callbacks.folder_lock import FolderLock, LockedError

__all__ = ["LoggedMetric", "builds_in_setup", "log_metrics", "logs_at", "loss_scaler", "run_folder"]

_claims: "WeakKeyDictionary[Trainer, _Claims]" = WeakKeyDictionary()


def run_folder(trainer: Trainer, dirpath: str | Path | None = None) -> Path:
    """The folder that everything of a run is written into. All ranks must call it, from `setup` on.

    The folder is the one where Lightning's ModelCheckpoint would put its checkpoints: `save_dir/name/version`
    of the first logger, such as `lightning_logs/version_3` or `my-project/<id of the W&B run>`. Without a
    logger it is the Trainer's `default_root_dir`, which later runs share. If the `save_dir` isn't on a local
    or shared disk, it is replaced by `default_root_dir`.

    While a fit lasts, its folder is locked: a second fit that would write into it is refused, except that
    two runs for which CSVLogger or TensorBoardLogger found the same version number at the same moment are
    kept apart by giving the second the next number. The lock ends with the process, however it ends.

    Args:
        trainer: Whose run it is.
        dirpath: A folder that the user chose instead.

    Returns:
        An absolute path. In a fit the folder exists.

    Raises:
        MisconfigurationException: Another run is writing into the folder, it can't be written to, or it
            isn't on a disk.

    Example::

        def setup(self, trainer, pl_module, stage):
            self._folder = run_folder(trainer, self.dirpath)
    """
    folder, error = None, ""
    if trainer.is_global_zero:
        try:
            folder = _settle(trainer, dirpath)
        except MisconfigurationException as found:
            error = str(found)
    folder, error = trainer.strategy.broadcast((folder, error))
    if folder is None:
        raise MisconfigurationException(error)
    return folder


def logs_at(trainer: Trainer, step: int) -> bool:
    """Whether a Trainer logs at a step, as its own `self.log(..., on_step=True)` does.

    Args:
        trainer: `Trainer(barebones=True)` and `log_every_n_steps=0` log at no step.
        step: The number of optimizer steps made, counted so that the caller's first logged value is at a
            multiple of `log_every_n_steps`. In `on_before_optimizer_step` the step that ends there is
            `trainer.global_step + 1`.

    >>> trainer = Trainer(log_every_n_steps=2, logger=False, accelerator="cpu")
    >>> [step for step in range(5) if logs_at(trainer, step)]
    [0, 2, 4]
    >>> logs_at(Trainer(barebones=True, accelerator="cpu"), 0)
    False
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and step % every == 0


def log_metrics(trainer: Trainer, metrics: Mapping[str, float | Tensor], step: int) -> None:
    """Send metrics to all loggers, from where `self.log` can't be called or would log them at another step.

    Args:
        trainer: Whose loggers get them.
        metrics: Single values by name. A tensor on a device makes the host wait for it.
        step: The number of optimizer steps made before the one that the metrics belong to.
    """
    if not trainer.loggers:
        return
    values = {name: float(value) for name, value in metrics.items()}
    for logger in trainer.loggers:
        logger.log_metrics(values, step=step)


def loss_scaler(trainer: Trainer) -> GradScaler | None:
    """What multiplies losses against underflow in float16; None if nothing does."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


class LoggedMetric:
    """Knows whether a metric was logged since it was last judged: Lightning keeps showing the old value."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        """While it is held, no other tensor can lie at its address."""

    def is_new(self, metric: Tensor | None) -> bool:
        """Whether it was logged since the last call.

        Args:
            metric: As in `trainer.callback_metrics`; None if there is none.
        """
        last = self._last
        self._last = metric
        if metric is None or last is None:
            return metric is not None
        return metric.data_ptr() != last.data_ptr()


def builds_in_setup(module: LightningModule) -> bool:
    """Whether a module may make its layers in a hook, so that they aren't there when callbacks are set up."""
    return is_overridden("setup", module) or is_overridden("configure_model", module)


def _settle(trainer: Trainer, dirpath: str | Path | None) -> Path:
    folder = _where(trainer, dirpath)
    if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return folder
    if trainer.state.status != TrainerStatus.RUNNING:  # it has ended, and so has its lock
        return folder
    claims = _claims.get(trainer)
    if claims is None:
        claims = _claims[trainer] = _Claims()
    if claims not in trainer.callbacks:  # type: ignore[attr-defined]
        trainer.callbacks.append(claims)  # type: ignore[attr-defined]
    while True:
        try:
            claims.lock(folder)
            return folder
        except LockedError as error:
            logger = trainer.loggers[0] if trainer.loggers and dirpath is None else None
            if not isinstance(logger, CSVLogger | TensorBoardLogger) or not isinstance(logger.version, int):
                raise MisconfigurationException(
                    f"found another run that writes into {folder}: {error}. Wait until it ends, or give this "
                    "run another folder by dirpath, the logger's version or the Trainer's default_root_dir"
                ) from None
            _next_version(logger)
            before, folder = folder, _where(trainer, None)
            rank_zero_warn(f"Another run writes into {before} ({error}), so this run writes into {folder}")
        except OSError as error:
            raise MisconfigurationException(
                f"found a folder that can't be written into, {folder}: {error.strerror or error}; expected "
                "one for this run's files: change dirpath, the logger's save_dir or the Trainer's "
                "default_root_dir"
            ) from None


def _where(trainer: Trainer, dirpath: str | Path | None) -> Path:
    folder = dirpath
    if folder is None:
        folder = _logger_folder(trainer, trainer.loggers[0]) if trainer.loggers else trainer.default_root_dir
    if _is_remote(folder):
        raise MisconfigurationException(
            f"found the folder {folder} for this run's files; expected one on a local or shared disk, where "
            "files can be renamed and linked: set dirpath or the Trainer's default_root_dir"
        )
    return Path(folder).expanduser().absolute()


def _logger_folder(trainer: Trainer, logger: Logger) -> str:
    if isinstance(logger, CSVLogger | TensorBoardLogger) and not _is_remote(logger.log_dir):
        return logger.log_dir  # also with the `sub_dir` of TensorBoardLogger
    save_dir = logger.save_dir
    if save_dir is None or _is_remote(save_dir):
        save_dir = trainer.default_root_dir
    name, version = logger.name, logger.version
    parts = [
        "" if name is None else str(name),
        "" if version is None else version if isinstance(version, str) else f"version_{version}",
    ]
    return os.path.join(save_dir, *(part for part in parts if part))


def _is_remote(folder: str | Path) -> bool:
    return "://" in str(folder)


def _next_version(logger: CSVLogger | TensorBoardLogger) -> None:
    """Give a logger that has logged nothing yet the next free version number."""
    logger._version = logger._get_next_version()
    logger._experiment = None
    _ = logger.experiment


class _Claims(Callback):
    """Holds the locks of a Trainer's fit and ends them with it."""

    def __init__(self) -> None:
        self._locks: dict[Path, FolderLock] = {}

    def lock(self, folder: Path) -> None:
        if folder not in self._locks:
            self._locks[folder] = FolderLock(folder)

    def _release(self) -> None:
        while self._locks:
            self._locks.popitem()[1].release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()
