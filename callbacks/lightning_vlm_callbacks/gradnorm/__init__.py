"""Weights of tasks that balance their training rates."""

from lightning_vlm_callbacks.gradnorm.callback import GradNorm

__all__ = ["GradNorm"]
