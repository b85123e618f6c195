"""What DDP needs of a run, and which of its options a `VLMModule` can't be right with."""

from typing import TYPE_CHECKING, Any

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vlm.errors import UserError
from lightning_vlm.training.stages.stage import Stage, stages_of

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


def settle_ddp(trainer: Trainer, module: "VLMModule") -> None:
    """Refuse options of DDP that would be wrong, and let it look for gradients that may not come.

    Without that look, a rank whose batch doesn't reach some parameter of `no_gradient_needed` never sends its
    gradient, and the others wait for it. Called before the strategy wraps the model.

    Args:
        trainer: Of a fit; with another strategy nothing happens.
        module: That it trains.

    Raises:
        UserError: Options that can't be right in this run.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    _refuse_hook(strategy)
    options = strategy._ddp_kwargs
    if options.get("static_graph"):
        _refuse_static_graph(trainer, module)
    elif module.no_gradient_needed:
        options["find_unused_parameters"] = True


def _refuse_hook(strategy: DDPStrategy) -> None:
    """Refuse a communication hook whose state a resumed run wouldn't have; say where a hook does nothing."""
    hook, state = strategy._ddp_comm_hook, strategy._ddp_comm_state
    if hook is None and strategy._ddp_comm_wrapper is None:
        return
    if state is not None and not isinstance(state, torch.distributed.ProcessGroup):
        raise UserError(
            f"trainer.strategy: found ddp_comm_state {type(state).__name__}; a hook with a state of its own "
            "can't be resumed, as no checkpoint keeps it; expected bf16_compress_hook without a state"
        )
    if strategy.root_device.type != "cuda":
        rank_zero_warn(
            "trainer.strategy: ddp_comm_hook has no effect here, as Lightning uses it on GPUs alone; "
            "gradients are sent whole"
        )


def _refuse_static_graph(trainer: Trainer, module: "VLMModule") -> None:
    """Refuse a graph that DDP takes for the same in each step, where it isn't."""
    if _most_micro_batches(trainer) > 1:
        raise UserError(
            "trainer.strategy: found static_graph with accumulated gradients; DDP fails where the first "
            "micro-batch of a static graph isn't sent; leave static_graph out, or set accumulation to 1"
        )
    if module.no_gradient_needed:
        raise UserError(
            "trainer.strategy: found static_graph with model.no_gradient_needed; whether these parameters "
            "get a gradient may change from batch to batch; leave static_graph out"
        )


def _most_micro_batches(trainer: Trainer) -> int:
    """The longest accumulation window of a run."""
    windows: list[Any] = [trainer.accumulate_grad_batches]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            windows += callback.scheduling.values()
    stages = stages_of(trainer)
    if stages is not None:
        windows += [stage.accumulate or 1 for stage in stages.stages if isinstance(stage, Stage)]
    return max(windows)
