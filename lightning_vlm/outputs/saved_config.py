"""The config of a run, saved beside its other files so that the run can be repeated."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning_vlm_callbacks.runs import run_folder
from lightning_vlm_callbacks.whole_files import written_whole

from lightning_vlm.outputs.tracked_config import send_config, takes_config

if TYPE_CHECKING:
    from lightning_vlm.training.memory import MemoryPlan


class SaveConfig(SaveConfigCallback):
    """Saves the config in the run's folder, and sends it to the loggers that keep one."""

    def __init__(self, parser: LightningArgumentParser, config: Any, command: str, **options: Any) -> None:
        super().__init__(parser, config, **options)
        self.command = command
        """The command that runs. A fit with a report begins with the stage `test`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, together with the other ranks."""
        self.folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save it again with what a fit has measured, if it has, so that it is repeated too."""
        memory: MemoryPlan = pl_module.callbacks.memory  # type: ignore[union-attr, assignment]
        for key, value in memory.settled.items():
            self.config[key] = value
        if memory.settled and trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, on rank zero."""
        file = config_file(self.folder, bool(trainer.loggers), self.command)
        if file is not None:
            with written_whole(file) as unfinished:
                self.parser.save(
                    self.config, unfinished, skip_none=False, overwrite=True, multifile=self.multifile
                )
        if takes_config(trainer):
            whole = json.loads(self.parser.dump(self.config, format="json", skip_none=False))
            send_config(trainer, whole, self.parser.dump(self.config, skip_none=True, skip_default=True))


def config_file(folder: Path, has_logger: bool, command: str) -> Path | None:
    """Where the config of a run is saved, so that no file of the user or of another run is overwritten.

    Args:
        folder: The run's folder.
        has_logger: Whether the run has a logger. Without one, runs share the folder, often the working
            directory, so the config is saved beside the checkpoints.
        command: The command that runs. A config of `fit` stays if another command uses its folder.

    Returns:
        The file; None if the config isn't worth a file.

    >>> config_file(Path("runs/version_0"), True, "fit").as_posix()
    'runs/version_0/config.yaml'
    >>> config_file(Path(), False, "validate") is None
    True
    """
    if not has_logger:
        return folder / "checkpoints" / "config.yaml" if command == "fit" else None
    file = folder / "config.yaml"
    if command != "fit" and file.exists():
        return folder / f"config-{command}.yaml"
    return file
