"""How many floating point operations a batch needs, counted on the host from its sizes."""

from lightning_vlm.models.operations.counter import OperationCounter

__all__ = ["OperationCounter"]
