"""How long a fit is, in optimizer steps, epochs and validations. Nothing else counts them."""

import math
from typing import Literal, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

__all__ = [
    "Unit",
    "batches_per_step",
    "epochs_ahead",
    "first_step_at",
    "has_validation_data",
    "longest_window",
    "restore_accumulation",
    "share_of_steps",
    "steps_of_epoch",
    "steps_of_run",
    "validations_ahead",
    "warn_if_beyond",
    "why_no_validation",
]


Unit = Literal["fraction", "step", "epoch"]


def steps_of_run(trainer: Trainer, batches: float | None = None) -> float:
    """Optimizer steps of the whole run, resumed or not.

    Args:
        trainer: Whose run it is.
        batches: The batches of an epoch on one rank; None takes `trainer.num_training_batches`, known from
            `on_train_start` on.

    Returns:
        Infinity if the run has no end, or if its length isn't known.
    """
    limit = math.inf if trainer.max_steps == -1 else trainer.max_steps
    if trainer.max_epochs in (None, -1):
        return limit
    total: float = 0
    for epoch in range(trainer.max_epochs or 0):
        total += steps_of_epoch(trainer, epoch, batches)
        if total >= limit or total == math.inf:
            break
    return min(limit, total)


def steps_of_epoch(trainer: Trainer, epoch: int, batches: float | None = None) -> float:
    """Optimizer steps of an epoch that isn't cut short.

    Args:
        trainer: Whose run it is.
        epoch: Its number, since GradientAccumulationScheduler may give each epoch another window.
        batches: As for `steps_of_run`.

    Returns:
        Infinity if the loader has no length.
    """
    if batches is None:
        batches = trainer.num_training_batches
    if batches == math.inf:
        return math.inf
    return math.ceil(batches / batches_per_step(trainer, epoch))


def share_of_steps(share: float, steps: float) -> int:
    """The first step at which a share of the steps, or more, has been made.

    >>> share_of_steps(0.55, 100)
    55
    """
    return math.ceil(round(share * steps, 6))  # 0.55 * 100 is a little more than 55 in floating point


def first_step_at(trainer: Trainer, at: float, unit: Unit) -> int:
    """The first optimizer step at which a run has come as far as `at`, known from `on_train_start` on.

    Args:
        trainer: Whose run it is, resumed or not.
        at: A fraction of the run, optimizer steps, or epochs (2.5 is in the middle of the third).
        unit: Which of the three.

    Raises:
        MisconfigurationException: The run has no end, or an epoch no length, that the unit needs.
    """
    if unit == "step":
        return int(at)
    if unit == "fraction":
        return share_of_steps(at, _known(trainer, steps_of_run(trainer)))
    whole = int(at)
    steps = [_known(trainer, steps_of_epoch(trainer, epoch)) for epoch in range(whole + 1)]
    return sum(steps[:whole]) + share_of_steps(at - whole, steps[whole])


def _known(trainer: Trainer, steps: float) -> int:
    if steps != math.inf:
        return int(steps)
    if trainer.num_training_batches == math.inf:
        raise MisconfigurationException(
            "unit: found a loader without a length, so that an epoch isn't known; use unit: step"
        )
    raise MisconfigurationException(
        "unit: found fraction, but the run has no end; set max_steps or max_epochs"
    )


def restore_accumulation(trainer: Trainer) -> None:
    """Let a run that is resumed inside an epoch accumulate as many batches as it did there.

    A GradientAccumulationScheduler sets the number when an epoch starts, which it doesn't for a resumed one.
    """
    trainer.accumulate_grad_batches = batches_per_step(trainer, trainer.current_epoch)


def epochs_ahead(trainer: Trainer) -> float:
    """Whole epochs that end from now on, known from `on_train_start` on; infinity if that isn't known."""
    if not _is_finite(trainer):
        return math.inf
    return sum(epoch.is_whole for epoch in _epochs(trainer))


def validations_ahead(trainer: Trainer) -> float:
    """How often a fit validates from now on, known from `on_train_start` on.

    It counts what Lightning would do: not at all with an empty loader, with `limit_val_batches: 0`, or if
    `check_val_every_n_epoch` or `val_check_interval` lies beyond the end.

    Returns:
        Infinity if the run has no end, or if the length of an epoch isn't known.
    """
    if not has_validation_data(trainer):
        return 0
    interval = trainer.val_check_batch
    every_n_epochs = trainer.check_val_every_n_epoch
    if interval is None or not _is_finite(trainer):
        return math.inf  # the run is limited by time, or not at all
    if every_n_epochs is None:
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        return (done + _batches_ahead(trainer)) // int(interval) - done // int(interval)
    count: float = 0
    for epoch in _epochs(trainer):
        if (epoch.number + 1) % every_n_epochs != 0:
            continue
        if interval == math.inf:
            count += epoch.batches == trainer.num_training_batches
        else:
            count += epoch.batches // interval
    return count


def warn_if_beyond(trainer: Trainer, option: str, every: int | None, consequence: str) -> None:
    """Say so if something that is done every so many steps never comes in a run.

    Args:
        trainer: Whose run begins.
        option: The callback and its option.
        every: The number of steps.
        consequence: What follows from it, in a few words.
    """
    steps = steps_of_run(trainer)
    if every is not None and every > steps and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        rank_zero_warn(f"{option} {every} is longer than this run of {int(steps)} steps, so {consequence}")


def why_no_validation(trainer: Trainer) -> str:
    """The reason why `validations_ahead` is 0, in a few words."""
    if not trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined():
        return "there is no val_dataloader"
    if trainer.limit_val_batches == 0:
        return "limit_val_batches is 0"
    if not trainer.enable_validation:
        return "the module has no validation_step"
    if not has_validation_data(trainer):
        return "the validation data are empty"
    if trainer.check_val_every_n_epoch is None:
        return f"val_check_interval ({trainer.val_check_interval}) is longer than the run"
    return f"check_val_every_n_epoch ({trainer.check_val_every_n_epoch}) comes after the run's end"


def has_validation_data(trainer: Trainer) -> bool:
    """Whether there is anything to validate on, however long the run is."""
    if not trainer.enable_validation:
        return False
    loop = trainer.fit_loop.epoch_loop.val_loop
    if trainer.val_dataloaders is None:  # Lightning asks for them before the first epoch that validates
        trainer.validating = True
        loop.setup_data()
        trainer.training = True
    return sum(loop._max_batches) > 0


def _is_finite(trainer: Trainer) -> bool:
    return 0 < trainer.num_training_batches < math.inf and steps_of_run(trainer) != math.inf


def batches_per_step(trainer: Trainer, epoch: int) -> int:
    """The micro-batches of an optimizer step in an epoch, which GradientAccumulationScheduler may change."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    if trainer.accumulate_grad_batches < 1:
        found = trainer.accumulate_grad_batches
        raise MisconfigurationException(
            f"trainer.accumulate_grad_batches: found {found}; expected at least 1"
        )
    return trainer.accumulate_grad_batches


def longest_window(trainer: Trainer) -> int:
    """The most micro-batches that an optimizer step of any epoch has."""
    windows = [trainer.accumulate_grad_batches]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            windows += callback.scheduling.values()
    return max(windows)


class _Epoch(NamedTuple):
    """An epoch that ends from now on, and the batches that it has had by then."""

    number: int
    batches: int
    is_whole: bool
    """Whether it ends with its last batch, rather than with the run."""


def _epochs(trainer: Trainer) -> list[_Epoch]:
    found: list[_Epoch] = []
    last = steps_of_run(trainer)
    number = 0
    before: float = 0
    while before < last:
        after = before + steps_of_epoch(trainer, number)
        if number >= trainer.current_epoch and after > trainer.global_step:
            batches = int(trainer.num_training_batches)
            if after > last:
                batches = min(batches, int(last - before) * batches_per_step(trainer, number))
            found.append(_Epoch(number, batches, is_whole=after <= last))
        before = after
        number += 1
    return found


def _batches_ahead(trainer: Trainer) -> int:
    ahead = sum(epoch.batches for epoch in _epochs(trainer))
    in_this_epoch = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    if in_this_epoch < trainer.num_training_batches:  # else it has ended
        ahead -= in_this_epoch
    return ahead
