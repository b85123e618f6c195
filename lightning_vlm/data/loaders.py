"""The loader of a split: which samples share a batch, and who renders them."""

from typing import TYPE_CHECKING

from lightning_vlm_callbacks.run_length import longest_window

from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.batch.sampler import ResumableBatchSampler, in_order, ranks_of

if TYPE_CHECKING:
    from lightning_vlm.data.datamodule import VLMDataModule


def make_loader(data: "VLMDataModule", split: str, *, learn: bool, prompts: bool) -> ResumableLoader:
    """The loader of a split of a data module.

    Args:
        data: The data module.
        split: Its name.
        learn: As of `RenderedBatches`.
        prompts: As of `RenderedBatches`.
    """
    loader = ResumableLoader(
        data.rendered(split, learn=learn, prompts=prompts),
        sampler=_sampler(data, split),
        batch_size=None,
        num_workers=data.num_workers,
        persistent_workers=data.num_workers > 0,
        pin_memory=bool(data.trainer and data.trainer.strategy.root_device.type == "cuda"),
    )
    if split == "train" and data.stages is not None:
        data.stages.name_loader(loader)
    return loader


def _sampler(data: "VLMDataModule", split: str) -> ResumableBatchSampler:
    ranks = ranks_of(data.trainer)
    if split != "train":
        order = data.eval_batch_size, data.seed, *ranks
        return in_order(data.given[split], data.samples(split), *order)
    source = data.measured()
    by_task = (data.task_table, data.sampling) if data.sampling else None
    ahead = 2 * data.num_workers + 1 + (longest_window(data.trainer) if data.trainer else 1)
    return data.batching.sampler(
        len(source),
        data.batch_size,
        data.shuffle,
        data.seed,
        *ranks,
        by_task=by_task,
        ahead=ahead,
        times=source.times,
        windows=source.windows,
    )
