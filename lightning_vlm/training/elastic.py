"""A run that goes on with another number of processes: its counters, and whether its steps stay the same."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.run_length import batches_per_step

from lightning_vlm.counted import counted
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError

SPLIT = "split"
"""The key under which a checkpoint says how its run was split."""


class Split(NamedTuple):
    """How an epoch is split among processes and micro-batches.

    Args:
        ranks: How many processes there are.
        accumulate: Micro-batches of an optimizer step on each of them.
        batch: Samples of a micro-batch; 1 where batches are made beforehand, and counted instead of samples.
        batches: Micro-batches of the epoch on each process.
        counted_in: `samples` or `batches`.
        validate_every: `trainer.val_check_interval`, if it is a number of micro-batches.
    """

    ranks: int
    accumulate: int
    batch: int
    batches: int
    counted_in: str
    validate_every: int | None = None

    @property
    def places(self) -> int:
        """Samples or batches of one micro-batch of each process."""
        return self.ranks * self.batch

    @property
    def step(self) -> int:
        """Samples or batches of an optimizer step."""
        return self.places * self.accumulate

    @property
    def words(self) -> str:
        """How an optimizer step is made up, for people."""
        processes = counted(self.ranks, "process", "processes")
        of_one = f" × {counted(self.batch, 'sample')}" if self.counted_in == "samples" else ""
        return f"{processes} × {counted(self.accumulate, 'micro-batch', 'micro-batches')}{of_one}"


def split_of(trainer: Trainer, epoch: int) -> Split | None:
    """How a trainer splits an epoch; None where the data come from no `VLMDataModule`.

    Every rank must call it, since lengths of samples may have to be measured.

    Args:
        trainer: That fits.
        epoch: Its number.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule):
        return None
    if data.stages is None:
        batches = data.batches_per_epoch(trainer.world_size, trainer.limit_train_batches)
        return _split(trainer, data, batches_per_step(trainer, epoch), batches)
    plan = data.stages.plan
    with data.stages.staying():
        data.stages.enter(plan.at_epoch(epoch))
        span = data.stages.span
        return _split(trainer, data, span.accumulate, span.batches_of(epoch - span.first_epoch))


def _split(trainer: Trainer, data: VLMDataModule, accumulate: int, batches: int) -> Split:
    made_beforehand = data.batching.needs_lengths
    every = trainer.val_check_interval
    return Split(
        trainer.world_size,
        accumulate,
        batch=1 if made_beforehand else data.batch_size,
        batches=batches,
        counted_in="batches" if made_beforehand else "samples",
        validate_every=every if isinstance(every, int) else None,
    )


def saved_split(trainer: Trainer, loops: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a checkpoint keeps of how its run is split.

    Args:
        trainer: That saves.
        loops: The state of its fit loop, as the checkpoint has it.
    """
    split = split_of(trainer, _epoch_of_counts(loops))
    return None if split is None else split._asdict()


class ElasticResume:
    """Turns a checkpoint of a run that was split in another way into one of this run.

    What Lightning counts in batches of one process becomes what they are now. Where the run stops inside an
    epoch, the samples that come next are those that would have come.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        """What isn't as it was, for people."""
        self.expected: set[str] = set()
        """Facts of the run that changed together, so that steps are as they were."""
        self._loops: dict[str, Any] | None = None
        self._was: Split | None = None

    def load(self, checkpoint: Mapping[str, Any], split: Mapping[str, Any] | None) -> None:
        """Keep what a checkpoint says.

        Args:
            checkpoint: As Lightning has it; `convert` changes it.
            split: What `saved_split` gave; None if an older version saved it.
        """
        self.lines = []
        self.expected = set()
        self._loops = checkpoint["loops"]["fit_loop"] if "loops" in checkpoint else None
        self._was = None if split is None else Split(**split)

    def convert(self, trainer: Trainer) -> "Counts | None":
        """Change the counts of the checkpoint, before Lightning takes them over. Every rank must call it.

        Returns:
            How counts are converted; None if they stay.

        Raises:
            UserError: The run stopped inside an epoch, at a place where no batch begins now.
        """
        loops, was = self._loops, self._was
        self._loops = self._was = None
        if loops is None or was is None:
            return None
        epoch = _epoch_of_counts(loops)
        now = split_of(trainer, epoch)
        if now is None or now[:3] == was[:3] or now.counted_in != was.counted_in:
            return None
        fix = _fix(was, now, _accumulate_option(trainer))
        self._compare(trainer, was, now, fix)
        if was.places == now.places:
            return None
        counts = Counts(was, now, fix)
        _convert(loops["epoch_loop.batch_progress"], counts, _batches_before(trainer, epoch))
        return counts

    def _compare(self, trainer: Trainer, was: Split, now: Split, fix: str) -> None:
        if was.step == now.step:
            self.expected = {"the number of processes", "trainer.accumulate_grad_batches", "data.batch_size"}
            other = "" if was.batch == now.batch else "; dropout draws other numbers than before"
            rank_zero_info(
                f"Resumed with {now.words} in an optimizer step (before: {was.words}): the same "
                f"{now.step} {now.counted_in} in the same order{other}"
            )
        elif was.ranks != now.ranks:
            self.lines.append(f"an optimizer step has {now.step} {now.counted_in}, had {was.step}; {fix}")
        limited = isinstance(trainer.limit_train_batches, int) and was.step == now.step
        steps, before = -(-now.batches // now.accumulate), -(-was.batches // was.accumulate)
        if limited and steps != before:
            self.lines.append(
                f"an epoch has {steps} optimizer steps, had {before}; trainer.limit_train_batches counts "
                f"batches of one process, and {before * now.accumulate} keeps them"
            )
        if was.validate_every and now.validate_every:
            every, before = now.validate_every * now.places, was.validate_every * was.places
            if every != before:
                keeps = f"; {before // now.places} keeps it" if before % now.places == 0 else ""
                self.lines.append(
                    f"validation comes every {every} {now.counted_in}, was every {before}; "
                    f"trainer.val_check_interval counts batches of one process{keeps}"
                )


class Counts(NamedTuple):
    """Converts numbers of batches of one process in an epoch.

    Args:
        was: How the epoch was split.
        now: How it is.
        fix: What would keep its steps, for the error.
    """

    was: Split
    now: Split
    fix: str

    def batches(self, seen: int) -> int:
        """How many batches have as many samples now.

        Args:
            seen: How many there were.

        Raises:
            UserError: No number of them has.

        >>> was, now = Split(1, 4, 2, 14, "samples"), Split(4, 1, 2, 4, "samples")
        >>> [Counts(was, now, "").batches(seen) for seen in (0, 4, 12, 14)]
        [0, 1, 3, 4]
        """
        if seen >= self.was.batches:
            return self.now.batches
        place = seen * self.was.places
        if place % self.now.places:
            of = self.now.counted_in
            raise UserError(
                f"can't resume behind {place} {of} of an epoch with {self.now.places} {of} in the batches of "
                f"all processes together ({self.now.words}, {self.was.words} in the checkpoint); {self.fix}"
            )
        return min(place // self.now.places, self.now.batches)

    def batch_idx(self, index: int) -> int | None:
        """The batch that ends where a batch ended; None if none does."""
        try:
            return self.batches(index + 1) - 1
        except UserError:
            return None


def _epoch_of_counts(loops: Mapping[str, Any]) -> int:
    """The number of the epoch whose batches the state of a fit loop counts as current."""
    epochs = loops["epoch_progress"]["current"]
    if loops["epoch_loop.batch_progress"]["current"]["completed"] == 0:
        return epochs["processed"]
    return max(epochs["ready"] - 1, 0)


def _batches_before(trainer: Trainer, epoch: int) -> int:
    """How many batches a process has in all epochs before one."""
    data: VLMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    if data.stages is None:
        return epoch * data.batches_per_epoch(trainer.world_size, trainer.limit_train_batches)
    before = 0
    for span in data.stages.plan.spans:
        before += sum(span.batches_of(number) for number in range(min(span.epochs, epoch - span.first_epoch)))
    return before


def _convert(progress: dict[str, Any], counts: Counts, before: int) -> None:
    """Change the counts of batches in the state of a training epoch's loop.

    Args:
        progress: `epoch_loop.batch_progress` of a checkpoint.
        counts: How they are converted.
        before: Batches of the epochs before, as they are split now.
    """
    current, total = progress["current"], progress["total"]
    ended = progress["is_last_batch"] and current["ready"] > 0
    ready = counts.now.batches if ended else counts.batches(current["ready"])
    behind = {name: current["ready"] - current[name] for name in current}
    for name, number in behind.items():
        current[name] = ready - number
        total[name] = before + ready - number


def _accumulate_option(trainer: Trainer) -> str:
    data: VLMDataModule = trainer.datamodule  # type: ignore[attr-defined]
    if data.stages is not None and data.stages.stage.accumulate:
        return f"stages.{data.stages.stage.name}.accumulate"
    return "trainer.accumulate_grad_batches"


def _fix(was: Split, now: Split, option: str) -> str:
    """What keeps the size of optimizer steps.

    >>> _fix(Split(1, 8, 2, 9, "samples"), Split(4, 8, 2, 3, "samples"), "accumulate")
    'accumulate 2 keeps it'
    >>> _fix(Split(1, 3, 4, 9, "samples"), Split(2, 3, 4, 5, "samples"), "accumulate")
    'accumulate 2 with data.batch_size 3 keeps it'
    >>> _fix(Split(1, 6, 1, 9, "batches"), Split(4, 6, 1, 3, "batches"), "accumulate")
    '1, 2, 3 or 6 processes can keep it'
    """
    for batch in range(now.batch, 0, -1):
        if was.step % (now.ranks * batch) == 0:
            with_batch = "" if batch == now.batch else f" with data.batch_size {batch}"
            return f"{option} {was.step // (now.ranks * batch)}{with_batch} keeps it"
    divisors = [str(ranks) for ranks in range(1, was.step + 1) if was.step % ranks == 0]
    return f"{', '.join(divisors[:-1])} or {divisors[-1]} processes can keep it"
