"""Compiled blocks give what the others do, are compiled once for all lengths, and keep names and hooks."""

import copy
import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models import blocks
from lightning_vlm.models.attention import varlen
from lightning_vlm.models.attention.lengths import varlen_lengths


@pytest.fixture
def graphs():
    """The graphs that a backend was given; it traces as the default one does, but compiles no kernels."""
    torch._dynamo.reset()
    counters.clear()
    found = []
    yield found
    torch._dynamo.reset()


def backend(graphs):
    def compile_graph(graph, inputs, **_):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    return compile_graph


@pytest.fixture
def pair(module, graphs):
    """A module, and the same with compiled blocks."""

    def make(family, **options):
        plain, compiled = (module(family, **options).train() for _ in range(2))
        blocks.compile_blocks(compiled.model, backend(graphs))
        return plain, compiled

    return make


def loss_and_gradients(module, batch):
    module.zero_grad()
    loss = module.loss_sums(batch).loss_sum
    loss.backward()
    return loss.detach(), {
        name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None
    }


def assert_same(plain, compiled, batch):
    (expected_loss, expected), (loss, found) = (loss_and_gradients(one, batch) for one in (plain, compiled))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("family", "adapt"), [("llava", "full"), ("smolvlm", "lora")])
def test_loss_and_gradients_are_the_same_and_lengths_compile_nothing(
    family, adapt, pair, graphs, batch_of, listed, words
):
    """The next test recomputes activations."""
    kinds = 4  # LLaVA's tower learns but for its last block, and one more has no gradient
    plain, compiled = pair(family, adapt=adapt)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for size in (2, 3):
        assert_same(plain, compiled, batch_of(plain, size=size))
        assert len(graphs) == kinds
    lengths, counts = set(), set()
    for count in (1, 3, 5, 8, 13, 21):
        talks = listed(words("So? " * (count + n), source=str(n)) for n in range(3))
        batch = batch_of(plain, talks)
        lengths.add(batch.inputs["input_ids"].shape[1])
        assert_same(plain, compiled, batch)
        counts.add(len(graphs))
    assert len(lengths) == 6
    assert len(counts) == 1  # without pictures nothing below the first LoRA has a gradient: perhaps one more
    assert counts <= {kinds, kinds + 1}
    assert not counters["graph_break"]


def test_with_lengths_of_sequences_too(pair, graphs, batch_of, monkeypatch):
    """As on a GPU: tower and language model call a kernel with `cu_seq_lens`; the one here is a mask."""
    monkeypatch.setattr(varlen, "kernel_takes", lambda *_: True)
    monkeypatch.setattr(varlen, "_kernel", masked_attention)
    plain, compiled = pair("qwen2_5_vl", adapt="full", gradient_checkpointing=True)
    counts = set()
    for size in (2, 3, 4, 5, 6, 7):
        batch = batch_of(plain, size=size)
        with varlen_lengths(compiled.model, *batch.sequences):
            found = loss_and_gradients(compiled, batch)
        expected = loss_and_gradients(plain, batch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        counts.add(len(graphs))
    assert len(counts) == 1
    assert counts <= {4, 5}
    assert not counters["graph_break"]


def masked_attention(query, key, value, ends, longest, causal, scaling, window):
    """The same result as the kernel's, in operations that can be traced."""
    place = torch.arange(len(query))
    sample = torch.bucketize(place, ends, right=True)
    seen = sample[:, None] == sample
    if causal:
        seen = seen & (place[:, None] >= place)
    heads = [one.transpose(0, 1)[None] for one in (query, key, value)]
    out = scaled_dot_product_attention(*heads, attn_mask=seen, scale=scaling, enable_gqa=True)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_generation_compiles_no_cache(family, pair, graphs, module, batch_of):
    plain, compiled = pair(family, generation={"max_new_tokens": 6})
    expected, found = (one.eval().predict_step(batch_of(one, predict=True), 0) for one in (plain, compiled))
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    of_tower = len(graphs)
    compiled.generation = {"max_new_tokens": 12}
    compiled.predict_step(batch_of(compiled, predict=True), 0)
    assert len(graphs) == of_tower


def test_later_hooks_are_called_and_a_copy_computes_with_its_own_weights(
    pair, graphs, batch_of, listed, words
):
    """A text needs no blocks of the tower, which would be compiled as well."""
    _, compiled = pair("llava", adapt="full")
    batch = batch_of(compiled, listed([words(), words("How many?", "Two.")]))
    before = loss_and_gradients(compiled, batch)[0]
    block = blocks.blocks_of(compiled.model)[-1]
    for inside in (block, block.mlp):
        handle = inside.register_forward_hook(lambda module, args, output: output * 2)
        assert loss_and_gradients(compiled, batch)[0] != before
        handle.remove()
        assert loss_and_gradients(compiled, batch)[0] == before
    twin = copy.deepcopy(compiled)
    count = len(graphs)
    with torch.no_grad():
        for weight in blocks.blocks_of(twin.model)[-1].parameters():
            weight.zero_()
    assert loss_and_gradients(twin, batch)[0] != before
    assert loss_and_gradients(compiled, batch)[0] == before
    assert len(graphs) == count


def test_stages_and_validation_are_as_without(graphs, module, make_quiet, monkeypatch):
    """A stage changes what trains, and a validation the mode, so that blocks are compiled again."""
    from lightning_vlm_callbacks import GradientMonitor, NonFiniteGuard, StagedUnfreezing

    from lightning_vlm.models import source

    monkeypatch.setattr(source, "compile_blocks", partial(blocks.compile_blocks, backend=backend(graphs)))
    ends = []
    for compiled in (False, True):
        one = module("llava", adapt={"projector": "full", "language": "full"}, compile=compiled)
        data = VLMDataModule(
            train=Drawn("train", size=8), val=Drawn("val", size=2), batch_size=2, processor=one.processor
        )
        callbacks = [StagedUnfreezing("projector-then-language"), GradientMonitor(), NonFiniteGuard()]
        make_quiet(max_steps=3, callbacks=callbacks).fit(one, data)
        ends.append({name: weight.detach().clone() for name, weight in one.named_parameters()})
        assert bool(graphs) == compiled
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiler_itself(module, batch_of):
    """One block is compiled for real."""
    plain, compiled = (module("smolvlm", adapt={"language.layers[-1:]": "full"}).train() for _ in range(2))
    block = blocks.blocks_of(compiled.model)[-1]
    block._compiled_call_impl = blocks.CompiledBlock(block, "inductor")
    assert_same(plain, compiled, batch_of(plain))


def test_refusals(module, make_quiet, monkeypatch):
    from lightning_vlm_callbacks import AdaptiveLoRARank

    with pytest.raises(UserError, match="no Triton that works on cuda"):
        blocks.refuse_without_compiler(torch.device("cuda"))
    one = module("smolvlm", compile=True)
    data = VLMDataModule(train=Drawn("train", size=2), processor=one.processor)
    with pytest.raises(UserError, match="compile: found AdaptiveLoRARank"):
        make_quiet(max_steps=1, callbacks=[AdaptiveLoRARank()]).fit(one, data)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"model\.compile: found no C\+\+ compiler"):
        make_quiet(max_steps=1).fit(one, data)
