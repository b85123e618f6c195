"""Parts of a model begin to train one after another."""

from lightning_vlm_callbacks.staged_unfreezing.callback import StagedUnfreezing

__all__ = ["StagedUnfreezing"]
