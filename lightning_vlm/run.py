"""What `lightning-vlm fit` and its siblings do: LightningCLI with our classes and a report."""

import re
import sys
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks import (  # noqa: F401  # so that configs can name them without their modules
    AdaptiveLoRARank,
    EarlyStopCheckpoint,
    GradientMonitor,
    GradNorm,
    NonFiniteGuard,
    RunReport,
    StagedUnfreezing,
    ThroughputMonitor,
)
from lightning_vlm_callbacks.runs import run_folder

from lightning_vlm.callbacks.answer_stream import prepare_streams
from lightning_vlm.callbacks.answer_writer import AnswerWriter  # noqa: F401  # likewise
from lightning_vlm.callbacks.prediction_table import PredictionTable  # noqa: F401  # likewise
from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling  # noqa: F401  # likewise
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.callbacks.visual_gain_weights import VisualGainWeights  # noqa: F401  # likewise
from lightning_vlm.config.class_names import bare_name
from lightning_vlm.config.moved import with_meant_classes
from lightning_vlm.config.stage_words import with_stages
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn, DrawnVideos  # noqa: F401  # likewise
from lightning_vlm.data.read.easy_vqa import EasyVQA  # noqa: F401  # likewise
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.failures.describe import explain
from lightning_vlm.failures.interrupt import interruption
from lightning_vlm.lint.command import collect_faults
from lightning_vlm.models.loading.checkpoint import check_file
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.progress_bar import ProgressBar
from lightning_vlm.outputs.saved_config import SaveConfig
from lightning_vlm.outputs.score_report import ScoreReport
from lightning_vlm.outputs.summary import FitSummary
from lightning_vlm.outputs.tracked_run import resume_run
from lightning_vlm.outputs.tracker_faults import go_on_without
from lightning_vlm.outputs.trackio_logger import TrackioLogger  # noqa: F401  # likewise
from lightning_vlm.parser import Parser, check_words, value_of
from lightning_vlm.terminal import short_path
from lightning_vlm.trainer import VLMTrainer
from lightning_vlm.training.checkpoint_settings import settings_of
from lightning_vlm.training.early_checks import check_selectors
from lightning_vlm.training.named_checkpoints import find_named
from lightning_vlm.training.refusals import refuse_lone_machine
from lightning_vlm.training.stages.keys import add_stages, use_stages
from lightning_vlm.training.start_checks.check import check_fit
from lightning_vlm.training.start_checks.places import check_servers

_NO_FILE = re.compile(r"(last|best|hpc|registry)$|registry:|\w+://")
"""Values of `ckpt_path` that Lightning accepts and that aren't local files."""


class VLMCLI(LightningCLI):
    """LightningCLI, but the command line wins over what a checkpoint says, and `fit` can report.

    With `--report true`, `fit` scores the test data, or else the validation data, before and after training,
    and ends with a table and a picture of predictions.

    Only the command that is asked for gets its keys: those of all take a second.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        words = sys.argv[1:] if kwargs.get("args") is None else kwargs["args"]
        self._asked = words[0] if words else None
        try:
            super().__init__(*args, **kwargs)
        except DataError:
            raise
        except Exception as error:
            message = explain(error)
            place = self._place_of(message) if message else ""
            if not place:
                raise
            raise UserError(f"{place}{message}") from error

    def _place_of(self, message: str) -> str:
        """`file:line: ` of the key of a config that a message begins with; or nothing."""
        parsers = getattr(self, "_subcommand_parsers", {})
        parser = parsers.get(str(self._asked))
        return parser.place_of(message) if isinstance(parser, Parser) else ""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, and which arguments of their methods aren't keys."""
        ours = {
            **{name: {"model", "datamodule"} for name in ("lint", "preview", "plan")},
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
            help="Score the test data (or, without any, the validation data) before and after training; end "
            "with a table and a picture.",
        )
        add_stages(parser)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        """As Lightning's, but commands that aren't asked for have no keys."""
        if subcommand != self._asked:
            return Parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def instantiate_classes(self) -> None:
        """As Lightning's; then the data module learns of its stages."""
        super().instantiate_classes()
        command = str(self.subcommand)
        use_stages(self.config_init[command], self.model, self.datamodule, command)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's, after a check of the classes that the command line names."""
        words = with_stages(with_meant_classes(sys.argv[1:] if args is None else args))
        if args is None:
            sys.argv[1:] = words
        else:
            args = words
        command = self._subcommand_parsers.get(words[0]) if words else None
        if isinstance(command, Parser):
            check_words(words[1:], command)
            if words[0] == "predict" and not {"config", "c"} & set(command.given):
                _fill_in(command, words[1:])
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        """Check the checkpoint file before building anything; let a preview run on any machine."""
        self.save_config_kwargs["command"] = self.subcommand
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        if checkpoint and not _NO_FILE.match(checkpoint):
            check_file(Path(checkpoint), to_resume=self.subcommand == "fit")
        config = self.config[self.subcommand]
        if "weights_only" in config and config.weights_only is None:
            config.weights_only = True  # Lightning would run the pickled code of a checkpoint from an address
        if config.stages and config.trainer.max_epochs is None:
            config.trainer.max_epochs = -1  # the stages say how long the run is
        if self.subcommand == "plan":
            self._whole = deepcopy(self.config.plan)
        if self.subcommand in ("lint", "preview", "plan"):
            self._simplify_trainer(self.subcommand)
        if self.subcommand in ("validate", "test", "predict") and not checkpoint and config.model.adapt != {}:
            name = config.model.name_or_path
            rank_zero_info(f"no --ckpt_path: this is {name} as it is, without what a fit has trained")
        if self.subcommand == "lint":
            collect_faults(self.config.lint.data)
        if self.subcommand == "predict":
            prepare_streams(self.config.predict)

    def _simplify_trainer(self, command: str) -> None:
        """Drop the accelerator, the logger and all callbacks but the schedule of token weights."""
        config = self.config[command]
        callbacks = config.trainer.callbacks or []
        if not isinstance(callbacks, list):
            callbacks = [callbacks]
        name = TokenWeightSchedule.__name__
        config.trainer = self._subcommand_parsers[command].get_defaults().trainer
        config.trainer.callbacks = [given for given in callbacks if bare_name(given.class_path) == name]
        config.trainer.accelerator = "cpu"
        config.trainer.logger = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Show a rich progress bar, unless progress is off; report a fit; continue a resumed run."""
        given = self.config_init[self.subcommand].trainer
        if given.logger is None and not given.barebones:
            # Lightning's own default is another one as soon as TensorBoard is installed.
            kwargs.setdefault("logger", CSVLogger(given.default_root_dir or Path.cwd()))
        trainer = super().instantiate_trainer(**kwargs)
        refuse_lone_machine(trainer)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        bar = trainer.progress_bar_callback
        if bar is not None and not (isinstance(bar, RichProgressBar) and self._configures(bar)):
            callbacks[callbacks.index(bar)] = ProgressBar()
        if isinstance(trainer, VLMTrainer) and self.subcommand == "plan":
            trainer.asked = self._whole.trainer
            trainer.config_text = self._whole_text
        checkpoint = self.config[self.subcommand].get("ckpt_path")
        find_named(trainer, checkpoint)
        if self.subcommand == "fit":
            go_on_without(trainer.loggers)
            if not any(isinstance(callback, RunReport) for callback in callbacks):
                callbacks.append(RunReport())
            if not any(isinstance(callback, ThroughputMonitor) for callback in callbacks):
                callbacks.append(ThroughputMonitor())
            for callback in callbacks:
                if isinstance(callback, ThroughputMonitor):
                    callback.print_summary = False  # the summary at the end has it
                elif isinstance(callback, RunReport):
                    callback.announce = False  # likewise
            if checkpoint:
                resume_run(trainer, checkpoint)
        elif self.subcommand in LightningCLI.subcommands():
            list(check_servers(trainer))  # before a fit it is one of several checks
        return trainer

    def _whole_text(self) -> str:
        """The config as it was read, as YAML; of it only what isn't default."""
        parser = self._subcommand_parsers[str(self.subcommand)]
        return parser.dump(self._whole, skip_none=True, skip_default=True, skip_validation=True)

    def _configures(self, callback: Callback) -> bool:
        """Whether the config names a callback of this class, rather than Lightning taking it by itself."""
        given = self.config[self.subcommand].trainer.callbacks or []
        each = given if isinstance(given, list) else [given]
        return any(bare_name(one.class_path) == type(callback).__name__ for one in each)

    def _parse_ckpt_path(self) -> None:
        """Lightning lets the checkpoint's hyperparameters silently override the command line. Here the
        config and the command line decide, and weights that don't fit them are an error when they load."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Lightning ends the process after Ctrl-C or SIGTERM; here a message says what was saved."""
        try:
            with warnings.catch_warnings():
                if subcommand != "fit":  # without a last checkpoint, only the base model could be scored
                    warnings.filterwarnings("error", message=".*there is no last checkpoint available")
                super()._run_subcommand(subcommand)
        except SystemExit as error:
            if summary := getattr(self, "summary", None):
                summary.show_so_far(self.trainer)
            raise interruption(error, self.trainer) or error from None

    def before_fit(self) -> None:
        """Check the fit; score the test data before training."""
        if type(self.model).configure_model is VLMModule.configure_model:
            check_fit(self.model, self.trainer, self.datamodule)
        self.summary = FitSummary(self.model, self.datamodule)
        self.trainer.callbacks.append(self.summary)  # type: ignore[attr-defined]
        if self.config.fit.report:
            # The test before the fit already starts the logger's run.
            check_selectors(self.model, self.trainer, fits=True)
            self.report = ScoreReport(self.trainer, self.model, self.datamodule)
            self.report.before()

    def after_fit(self) -> None:
        """Score it after training; show the table, the picture, and where the run's files are."""
        if self.config.fit.report:
            self.report.after()
        self.summary.show(self.trainer, run_folder(self.trainer))


def _fill_in(parser: Parser, words: Sequence[str]) -> None:
    """Without a config, take the settings of a checkpoint; without that either, the model as it is."""
    checkpoint = value_of("ckpt_path", words)
    if checkpoint is None or _NO_FILE.match(checkpoint):
        parser.set_defaults({"model.adapt": {}})
        return
    settings, config = settings_of(Path(checkpoint))
    parser.set_defaults(settings)
    also = f" and {short_path(config)}" if config else ""
    rank_zero_info(f"{settings['model.name_or_path']}, with the settings of {short_path(checkpoint)}{also}")


def run(arguments: Sequence[str] | None, module: type[VLMModule] | None = None) -> VLMCLI:
    """Run one command, such as `["fit", "--config", "configs/quickstart.yaml"]`.

    Args:
        arguments: The words of the command; None takes those of the process.
        module: A subclass of `VLMModule` in its place.

    Raises:
        UserError: The parser refuses a key or a value, or the command can't run.
    """
    return VLMCLI(
        module or VLMModule,
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
