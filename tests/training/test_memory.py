"""Batches as large as fit, and gradient checkpointing where it must be: real steps, a pretended limit."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.failures.describe import explain
from lightning_vlm.training.memory.meter import AllocationCounter
from tests.support.ranks import DDP

MIB = 2**20
PLAN = {"projector": "full", "language": {"lora": {"r": 4, "dropout": 0.2}}}


class Watch(Callback):
    """The bytes, with gradients, and the tokens of each micro-batch, and the random numbers before it."""

    def __init__(self):
        self.bytes, self.tokens, self.chance = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.tokens.append(batch.inputs["input_ids"].numel())
        self.chance.append(float(torch.rand(())))
        self.before = sum(one.grad.nbytes for one in module.parameters() if one.grad is not None)
        self.counter = AllocationCounter(10**12)
        self.counter.__enter__()

    def on_after_backward(self, trainer, module):
        self.counter.__exit__(None, None, None)
        self.bytes.append(self.before + self.counter.peak)


@pytest.fixture(scope="module")
def fit(module, make_quiet):
    """Runs a fit; returns the module, the data and the callback that watched."""

    def run(limit=None, recompute=False, plan=PLAN, ckpt_path=None, family="shipped", trainer=None, **data):
        one = module(family, adapt=plan, gradient_checkpointing=recompute)
        one.callbacks.memory.limit = limit
        loaded = VLMDataModule(**{"train": Drawn(size=48), **data})
        watch = Watch()
        options = {"max_steps": 3, "callbacks": [watch], **(trainer or {})}
        torch.manual_seed(0)
        made = make_quiet(**options)
        made.fit(one, loaded, ckpt_path=ckpt_path)
        return one, loaded, watch

    return run


def weights(module):
    return {name: weight.detach() for name, weight in module.named_parameters() if weight.requires_grad}


def assert_equal(one, other):
    expected = weights(other)
    for name, weight in weights(one).items():
        assert torch.equal(weight, expected[name]), name


def memory_lines(caplog):
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("Memory")]


def test_auto_is_the_run_with_the_number_that_it_finds(fit, caplog):
    """Measuring leaves no trace: weights, chance and counts are those of a run with the number."""
    with caplog.at_level("INFO"):
        one, data, watch = fit(60 * MIB, batching="packed", max_tokens="auto")
    found, patches = data.batching.max_tokens, data.batching.max_patches
    assert one.callbacks.memory.settled["data.max_tokens"] == found
    (line,) = memory_lines(caplog)
    assert line.startswith(f"Memory: data.max_tokens auto is {found:,}")
    again, _, expected = fit(batching="packed", max_tokens=found, max_patches=patches)
    assert_equal(one, again)
    assert watch.tokens == expected.tokens
    assert watch.chance == expected.chance
    assert one.steps.tokens_seen == again.steps.tokens_seen
    assert max(watch.tokens) <= found


@pytest.fixture
def whole_epochs(monkeypatch):
    """As if an epoch may be a few steps, so that memory alone limits batches of few samples."""
    monkeypatch.setattr("lightning_vlm.training.memory.decide.STEPS_OF_EPOCH", 1)


@pytest.mark.usefixtures("whole_epochs")
@pytest.mark.parametrize(("batching", "accumulate"), [("packed", 2), ("tokens", 1)])
def test_real_steps_stay_below_the_limit_and_near_it(fit, batching, accumulate):
    """The steps of the run, counted as they run."""
    limit = 100 * MIB
    trainer = {"max_steps": 2, "accumulate_grad_batches": accumulate}
    data = {"train": Drawn(size=120), "batching": batching, "max_tokens": "auto"}
    _, data, watch = fit(limit, **data, trainer=trainer)
    assert 0.6 * limit < max(watch.bytes) < 0.9 * limit
    assert data.batching.max_tokens >= 256


@pytest.mark.usefixtures("whole_epochs")
def test_checkpointing_comes_only_where_memory_asks_for_it(fit, caplog):
    """With room for batches of enough tokens there is none; with less there is, and batches are larger."""
    auto = {"batching": "packed", "max_tokens": "auto", "train": Drawn(size=24)}
    auto["trainer"] = {"max_steps": 1}
    with caplog.at_level("INFO"):
        roomy, _, _ = fit(200 * MIB, "auto", **auto)
        tight, with_it, _ = fit(30 * MIB, "auto", **auto)
        _, without, _ = fit(30 * MIB, False, **auto)
    assert roomy.callbacks.memory.settled["model.gradient_checkpointing"] is False
    assert not any(part.gradient_checkpointing for part in recomputing(roomy))
    assert tight.callbacks.memory.settled["model.gradient_checkpointing"] is True
    assert any(part.gradient_checkpointing for part in recomputing(tight))
    assert with_it.batching.max_tokens > without.batching.max_tokens
    assert "model.gradient_checkpointing auto is true" in memory_lines(caplog)[1]


def recomputing(module):
    return [part for part in module.modules() if hasattr(part, "gradient_checkpointing")]


@pytest.mark.parametrize("data", [{"batch_size": 8}, {"batching": "packed", "max_tokens": 256}], ids=str)
def test_checkpointing_of_batches_that_are_given(fit, data, caplog):
    """On only where the largest batch doesn't fit without it; the run is then the run with it."""
    with caplog.at_level("INFO"):
        _, _, watch = fit(recompute="auto", **data)
        auto, _, _ = fit(max(watch.bytes), "auto", **data)
    given, _, less = fit(recompute=True, **data)
    off, on = memory_lines(caplog)
    assert off.startswith("Memory: model.gradient_checkpointing auto is false: a step of the largest batch")
    assert on.startswith(
        "Memory: model.gradient_checkpointing auto is true: a step of the largest batch takes "
    )
    assert "without it" in on
    assert auto.callbacks.memory.settled == {"model.gradient_checkpointing": True}
    assert_equal(auto, given)
    assert max(less.bytes) < 0.9 * max(watch.bytes)


class Save(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.usefixtures("whole_epochs")
def test_a_run_that_goes_on_keeps_its_numbers(fit, tmp_path, caplog):
    """On a machine with more memory too, or its batches would be others; and it is the uninterrupted run."""
    path = tmp_path / "middle.ckpt"
    auto = {"recompute": "auto", "batching": "packed", "max_tokens": "auto"}
    whole, data, _ = fit(30 * MIB, **auto, trainer={"max_steps": 4, "callbacks": [Watch(), Save(path, 2)]})
    with caplog.at_level("INFO"):
        resumed, again, _ = fit(500 * MIB, **auto, ckpt_path=path, trainer={"max_steps": 4})
    assert again.batching.budget == data.batching.budget
    assert resumed.callbacks.memory.settled == whole.callbacks.memory.settled
    assert_equal(resumed, whole)
    assert memory_lines(caplog)[-1].endswith("as in the run that goes on")


def test_what_does_not_fit_is_an_error_that_says_what_to_set(fit):
    with pytest.raises(UserError) as error:
        fit(8 * MIB, batching="packed", max_tokens="auto")
    first, second, third = str(error.value).splitlines()
    assert first.startswith("the longest sample doesn't fit into memory: ")
    assert second.startswith("a step may take 6 MiB: of 8 MiB 10% stay free, and 1 MiB are always in use")
    assert third.startswith("set model.gradient_checkpointing: true, or a smaller data.max_length, or ")
    with pytest.raises(UserError) as error:
        fit(10 * MIB, recompute="auto")
    first, _, third = str(error.value).splitlines()
    assert first.startswith("the largest batch doesn't fit into memory: ")
    assert third.startswith("set data.batch_size below 8, or a smaller data.max_length, or ")
    with pytest.raises(UserError, match="out of memory before the first step: the optimizer will need"):
        fit(10_000, batching="packed", max_tokens="auto")


def test_auto_needs_data_that_can_be_measured(module, make_quiet, batch_of):
    one = module("shipped", adapt=PLAN, gradient_checkpointing="auto")
    with pytest.raises(UserError, match="found auto without a VLMDataModule"):
        make_quiet(max_steps=1).fit(one, [batch_of(one)])


@pytest.mark.usefixtures("whole_epochs")
def test_all_ranks_take_what_the_least_of_them_can(fit, on_two_ranks):
    def on_a_rank():
        import os

        rank = int(os.environ["RANK"])
        data = {"batching": "packed", "train": Drawn(size=32)}
        trainer = {**DDP, "max_steps": 2}
        one, loaded, _ = fit((25, 200)[rank] * MIB, "auto", max_tokens="auto", **data, trainer=trainer)
        tokens, patches = loaded.batching.budget
        settled = one.callbacks.memory.settled["model.gradient_checkpointing"]
        again, _, _ = fit(None, settled, max_tokens=tokens, max_patches=patches, **data, trainer=trainer)
        return tokens, patches, settled, weights(one), weights(again)

    first, second = on_two_ranks(on_a_rank)
    assert first[:3] == second[:3]
    assert first[2] is True  # what the second rank alone would not need
    for name, weight in first[3].items():
        for other in (first[4], second[3], second[4]):
            assert torch.equal(weight, other[name]), name


class Fail(Callback):
    """Memory runs out in the backward of the second batch."""

    def on_before_backward(self, trainer, module, loss):
        if trainer.fit_loop.epoch_loop.batch_idx == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        (
            {"batch_size": 4},
            "lower data.max_length or data.batch_size (now 4; raise trainer.accumulate_grad_",
        ),
        (
            {"batching": "packed", "max_tokens": 256},
            "lower data.max_tokens (now 256) or data.max_length, or ",
        ),
    ],
)
def test_memory_that_runs_out_in_training_names_the_batch(fit, data, fix):
    watch = Watch()
    with pytest.raises(torch.OutOfMemoryError) as error:
        fit(**data, trainer={"callbacks": [watch, Fail()]})
    watch.counter.__exit__(None, None, None)
    first, second, third = explain(error.value).splitlines()
    assert first.startswith("out of memory on the GPU (2.00 GiB more were asked for) in training batch 1: ")
    assert " tokens" in first
    assert " patches; the process took " in first
    assert second.startswith("its longest samples are ")
    assert second.count(" tokens)") == 3
    assert third.startswith(fix)
    assert third.endswith("set model.gradient_checkpointing: true or model.adapt: qlora")
