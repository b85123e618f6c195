"""What a Lightning checkpoint lacks to resume exactly as if the run had never stopped.

Lightning keeps weights, optimizers, schedules, counters, and the state of rank 0's loaders. Here are kept,
for every rank, its random states and loaders; and the last metrics, which plateau schedules read.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from lightning_vlm_callbacks.random_states import random_state
from lightning_vlm_callbacks.run_length import restore_accumulation

__all__ = [
    "Position",
    "correct_progress",
    "epoch_ended",
    "rank_state",
    "resume_at",
    "resume_split_otherwise",
    "states_of_ranks",
    "unsure_loaders",
    "what_is_lost",
]

Position = Literal["batch", "validating", "validation", "between", "epoch", "stopped"]
"""Where a run was when it was saved: behind a batch, before the validation that follows it, behind a
validation inside an epoch, behind all that follows a batch, behind all that belongs to an epoch, or stopped
inside one."""


def _loaders(trainer: Trainer) -> list[Any]:
    loaders = trainer.train_dataloader
    return [] if loaders is None else CombinedLoader(loaders).flattened


def _resumable(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _resumable_loaders(trainer: Trainer) -> list[Any]:
    return [loader for loader in _loaders(trainer) if _resumable(loader)]


def unsure_loaders(trainer: Trainer) -> list[str]:
    """The kinds of training loaders that can't resume exactly inside an epoch.

    Those that don't save their position, and those without a length: from these Lightning draws one batch
    ahead, which is lost.
    """
    loaders = _loaders(trainer)
    unsure = [loader for loader in loaders if not (_resumable(loader) and hasattr(loader, "__len__"))]
    return [type(loader).__name__ for loader in unsure]


def _generators(trainer: Trainer) -> list[torch.Generator]:
    """Those of loaders and samplers. (torchdata's shuffle by one that is seeded when it is made.)"""
    found: dict[int, torch.Generator] = {}
    for loader in _loaders(trainer):
        batch_sampler = getattr(loader, "batch_sampler", None)
        sampler, inner_sampler = (getattr(owner, "sampler", None) for owner in (loader, batch_sampler))
        for owner in (loader, sampler, batch_sampler, inner_sampler):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())


def rank_state(trainer: Trainer) -> dict[str, Any]:
    """The state of this rank."""
    return {
        "random": random_state(),
        "generators": [generator.get_state() for generator in _generators(trainer)],
        "loaders": [loader.state_dict() for loader in _resumable_loaders(trainer)],
    }


def states_of_ranks(trainer: Trainer, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """The states that `rank_state` gave on every rank, in their order. All ranks must call it."""
    if trainer.world_size == 1:
        return [mine]
    every: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(every, mine)
    return every


def resume_at(trainer: Trainer, mine: Mapping[str, Any], position: Position | None) -> None:
    """Put a trainer where it was. Called in `on_train_start`; random states are for the caller to set.

    Args:
        mine: What `rank_state` gave on this rank.
        position: None if another callback saved: then all is as Lightning resumes.
    """
    loop = trainer.fit_loop
    restore_accumulation(trainer)
    if position == "epoch":
        # With max_steps Lightning takes the finished epoch for an unfinished one, and draws one more batch.
        # In either case it would keep an iterator that was made too early, with other random numbers.
        loop.on_iteration_done()
        loop.epoch_loop.restarting = False
    elif position is not None and mine["loaders"]:
        # Lightning gives all ranks the state of rank 0, or none after `estimated_stepping_batches`.
        for loader, state in zip(_resumable_loaders(trainer), mine["loaders"], strict=True):
            loader.load_state_dict(state)
        iter(loop._data_fetcher)  # type: ignore[arg-type]
    if position == "validating":
        # Lightning then runs the validation before it draws the next batch, and from its beginning.
        loop._restarting = False
        loop.epoch_loop.val_loop.restarting = False
        loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    if position == "batch":  # plateau schedules step after `on_train_batch_end`
        loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
    generators = _generators(trainer)
    if len(generators) == len(mine["generators"]):
        for generator, state in zip(generators, mine["generators"], strict=True):
            generator.set_state(state.cpu())


def resume_split_otherwise(trainer: Trainer, first: Mapping[str, Any], position: Position | None) -> None:
    """Put a trainer where a run of another number of processes was.

    Loaders whose attribute `elastic` is true have the same state on every rank and take it over; the others
    are as Lightning resumes them. Random states belong to one process each and are left alone.

    Args:
        trainer: That goes on.
        first: What `rank_state` gave on the first rank.
        position: As for `resume_at`.
    """
    loaders = [] if _loaders_of_one_rank(trainer) else first["loaders"]
    resume_at(trainer, {"loaders": loaders, "generators": []}, position)


def _loaders_of_one_rank(trainer: Trainer) -> list[str]:
    """The kinds of training loaders whose state belongs to one rank."""
    loaders = _loaders(trainer)
    return [type(loader).__name__ for loader in loaders if not getattr(loader, "elastic", False)]


def what_is_lost(trainer: Trainer, module: LightningModule, position: Position | None) -> list[str]:
    """What a run of another number of processes can't go on with, in words.

    Args:
        trainer: That goes on.
        module: One whose attribute `seeds_batches` is true gives every training batch a seed by its place in
            the run, so that no random state needs to be restored.
        position: As for `resume_at`.
    """
    lost = []
    if not getattr(module, "seeds_batches", False):
        lost.append(
            "random states belong to one process each, so they are not restored, and dropout draws other "
            "numbers than in the uninterrupted run"
        )
    unsuited = _loaders_of_one_rank(trainer)
    if unsuited and position != "epoch":
        lost.append(
            f"{unsuited[0]} saves the position of one process each, so samples of this epoch may come twice "
            "or not at all; resume from the end of an epoch, or with loaders of VLMDataModule"
        )
    return lost


def epoch_ended(trainer: Trainer) -> bool:
    """Whether the batch that was trained last is the last of its epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready == trainer.num_training_batches


def correct_progress(checkpoint: dict[str, Any], position: Position) -> None:
    """Let a checkpoint count epochs as if it had been saved exactly between two, or inside one.

    The next epoch has been begun when the hook runs that comes behind everything of the last one; and a run
    that is stopped inside an epoch has counted it as a whole.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    for counts in (batches["total"], batches["current"]):
        if position in ("validating", "validation", "epoch"):
            counts["completed"] = counts["processed"]
    for counts in (epochs["total"], epochs["current"]):
        if position == "epoch":
            counts["ready"] = counts["started"] = counts["completed"]
        elif position == "stopped":
            counts["processed"] -= 1
            counts["completed"] -= 1
