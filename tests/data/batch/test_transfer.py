"""A batch reaches a GPU by copies that nothing waits for: from pinned memory, and not blocking."""

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import DataError


def tensors_of(batch):
    return [leaf for leaf in tree_leaves(batch._asdict()) if isinstance(leaf, torch.Tensor)]


def test_all_tensors_are_pinned_and_sent_without_waiting(model_folder, monkeypatch):
    """Pinning needs a GPU, so it is only noted here; what calls it is PyTorch's own code of its loader."""
    module = VLMModule(str(model_folder("qwen2_5_vl")))
    data = VLMDataModule(train=Drawn("train", size=2), batch_size=2, processor=module.processor)
    batch = next(iter(data.train_dataloader()))
    batch = batch._replace(
        targets=module.targets(batch), skipped=[DataError("a.jsonl:1", "image", "nothing", "a picture")]
    )

    pinned, sent = [], []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self.data_ptr()) or self.clone()
    )
    found = pin_memory(batch)
    assert type(found) is Batch
    assert pinned == [one.data_ptr() for one in tensors_of(batch)]
    for one, other in zip(tensors_of(found), tensors_of(batch), strict=True):
        assert torch.equal(one, other)
    assert (found.skipped, found.tasks, found.questions) == (batch.skipped, batch.tasks, batch.questions)

    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *given, **how: sent.append(how) or to(self, *given, **how)
    )
    moved = move_data_to_device(found, torch.device("meta"))
    assert sent == [{"non_blocking": True}] * len(pinned)
    assert {one.device.type for one in tensors_of(moved)} == {"meta"}
