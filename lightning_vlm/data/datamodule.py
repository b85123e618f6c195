"""Sources of conversations as the loaders that a Trainer runs."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.batch.batching import Batching
from lightning_vlm.data.batch.batching_checks import MaxTokens, Mode, check_sampling, check_sizes
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.batch.loader import ResumableLoader, begin_next_epoch
from lightning_vlm.data.batch.sampler import ranks_of
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.batch.training_draws import TrainingDraws
from lightning_vlm.data.conversation import Conversations, TaskTable
from lightning_vlm.data.loaders import make_loader
from lightning_vlm.data.of_trainer import generates, model_of, processor_of
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.read.bounds import OnBadBox
from lightning_vlm.data.read.source import OnBadSample
from lightning_vlm.data.render.example import TooLong
from lightning_vlm.data.render.prompt_rounds import check_answer_tokens
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.data.sample_report import SampleReport
from lightning_vlm.data.setting_up import close, open_and_check
from lightning_vlm.data.splits import AllowUrls, Given, Negatives, Splits
from lightning_vlm.data.stages.settings import DataStage
from lightning_vlm.data.stages.staged_data import StagedData
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.system_prompts import check_prompts, check_template
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError, UserError


class VLMDataModule(LightningDataModule):
    """Conversations for training, validation, test and prediction.

    It renders with the processor of the `VLMModule` that it runs with. Train batches are the same however the
    work is split, and a resumed run continues with the next batch. Batches of validation and test carry
    prompts as well if the module generates.

    Args:
        train: What to learn from: a source, or the path of a file or folder in any format that `read` knows.
        val: What to validate on; `10%` holds out that share of `train`, whole pictures at a time.
        test: What to test on, likewise.
        predict: What to answer. A last assistant turn is kept as the reference.
        batch_size: Samples in a batch of one device.
        eval_batch_size: The same without training; None is `batch_size`.
        batching: Which samples share a batch to learn from: `padded` (the next ones), `length` (some of
            similar length), `tokens` (as many as fit into `max_tokens`), `packed` (rows without padding).
        max_tokens: The most tokens of a batch with `tokens` and `packed`; `auto` is what fits into memory.
        max_patches: The most patches of pictures in such a batch; None is any number.
        max_length: The most tokens of a sample, pictures included. Longer ones lose their last rounds; what
            still does not fit is skipped and counted. None truncates nothing, and skips huge texts.
        image_root: For sources given as a path, where paths of pictures begin; None is the file's folder.
        on_bad_sample: `raise` reports all bad samples before anything runs, `skip` skips them.
        num_workers: Processes that render samples; with 0 the main process does.
        shuffle: Draw a new order of the training data each epoch.
        seed: Which orders are drawn.
        sampling: How often each task is drawn: `uniform` (all alike), `grouped` (batches of one task), or the
            keys of a `TaskSampling`, such as `{score: size, temperature: 3}`. None takes each sample once.
        processor: For use without a `VLMModule`.
        columns: For such sources, our names of keys and those that they have, as `{question: query}`.
        allow_urls: For paths, whether addresses are fetched: true public ones, `private` also private ones.
        video: Which frames of videos are taken and how large, as keys of a `VideoSampling`.
        min_pixels: Smaller pictures are enlarged to so many pixels; None is as the processor does.
        max_pixels: Larger pictures are made smaller; see `PixelBudget`.
        pixels_by_detail: Give each picture as many pixels as it needs between the two; they are decoded to
            know their lengths.
        bad_boxes: For such sources, whether a box beyond its picture is an `error`, or cut off (`clip`).
        box_format: For such sources, the unit of boxes where the data doesn't say it, such as `pixels`,
            `fractions` or `0-1000`, with `xywh` or `yxyx` behind it for another order; `text` reads none.
        boxes: How the model writes boxes, such as `qwen3_vl` or `loc`; None is as published checkpoints do.
        answer_tokens: Tokens of `max_length` that are kept for the answer: of a prompt that leaves fewer, the
            earliest rounds without pictures are left out. None keeps none. Training never cuts an answer.
        negatives: Whether training also asks for what isn't there, or how, as keys of a `Negatives`.
        system_prompts: Task -> what the model reads before conversations that have no system turn, such as
            `{ocr: Read all text., default: Be brief.}`; `default` is for all other tasks.
        skip: A list of rows that are left out, as `lightning-vlm lint --fix skip` writes it.
        streaming: Whether data given as shards, such as `shards/*.parquet`, are read as they are needed, or
            how, as keys of a `Streaming`.

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
        batching: Mode = "padded",
        max_tokens: MaxTokens = None,
        max_patches: int | None = None,
        max_length: int | None = None,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        num_workers: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        sampling: TaskSampling | Literal["uniform", "grouped"] | None = None,
        processor: ProcessorMixin | None = None,
        columns: dict[str, str] | None = None,
        allow_urls: AllowUrls = False,
        video: VideoSampling | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        pixels_by_detail: bool = False,
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        boxes: str | None = None,
        negatives: Negatives | bool | None = None,
        answer_tokens: int | None = None,
        system_prompts: dict[str, str] | None = None,
        skip: str | None = None,
        streaming: Streaming | bool | None = None,
    ) -> None:
        self._arguments = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        super().__init__()
        self.stages: StagedData | None = None
        """The stages of a run, if it has any."""
        check_sizes(batch_size, eval_batch_size, max_length, num_workers)
        self.given: dict[str, Given] = {"train": train, "val": val, "test": test, "predict": predict}
        """What each split was given: a source, a path, or None."""
        self.system_prompts = check_prompts(system_prompts)
        more = (
            bad_boxes,
            box_format,
            Negatives.read(negatives),
            self.system_prompts,
            skip,
            Streaming.read(streaming),
        )
        self.splits = Splits(self.given, image_root, on_bad_sample, columns, allow_urls, *more)
        self.sources = self.splits.opened
        """The sources opened so far, by split."""
        self.batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self.batching = Batching(batching, max_tokens, max_patches)
        """How training samples become batches."""
        self.max_length = max_length
        check_answer_tokens(answer_tokens, max_length)
        self.answer_tokens = answer_tokens
        self.on_bad_sample = on_bad_sample
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.seed = seed
        self.sampling = TaskSampling.read(sampling)
        check_sampling(self.batching.mode, self.sampling)
        self.video = VideoSampling.read(video)
        self.pixels = PixelBudget(min_pixels, max_pixels, pixels_by_detail)
        self.pixels.check()
        self.boxes = boxes
        self.processor = processor
        self.report = SampleReport()
        """What became of the samples on this process."""
        self._renderer: Renderer | None = None
        self._draws = TrainingDraws()

    def set_stages(self, stages: Sequence[DataStage]) -> None:
        """Train in stages, each with data of its own. Outside of a fit it is the data of the last."""
        self.stages = StagedData(self, self._arguments, stages)

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
        if (processor := self._processor()) is None:
            raise UserError("VLMDataModule has no processor; run it with a VLMModule or give it one")
        if self._renderer is None or self._renderer.processor is not processor:  # run with another module
            self.pixels.apply(processor)
            self._renderer = Renderer(processor, self.max_length, self.video, self.boxes)
            self._renderer.open_picture = self.pixels.open_picture
            self._renderer.answer_tokens = self.answer_tokens or 0
            check_template(self.system_prompts, self._renderer)
        return self._renderer

    def source(self, split: str) -> Conversations:
        """The source of a split (train, val, test, predict), opened and checked when first asked for."""
        self.report.skip((source := self.splits.source(split)).skipped)
        return source

    def samples(self, split: str) -> Conversations:
        """The samples of a split, which may be more than its source has; see `Splits.samples`."""
        source = self.source(split)
        return source if self._processor() is None else self.splits.samples(split, self.renderer)

    def rendered(self, split: str, *, learn: bool, prompts: bool) -> RenderedBatches:
        """The samples of a split as batches; see `RenderedBatches`."""
        pack = split == "train" and self.batching.packs
        given = model_of(self.trainer), self.samples(split), self.renderer
        return RenderedBatches.for_model(*given, learn=learn, prompts=prompts, pack=pack)

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks of the training data, of all stages together."""
        return self.task_table.names if self.stages is None else self.stages.task_names()

    @cached_property
    def task_table(self) -> TaskTable:
        """The task of each training sample. Asked for once: some sources must build all samples for it."""
        return self.samples("train").task_table()

    def setup(self, stage: str) -> None:
        """Open what the stage needs, so that bad data fails before anything runs."""
        stage = TrainerFn(stage).value  # in messages the enum would have another name
        open_and_check(self, stage)

    def batches_per_epoch(self, world: int, limit: int | float = 1.0) -> int:
        """Batches to learn from in an epoch for each of `world` processes, of `limit_train_batches`."""
        size = len(self.measured())
        batches = math.ceil(self.batching.batches(size, self.batch_size, self.shuffle, self.seed) / world)
        return int(batches * limit) if isinstance(limit, float) else min(batches, limit)

    def set_max_tokens(self, tokens: int) -> None:
        """Settle `max_tokens: auto`, on all ranks, before anyone asks how many batches there are."""
        self.batching.max_tokens = tokens
        self.measured()

    def train_dataloader(self) -> ResumableLoader:
        """Batches to learn from."""
        if self.stages is not None:
            return self.stages.train_loader()
        if self.trainer:
            begin_next_epoch(self.trainer)
        return self.make_train_loader()

    def make_train_loader(self) -> ResumableLoader:
        """A new loader of training data, which goes on where a resumed run was."""
        return self._draws.start(make_loader(self, "train", learn=True, prompts=False), self.trainer)

    def val_dataloader(self) -> ResumableLoader | list:
        """Batches to validate on; none without `val`."""
        if self.given["val"] is None:
            return []
        kept = self.stages and self.stages.val_loader
        return kept or make_loader(self, "val", learn=True, prompts=generates(self.trainer))

    def test_dataloader(self) -> ResumableLoader:
        """Batches to test on."""
        return make_loader(self, "test", learn=True, prompts=generates(self.trainer))

    def predict_dataloader(self) -> ResumableLoader:
        """Prompts to answer."""
        return make_loader(self, "predict", learn=False, prompts=True)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Record or raise skipped samples, and compute the targets while the batch is still on the CPU."""
        for error in batch.skipped:
            self.check_skipped(error)
        self.report.add(batch)
        find_targets = getattr(self.trainer and self.trainer.lightning_module, "targets", None)
        return batch._replace(targets=find_targets(batch)) if find_targets else batch

    def check_skipped(self, error: DataError) -> None:
        """Raise the error of a sample, unless it may be skipped."""
        if self.on_bad_sample == "raise" and not isinstance(error, TooLong):
            raise error

    def end_step(self, sums: Tensor, counts: Tensor, batch_idx: int) -> None:
        """Receive the losses of each task after an optimizer step; see `TrainingDraws`."""
        sums, counts = (self.stages.of_stage(one) if self.stages else one for one in (sums, counts))
        self._draws.end_step(self.trainer, sums, counts, batch_idx)

    def teardown(self, stage: str) -> None:
        """Print what was skipped or truncated, and write a report of it beside the run's logs."""
        close(self, TrainerFn(stage).value)

    def measured(self) -> Conversations:
        """The training samples, whose lengths are known from then on if batches need them."""
        source = self.samples("train")
        model = model_of(self.trainer)
        self.batching.check_model(model)
        if self.batching.needs_lengths:
            self.batching.measure(source, self.renderer, self.num_workers, *ranks_of(self.trainer), model)
        return source

    def _processor(self) -> ProcessorMixin | None:
        found = self.processor or processor_of(self.trainer)
        return self.stages.processor(found) if self.stages and found else found
