"""Bottleneck adapters: what they compute, that they are nothing at first, and get on with the rest."""

import copy
import json

import pytest
import torch
from lightning_vlm_callbacks.modes import set_modes
from torch import nn

from lightning_vlm.errors import UserError
from lightning_vlm.models.adapters.layers import (
    Bottleneck,
    adapters_of,
    load_adapters,
    save_adapters,
)
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.parts import find_parts, parameters_by_part
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from lightning_vlm.models.plan.methods import Adapter

SEQUENTIAL = {"adapter": {"reduction": 4}}
PARALLEL = {"adapter": {"reduction": 4, "kind": "parallel", "scale": 2.0}}
KINDS = {"sequential": SEQUENTIAL, "parallel": PARALLEL}


def adapted(folder, plan, **options):
    model = load_model(folder, **options).model
    torch.manual_seed(0)
    adapt(model, plan, find_parts(model))
    return model


def move(model, std=0.3):
    """As if trained: all that trains is somewhere else."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in sorted(trainable_names(model)):
            weight = model.get_parameter(name)
            weight += (std * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
    return model


def ids(model, rows=2, length=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 200, (rows, length), generator=generator)


def by_hand(adapter, x):
    """The same by the operations of torch, in float64."""
    weights = {name: w.detach().double() for name, w in adapter.named_parameters()}
    x = x.double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    x = x * weights["norm.weight"] + weights["norm.bias"]
    x = x @ weights["down.weight"].T + weights["down.bias"]
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    return adapter.settings.scale * (x @ weights["up.weight"].T + weights["up.bias"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_adds_and_where(kind, tiny_folder):
    """Sequential: to what the layer puts out, of that. Parallel: to what the MLP does, of its input."""
    plan = {"language.layers[0]": KINDS[kind]}
    model = move(adapted(tiny_folder("llava"), plan))
    layer = model.model.language_model.layers[0]
    adapter = layer.adapter_bottleneck
    place = layer if kind == "sequential" else layer.mlp
    met = {}
    place.register_forward_hook(lambda module, args, out: met.update(args=args, out=out))
    forward = place.forward
    place.forward = lambda *args, **kwargs: met.setdefault("bare", forward(*args, **kwargs))
    with torch.no_grad():
        model(input_ids=ids(model))
    x = met["bare"] if kind == "sequential" else met["args"][0]
    torch.testing.assert_close((met["out"] - met["bare"]).double(), by_hand(adapter, x), rtol=1e-4, atol=1e-5)
    assert (met["out"] - met["bare"]).abs().max() > 0.1


def test_widths_and_zero():
    adapter = Bottleneck(64, Adapter(reduction=16))
    assert adapter.down.weight.shape == (4, 64)
    assert Bottleneck(8, Adapter(reduction=16)).down.weight.shape == (1, 8)
    x = torch.randn(2, 3, 64, dtype=torch.bfloat16)
    assert adapter(x).dtype == torch.bfloat16
    assert not adapter(x).any()


def test_layers_that_give_tuples():
    class Layer(nn.Module):
        def forward(self, x):
            return x, "attention"

    layer, adapter = Layer(), Bottleneck(4, Adapter(reduction=2))
    nn.init.ones_(adapter.up.bias)
    layer.register_forward_hook(adapter.after)
    x = torch.randn(1, 4)
    assert torch.equal(layer(x)[0], x + 1)
    assert layer(x)[1] == "attention"


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("language", ["language_model.layers.0", "language_model.layers.1"]),
        ("language.layers", ["language_model.layers.0", "language_model.layers.1"]),
        ("language.layers[-1:]", ["language_model.layers.1"]),
        ("vision.layers[:2]", [f"vision_tower.encoder.layers.{n}" for n in (0, 1)]),
        (
            "*",
            [f"vision_tower.encoder.layers.{n}" for n in (0, 1, 2)]
            + ["language_model.layers." + n for n in "01"],
        ),
    ],
)
def test_layers_by_selector(selector, expected, tiny_folder):
    model = adapted(tiny_folder("llava"), {selector: "adapter"})
    assert list(adapters_of(model)) == [f"model.{name}" for name in expected]
    assert trainable_names(model) == {
        f"model.{name}.adapter_bottleneck.{weight}"
        for name in expected
        for weight in ("norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias")
    }


def test_names_class_and_parts_stay(tiny_folder):
    plain = load_model(tiny_folder("llava")).model
    model = adapted(tiny_folder("llava"), {"language": PARALLEL, "vision": SEQUENTIAL})
    assert type(model) is type(plain)
    assert plain.state_dict().keys() <= model.state_dict().keys()
    assert {name for name in model.state_dict() if "adapter_" not in name} == plain.state_dict().keys()
    assert find_parts(model) == find_parts(plain)
    assert sum(len(part) for part in parameters_by_part(model).values()) == len(list(model.parameters()))


def test_collected_hidden_states_are_what_adapters_made(tiny_folder):
    """LLaVA's pictures are hidden states that transformers collects with its own hooks, here older ones."""
    model = load_model(tiny_folder("llava")).model
    tower = model.model.vision_tower
    pixels = torch.randn(1, 3, 42, 42)
    tower(pixels, output_hidden_states=True)
    adapt(model, {"vision.layers[1]": SEQUENTIAL}, find_parts(model))
    move(model)
    met = []
    tower.encoder.layers[2].register_forward_pre_hook(lambda module, args: met.append(args[0]))
    found = tower(pixels, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(found, met[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(kind, tiny_folder):
    found = []
    for checkpointing in (False, True):
        plan = {"language": KINDS[kind], "vision.layers[:2]": KINDS[kind]}
        model = move(adapted(tiny_folder("llava"), plan, gradient_checkpointing=checkpointing))
        set_modes(model)
        inputs = ids(model, length=20)
        inputs[:, 1:10] = model.config.image_token_id
        torch.manual_seed(0)
        pixels = torch.randn(2, 3, 42, 42)
        model(input_ids=inputs, pixel_values=pixels, labels=inputs).loss.backward()
        found.append({name: model.get_parameter(name).grad for name in trainable_names(model)})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, found[1][name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_generation_with_a_cache_is_that_without(kind, tiny_folder):
    model = move(adapted(tiny_folder("llava"), {"language": KINDS[kind]}), std=1.0)
    options = {"max_new_tokens": 8, "do_sample": False}
    inputs = ids(model)
    answers = [model.generate(inputs, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], load_model(tiny_folder("llava")).model.generate(inputs, **options))


def test_a_copy_is_its_own(tiny_folder):
    model = move(adapted(tiny_folder("llava"), {"language": PARALLEL}))
    inputs = ids(model)
    before = model(input_ids=inputs).logits
    other = copy.deepcopy(model)
    assert torch.equal(other(input_ids=inputs).logits, before)
    move(model)
    assert torch.equal(other(input_ids=inputs).logits, before)
    assert not torch.equal(model(input_ids=inputs).logits, before)


def test_half_precision(tiny_folder):
    plan = {"language": SEQUENTIAL}
    plain = load_model(tiny_folder("llava"), dtype="bfloat16").model
    model = adapted(tiny_folder("llava"), plan, dtype="bfloat16")
    assert {model.get_parameter(name).dtype for name in trainable_names(model)} == {torch.float32}
    inputs = ids(model)
    assert torch.equal(model(input_ids=inputs).logits, plain(input_ids=inputs).logits)
    assert model(input_ids=inputs).logits.dtype == torch.bfloat16


def test_compiled(tiny_folder):
    model = move(adapted(tiny_folder("llava"), {"language.layers[0]": SEQUENTIAL}))
    inputs = ids(model)
    compiled = torch.compile(model.get_decoder(), backend="eager")
    assert torch.equal(
        compiled(input_ids=inputs).last_hidden_state, model.get_decoder()(input_ids=inputs).last_hidden_state
    )


def test_save_and_load(tiny_folder, tmp_path):
    plan = {
        "language.layers[0]": PARALLEL,
        "language.layers[1]": {"cross_modal_adapter": {"heads": 2}},
        "vision.layers[0]": SEQUENTIAL,
    }
    model = move(adapted(tiny_folder("llava"), plan))
    assert save_adapters(model, tmp_path / "out") == ["vlm_adapters.safetensors", "vlm_adapters.json"]
    again = load_model(tiny_folder("llava")).model
    load_adapters(again, tmp_path / "out")
    for name in trainable_names(model):
        assert torch.equal(again.get_parameter(name), model.get_parameter(name)), name
    inputs = ids(model)
    inputs[0, 2:6] = model.config.image_token_id  # whose features here are what the embeddings have for it
    assert torch.equal(again(input_ids=inputs).logits, model(input_ids=inputs).logits)
    saved = json.loads((tmp_path / "out/vlm_adapters.json").read_text())["adapters"]
    assert saved["model.language_model.layers.0"] == {"adapter": PARALLEL["adapter"]}
    assert save_adapters(load_model(tiny_folder("llava")).model, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_a_folder_of_something_else(tiny_folder, tmp_path):
    model = adapted(tiny_folder("llava"), {"language": SEQUENTIAL})
    save_adapters(model, tmp_path)
    other = load_model(tiny_folder("smolvlm")).model
    with pytest.raises(
        UserError, match=r"the model has no 'model\.language_model\.layers\.0'; give the base"
    ):
        load_adapters(other, tmp_path)
    assert not adapters_of(other)
    text = (tmp_path / "vlm_adapters.json").read_text()
    (tmp_path / "vlm_adapters.json").write_text(text.replace('"reduction": 4', '"reduction": 8'))
    with pytest.raises(UserError, match=r"6 weights don't fit: 'model\.language_model\.layers\.0\."):
        load_adapters(load_model(tiny_folder("llava")).model, tmp_path)
    with pytest.raises(UserError, match="found no adapters of ours"):
        load_adapters(other, tmp_path / "none")


def test_parallel_needs_an_mlp(tiny_folder):
    model = load_model(tiny_folder("llava")).model
    layer = model.model.language_model.layers[1]
    layer.other = layer.mlp
    del layer.mlp
    with pytest.raises(
        UserError, match=r"layers.1' has no MLP .* it has: self_attn, .*; use kind: sequential"
    ):
        adapt(model, {"language": PARALLEL}, find_parts(model))
    assert not adapters_of(model)
