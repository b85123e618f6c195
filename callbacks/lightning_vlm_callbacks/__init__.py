"""Fine-tuning callbacks for any PyTorch Lightning project. Needs only torch and lightning."""

from lightning_vlm_callbacks.staged_unfreezing import StagedUnfreezing

__all__ = ["StagedUnfreezing"]
