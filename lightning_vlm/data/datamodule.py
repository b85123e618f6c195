"""Sources of conversations as the loaders that a Trainer runs."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.runs import log_metrics, logs_at, run_folder
from torch import Tensor
from torch.utils.data import Dataset
from transformers import ProcessorMixin

from lightning_vlm.data.batch.collate import Batch, Item, Targets, collate
from lightning_vlm.data.batch.sampler import (
    PAD_INDEX,
    ResumableBatchSampler,
    ResumableLoader,
    begin_next_epoch,
    load_saved_state,
)
from lightning_vlm.data.batch.skipped import SampleCounts
from lightning_vlm.data.batch.task_sampler import TaskBatchSampler
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.conversation import Conversations, TaskTable
from lightning_vlm.data.read.faults import together
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.read.source import OnBadSample, skip_summary, write_skip_report
from lightning_vlm.data.render.renderer import Example, Renderer, TooLong
from lightning_vlm.errors import DataError, UserError


class VLMDataModule(LightningDataModule):
    """Conversations for training, validation, test and prediction.

    It renders with the processor of the `VLMModule` that it runs with. Train batches are the same however the
    work is split (see `ResumableBatchSampler`), and a run that resumes goes on at the next batch. Batches of
    validation and test carry prompts as well if the module generates.

    Args:
        train: What to learn from: a source, or the path of a file or folder in any format that `read` knows.
        val: What to validate on.
        test: What to test on.
        predict: What to answer. A last assistant turn is kept as the reference.
        batch_size: Samples in a batch of one device.
        eval_batch_size: The same without training; None is `batch_size`.
        max_length: The most tokens of a sample, pictures included. Longer ones lose their last rounds; what
            still does not fit is left out and counted. None cuts nothing, and leaves out only what no one
            trains on, such as a text of a million words.
        image_root: The folder that paths of pictures begin at, for sources given as a path. None is the
            file's own folder.
        on_bad_sample: `raise` reports all bad samples before anything runs, `skip` leaves them out and
            reports them at the end.
        num_workers: Processes that render. 0 renders in the main one.
        shuffle: Draw a new order of the training data each epoch.
        seed: Chooses the orders.
        sampling: How often each task is drawn: `uniform` (all alike), `grouped` (batches of one task), or the
            keys of a `TaskSampling`, such as `{score: size, temperature: 3}`. None takes each sample once.
        processor: For use without a `VLMModule`.
        columns: For sources given as a path, our names of keys and the names that they have in the data, such
            as `{question: query, image: img}`.
        allow_urls: For sources given as a path, whether pictures are fetched from http and https addresses.

    Raises:
        UserError: A stage has no data, or there is no processor.
    """

    def __init__(
        self,
        train: Conversations | str | None = None,
        val: Conversations | str | None = None,
        test: Conversations | str | None = None,
        predict: Conversations | str | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        max_length: int | None = None,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        sampling: TaskSampling | Literal["uniform", "grouped"] | None = None,
        processor: ProcessorMixin | None = None,
        columns: dict[str, str] | None = None,
        allow_urls: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise UserError(f"batch_size is {min(batch_size, eval_batch_size or batch_size)}; at least 1")
        self._given = {"train": train, "val": val, "test": test, "predict": predict}
        self.batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self.max_length, self.image_root, self.on_bad_sample = max_length, image_root, on_bad_sample
        self.columns, self.allow_urls = columns, allow_urls
        self.num_workers, self.shuffle, self.seed, self.processor = num_workers, shuffle, seed, processor
        self.sampling = TaskSampling.read(sampling)
        self.sources: dict[str, Conversations] = {}
        """The sources opened so far, by split."""
        self.skipped: dict[str, DataError] = {}
        """What was left out so far on this process, by source."""
        self.truncated: set[str] = set()
        """Which samples lost rounds to fit into `max_length`."""
        self.changes: dict[str, set[str]] = {}
        """What was done to the turns of samples on this process, each in a sentence, and to which samples."""
        self._renderer: Renderer | None = None
        self._training: ResumableLoader | None = None

    @property
    def eval_batch_size(self) -> int:
        """Samples in a batch without training; that of training unless it was set, also after a tuner."""
        return self.batch_size if self._eval_batch_size is None else self._eval_batch_size

    @eval_batch_size.setter
    def eval_batch_size(self, size: int) -> None:
        self._eval_batch_size = size

    @property
    def renderer(self) -> Renderer:
        """What turns conversations into tokens here."""
        processor = self.processor
        if processor is None and self.trainer is not None:
            processor = getattr(self.trainer.lightning_module, "processor", None)
        if processor is None:
            raise UserError("VLMDataModule has no processor; run it with a VLMModule or give it one")
        if self._renderer is None or self._renderer.processor is not processor:  # run with another module
            self._renderer = Renderer(processor, self.max_length)
        return self._renderer

    def source(self, split: str) -> Conversations:
        """The source of a split (train, val, test, predict), opened and checked when first asked for."""
        if split not in self._given:
            raise UserError(f"there is no split '{split}'; choose one of {', '.join(self._given)}")
        if split not in self.sources:
            given = self._given[split]
            if given is None:
                raise UserError(f"data.{split} is not set; give it a source or the path of a JSONL file")
            if isinstance(given, str | Path):
                given = read(
                    str(given), self.image_root, self.on_bad_sample, self.columns, self.allow_urls, split
                )
            self.sources[split] = given
            for error in given.skipped:
                self.skipped[error.source] = error
        return self.sources[split]

    def has_split(self, split: str) -> bool:
        """Whether a split (train, val, test, predict) was given."""
        return self._given.get(split) is not None

    @cached_property
    def task_table(self) -> TaskTable:
        """The task of each training sample. Asked for once: some sources must build all samples for it."""
        return self.source("train").task_table()

    def setup(self, stage: str) -> None:
        """Open what the stage needs, so that bad data fails before anything runs."""
        stage = TrainerFn(stage).value  # in messages the enum would have another name
        overfit = getattr(self.trainer, "overfit_batches", 0)
        if overfit:
            raise UserError(
                f"found trainer.overfit_batches {overfit}, with which Lightning puts in its own sampler; set "
                "trainer.limit_train_batches, and data.shuffle to false, instead"
            )
        if self.trainer is not None:
            run_folder(self.trainer)  # a folder that can't be written to is refused now, not at the end
        splits = {"fit": ["train"], "validate": ["val"]}.get(stage, [stage])
        if stage == "fit" and self._given["val"] is not None:
            splits.append("val")
        faults: list[DataError] = []
        for split in splits:
            try:
                self.source(split)
            except DataError as error:  # those of the other splits are reported with it
                faults.append(error)
        if faults:
            raise together(faults)
        if self.sampling and stage == "fit":
            self.sampling.scores(self.task_table)
        assert self.renderer

    def batches_per_epoch(self, world: int, limit: int | float = 1.0) -> int:
        """Batches of training data that each process gets in an epoch.

        Args:
            world: Number of processes.
            limit: The Trainer's `limit_train_batches`.
        """
        sampler = ResumableBatchSampler(len(self.source("train")), self.batch_size, False, 0, 0, world)
        batches = len(sampler)
        return int(batches * limit) if isinstance(limit, float) else min(batches, limit)

    def train_dataloader(self) -> ResumableLoader:
        """Batches to learn from."""
        if self.trainer:
            begin_next_epoch(self.trainer)
        self._training = self._loader("train", learn=True, prompts=False)
        if self.trainer:
            load_saved_state(self.trainer, self._training)
        return self._training

    def val_dataloader(self) -> ResumableLoader | list:
        """Batches to validate on; none without `val`."""
        if self._given["val"] is None:
            return []
        return self._loader("val", learn=True, prompts=self._generates())

    def test_dataloader(self) -> ResumableLoader:
        """Batches to test on."""
        return self._loader("test", learn=True, prompts=self._generates())

    def predict_dataloader(self) -> ResumableLoader:
        """Prompts to answer."""
        return self._loader("predict", learn=False, prompts=True)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count what was left out, or stop at it; and find what the module learns, still on the CPU."""
        for error in batch.skipped:
            if self.on_bad_sample == "raise" and not isinstance(error, TooLong):
                raise error
            self.skipped[error.source] = error
        self.truncated.update(batch.truncated)
        for source, change in batch.changes:
            if change not in self.changes:
                rank_zero_info(f"{source}: {change}. Others like it are counted.")
            self.changes.setdefault(change, set()).add(source)
        targets = getattr(self.trainer.lightning_module if self.trainer else None, "targets", None)
        return batch._replace(targets=targets(batch)) if targets else batch

    def end_step(self, sums: Tensor, counts: Tensor, batch_idx: int) -> None:
        """What the module says after each optimizer step of a fit, for sampling by loss and its log.

        Args:
            sums: Tensor of shape [tasks]: the losses of each task of the training data, over all ranks.
            counts: Tensor of shape [tasks]: what they are sums of.
            batch_idx: The last batch of the step.
        """
        trainer, batches = self.trainer, self._training.sampler if self._training else None
        if trainer is None or not isinstance(batches, TaskBatchSampler):
            return
        place = (batch_idx + 1) * batches.global_batch_size
        batches.end_step(sums, counts, place)
        if logs_at(trainer, trainer.global_step + 1):
            metrics = {f"data/epochs/{task}": count for task, count in batches.epochs(place).items()}
            metrics |= {f"data/samples/{task}": count for task, count in batches.samples(place).items()}
            log_metrics(trainer, metrics, trainer.global_step)

    def look_ahead(self, most: int, targets: Callable[[Batch], Targets]) -> SampleCounts:
        """What becomes of some training samples, evenly spaced over all of them. The same on all ranks.

        Args:
            most: At most so many are rendered.
            targets: What is learned from a batch.
        """
        rendered = _Rendered(self.source("train"), self.renderer, learn=True, prompts=False)
        size = len(self.source("train"))
        counts = SampleCounts()
        for place in range(min(most, size)):
            batch = rendered[[place * size // min(most, size)]]
            counts += SampleCounts.of_batch(batch, len(targets(batch).positions))
        return counts

    def teardown(self, stage: str) -> None:
        """Say what was left out or cut, and write a report of it beside the run's logs."""
        if self.trainer is None:
            return
        folder = run_folder(self.trainer)  # which all ranks must ask for
        if self._training is not None:
            batches, place = self._training.sampler, self._training.passed
            if isinstance(batches, TaskBatchSampler):
                samples = batches.samples(place)
                each = (
                    f"{task} {epochs:.2f} ({samples[task]:,} samples)"
                    for task, epochs in batches.epochs(place).items()
                )
                rank_zero_info(f"Epochs of each task: {', '.join(each)}")
            self._training = None
        if self.skipped:
            path = folder / f"left_out_{TrainerFn(stage).value}_{self.trainer.global_rank}.jsonl"
            errors = list(self.skipped.values())
            write_skip_report(errors, path)
            rank_zero_info(f"Left out: {skip_summary(errors)}. All of them: {path}")
        if self.truncated:
            rank_zero_info(
                f"Cut to max_length {self.max_length} by whole rounds: {len(self.truncated)} samples"
            )
        for change, changed in self.changes.items():
            rank_zero_info(f"In {len(changed):,} samples {change}.")
        self.changes.clear()

    def _generates(self) -> bool:
        return bool(self.trainer and getattr(self.trainer.lightning_module, "generation", None))

    def _loader(self, split: str, learn: bool, prompts: bool) -> ResumableLoader:
        source, training = self.source(split), split == "train"
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batch_size = self.batch_size if training else self.eval_batch_size
        batches = ResumableBatchSampler(
            len(source), batch_size, training and self.shuffle, self.seed, rank, world
        )
        if training and self.sampling:
            drawn = self.sampling, batch_size, self.shuffle, self.seed
            batches = TaskBatchSampler(self.task_table, *drawn, rank, world)
            batches.check_ahead(2 * self.num_workers + 1 + self._longest_step())
        return ResumableLoader(
            _Rendered(source, self.renderer, learn, prompts),
            sampler=batches,
            batch_size=None,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda"),
        )

    def _longest_step(self) -> int:
        """The most batches in an optimizer step."""
        if self.trainer is None:
            return 1
        windows = [self.trainer.accumulate_grad_batches]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                windows += callback.scheduling.values()
        return max(windows)


class _Rendered(Dataset):
    """Takes a list of indices, gives a batch."""

    def __init__(self, source: Conversations, renderer: Renderer, learn: bool, prompts: bool) -> None:
        self._source, self._renderer, self._learn, self._prompts = source, renderer, learn, prompts

    def __getitem__(self, indices: list[int]) -> Batch:
        items: list[Item] = []
        skipped: list[DataError] = []
        truncated: list[str] = []
        for index in indices:
            if index == PAD_INDEX:
                continue
            try:
                item, shorter = self._item(index)
            except DataError as error:  # the main process raises it, so that its message stays one line
                skipped.append(error)
                continue
            items.append(item)
            if shorter:
                truncated.append(shorter)
        pad = self._renderer.tokenizer.pad_token_id
        pad = self._renderer.tokenizer.eos_token_id if pad is None else pad
        return collate(items, pad or 0, skipped, truncated)

    def _item(self, index: int) -> tuple[Item, str]:
        conversation = self._source[index]
        example: Example | None = None
        prompt: Example | None = None
        reference, shorter = None, ""
        if self._learn:
            example = self._renderer.example(conversation)
            shorter = conversation.source if example.truncated else ""
            conversation = example.conversation
        if self._prompts:
            prompt, reference = self._renderer.prompt(conversation)
        return Item(example, prompt, reference), shorter
