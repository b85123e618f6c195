"""What `lightning-vlm fit` and its siblings do: LightningCLI with our classes and a report."""

import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning_vlm_callbacks import (  # noqa: F401  # so that configs can name them without their modules
    AdaptiveLoRARank,
    EarlyStopCheckpoint,
    GradientMonitor,
    GradNorm,
    NonFiniteGuard,
    StagedUnfreezing,
)
from lightning_vlm_callbacks.runs import run_folder

from lightning_vlm.callbacks.answer_writer import AnswerWriter  # noqa: F401  # likewise
from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling  # noqa: F401  # likewise
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn  # noqa: F401  # likewise
from lightning_vlm.data.read.easy_vqa import EasyVQA  # noqa: F401  # likewise
from lightning_vlm.errors import UserError
from lightning_vlm.failures.interrupt import interruption
from lightning_vlm.models.loading.checkpoint import check_file
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.run_files import config_file
from lightning_vlm.outputs.score_report import Report
from lightning_vlm.outputs.summary import FitSummary
from lightning_vlm.outputs.wandb_run import resume_run
from lightning_vlm.parser import Parser, check_words
from lightning_vlm.trainer import VLMTrainer
from lightning_vlm.training.early_checks import check_selectors


class SaveConfig(SaveConfigCallback):
    """Saves the config in the run's folder, and sends it to Weights & Biases where that is the logger."""

    def __init__(self, parser: LightningArgumentParser, config: Any, command: str, **options: Any) -> None:
        super().__init__(parser, config, **options)
        self.command = command
        """What runs. A fit with a report begins with the stage `test`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder, together with the other ranks."""
        self.folder = run_folder(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, on rank zero."""
        file = config_file(self.folder, bool(trainer.loggers), self.command)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, file, skip_none=False, overwrite=True, multifile=self.multifile)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                config = self.parser.dump(self.config, format="json", skip_none=False)
                logger.experiment.config.update({"cli": json.loads(config)}, allow_val_change=True)


_NO_FILE = re.compile(r"(last|best|hpc|registry)$|registry:|\w+://")
"""Values of `ckpt_path` that Lightning accepts and that aren't local files."""


class VLMCLI(LightningCLI):
    """LightningCLI, but the command line wins over what a checkpoint says, and `fit` can report.

    With `--report true`, `fit` scores the test data before and after training, and ends with a table and a
    picture of predictions.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and which arguments of their methods aren't keys."""
        ours = {
            "preview": {"model", "datamodule"},
            # The command has no use for answers in memory.
            "predict": {"model", "dataloaders", "datamodule", "return_predictions"},
        }
        return {**LightningCLI.subcommands(), **ours}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own keys."""
        parser.add_argument(
            "--report",
            type=bool,
            default=False,
            help="Score the test data before and after training; end with a table and a picture.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's, after a look at the names of classes in the words."""
        words = sys.argv[1:] if args is None else args
        if words and words[0] in self._subcommand_parsers:
            command: Any = self._subcommand_parsers[words[0]]
            check_words(words[1:], command)
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Check the checkpoint file before anything is built. For `preview`, drop the accelerator, logger and
        callbacks except the schedule of weights, so that it runs on a laptop."""
        self.save_config_kwargs["command"] = self.subcommand
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint and not _NO_FILE.match(checkpoint):
            check_file(Path(checkpoint), to_resume=self.subcommand == "fit")
        if self.subcommand == "preview":
            defaults = self._subcommand_parsers["preview"].get_defaults().trainer
            callbacks = self.config.preview.trainer.callbacks or []
            callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
            name = TokenWeightSchedule.__name__
            defaults.callbacks = [
                callback for callback in callbacks if callback.class_path.rpartition(".")[2] == name
            ]
            self.config.preview.trainer = defaults
            self.config.preview.trainer.accelerator = "cpu"
            self.config.preview.trainer.logger = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the rich progress bar, unless progress is off; a resumed run continues its run of W&B."""
        trainer = super().instantiate_trainer(**kwargs)
        callbacks, bar = trainer.callbacks, trainer.progress_bar_callback  # type: ignore[attr-defined]
        if bar is not None and not isinstance(bar, RichProgressBar):
            callbacks[callbacks.index(bar)] = RichProgressBar()
        if self.config[self.subcommand].get("ckpt_path") == "best":
            _find_best(trainer)
        if self.subcommand == "fit" and self.config.fit.get("ckpt_path"):
            resume_run(trainer, self.config.fit.ckpt_path)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyperparameters silently override the command line. Here the
        config and the command line decide, and weights that don't fit them are an error when they load."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Lightning ends the process after Ctrl-C or SIGTERM; here the end says what was saved."""
        try:
            with warnings.catch_warnings():
                if subcommand != "fit":  # without a last checkpoint, only the base model could be scored
                    warnings.filterwarnings("error", message=".*there is no last checkpoint available")
                super()._run_subcommand(subcommand)
        except SystemExit as error:
            raise interruption(error, self.trainer) or error from None

    def before_fit(self) -> None:
        """The scores before."""
        self.summary = FitSummary(self.model, self.datamodule)
        self.trainer.callbacks.append(self.summary)  # type: ignore[attr-defined]
        if self.config.fit.report:
            # The test before the fit already starts the logger's run.
            check_selectors(self.model, self.trainer, fits=True)
            self.report = Report(self.trainer, self.model, self.datamodule)
            self.report.before()

    def after_fit(self) -> None:
        """The scores after, the table and the picture; and where everything is."""
        if self.config.fit.report:
            self.report.after()
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        saved = next(one for one in callbacks if isinstance(one, SaveConfig))
        self.summary.show(self.trainer, saved.folder)


def _find_best(trainer: Trainer) -> None:
    """Find the best checkpoint of earlier processes.

    Raises:
        UserError: There is none.
    """
    keepers = [one for one in trainer.checkpoint_callbacks if isinstance(one, EarlyStopCheckpoint)]
    if not any(keeper.find_best(trainer) for keeper in keepers):
        what = "best checkpoint of an earlier run" if keepers else "EarlyStopCheckpoint in the config"
        raise UserError(f"--ckpt_path best: found no {what}; give the path of a checkpoint")


def run(arguments: Sequence[str] | None) -> VLMCLI:
    """Run one command, such as `["fit", "--config", "configs/quickstart.yaml"]`.

    Args:
        arguments: The words of the command; None takes those of the process.

    Raises:
        UserError: A user error, such as keys or values that the parser refuses.
    """
    return VLMCLI(
        VLMModule,
        VLMDataModule,
        trainer_class=VLMTrainer,
        parser_class=Parser,
        save_config_callback=SaveConfig,
        save_config_kwargs={"save_to_log_dir": False},
        # Our batches are rank-aware; Lightning's sampler would shuffle and repeat them.
        trainer_defaults={
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,  # the table of the plan says more
        },
        seed_everything_default=0,
        auto_configure_optimizers=False,
        args=None if arguments is None else list(arguments),
    )
