"""Settings of a Trainer that a `VLMModule` can't run with, refused at setup."""

import os

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.adaptive_lora_rank import AdaptiveLoRARank
from lightning_vlm_callbacks.requirements import require_whole_model

from lightning_vlm.errors import UserError
from lightning_vlm.models.source import ModelSource
from lightning_vlm.training.ddp_options import settle_ddp
from lightning_vlm.training.sharding_refusals import refuse_when_sharded


def refuse_unsuited(trainer: Trainer, *, fits: bool) -> None:
    """Refuse at setup what would be silently wrong.

    Args:
        trainer: Is set up.
        fits: Whether the module is going to be trained. Otherwise only the strategy matters.

    Raises:
        UserError: A strategy other than those of `refuse_strategy`, or what one of them can't do; the
            Trainer's own clipping or synchronised batch norms, a device without the compiler that `compile`
            needs or the GPU that `kernels` do, or as from `refuse_rate_finder`, `refuse_moving_ranks` and
            `settle_ddp`.
    """
    refuse_strategy(trainer.strategy)
    if isinstance(trainer.strategy, ModelParallelStrategy):
        refuse_when_sharded(trainer, fits=fits)
    if not fits:
        return
    if type(trainer.strategy.launcher).__name__ == "_MultiProcessingLauncher":
        raise UserError(
            "trainer.strategy: ddp_fork, ddp_spawn and ddp_notebook don't bring back what was trained; "
            "expected ddp in a script or a command, and one device in a notebook"
        )
    if trainer.gradient_clip_val is not None:
        raise UserError(
            f"found trainer.gradient_clip_val {trainer.gradient_clip_val}; clip with model.clip, which knows "
            "selectors (1.0 by default)"
        )
    if getattr(trainer.strategy, "_layer_sync", None) is not None:
        raise UserError(
            "found trainer.sync_batchnorm true; batch norms keep the statistics that they were loaded with, "
            "so there is nothing to synchronise: leave it out"
        )
    refuse_rate_finder(trainer)
    settle_ddp(trainer, trainer.lightning_module)  # type: ignore[arg-type]
    source: ModelSource = trainer.lightning_module.source  # type: ignore[assignment]
    source.refuse_device(trainer.strategy.root_device)
    if source.compile:
        refuse_moving_ranks(trainer)


def refuse_lone_machine(trainer: Trainer) -> None:
    """Refuse a run on several machines where nothing names the first: it would wait for them without end.

    Without a cluster, torchrun or the variables below, the first machine is 127.0.0.1 for each of them, with
    a port drawn at random.

    Raises:
        UserError: Such a run.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    variables = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "GROUP_RANK")
    is_told = type(environment) is not LightningEnvironment or any(name in os.environ for name in variables)
    if trainer.num_nodes > 1 and not is_told:
        raise UserError(
            f"trainer.num_nodes: found {trainer.num_nodes}, but nothing says where the other machines are, "
            "so that the run would wait for them without end; start it with torchrun or SLURM (docs/scale.md)"
        )


def refuse_moving_ranks(trainer: Trainer) -> None:
    """Refuse AdaptiveLoRARank beside compiled blocks.

    Raises:
        UserError: Blocks of different ranks are compiled one by one, and again each time that ranks move.
    """
    if any(isinstance(callback, AdaptiveLoRARank) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise UserError(
            "model.compile: found AdaptiveLoRARank, after each of whose moves every block would be compiled "
            "for itself again; leave one of them out"
        )


def refuse_strategy(strategy: Strategy) -> None:
    """Refuse a strategy other than one device, DDP or ModelParallelStrategy.

    Raises:
        UserError: Says which one was found.
    """
    if isinstance(strategy, ModelParallelStrategy):
        return
    try:
        require_whole_model("VLMModule", strategy)
    except MisconfigurationException as error:
        raise UserError(str(error)) from None


def refuse_rate_finder(trainer: Trainer) -> None:
    """Refuse Lightning's search for a learning rate, by callback or by `Tuner.lr_find`.

    Raises:
        UserError: It judges the loss that `training_step` returns, which here is a sum over the tokens of a
            micro-batch, and gives all groups of parameters one rate, which the schedule would then replace.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                f"found {type(callback).__name__}: it gives all parameters one learning rate, judged by sums "
                "over a batch, and the schedule replaces it; leave it out, and compare a few short runs with "
                "rates such as 1e-5, 5e-5 and 2e-4 (model.optimizer, model.learning_rates)"
            )
