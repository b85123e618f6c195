"""Fine-tuning callbacks for any PyTorch Lightning project. Needs only torch and lightning.

The classes are imported when they are first asked for, so that this package can make torchvision importable
before Lightning imports it (see `lightning_vlm_callbacks.compat.torchvision`).
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_vlm_callbacks.compat import torchvision as _torchvision

if TYPE_CHECKING:
    from lightning_vlm_callbacks.adaptive_lora_rank import AdaptiveLoRARank
    from lightning_vlm_callbacks.adaptive_lora_rank.allocation import allocate_ranks
    from lightning_vlm_callbacks.early_stop_checkpoint import EarlyStopCheckpoint
    from lightning_vlm_callbacks.gradient_monitor import GradientMonitor
    from lightning_vlm_callbacks.gradnorm import GradNorm
    from lightning_vlm_callbacks.nonfinite_guard import NonFiniteGuard
    from lightning_vlm_callbacks.nonfinite_guard.bundle import NonFiniteBundle
    from lightning_vlm_callbacks.run_report import RunReport, record_event
    from lightning_vlm_callbacks.staged_unfreezing import StagedUnfreezing
    from lightning_vlm_callbacks.task_weights import TaskWeights
    from lightning_vlm_callbacks.throughput_monitor import BatchCounter, Counts, ThroughputMonitor

__all__ = [
    "AdaptiveLoRARank",
    "BatchCounter",
    "Counts",
    "EarlyStopCheckpoint",
    "GradNorm",
    "GradientMonitor",
    "NonFiniteBundle",
    "NonFiniteGuard",
    "RunReport",
    "StagedUnfreezing",
    "TaskWeights",
    "ThroughputMonitor",
    "allocate_ranks",
    "record_event",
]

_MODULES = {
    "AdaptiveLoRARank": "adaptive_lora_rank",
    "BatchCounter": "throughput_monitor",
    "Counts": "throughput_monitor",
    "EarlyStopCheckpoint": "early_stop_checkpoint",
    "GradNorm": "gradnorm",
    "GradientMonitor": "gradient_monitor",
    "NonFiniteBundle": "nonfinite_guard.bundle",
    "NonFiniteGuard": "nonfinite_guard",
    "RunReport": "run_report",
    "StagedUnfreezing": "staged_unfreezing",
    "TaskWeights": "task_weights",
    "ThroughputMonitor": "throughput_monitor",
    "allocate_ranks": "adaptive_lora_rank.allocation",
    "record_event": "run_report",
}
"""Public name -> the module that it is in."""

_torchvision.install()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        problem = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(problem, name=name, obj=sys.modules[__name__])  # so that Python says the nearest
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
