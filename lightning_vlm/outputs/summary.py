"""The summary after `fit`: scores, where the files are, and what to type next."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.metrics.score_table import score_table
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.run_files import checkpoints_of, config_file, logs_of, pictures_of
from lightning_vlm.outputs.terminal import print_line, print_text, say, short_path


class FitSummary(Callback):
    """Watches a fit, and says afterwards what came of it.

    Args:
        module: Is trained.
        data: Is trained on.
    """

    def __init__(self, module: VLMModule, data: VLMDataModule) -> None:
        self.module, self.data = module, data
        self._made = self._start = time.time()
        self._seconds = 0.0
        self._scores: dict[str, float] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.time()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds = time.time() - self._start
        # These are kept, because a following test clears them.
        self._scores = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def show(self, trainer: Trainer, folder: Path) -> None:
        """Print it, on rank zero.

        Args:
            trainer: After its fit.
            folder: Of the run.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        table = score_table("Last validation", self._scores, "val")
        if table is not None:
            say(table)
        if self._seconds:
            speed = self.module.tokens_seen / self._seconds
            steps = f"{self._seconds:,.0f} s, {trainer.global_step:,} steps"
            each = " on each process" if trainer.world_size > 1 else ""
            print_line("training", f"{steps}, {speed:,.0f} tokens per second{each}")
        else:  # The fit never started.
            print_line("training", f"none; the run was over at step {trainer.global_step:,}")
        checkpoints = checkpoints_of(trainer)
        if not checkpoints:
            print_line("checkpoint", "none was written")
        _print_lines("checkpoint", [f"{short_path(path)}{note}" for path, note in checkpoints.items()])
        _print_lines("log", list(logs_of(trainer, folder)))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.loggers and 0 < trainer.global_step < every:
            steps = f"{trainer.global_step} steps are fewer than trainer.log_every_n_steps {every}"
            print_line("", f"(it has no training loss: {steps})")
        config = config_file(folder, bool(trainer.loggers), "fit")
        if config is not None and config.exists():
            print_line("config", short_path(config))
        _print_lines("picture", [short_path(path) for path in pictures_of(trainer, folder, self._made)])
        if checkpoints and config is not None and config.exists():
            print_line("", "")
            for command in self._commands(config, next(iter(checkpoints))):
                print_text(command)

    def _commands(self, config: Path, checkpoint: Path) -> Iterator[str]:
        """What one may type next, on lines that fit a narrow terminal where paths allow."""
        saved = f"--ckpt_path {shlex.quote(short_path(checkpoint))}"
        both = f"--config {shlex.quote(short_path(config))} \\\n    {saved}"
        for command, split in (("validate", "val"), ("test", "test")):
            if self.data.given[split] is not None:
                yield f"lightning-vlm {command} {both}"
        questions = (
            "" if self.data.given["predict"] is not None else " \\\n    --data.predict QUESTIONS.jsonl"
        )
        yield f"lightning-vlm predict {both}{questions}"
        yield f"lightning-vlm export {saved} \\\n    --out DIR"


def _print_lines(name: str, texts: list[str]) -> None:
    """The name stands before the first line only."""
    for place, text in enumerate(texts):
        print_line("" if place else name, text)
