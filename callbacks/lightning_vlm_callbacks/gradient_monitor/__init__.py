"""Gradient norms and what is unusual about them."""

from lightning_vlm_callbacks.gradient_monitor.callback import GradientMonitor

__all__ = ["GradientMonitor"]
