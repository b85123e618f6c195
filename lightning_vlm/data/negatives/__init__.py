"""Questions about what isn't there, beside those that samples ask."""

from lightning_vlm.data.negatives.options import Negatives
from lightning_vlm.data.negatives.source import WithNegatives

__all__ = ["Negatives", "WithNegatives"]
