"""What checkpoints say of their run, so that a run resumed from one is the uninterrupted run."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.checkpoint_files import use_whole_files
from lightning_vlm_callbacks.run_length import restore_accumulation
from lightning_vlm_callbacks.sharded_checkpoints import use_sharded_checkpoints
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.system_prompts import system_prompts_of
from lightning_vlm.outputs.tracked_run import note_other_run, run_ids
from lightning_vlm.training.elastic import SPLIT, ElasticResume, saved_split
from lightning_vlm.training.resume import WINDOW, AccumulationWindow
from lightning_vlm.training.resume_changes import RUN, RunChanges

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class RunState(Callback):
    """A run's random seed, its place inside an accumulation window, and what it was made with.

    Dropout is a function of seed, epoch and the number of the micro-batch among those of all ranks. So a
    resumed run draws the same, also where another rank comes to that micro-batch.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        """Of the whole run, also of its resumed parts; None until a fit is set up."""
        self.window = AccumulationWindow()
        self._changes = RunChanges()
        self._elastic = ElasticResume()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        use_sharded_checkpoints(trainer)
        use_whole_files(trainer)

    def setup_fit(self) -> None:
        """Choose a random seed, before a tuner draws numbers."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def seed_of(self, trainer: Trainer, batch_idx: int, use: str = "") -> int:
        """A seed for one use of chance in a training batch: its place in the run decides, not the rank."""
        number = batch_idx * trainer.world_size + trainer.global_rank
        place = f"{self.seed} {trainer.current_epoch} {number} 0{use}"  # as one process always had it
        return random.Random(place).getrandbits(63)

    def configured(self, optimizer: Optimizer) -> None:
        """Keep the options of an optimizer, before the state of a checkpoint is loaded into it."""
        self._changes.configured(optimizer)

    def start(self, module: "VLMModule", steps: int) -> None:
        """Begin to train, perhaps inside an epoch, and say what has changed since the checkpoint.

        Args:
            module: That trains.
            steps: The optimizer steps of the whole run.
        """
        trainer = module.trainer
        arguments = {
            "adapt": module.adapt,
            "optimizer": type(trainer.optimizers[0]).__name__,
            "schedule": str(module.schedule),
            "clip": module.clip,
            "token_weights": module.hparams["token_weights"],
            "mask_head": module.hparams["mask_head"],
            "task_weights": module.task_weights,
            "box_loss": module.hparams["box_loss"],
            "dtype": module.source.dtype,
        }
        restore_accumulation(trainer)
        self._changes.start(trainer, arguments, steps, self._elastic)
        self.window.start_run(trainer)
        self.setup_fit()

    def save(
        self, trainer: Trainer, checkpoint: dict[str, Any], buffers: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """What a checkpoint says of its run.

        Args:
            trainer: That saves.
            checkpoint: As Lightning has made it; inside a window its counts are changed.
            buffers: Those that every forward changes.
        """
        state: dict[str, Any] = {"seed": self.seed, "buffers": self.window.buffers(buffers)}
        state |= run_ids(trainer)
        if trainer.state.fn == TrainerFn.FITTING:
            state[WINDOW] = self.window.save(trainer, checkpoint)
            state[RUN] = self._changes.facts_now(trainer)
            state[SPLIT] = saved_split(trainer, checkpoint["loops"]["fit_loop"])
        return state

    def load(self, trainer: Trainer | None, checkpoint: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Take over what `save` returned.

        Args:
            trainer: That of the resumed run; None where only weights are loaded.
            checkpoint: As Lightning has it.
            state: What `save` returned; older versions had less.
        """
        self.seed = state.get("seed")
        self.window.load(state.get(WINDOW))
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            self._changes.load(trainer, checkpoint, state.get(RUN, {}))
            self._elastic.load(checkpoint, state.get(SPLIT))
            if trainer.strategy.restore_checkpoint_after_setup:
                self._convert(trainer)
            note_other_run(trainer, state)
        elif trainer is not None:
            _warn_if_seen_otherwise(trainer, state.get(RUN, {}))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._changes.check_optimizer(trainer.optimizers)
        self._convert(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.window.start_batch(trainer, pl_module.trained.buffers())
        torch.manual_seed(self.seed_of(trainer, batch_idx))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.window.end_batch(trainer, batch_idx)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.window.end_validation(trainer)

    def _convert(self, trainer: Trainer) -> None:
        """Let the checkpoint count as this run does, when the batches of an epoch are known."""
        counts = self._elastic.convert(trainer)
        if counts is not None:
            self.window.convert(counts.batch_idx)


def _warn_if_seen_otherwise(trainer: Trainer, before: Mapping[str, Any]) -> None:
    """Say that a model doesn't see its pictures and videos as it did in training.

    Args:
        trainer: That validates, tests or predicts.
        before: As from `describe_run`, out of the checkpoint.
    """
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, VLMDataModule):
        return
    for name, now in (("data.video", str(data.video)), ("data.max_pixels", str(data.pixels))):
        was = before.get(name, now)
        if was != now:
            rank_zero_warn(f"{name} is {now}, but {was} in training: the model sees its samples otherwise")
    prompts = system_prompts_of(before)
    if before and prompts != data.system_prompts:
        rank_zero_warn(
            f"data.system_prompts is {data.system_prompts or None}, but {prompts or None} in training: the "
            "model reads something else"
        )
    was = before.get("data.boxes")
    now = data.renderer.boxes.codec.name
    if was not in (None, now):
        rank_zero_warn(f"data.boxes is {now}, but {was} in training: the model writes boxes otherwise")
