"""How fast a run is, how much of the device it uses, and what keeps it from being faster."""

from lightning_vlm_callbacks.throughput_monitor.callback import ThroughputMonitor
from lightning_vlm_callbacks.throughput_monitor.counting import BatchCounter, Counts

__all__ = ["BatchCounter", "Counts", "ThroughputMonitor"]
