"""Stopping early, and checkpoints from which a run continues exactly."""

from lightning_vlm_callbacks.early_stop_checkpoint.callback import EarlyStopCheckpoint

__all__ = ["EarlyStopCheckpoint"]
