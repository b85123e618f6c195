"""A plan must train what it names, nothing else, and in every place that it names."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_vlm_callbacks.modes import set_modes
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.data.render.templates import chat_template
from lightning_vlm.errors import UserError
from lightning_vlm.models.experts import mixtures_of
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.models.parts import find_parts, parameters_by_part
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from tests.support import tiny
from tests.support.rendering import in_lists
from tests.support.tiny.moe import MIXTURES

FAMILIES = sorted(tiny.FAMILIES)
# Their features leave the tower one layer early.
EARLY = ("llava", "llava_next", "vipllava", "llava_next_video", "video_llava")
NOT_CHECKPOINTED = ("mllama", "perception_lm", "fast_vlm", "gemma3n")
"""Families whose vision keeps all activations, which is said at setup."""
Folder = Callable[[str], Path]


def adapted(folder: Path, plan: dict, **options: object) -> PreTrainedModel:
    model = load_model(folder, **options).model  # type: ignore[arg-type]
    adapt(model, plan, find_parts(model))
    return model


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def inputs(folder: Path) -> dict[str, torch.Tensor]:
    model, processor = load_model(folder).model, load_processor(folder)
    processor.chat_template = processor.chat_template or chat_template("plain", processor)
    words = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    chat = [{"role": "user", "content": words}, {"role": "assistant", "content": [words[1]]}]
    image = Image.effect_noise((60, 60), 80).convert("RGB")
    batch = processor(
        images=in_lists(processor, [[image]]), text=[processor.apply_chat_template(chat)], return_tensors="pt"
    )
    ids = batch["input_ids"]
    known = ids < model.get_output_embeddings().out_features  # Mllama's head doesn't know the picture's token
    return {**batch, "labels": ids.where(known, -100)}


@pytest.mark.parametrize("family", FAMILIES)
def test_full_frozen_and_unnamed(family: str, tiny_folder: Folder) -> None:
    model = adapted(tiny_folder(family), {"projector": "full", "vision": "frozen"})
    assert trainable_names(model) == set(parameters_by_part(model)["projector"])
    assert trainable_names(adapted(tiny_folder(family), {})) == set()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("part", ["vision", "language"])
def test_lora_takes_every_linear_of_its_part_and_none_outside(
    family: str, part: str, tiny_folder: Folder
) -> None:
    plain = load_model(tiny_folder(family)).model
    paths = find_parts(plain)[part]
    expected = {
        name
        for name, module in plain.named_modules()
        if type(module) is nn.Linear and any(name.startswith(f"{path}.") for path in paths)
    }
    if family == "gemma3n":  # whose code takes their weights without calling them
        expected = {name for name in expected if not name.endswith(("prediction_coefs", "correction_coefs"))}
    # FastVLM's tower mixes by convolutions, but for a layer of attention in each of its last two stages.
    assert len(expected) == 4 if (family, part) == ("fast_vlm", "vision") else len(expected) >= 8
    if family in MIXTURES and part == "language":  # PEFT wraps experts once for each of their parameters
        for mixture in mixtures_of(plain):
            path = f"{mixture.path}.{mixture.experts}"
            expected |= {path + ".base_layer" * depth for depth in range(len(mixture.weights))}
            expected.discard(mixture.router_path)
    model = adapted(tiny_folder(family), {part: "lora"})
    assert set(lora_layers(model)) == expected  # the head among `language` would be `lm_head`
    assert trainable_names(model) == {f"{name}.lora_{m}.default.weight" for name in expected for m in "AB"}


def test_names_that_occur_in_vision_and_language_stay_apart(tiny_folder: Folder) -> None:
    vision = {"lora": {"r": 2, "alpha": 6, "dropout": 0.5, "modules": ["q_proj"]}}
    language = {"lora": {"r": 4, "modules": ["q_proj", "v_proj"]}}
    layers = lora_layers(adapted(tiny_folder("llava"), {"vision.layers[:1]": vision, "language": language}))
    found = {
        name: (layer.r["default"], layer.scaling["default"], getattr(layer.lora_dropout["default"], "p", 0.0))
        for name, layer in layers.items()
    }
    assert found == {
        "model.vision_tower.encoder.layers.0.self_attn.q_proj": (2, 3.0, 0.5),
        **{
            f"model.language_model.layers.{n}.self_attn.{p}_proj": (4, 2.0, 0.0) for n in (0, 1) for p in "qv"
        },
    }


def test_a_name_that_ends_like_another_is_not_taken_for_it() -> None:
    """`a.q` must not match `b.a.q`, nor `axq`, neither for adapters nor for their ranks."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.axq = nn.Linear(4, 4)
            self.a = nn.ModuleDict({"q": nn.Linear(4, 4)})
            inner = {"q": nn.Linear(4, 4), "pool": nn.MultiheadAttention(4, 1)}  # never calls its out_proj
            self.b = nn.ModuleDict({"a": nn.ModuleDict(inner)})

        def get_output_embeddings(self) -> None:
            return None

    model = Own()
    adapt(model, {"a": {"lora": {"r": 3}}, "b": {"lora": {"r": 2}}}, {})  # type: ignore[arg-type]
    assert {name: layer.r["default"] for name, layer in lora_layers(model).items()} == {"a.q": 3, "b.a.q": 2}


def test_outputs_are_those_of_get_peft_model(tiny_folder: Folder) -> None:
    """The same adapters by PEFT's own front door: the same function, before and after the matrices move."""
    folder = tiny_folder("llava")
    ours = adapted(folder, {"language": {"lora": {"r": 4, "alpha": 12, "modules": ["q_proj", "down_proj"]}}})
    config = LoraConfig(r=4, lora_alpha=12, target_modules=r".*language_model.*\.(q_proj|down_proj)")
    theirs = get_peft_model(load_model(folder).model, config)
    assert {f"base_model.model.{name}" for name in trainable_names(ours)} == trainable_names(theirs)
    batch = inputs(folder)
    assert torch.equal(ours(**batch).logits, load_model(folder).model(**batch).logits)
    generator = torch.Generator().manual_seed(0)
    other = dict(theirs.named_parameters())
    for name in sorted(trainable_names(ours)):
        value = torch.randn(other[f"base_model.model.{name}"].shape, generator=generator)
        ours.get_parameter(name).data = value
        other[f"base_model.model.{name}"].data = value.clone()
    out = ours(**batch).logits
    assert torch.equal(out, theirs(**batch).logits)
    assert not torch.allclose(out, load_model(folder).model(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_adapter_learns_under_a_frozen_patch_embedding(
    family: str, checkpointing: bool, tiny_folder: Folder
) -> None:
    vision = "vision.layers[:-1]" if family in EARLY else "vision.layers"
    folder, plan = tiny_folder(family), {vision: "lora", "language": "lora"}
    model = adapted(folder, plan, gradient_checkpointing=checkpointing)
    calls = count_block_calls(model)
    reference = adapted(folder, plan)
    set_modes(model)
    generator = torch.Generator().manual_seed(0)
    for name in sorted(trainable_names(model)):  # B starts at zero, which would hide A's gradient
        value = torch.randn(model.get_parameter(name).shape, generator=generator) * 0.1
        model.get_parameter(name).data, reference.get_parameter(name).data = value, value.clone()
    batch = inputs(folder)
    model(**batch).loss.backward()
    reference(**batch).loss.backward()
    for name in trainable_names(model):
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, reference.get_parameter(name).grad)
    # Checkpointing runs each block again in the backward pass; Mllama's vision and timm's blocks have none.
    again = 2 if checkpointing else 1
    assert calls == {"vision.layers": 1 if family in NOT_CHECKPOINTED else again, "language.layers": again}


def count_block_calls(model: PreTrainedModel) -> dict[str, int]:
    """Counts runs of the first norm of the first block, in vision and language; of its first convolution
    where it has no norm (FastVLM's are folded into them)."""
    calls: dict[str, int] = {}
    for part in ("vision.layers", "language.layers"):
        block = model.get_submodule(find_parts(model)[part][0])[0]
        norms = [child for name, child in block.named_modules() if "norm" in name and "qk_norm" not in name]
        norm = (norms or [child for child in block.modules() if isinstance(child, nn.Conv2d)])[0]

        def count(module: nn.Module, args: tuple, part: str = part) -> None:
            calls[part] = calls.get(part, 0) + 1

        norm.register_forward_pre_hook(count)
    return calls


def test_frozen_tower_takes_no_part_in_the_backward_pass(tiny_folder: Folder) -> None:
    model = adapted(tiny_folder("llava"), {"projector": "full"}, gradient_checkpointing=True)
    set_modes(model)
    features = []
    model.model.vision_tower.register_forward_hook(lambda module, args, out: features.append(out[0]))
    model(**inputs(tiny_folder("llava"))).loss.backward()
    assert not features[0].requires_grad
    assert all(model.get_parameter(name).grad is not None for name in trainable_names(model))


def test_half_precision_model_gets_adapters_in_float32(tiny_folder: Folder) -> None:
    model = adapted(tiny_folder("llava"), {"language": "lora", "projector": "full"}, dtype="bfloat16")
    dtypes = {name: model.get_parameter(name).dtype for name in trainable_names(model)}
    assert {dtype for name, dtype in dtypes.items() if "lora" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if "lora" not in name} == {torch.bfloat16}
    batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs(tiny_folder("llava")).items()}
    assert model(**batch).logits.dtype == torch.bfloat16


OVERLAPS = [
    ({"language": "lora", "language.layers[-1:]": "full"}, "'language' and 'language.layers[-1:]' both name"),
    ({"vision": "frozen", "*.q_proj": "lora"}, "'vision' and '*.q_proj' both name"),
]
MISTAKES = [
    ({"language": "lorra"}, "plan['language']: found method 'lorra'; did you mean 'lora'?"),
    ({"language": {"lora": {"modules": ["q_prj"]}}}, "no linear layer 'q_prj'; did you mean 'q_proj'?"),
    ({"language.norm": "lora"}, "plan['language.norm']: found no linear layer for lora; use full"),
    ({"projector": "ia3"}, "plan['projector']: found no linear layer for ia3; use full"),
    ({"langage": "full"}, "plan: selector 'langage'"),
    ({"projector": "adapter"}, "plan['projector']: found no layers for adapter; name some"),
    ({"vision": "cross_modal_adapter"}, "layers.0' is outside the language model; use adapter there"),
    ({"language": {"cross_modal_adapter": {"heads": 3}}}, "heads=3 for a width of 16 (64 / reduction 4)"),
]


@pytest.mark.parametrize(("plan", "message"), OVERLAPS + MISTAKES)
def test_mistakes_are_named_and_leave_the_model_as_it_was(
    plan: dict, message: str, tiny_folder: Folder
) -> None:
    model = load_model(tiny_folder("llava")).model
    names = trainable_names(model)
    with pytest.raises(UserError, match=re.escape(message)):
        adapt(model, plan, find_parts(model))
    assert trainable_names(model) == names


def test_adapting_twice_is_refused(tiny_folder: Folder) -> None:
    for method in ("lora", "adapter"):
        model = adapted(tiny_folder("llava"), {"language": method})
        with pytest.raises(UserError, match="has adapters already"):
            adapt(model, {"vision": "lora"}, find_parts(model))


def test_tied_head(tiny_folder: Folder) -> None:
    folder = tiny_folder("qwen2_5_vl")
    shared = "model.language_model.embed_tokens.weight"
    assert trainable_names(adapted(folder, {"head": "full"})) == {shared}
    assert shared in trainable_names(adapted(folder, {"language": "full", "head": "full"}))
    assert shared not in trainable_names(adapted(folder, {"language": "lora", "head": "frozen"}))
    with pytest.raises(UserError, match=r"'language' and 'head' both name .*tied to the token embeddings"):
        adapted(folder, {"language": "full", "head": "frozen"})
    with pytest.raises(UserError, match=r"plan\['head'\]: the head shares its weight"):
        adapted(folder, {"head": "lora"})
    assert len(lora_layers(adapted(tiny_folder("llava"), {"head": "lora"}))) == 1


def test_quantised_weights_cannot_train_in_full(tiny_folder: Folder) -> None:
    model = load_model(tiny_folder("llava")).model
    weight = model.model.language_model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False)
    weight.data = weight.data.to(torch.uint8)  # as bitsandbytes keeps 4-bit weights
    with pytest.raises(UserError, match=r"quantised weights \(.*up_proj"):
        adapt(model, {"language": "full"}, find_parts(model))


def test_modes_follow_what_trains(tiny_folder: Folder) -> None:
    plan = {"language.layers[-1:]": {"lora": {"modules": ["q_proj"], "dropout": 0.1}}}
    model = adapted(tiny_folder("llava"), plan)
    last = model.model.language_model.layers[1]
    last.self_attn.register_module("own_dropout", nn.Dropout(0.5))
    model.model.vision_tower.register_module("own_dropout", nn.Dropout(0.5))
    model.train()
    set_modes(model)
    modes = {name: module.training for name, module in model.named_modules()}
    path = "model.language_model.layers.1.self_attn"
    for name in ("", "model", "model.language_model", path, f"{path}.q_proj", f"{path}.own_dropout"):
        assert modes[name], name
    assert modes[f"{path}.q_proj.lora_dropout.default"]
    for name, module in model.named_modules():
        if (
            ".vision_tower" in name
            or "projector" in name
            or ".layers.0" in name
            or name.endswith("base_layer")
        ):
            assert not module.training, name
    assert not modes["model.vision_tower.own_dropout"]
    assert not modes[f"{path}.k_proj"]
    model.requires_grad_(False)
    set_modes(model)
    assert not any(module.training for module in model.modules())
