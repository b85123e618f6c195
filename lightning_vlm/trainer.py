"""The Trainer of the command line. Each of its methods that is a command prints its result for people."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from rich.console import Console

from lightning_vlm.callbacks.answer_writer import SHOWN, AnswerWriter
from lightning_vlm.callbacks.kept_answers import sampled
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.data.asked import ask
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.inspect import page, terminal
from lightning_vlm.inspect.gain import load
from lightning_vlm.inspect.scan import scan_data
from lightning_vlm.lint import command as lint_command
from lightning_vlm.lint.files import How
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.writable import require_writable


class VLMTrainer(Trainer):
    """Lightning's Trainer with more commands; `predict` writes its answers to a file."""

    asked: Any = None
    """The trainer section of the config of a plan, which has a Trainer of its own."""
    config_text: Callable[[], str] | None = None
    """Gives the config of a plan as YAML."""

    def predict(
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = False,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
        out: str | None = None,
        show: int = SHOWN,
        prompt: str | None = None,
        resume: bool = True,
        num: int | None = None,
        keep: str | None = None,
    ) -> list[Any] | None:
        """Answer the prompts of the prediction data, and write the answers to a file as they come.

        Args:
            model: The module.
            dataloaders: Batches of prompts, if there is no data module.
            datamodule: The data module, with prediction data.
            return_predictions: Whether to hold all answers in memory and return them.
            ckpt_path: The checkpoint that answers; None for the model as it is.
            weights_only: Whether the checkpoint may hold nothing but tensors and plain values.
            out: The file of answers; null is answers.jsonl in the run's folder. `-` is standard output, where
                they go by themselves if `data.predict` is `-`, standard input.
            show: How many answers to print at the end.
            resume: Go on where the same command was stopped; false begins again.
            num: Draw so many answers to each prompt, at a temperature of 1 unless `model.generation` sets
                another; all are `candidates` of the best.
            keep: Which answers become training data in kept.jsonl, such as 'score >= 0.9': a score of
                `model.scores`, or `score` for the first that applies; several joined by `and`.
            prompt: The question about each picture, where `data.predict` is a picture or a folder of them.

        Raises:
            UserError: As in `AnswerWriter`.
        """
        if isinstance(datamodule, VLMDataModule):
            ask(datamodule, prompt, self.world_size)
        if num is not None and isinstance(model, VLMModule):
            model.generation = sampled(model.generation, num)
        callbacks = self.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, AnswerWriter) for callback in callbacks):
            callbacks.append(AnswerWriter(out, show, resume, keep, page=True))
        elif out is not None or keep is not None:
            raise UserError("out: found an AnswerWriter in trainer.callbacks too; give it its file there")
        return super().predict(model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only)

    def lint(
        self,
        model: VLMModule,
        datamodule: VLMDataModule,
        workers: int | None = None,
        strict: bool = False,
        json: str | None = None,
        out: str = "lint.html",
        fix: How | None = None,
        skip_list: str = "skip.jsonl",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Find all that is wrong with the data of training, validation and test, without the model.

        Args:
            model: The module, for its processor and its weights.
            datamodule: The data module.
            workers: Processes that read at once; null is one for each CPU.
            strict: Whether warnings fail too, not only errors.
            json: The file of all findings, one JSON document; null writes none.
            out: The file of the page.
            fix: Leave out the rows with faults: `clean` copies files of JSON lines without them, beside them,
                and lists the rows of other files; `skip` lists all of them.
            skip_list: The file of that list, which `data.skip` takes.
            ckpt_path: Ignored, but accepted, so that a saved fit config can be checked.
            weights_only: Ignored, likewise.

        Raises:
            UserError: There are errors, or with `strict` warnings.
        """
        lint_command.run(
            model,
            datamodule,
            workers=workers,
            strict=strict,
            json=json,
            out=out,
            fix_how=fix,
            skip_list=skip_list,
        )

    def preview(
        self,
        model: VLMModule,
        datamodule: VLMDataModule,
        samples: int = 8,
        scan: int = 1000,
        out: str = "preview.html",
        progress: float = 0.0,
        gain: bool = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Show what would be learned from the training data, without training, and without the model but for
        `gain`.

        Args:
            model: The module, for its processor and the weight of each kind of token.
            datamodule: The data module, with training data.
            samples: How many samples to show.
            scan: How many samples to read for the figures, spread over all data.
            out: The file of the page.
            progress: The progress of training, 0 to 1, whose weights to show if the run has a
                `TokenWeightSchedule`.
            gain: Show which words need the picture: by how much it lowers the loss of each token, against a
                blank one of its size. The model is loaded for it, on the CPU, and sees each sample that is
                shown twice.
            ckpt_path: The checkpoint whose weights `gain` asks. Ignored otherwise, but accepted, so that a
                saved fit config can be previewed.
            weights_only: Ignored, likewise.

        Raises:
            UserError: As in fit.
        """
        callbacks = self.callbacks  # type: ignore[attr-defined]
        schedules = [callback for callback in callbacks if isinstance(callback, TokenWeightSchedule)]
        schedule = schedules[0] if schedules else None
        require_writable("out", out)
        if gain:
            load(model, ckpt_path)
        preview = scan_data(model, datamodule, samples, scan, schedule, progress, gain)
        console = Console()
        terminal.show(preview, console)
        file = page.save(preview, out)
        console.print(f"\npage  {file}", highlight=False, markup=False, soft_wrap=True)

    def plan(
        self,
        model: VLMModule,
        datamodule: VLMDataModule,
        memory: str | None = None,
        batch: int | None = None,
        aim: Literal["own", "quality", "merge", "swap"] = "own",
        scan: int = 300,
        compare: bool = True,
        measure: bool = False,
        out: str | None = None,
        json: bool = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Say what a run needs and what fits, from its config and its data, without weights.

        Args:
            model: The module.
            datamodule: The data module, with training data.
            memory: The memory of the GPU, such as 24GiB; null is that of this machine's device.
            batch: The samples of an optimizer step; null is as many as the config has.
            aim: What is chosen by: own (as configured, if it fits), quality, merge (adapters without cost in
                use) or swap (adapters for several tasks).
            scan: How many samples of the data are measured, spread over all of them.
            compare: Count other methods as well, side by side.
            measure: Load the model, and time a few real steps of the choice on this machine.
            out: A config to write, with the choice in it.
            json: Print all figures for programs.
            ckpt_path: Ignored, but accepted, so that a saved fit config can be planned.
            weights_only: Ignored, likewise.

        Raises:
            UserError: As in fit; or an amount of memory that isn't one.
        """
        from lightning_vlm.planning import command  # what it stands on takes a second
        from lightning_vlm.planning.asked import Asked
        from lightning_vlm.planning.write import check_out

        if out is not None:
            check_out(out)
        asked = Asked() if self.asked is None else Asked.of(self.asked)
        options: dict[str, Any] = {"aim": aim, "batch": batch, "compare": compare, "measure": measure}
        planned = command.plan(model, datamodule, asked, memory, scan, **options)
        command.report(planned, json, out, self.config_text)
