"""The drawn data: pictures with conversations for five tasks, and videos for three, made from a seed."""

from lightning_vlm.data.drawn.source import TASKS, Drawn
from lightning_vlm.data.drawn.videos import DrawnVideos

__all__ = ["TASKS", "Drawn", "DrawnVideos"]
