"""Steps whose gradient isn't finite are skipped, and their cause is found."""

from lightning_vlm_callbacks.nonfinite_guard.callback import NonFiniteGuard

__all__ = ["NonFiniteGuard"]
