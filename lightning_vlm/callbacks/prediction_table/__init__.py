"""`PredictionTable` shows the answers to the same few samples at each validation."""

from lightning_vlm.callbacks.prediction_table.callback import PredictionTable

__all__ = ["PredictionTable"]
