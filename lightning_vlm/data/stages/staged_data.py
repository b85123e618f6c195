"""What makes a data module that of one stage after the other."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.batch.loader import ResumableLoader, begin_next_epoch
from lightning_vlm.data.loaders import make_loader
from lightning_vlm.data.of_trainer import generates
from lightning_vlm.data.read.faults import together
from lightning_vlm.data.splits import Splits
from lightning_vlm.data.stages.plan import Span, StagePlan
from lightning_vlm.data.stages.settings import DataStage, check_names
from lightning_vlm.errors import DataError, UserError

if TYPE_CHECKING:
    from lightning_vlm.data.datamodule import VLMDataModule

OF_STAGE = (
    *("given", "splits", "sources", "batch_size", "_eval_batch_size", "batching", "max_length"),
    *("answer_tokens", "shuffle", "seed", "sampling", "video", "pixels", "system_prompts"),
    *("_renderer", "_draws", "task_table"),
)
"""The attributes of a data module that each stage has for itself."""


class StagedData:
    """The stages of a data module, which is at each time as if it had been made for one of them alone.

    Each stage has its own values of the attributes in `OF_STAGE`, and they are put into the data module while
    the run is in that stage. So all that asks a data module for its sources, its batches or its limits gets
    those of the stage.

    Args:
        data: The data module.
        arguments: The local names of its `__init__`, as it began.
        stages: What is different in each.

    Raises:
        UserError: Two stages have one name, or a stage's data can't be as it says.
    """

    def __init__(self, data: "VLMDataModule", arguments: dict[str, Any], stages: Sequence[DataStage]) -> None:
        check_names(stages)
        given = {name: arguments[name] for name in arguments if name not in ("self", "__class__")}
        self.stages = tuple(stages)
        """What each stage says."""
        self.now = len(stages) - 1
        """The number of the stage that the data module is in; outside of a fit it is the last."""
        self._data = data
        self._values: list[dict[str, Any]] = []
        self._processors: dict[int, tuple[ProcessorMixin, ProcessorMixin]] = {}
        self._plan: StagePlan | None = None
        self._accumulate: int | None = None
        self._limit = -1
        self._names: tuple[str, ...] = ()
        self._train_loader: ResumableLoader | None = None
        self._val_loader: ResumableLoader | None = None
        for stage in stages:
            try:
                made = type(data)(**{**given, **stage.data.given})
            except UserError as error:
                raise UserError(f"stages.{stage.name}: {error}") from None
            self._values.append({name: vars(made)[name] for name in OF_STAGE if name in vars(made)})
        self._put_on(self.now)

    # Which stage it is

    @property
    def stage(self) -> DataStage:
        """The stage that the data module is in."""
        return self.stages[self.now]

    @property
    def span(self) -> Span:
        """Its place in the run, known from `setup` on."""
        return self.plan.spans[self.now]

    def enter(self, number: int) -> None:
        """Make the data module that of a stage."""
        if number == self.now:
            return
        mine = vars(self._data)
        self._values[self.now] = {name: mine.pop(name) for name in OF_STAGE if name in mine}
        self._put_on(number)

    def _put_on(self, number: int) -> None:
        for name in OF_STAGE:
            vars(self._data).pop(name, None)
        vars(self._data).update(self._values[number])
        self.now = number

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Come back to the stage that it is in now, whatever is entered meanwhile."""
        now = self.now
        try:
            yield
        finally:
            self.enter(now)

    def each(self) -> Iterator[DataStage]:
        """Enter one stage after the other, and come back at the end."""
        with self.staying():
            for number, stage in enumerate(self.stages):
                self.enter(number)
                yield stage

    def processor(self, of_module: ProcessorMixin) -> ProcessorMixin:
        """The stage's own processor: each may see its pictures in another size."""
        known = self._processors.get(self.now)
        if known is None or known[0] is not of_module:
            own = copy.copy(of_module)
            own.image_processor = copy.deepcopy(of_module.image_processor)
            known = self._processors[self.now] = of_module, own
        return known[1]

    # A fit

    def begin_fit(self, trainer: Trainer) -> None:
        """Learn what a Trainer says by itself, and enter the first stage."""
        if self._accumulate is None:  # a tuner sets up twice
            self._accumulate = trainer.accumulate_grad_batches
            self._limit = trainer.max_steps
        self.enter(0)

    def end_fit(self, trainer: Trainer) -> None:
        """Leave a Trainer as it was, and the data module in its last stage."""
        self._train_loader = self._val_loader = None
        if self._accumulate is not None:
            trainer.accumulate_grad_batches = self._accumulate
            trainer.fit_loop.epoch_loop.max_steps = self._limit
        self._accumulate = self._plan = None
        self.enter(len(self.stages) - 1)

    def open(self, splits: list[str]) -> None:
        """Open the sources of all stages; one that several stages have is opened once.

        Raises:
            DataError: The faults of all of them together.
            UserError: A source can't be as its stage says.
        """
        faults: list[DataError] = []
        opened: list[Splits] = []
        for stage in self.each():
            own = self._data.splits
            for other in opened:
                own.share(other)
            wanted = [split for split in splits if self._data.given[split] is not None or split == "train"]
            try:
                own.open(wanted)
            except DataError as error:
                faults.append(error)
            except UserError as error:
                raise UserError(f"stages.{stage.name}: {error}") from None
            opened.append(own)
        if faults:
            raise together(faults)

    @property
    def plan(self) -> StagePlan:
        """When each stage begins and ends, known from `setup` on."""
        return self._plan or self.settle()

    def settle(self) -> StagePlan:
        """Find how long each stage is, and let the Trainer end behind the last. Every rank must call it."""
        trainer = self._data.trainer
        assert trainer is not None
        batches = []
        for stage in self.each():
            try:
                count = self._data.batches_per_epoch(trainer.world_size, trainer.limit_train_batches)
            except UserError as error:
                raise UserError(f"stages.{stage.name}: {error}") from None
            batches.append(count)
        assert self._accumulate is not None
        self._plan = StagePlan.of(self.stages, batches, self._accumulate)
        steps = self._plan.steps
        limit = steps if self._limit == -1 else min(steps, self._limit)
        trainer.fit_loop.epoch_loop.max_steps = limit
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.fit_loop.max_epochs = -1
        # The loader is asked for at each epoch, and is another one where a stage begins.
        trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        if isinstance(trainer.val_check_interval, int):
            trainer.check_val_every_n_epoch = None  # batches are counted over epochs, which differ in length
        return self._plan

    def train_loader(self) -> ResumableLoader:
        """The loader of the epoch that comes next: that of its stage, of as many batches as this epoch has.

        The stage is a function of the number of the epoch alone, so that a resumed run finds the same.
        """
        data = self._data
        trainer = data.trainer
        if trainer is None or not _fits(trainer):
            return data.make_train_loader()
        begin_next_epoch(trainer)
        progress: Any = trainer.fit_loop.epoch_progress.current
        epoch = progress.processed
        number = self.plan.at_epoch(epoch)
        if number != self.now:
            data._draws.end()
            self._train_loader = self._val_loader = None  # their workers end
            self.enter(number)
        span = self.span
        trainer.accumulate_grad_batches = span.accumulate
        loader = self._train_loader
        if loader is None:
            loader = self._train_loader = data.make_train_loader()
            loader.count_steps()
        loader.stop = span.batches_of(epoch - span.first_epoch)
        return loader

    @property
    def val_loader(self) -> ResumableLoader | None:
        """The loader of validation data, for as long as a fit is in this stage; None outside of one."""
        data = self._data
        if self._val_loader is None and _fits(data.trainer):
            prompts = generates(data.trainer)
            self._val_loader = make_loader(data, "val", learn=True, prompts=prompts)
        return self._val_loader

    def name_loader(self, loader: ResumableLoader) -> None:
        """Let a loader know whose it is, before it is given the state of a checkpoint."""
        if _fits(self._data.trainer):
            loader.stage = self.stage.name
            loader.begin_at_epoch(self.span.first_epoch)

    # Tasks

    def task_names(self) -> tuple[str, ...]:
        """The tasks of all stages, in the order in which they come."""
        if not self._names:
            names: dict[str, None] = {}
            for _ in self.each():
                names.update(dict.fromkeys(self._data.task_table.names))
            self._names = tuple(names)
        return self._names

    def of_stage(self, by_task: Tensor) -> Tensor:
        """The values of this stage's tasks.

        Args:
            by_task: Tensor of shape [tasks of the run].

        Returns:
            Tensor of shape [tasks of the stage].
        """
        names = self.task_names()
        return by_task[[names.index(name) for name in self._data.task_table.names]]


def _fits(trainer: Trainer | None) -> bool:
    return trainer is not None and trainer.state.fn == TrainerFn.FITTING
