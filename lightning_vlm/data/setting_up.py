"""Opens what a stage of a Trainer needs, so that bad data fails before anything runs, and ends it."""

from typing import TYPE_CHECKING

from lightning_vlm_callbacks.runs import run_folder

from lightning_vlm.data.batch.batching_checks import check_trainer
from lightning_vlm.data.streams.refusals import check_batches
from lightning_vlm.data.system_prompts import check_tasks
from lightning_vlm.errors import UserError

if TYPE_CHECKING:
    from lightning_vlm.data.datamodule import VLMDataModule


def open_and_check(data: "VLMDataModule", stage: str) -> None:
    """Open the sources of a stage of a Trainer, and for a fit see that batches can be made of them.

    Args:
        data: The data module.
        stage: `fit`, `validate`, `test` or `predict`.

    Raises:
        DataError: Bad data; that of all stages of a run together.
        UserError: Data that don't fit the options.
    """
    check_trainer(data.batching.mode, data.trainer)
    if data.trainer is not None:
        run_folder(data.trainer)  # a folder that can't be written to is refused now, not at the end
    if stage == "fit" and data.stages is not None and data.trainer is not None:
        data.stages.begin_fit(data.trainer)
        data.stages.open(["train", "val"])
        for each in data.stages.each():
            try:
                _check_fit(data)
            except UserError as error:
                raise UserError(f"stages.{each.name}: {error}") from None
        data.stages.settle()
        return
    splits = {"fit": ["train"], "validate": ["val"]}.get(stage, [stage])
    if stage == "fit" and data.given["val"] is not None:
        splits.append("val")
    data.splits.open(splits)
    assert data.renderer
    if stage == "fit":
        _check_fit(data)


def _check_fit(data: "VLMDataModule") -> None:
    assert data.renderer
    if data.source("train").windows is not None:
        check_batches(data.batching.mode, data.sampling, data.task_table)
    if data.system_prompts:
        check_tasks(data.system_prompts, data.task_table.names)
    if data.sampling:
        data.sampling.scores(data.task_table)
    data.measured()


def close(data: "VLMDataModule", stage: str) -> None:
    """Print what was skipped or truncated in a stage, and write a report of it beside the run's logs.

    Args:
        data: The data module.
        stage: `fit`, `validate`, `test` or `predict`.
    """
    if data.trainer is None:
        return
    folder = run_folder(data.trainer)  # a collective: every rank must call it
    data._draws.end()
    name = f"skipped_{stage}_{data.trainer.global_rank}.jsonl"
    data.report.close(folder / name, data.max_length)
    if data.stages is not None:
        data.stages.end_fit(data.trainer)
