"""Fine-tuning callbacks for any PyTorch Lightning project. Needs only torch and lightning."""

from lightning_vlm_callbacks.adaptive_lora_rank import AdaptiveLoRARank
from lightning_vlm_callbacks.early_stop_checkpoint import EarlyStopCheckpoint
from lightning_vlm_callbacks.gradient_monitor import GradientMonitor
from lightning_vlm_callbacks.gradnorm import GradNorm
from lightning_vlm_callbacks.nonfinite_bundle import NonFiniteBundle
from lightning_vlm_callbacks.nonfinite_guard import NonFiniteGuard
from lightning_vlm_callbacks.rank_allocation import allocate_ranks
from lightning_vlm_callbacks.staged_unfreezing import StagedUnfreezing
from lightning_vlm_callbacks.task_weights import TaskWeights

__all__ = [
    "AdaptiveLoRARank",
    "EarlyStopCheckpoint",
    "GradNorm",
    "GradientMonitor",
    "NonFiniteBundle",
    "NonFiniteGuard",
    "StagedUnfreezing",
    "TaskWeights",
    "allocate_ranks",
]
