"""What fits into memory, measured by real steps before training begins.

`meter` says how much there is and what a step takes, `trial` makes a step that leaves no trace, `search`
finds the largest batch from a few of them, `decide` makes the decisions, and `plan` says them and remembers
them for a resumed run. `out_of_memory` says which batch ran out all the same.
"""

from lightning_vlm.training.memory.out_of_memory import OutOfMemoryNote
from lightning_vlm.training.memory.plan import MemoryPlan

__all__ = ["MemoryPlan", "OutOfMemoryNote"]
