"""A ThroughputMonitor with a VLMModule: what it counts is what the batches hold, and no value on a device."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import ThroughputMonitor
from torch.utils._pytree import tree_map_only

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.training.throughput import VLMBatchCounter

PLAN = {"projector": "full", "language": {"lora": {"r": 2}}}


class Seen(Callback):
    """Adds up by the tensors of batches what the monitor counts by numbers."""

    def __init__(self):
        self.samples = self.tokens = self.learned = self.padding = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step > 1 or batch_idx > 1:  # after two micro-batches of one warm-up step
            mask = batch.inputs["attention_mask"]
            self.samples += len(mask)
            self.tokens += int(mask.sum())
            self.padding += int((mask == 0).sum())
            self.learned += int((batch.targets.weights > 0).sum())


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_it_counts_what_the_batches_hold(module, make_quiet, family):
    monitor, seen = ThroughputMonitor(warmup_steps=1, peak_tflops=1.0), Seen()
    data = VLMDataModule(train=Drawn("train", size=24), batch_size=3)
    make_quiet(max_epochs=1, accumulate_grad_batches=2, callbacks=[monitor, seen]).fit(
        module(family, adapt=PLAN), data
    )
    whole = monitor._ledger.whole
    found = [whole.number(name) for name in ("samples", "tokens", "learned", "padding")]
    assert found == [seen.samples, seen.tokens, seen.learned, seen.padding]
    assert seen.samples == 18
    assert whole.number("operations") > 2 * seen.tokens * 50_000
    assert monitor.summary.figures["mfu"] == monitor.summary.figures["tflops_per_device"]


def test_no_value_of_a_batch_is_read_after_the_first_picture(module, batch_of):
    """Tensors of the meta device have none."""
    one = module("qwen2_5_vl", adapt=PLAN)
    counter = VLMBatchCounter(one.model)
    batch = batch_of(one)
    batch = batch._replace(targets=one.targets(batch))
    counts, operations = counter.count(batch), counter.operations(batch)
    elsewhere = tree_map_only(torch.Tensor, lambda value: value.to("meta"), tuple(batch))
    elsewhere = type(batch)(*elsewhere)
    assert elsewhere.inputs["pixel_values"].is_meta
    assert (counter.count(elsewhere), counter.operations(elsewhere)) == (counts, operations)


def test_packed_rows_have_no_padding(module, make_quiet):
    monitor = ThroughputMonitor(warmup_steps=0)
    data = VLMDataModule(train=Drawn("train", size=24), batching="packed", max_tokens=300)
    make_quiet(max_epochs=1, callbacks=[monitor]).fit(module("qwen2_5_vl", adapt=PLAN), data)
    whole = monitor._ledger.whole
    assert (whole.number("samples"), whole.number("padding")) == (24, 0)
    assert whole.number("operations") > 0


def test_why_operations_are_unknown(module, make_quiet):
    monitor = ThroughputMonitor(warmup_steps=0)
    data = VLMDataModule(train=Drawn("train", size=4), batch_size=2)
    make_quiet(max_epochs=1, callbacks=[monitor]).fit(module("mllama", adapt=PLAN), data)
    assert monitor.summary.figures["tokens_per_second"] > 0
    assert monitor.summary.lines[1] == "no MFU: the model has no vision tower that can be called alone"
