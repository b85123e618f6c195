"""The summary after `fit`: scores, where the files are, and what to type next."""

import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks.runs import run_folder
from typing_extensions import override

from lightning_vlm.counted import counted
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.metrics.score_table import score_table
from lightning_vlm.outputs.run_files import checkpoints_of, logs_of
from lightning_vlm.outputs.saved_config import config_file
from lightning_vlm.outputs.throughput import advice_on_speed, throughput_of
from lightning_vlm.terminal import print_line, print_lines, print_text, say, short_path

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class FitSummary(Callback):
    """Watches a fit, and prints a summary of it afterwards.

    Args:
        module: The module that is trained.
        data: Its data.
    """

    def __init__(self, module: "VLMModule", data: VLMDataModule) -> None:
        self.module, self.data = module, data
        self._made = self._start = time.time()
        self._seconds = 0.0
        self._folder: Path | None = None
        self._first_step = 0
        self._scores: dict[str, float] = {}
        self._pages: list[Path] = []
        self._saved_at: int | None = None
        self._validated_at: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.time()
        self._first_step = trainer.global_step

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = run_folder(trainer)  # now, as ranks may be gone after an interruption

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated_at = trainer.global_step

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved_at = trainer.global_step

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds = time.time() - self._start
        # These are kept, because a test after the fit clears them.
        self._scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._pages = _pages_of(trainer)  # likewise

    def show(self, trainer: Trainer, folder: Path) -> None:
        """Print the summary, on rank zero.

        Args:
            trainer: After its fit.
            folder: The run's folder.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        title = f"Last validation{self._if_before_the_end(trainer, self._validated_at)}"
        table = score_table(title, self._scores, "val")
        if table is not None:
            say(table)
        if self._seconds:
            self._show_speed(trainer)
        else:
            print_line("training", f"none; the run was over at step {trainer.global_step:,}")
        checkpoints = checkpoints_of(trainer)
        lines = [self._checkpoint_line(path, note) for path, note in checkpoints.items()]
        print_lines("checkpoint", lines or ["none was written"])
        not_last = self._if_before_the_end(trainer, self._saved_at)
        if checkpoints and not_last:
            print_line("", f"(the last one was saved{not_last}; validate at the end of a run, or save there)")
        print_lines("log", logs_of(trainer, folder))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.loggers and 0 < trainer.global_step < every:
            few = "1 step is less" if trainer.global_step == 1 else f"{trainer.global_step} steps are fewer"
            print_line("", f"(it has no training loss: {few} than trainer.log_every_n_steps {every})")
        config = config_file(folder, bool(trainer.loggers), "fit")
        if config is not None and not config.exists():
            config = None
        if config is not None:
            print_line("config", short_path(config))
        pages = dict.fromkeys([*self._pages, *_pages_of(trainer)])
        print_lines("report", map(short_path, pages))
        if config is not None and checkpoints:
            print_line("", "")
            for command in self._next_commands(config, self._checkpoint_to_use(checkpoints)):
                print_text(command)

    def _if_before_the_end(self, trainer: Trainer, step: int | None) -> str:
        """When something was last done, if training went on behind that."""
        if step is None or not self._first_step < trainer.global_step > step:
            return ""
        return f" after step {step:,} of {trainer.global_step:,}"

    def show_so_far(self, trainer: Trainer) -> None:
        """Print what there is of a fit that was interrupted, on rank zero; its error names the checkpoint."""
        if self._folder is None or not self._seconds or not trainer.is_global_zero:
            return
        self._show_speed(trainer)
        print_lines("log", logs_of(trainer, self._folder))
        print_lines("report", map(short_path, _pages_of(trainer)))

    def _show_speed(self, trainer: Trainer) -> None:
        made = trainer.global_step - self._first_step
        steps = f"{self._seconds:,.0f} s, {counted(made, 'step')}"
        measured = throughput_of(trainer)
        if measured is None or "step_seconds" not in measured.figures:
            speed = self.module.steps.tokens_seen / self._seconds
            each = " on each process" if trainer.world_size > 1 else ""
            print_line("training", f"{steps}, {speed:,.0f} tokens per second{each}")
            return
        print_line("training", steps)
        print_lines("speed", measured.lines)
        print_lines("faster", advice_on_speed(measured, self.data, self.module.model, trainer.num_devices))

    def _checkpoint_line(self, path: Path, note: str) -> str:
        earlier = " (of an earlier run)" if self._is_earlier(path) else ""
        return f"{short_path(path)}{note}{earlier}"

    def _checkpoint_to_use(self, checkpoints: Mapping[Path, str]) -> Path:
        """The best one, or else one of this run, or else one of an earlier run."""
        return min(checkpoints, key=lambda path: ("best" not in checkpoints[path], self._is_earlier(path)))

    def _is_earlier(self, path: Path) -> bool:
        """Whether an earlier run saved it: callbacks of a resumed fit still name its checkpoints."""
        # Some file systems store times in whole seconds only.
        return path.stat().st_mtime < self._made - 1

    def _next_commands(self, config: Path, checkpoint: Path) -> Iterator[str]:
        """What the user may type next, on lines that fit a narrow terminal if paths allow."""
        saved = f"--ckpt_path {shlex.quote(short_path(checkpoint))}"
        both = f"--config {shlex.quote(short_path(config))} \\\n    {saved}"
        for command, split in (("validate", "val"), ("test", "test")):
            if self.data.given[split] is not None:
                yield f"lightning-vlm {command} {both}"
        questions = " \\\n    --data.predict QUESTIONS.jsonl" if self.data.given["predict"] is None else ""
        yield f"lightning-vlm predict {both}{questions}"
        sets = [split for split in ("val", "test") if self.data.given[split] is not None]
        if sets:
            on = "" if sets[0] == "val" else " --data test"
            yield f"lightning-vlm compare {shlex.quote(short_path(checkpoint))}{on}"
        yield f"lightning-vlm export {saved} \\\n    --out DIR"


def _pages_of(trainer: Trainer) -> list[Path]:
    """The pages that callbacks, such as RunReport and PredictionTable, have written of a fit."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    pages = [getattr(callback, "page", None) for callback in callbacks]
    return [page for page in pages if isinstance(page, Path)]
