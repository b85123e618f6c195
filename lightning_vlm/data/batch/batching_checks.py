"""What options of batches must be, and which others they go together with."""

from typing import Literal, TypeAlias, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.trainer.states import TrainerFn

from lightning_vlm.data.batch.lengths import Lengths
from lightning_vlm.data.batch.packing import Budget
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.errors import UserError

Mode = Literal["padded", "length", "tokens", "packed"]
MaxTokens: TypeAlias = int | Literal["auto"] | None
BY_TOKENS = ("tokens", "packed")
"""The modes whose batches have so many tokens instead of so many samples."""


def check_sizes(
    batch_size: int, eval_batch_size: int | None, max_length: int | None, num_workers: int
) -> None:
    """Check numbers that a config may leave empty, or set to 0.

    Raises:
        UserError: One is too small, or no number.

    >>> check_sizes(0, None, None, 0)
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: data.batch_size: found 0; expected a whole number, at least 1
    """
    given = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "max_length": max_length}
    for name, size in given.items():
        may_be_none = name != "batch_size"
        if size is None and may_be_none:
            continue
        if not isinstance(size, int) or size < 1:
            raise UserError(f"data.{name}: found {_shown(size)}; expected a whole number, at least 1")
    if not isinstance(num_workers, int) or num_workers < 0:
        raise UserError(f"data.num_workers: found {_shown(num_workers)}; expected a whole number, at least 0")


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def check_options(mode: Mode, max_tokens: MaxTokens, max_patches: int | None) -> None:
    """Check the options themselves.

    Raises:
        UserError: An unknown mode, or a limit that it needs and doesn't have, or has no use for.
    """
    if mode not in get_args(Mode):
        raise UserError(f"data.batching: found {mode!r}; expected one of {', '.join(get_args(Mode))}")
    for name, limit in (("max_tokens", max_tokens), ("max_patches", max_patches)):
        if limit is None or (name, limit) == ("max_tokens", "auto"):
            continue
        if not isinstance(limit, int) or limit < 1:
            raise UserError(f"data.{name}: found {limit!r}; expected a whole number, at least 1")
        if mode not in BY_TOKENS:
            raise UserError(
                f"data.{name} has no effect with data.batching {mode}; set data.batching to packed or "
                f"tokens, or leave {name} out"
            )
    if mode in BY_TOKENS and max_tokens is None:
        what = "a row" if mode == "packed" else "a batch"
        raise UserError(
            f"data.batching {mode} needs data.max_tokens: the most tokens of {what}, such as batch_size "
            "times the length of a long sample"
        )


def check_sampling(mode: Mode, sampling: TaskSampling | None) -> None:
    """Check that samples can be drawn by task.

    Raises:
        UserError: They can't.
    """
    if sampling is None or mode == "padded":
        return
    if sampling.by_loss:
        raise UserError(
            f"data.sampling.score {sampling.score} changes what is drawn as training goes on, and "
            f"data.batching {mode} makes its batches beforehand; take score size or weights, "
            "or data.batching padded"
        )
    if sampling.grouped:
        raise UserError(
            f"data.sampling grouped makes batches of one task, and data.batching {mode} makes them of "
            "lengths that fit together; leave one of them out"
        )


def check_trainer(mode: Mode, trainer: Trainer | None) -> None:
    """Check that a trainer leaves batches as they are, and looks for no batch size that has no effect.

    Raises:
        UserError: It doesn't.
    """
    if trainer is None:
        return
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        raise UserError(
            f"found trainer.overfit_batches {trainer.overfit_batches}, which replaces the sampler of the "  # type: ignore[attr-defined]
            "data; set trainer.limit_train_batches, and data.shuffle to false, instead"
        )
    fits = trainer.state.fn == TrainerFn.FITTING
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if fits and mode in BY_TOKENS and any(isinstance(each, BatchSizeFinder) for each in callbacks):
        raise UserError(
            "BatchSizeFinder and Tuner.scale_batch_size change data.batch_size, which has no effect with "
            f"data.batching {mode}; set data.max_tokens instead"
        )


def check_fits(lengths: Lengths, budget: Budget, source: Conversations) -> None:
    """Check that no sample alone is more than a batch may hold.

    Raises:
        UserError: One is; the message names the largest, and what to set.
    """
    fixes = {
        "tokens": "or data.max_length to {limit}, so that longer samples are cut",
        "patches": "or make pictures smaller, as the processor's max_pixels does",
    }
    for name, limit in budget._asdict().items():
        values = getattr(lengths, name)
        if limit is None or not (values > limit).any():
            continue
        largest = int(values.argmax())
        more = int((values > limit).sum()) - 1
        others = f" ({more:,} others have more as well)" if more else ""
        raise UserError(
            f"data.max_{name} is {limit:,}, but {source[largest].source} has {values[largest]:,} {name}"
            f"{others}; set it to {values[largest]} or more, {fixes[name].format(limit=limit)}"
        )
