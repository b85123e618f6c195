"""The drawn data: pictures with conversations for five tasks, made from a seed."""

from lightning_vlm.data.drawn.source import TASKS, Drawn

__all__ = ["TASKS", "Drawn"]
