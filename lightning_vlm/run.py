"""What `lightning-vlm fit` and its siblings do: LightningCLI with our classes and a report."""

import json
from collections.abc import Sequence
from typing import Any

import lightning_vlm_callbacks  # noqa: F401  # so that configs can name its classes without their modules
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn  # noqa: F401  # likewise
from lightning_vlm.data.easy_vqa import EasyVQA  # noqa: F401  # likewise
from lightning_vlm.module import VLMModule
from lightning_vlm.report import Report


class SaveConfig(SaveConfigCallback):
    """Saves the config beside the logs, and sends it to Weights & Biases where that is the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, on rank zero."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                config = self.parser.dump(self.config, format="json", skip_none=False)
                logger.experiment.config.update({"cli": json.loads(config)}, allow_val_change=True)


class VLMCLI(LightningCLI):
    """LightningCLI, but the command line wins over what a checkpoint says, and `fit` can report.

    With `--report true`, `fit` scores the test data before and after training, and ends with a table and a
    picture of predictions.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own keys."""
        parser.add_argument(
            "--report",
            type=bool,
            default=False,
            help="Score the test data before and after training; end with a table and a picture.",
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Rich progress, unless progress is turned off."""
        trainer = super().instantiate_trainer(**kwargs)
        callbacks, bar = trainer.callbacks, trainer.progress_bar_callback  # type: ignore[attr-defined]
        if bar is not None and not isinstance(bar, RichProgressBar):
            callbacks[callbacks.index(bar)] = RichProgressBar()
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyperparameters beat the command line without a word. Here the
        config and the command line decide, and weights that don't fit them are an error when they load."""

    def before_fit(self) -> None:
        """The scores before."""
        if self.config.fit.report:
            self.report = Report(self.trainer, self.model, self.datamodule)
            self.report.before()

    def after_fit(self) -> None:
        """The scores after, the table and the picture."""
        if self.config.fit.report:
            self.report.after()


def run(arguments: Sequence[str] | None) -> VLMCLI:
    """Run one command, such as `["fit", "--config", "configs/quickstart.yaml"]`.

    Args:
        arguments: The words of the command; None takes those of the process.

    Raises:
        UserError: Something that the user can mend.
        SystemExit: Keys or values that the parser refuses; it has said so.
    """
    return VLMCLI(
        VLMModule,
        VLMDataModule,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True, "save_to_log_dir": True},
        # Our batches are rank-aware by themselves; Lightning's sampler would shuffle and repeat them.
        trainer_defaults={
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,  # the plan says more
        },
        seed_everything_default=0,
        auto_configure_optimizers=False,
        args=None if arguments is None else list(arguments),
    )
