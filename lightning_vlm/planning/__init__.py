"""What a run will need before anything is loaded, and which method, batch and precision fit into memory.

`choose` is for other commands: from a model's name and the lengths of its samples to a `Choice`.
"""

from lightning_vlm.planning.choice import Choice
from lightning_vlm.planning.choose import choose

__all__ = ["Choice", "choose"]
