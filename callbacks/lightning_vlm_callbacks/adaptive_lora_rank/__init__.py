"""LoRA's rank moves to the layers that need it."""

from lightning_vlm_callbacks.adaptive_lora_rank.callback import AdaptiveLoRARank

__all__ = ["AdaptiveLoRARank"]
