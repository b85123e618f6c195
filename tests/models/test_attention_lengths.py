"""Language models that attend by lengths give what `sdpa` gives with masks, or for each sample alone."""

import json
import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models import blocks
from lightning_vlm.models.attention import varlen
from lightning_vlm.models.attention.lengths import takes_lengths, varlen_lengths
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.models.packing import why_not_packed
from tests.models.test_attention_families import FAMILIES
from tests.support import tiny
from tests.support.packed import WITHOUT_SDPA
from tests.support.packed import with_masks as masked
from tests.support.tiny.moe import MIXTURES

TAKES_LENGTHS = [family for family, row in FAMILIES.items() if not row.language]
WITH_SDPA = [family for family in TAKES_LENGTHS if family not in WITHOUT_SDPA]


def load(folder, attn_implementation="auto", checkpointing=False):
    loaded = load_model(folder, attn_implementation=attn_implementation, gradient_checkpointing=checkpointing)
    return loaded.model.train()


def text(size):
    torch.manual_seed(size)
    return torch.randint(5, 300, (1, size))


def padded_batch(folder, family, size=3):
    """Pictures with questions and answers, as rows of one length."""
    template = None if tiny.FAMILIES[family].template else "plain"
    processor = load_processor(folder, chat_template=template)
    data = VLMDataModule(train=Drawn("train", size=size), batch_size=size, shuffle=False, processor=processor)
    return next(iter(data.train_dataloader())).inputs


def sequences(real):
    """Ends of the tokens and of the padding of each row, laid end to end; and the longest."""
    flat = real.flatten().int()
    starts = torch.arange(flat.numel()) % real.shape[1] == 0
    cuts = (starts | (flat.diff(prepend=flat[:1]) != 0)).nonzero().flatten()
    ends = torch.cat([cuts, torch.tensor([flat.numel()])]).int()
    return ends, int(ends.diff().max())


def assert_same_gradients(model, plain):
    """To rounding: of a weight's gradient, or of all where its own is nothing but rounding."""
    expected = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (name not in expected), name
        if name in expected:
            error = (weight.grad - expected[name]).norm()
            assert error <= 1e-5 * expected[name].norm() + 1e-7 * whole, name


def spy(function, modules):
    """A function that remembers the modules that it is called for."""

    def call(module, *args, **kwargs):
        modules.append(module)
        return function(module, *args, **kwargs)

    return call


def packed(model, rows):
    """Samples of text as one row, its positions, and its lengths."""
    sizes = [row.shape[1] for row in rows]
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    if "mrope_section" in (getattr(model.get_decoder().config, "rope_parameters", None) or {}):
        positions = positions.expand(4, 1, -1)
    ends = torch.tensor([0, *sizes]).cumsum(0).int()
    return torch.cat(rows, 1), positions, ends, max(sizes)


def run(model, input_ids, **given):
    return model.base_model(input_ids=input_ids, use_cache=False, return_dict=True, **given).last_hidden_state


@pytest.mark.parametrize("family", TAKES_LENGTHS)
def test_packed_samples_of_text_are_as_alone(family, tiny_folder):
    model = load(tiny_folder(family))
    plain = load(tiny_folder(family), masked(family))
    rows = [text(size) for size in (7, 1, 12)]
    ids, positions, ends, longest = packed(model, rows)
    with torch.no_grad():
        expected = torch.cat([run(plain, row) for row in rows], 1)
        with varlen_lengths(model, ends, longest):
            found = run(model, ids, position_ids=positions)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = ids.clone()
    other[:, :7] = 5
    with torch.no_grad(), varlen_lengths(model, ends, longest):
        changed = run(model, other, position_ids=positions)
    if family in MIXTURES:  # where a token's row is among those of its expert depends on the others
        torch.testing.assert_close(changed[:, 7:], found[:, 7:], rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(changed[:, 7:], found[:, 7:])
    assert not torch.equal(changed[:, :7], found[:, :7])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", TAKES_LENGTHS)
def test_padded_rows_are_those_of_sdpa_with_a_mask(family, checkpointing, tiny_folder, monkeypatch):
    """Hidden states of real tokens, and all gradients; with pictures."""
    masks = []
    monkeypatch.setattr(varlen, "sdpa_attention_forward", spy(varlen.sdpa_attention_forward, masks))
    folder = tiny_folder(family)
    model, plain = load(folder, checkpointing=checkpointing), load(folder, masked(family))
    inputs = padded_batch(folder, family)
    real = inputs["attention_mask"].bool()
    assert not real.all()
    expected = run(plain, **inputs)[real]
    language = set(map(id, model.get_decoder().modules()))
    with varlen_lengths(model, *sequences(real)):
        found = run(model, **inputs)[real]
    # Backward, with its recomputation, is outside of the context.
    torch.manual_seed(0)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert not [module for module in masks if id(module) in language]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(model, plain)


class Watch(TorchDispatchMode):
    """Remembers what was computed: names of operations, and shapes of results."""

    def __init__(self):
        super().__init__()
        self.names = set()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.shapes.add(tuple(tensor.shape))
        return out


WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
"""Operations that wait for the device."""


@pytest.mark.parametrize("family", TAKES_LENGTHS)
def test_no_mask_is_made_and_the_device_isnt_asked(family, tiny_folder, monkeypatch):
    """With the kernel, whose place something of the same shape takes here, and without positions too."""
    model = load(tiny_folder(family))
    monkeypatch.setattr(varlen, "kernel_takes", lambda *_: True)
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, *_, **__: query * 1)
    ids, positions, ends, longest = packed(model, [text(size) for size in (7, 1, 12)])
    for given in ({"position_ids": positions}, {}):
        embedded = model.get_input_embeddings()(ids)
        with varlen_lengths(model, ends, longest), Watch() as watch:
            model.get_decoder()(inputs_embeds=embedded, use_cache=False, **given)
        assert not watch.names & WAITS
        assert not [shape for shape in watch.shapes if shape[-2:] == (20, 20)]
    with Watch() as watch:  # what this would see without lengths
        model.get_decoder()(inputs_embeds=embedded, use_cache=False, position_ids=positions)
    if family == "hunyuan_vl":
        # Of its four axes none is that of a mask: it never finds packed samples by itself.
        assert why_not_packed(model).endswith("no axis of positions that masks are made from")
        return
    assert watch.names & WAITS
    assert [shape for shape in watch.shapes if shape[-2:] == (20, 20)]


def test_lengths_reach_no_tower(tiny_folder, monkeypatch):
    folder = tiny_folder("qwen2_5_vl")
    model = load(folder)
    given = []
    in_turn = varlen.attend_in_turn
    monkeypatch.setattr(
        varlen, "attend_in_turn", lambda *args: given.append((args[3], args[4])) or in_turn(*args)
    )
    inputs = padded_batch(folder, "qwen2_5_vl")
    ends, longest = sequences(inputs["attention_mask"].bool())
    masks = []
    with varlen_lengths(model, ends, longest):
        model.get_decoder().register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
        run(model, **inputs)
    assert masks == [None]
    assert {causal for lengths, causal in given if lengths is ends} == {True}
    assert {causal for lengths, causal in given if lengths is not ends} == {False}


def test_compiled_adapted_and_checkpointed_blocks_take_lengths(tiny_folder):
    folder = tiny_folder("llava_onevision")

    def adapted(**options):
        module = VLMModule(str(folder), adapt={"language": "lora"}, **options)
        torch.manual_seed(0)
        module.configure_model()
        return module.train().model

    plain = adapted(attn_implementation="sdpa")
    model = adapted(gradient_checkpointing=True)
    # This backend traces as the default one does, without the minutes that a C++ compiler takes.
    blocks.compile_blocks(model, backend="eager")
    for size in (2, 3):
        inputs = padded_batch(folder, "llava_onevision", size)
        real = inputs["attention_mask"].bool()
        expected = run(plain, **inputs)[real]
        with varlen_lengths(model, *sequences(real)):
            found = run(model, **inputs)[real]
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert_same_gradients(model, plain)
        model.zero_grad(), plain.zero_grad()


def test_a_layer_without_lengths_is_refused(tiny_folder, monkeypatch):
    """One that keeps its arguments to itself would mix the samples of a row."""
    model = load(tiny_folder("llava"))
    layer = type(model.get_decoder().layers[0])
    forward = layer.forward
    monkeypatch.setattr(
        layer, "forward", lambda self, hidden, **kwargs: forward(self, hidden, **keep(kwargs))
    )

    def keep(kwargs):
        return {name: value for name, value in kwargs.items() if "cu_seq_lens" not in name}

    ids, positions, ends, longest = packed(model, [text(3), text(4)])
    message = "without which they would see one another"
    with pytest.raises(UserError, match=message), varlen_lengths(model, ends, longest):
        run(model, ids, position_ids=positions)
    monkeypatch.undo()
    assert takes_lengths(model)  # it goes on as before
    run(model, text(5))


def test_lengths_for_a_model_without_are_refused(tiny_folder):
    model = load(tiny_folder("gemma3"))
    lengths = varlen_lengths(model, torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match="expected a language model that has it"), lengths:
        pass


@pytest.mark.parametrize("family", WITH_SDPA)
def test_generate_is_that_of_sdpa_to_the_bit(family, tiny_folder):
    """Prompts of several lengths, with pictures, padded at their beginnings, and the cache."""
    folder = tiny_folder(family)
    template = None if tiny.FAMILIES[family].template else "plain"
    processor = load_processor(folder, chat_template=template)
    data = VLMDataModule(predict=Drawn("val", size=3), batch_size=3, processor=processor)
    prompts = next(iter(data.predict_dataloader())).prompts
    assert not prompts["attention_mask"].all()
    outs = []
    for attn_implementation in ("auto", "sdpa"):
        model = load(folder, attn_implementation).eval()
        outs.append(
            model.generate(
                **prompts, max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        )
    assert torch.equal(outs[0].sequences, outs[1].sequences)
    for found, expected in zip(outs[0].logits, outs[1].logits, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llava_next", {"sliding_window": 6}),
        ("llava_onevision", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
    ],
)
def test_sliding_windows_are_those_of_sdpa(family, settings, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder(family), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    written = json.loads(config.read_text())
    written["text_config"] |= settings
    written["text_config"].pop("layer_types", None)
    config.write_text(json.dumps(written))
    model, plain = load(config.parent), load(config.parent, "sdpa")
    wide = load(tiny_folder(family), "sdpa")
    assert takes_lengths(model)
    inputs = padded_batch(config.parent, family)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = run(plain, **inputs)[real]
        with varlen_lengths(model, *sequences(real)):
            found = run(model, **inputs)[real]
        assert torch.equal(run(model, **inputs), run(plain, **inputs))
        assert not torch.allclose(run(wide, **inputs)[real], expected, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
