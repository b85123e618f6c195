"""What is different where weights lie over several ranks (FSDP2)."""

import torch.distributed
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_vlm_callbacks.shards import is_spread

__all__ = ["check_sharded", "names_on_all_ranks"]

_MAX_NAMES = 3


def check_sharded(trainer: Trainer, on_nonfinite: str) -> None:
    """Say at setup what can't be done under FSDP2.

    Raises:
        MisconfigurationException: It is `rollback`.
    """
    if not is_spread(trainer.strategy):
        return
    if on_nonfinite == "rollback":
        raise MisconfigurationException(
            "NonFiniteGuard: found on_nonfinite='rollback' with ModelParallelStrategy; it goes back to "
            "copies of whole weights, of which a rank holds pieces; expected skip or stop"
        )
    rank_zero_info(
        "NonFiniteGuard: with ModelParallelStrategy bad steps are skipped on all ranks and the parameters "
        "with bad gradients named, but no step is run again, as one rank alone can't run the model; so "
        "there are no reports and bundles"
    )


def names_on_all_ranks(names: list[str]) -> str:
    """The parameters whose gradient is bad on some rank, as the end of a line. All ranks must call it."""
    every: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, names)
    found = list(dict.fromkeys(name for of_rank in every for name in of_rank))
    if not found:
        return ""
    more = f", ... ({len(found)} in all)" if len(found) > _MAX_NAMES else ""
    return f"; bad gradients in {', '.join(found[:_MAX_NAMES])}{more}"
