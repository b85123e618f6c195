"""Adapters of ours beside PEFT's: layers that begin as the identity."""

from lightning_vlm.models.adapters.layers import load_adapters

__all__ = ["load_adapters"]
