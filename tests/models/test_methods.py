"""Each method on each family: the base model at the start; then what is planned moves and nothing else."""

import copy

import pytest
import torch
from lightning_vlm_callbacks.modes import set_modes
from peft import IA3Config, LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from tests.support import tiny
from tests.support.pictures import ONE_PICTURE
from tests.support.rendering import in_lists
from tests.support.tiny.moe import MIXTURES

# Their features leave the tower one layer early.
EARLY = ("llava", "llava_next", "vipllava", "llava_next_video", "video_llava")
FUSED = (
    "perception_lm",
    "got_ocr2",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5_moe",
    "ernie4_5_vl_moe",
    "qwen3_5",
    "glm4v",
    "glm46v",
    "glm4v_moe",
    "glm_ocr",
    "blip-2",
    "instructblip",
    "gemma4",  # its tower's layers are wrapped, so that none has a name that ia3 knows
    "gemma4_31b",
    "exaone4_5",
    "fast_vlm",
)  # queries, keys and values of the tower are one layer
METHODS = {  # of language and vision; LoRA as such is in test_adapt.py
    "dora": ({"lora": {"dora": True, "rslora": True, "init": "gaussian"}},) * 2,
    "ia3": ("ia3", "ia3"),
    "adapter": ({"adapter": {"reduction": 8}}, {"adapter": {"reduction": 8, "kind": "parallel"}}),
    "adapter, parallel": ({"adapter": {"kind": "parallel"}}, "adapter"),
    "cross_modal": ("cross_modal_adapter", "frozen"),
}
CONVOLUTIONS = ("gemma3n", "fast_vlm")
"""Families whose tower is one of convolutions, with channels before places: its layers have no adapters."""
REFUSED = {
    ("cross_modal", "mllama"): "use lora or adapter",
    ("cross_modal", "granite4_vision"): "in several layers and not before the first; use lora or adapter",
    ("cross_modal", "gemma3n"): "several streams of hidden states; use lora or adapter",
    ("cross_modal", "kosmos-2"): "has no token that stands for a picture; use lora or adapter",
    ("adapter, parallel", "blip-2"): "has no MLP .* for a parallel adapter.*; use kind: sequential",
}


@pytest.fixture(scope="module")
def batch_of(processor_of, tiny_folder):
    """A question and an answer with a picture, and what the base model makes of them."""
    made = {}

    def make(family):
        if family not in made:
            processor = processor_of(family, None if tiny.FAMILIES[family].template else "plain")
            words = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
            chat = [{"role": "user", "content": words}, {"role": "assistant", "content": [words[1]]}]
            image = Image.linear_gradient("L").resize((60, 60)).convert("RGB")
            text = processor.apply_chat_template(chat)
            batch = dict(processor(images=in_lists(processor, [[image]]), text=[text], return_tensors="pt"))
            batch.pop("labels", None)  # PaliGemma's processor has its own idea of them
            model = load_model(tiny_folder(family)).model
            known = batch["input_ids"] < model.get_output_embeddings().out_features
            batch["labels"] = batch["input_ids"].where(known, -100)
            with torch.no_grad():
                made[family] = batch, model(**batch).logits
        return made[family]

    return make


def adapted(folder, plan, seed=0, **options):
    model = load_model(folder, **options).model
    torch.manual_seed(seed)
    adapt(model, plan, find_parts(model))
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_starts_as_the_base_and_moves_what_is_planned(family, method, tiny_folder, batch_of):
    batch, expected = batch_of(family)
    language, vision = METHODS[method]
    if method == "ia3" and family in FUSED:
        vision = "frozen"
    if method.startswith("adapter") and family in CONVOLUTIONS:
        with pytest.raises(UserError, match=r"'model.vision_tower.*' is made of convolutions.*; use lora"):
            adapted(tiny_folder(family), {"vision.layers": vision})
        vision = "frozen"
    if method == "dora" and family in MIXTURES:
        language = {"lora": {**language["lora"], "expert_r": 0}}
    plan = {"language": language, "vision.layers[:-1]" if family in EARLY else "vision.layers": vision}
    if (method, family) in REFUSED:
        with pytest.raises(UserError, match=REFUSED[method, family]):
            adapted(tiny_folder(family), plan)
        return
    model = adapted(tiny_folder(family), plan)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    planned = trainable_names(model)
    set_modes(model)
    rate = 1e-4 if family == "gemma4_31b" else 1e-3
    optimizer = torch.optim.AdamW([model.get_parameter(name) for name in planned], lr=rate, weight_decay=0)
    losses = []
    for _ in range(3):  # what starts at zero lets nothing before it move in the first
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == planned


@pytest.mark.parametrize("family", [family for family in FUSED if "gemma4" not in family])
def test_ia3_on_fused_keys_and_values_is_refused(family, tiny_folder):
    out = "projection" if family in ONE_PICTURE else "proj"
    for value in ("ia3", {"ia3": {"modules": ["qkv", out]}}):
        with pytest.raises(UserError, match=r"plan\['vision'\]: ia3 scales .* but 'qkv' .* use lora there"):
            adapted(tiny_folder(family), {"vision": value})
    adapted(tiny_folder(family), {"vision": {"ia3": {"modules": [out]}}})


LORA = ["model.language_model.layers.0.self_attn.q_proj", "model.language_model.layers.1.mlp.down_proj"]
VARIANTS = {
    "rslora": ({"rslora": True, "alpha": 6}, {"use_rslora": True, "lora_alpha": 6}),
    "dora": ({"dora": True}, {"use_dora": True}),
    "gaussian": ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
    "orthogonal": ({"init": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
    "pissa": ({"init": "pissa"}, {"init_lora_weights": "pissa"}),
    "pissa, fast": ({"init": "pissa_niter_4"}, {"init_lora_weights": "pissa_niter_4"}),
    "olora": ({"init": "olora", "alpha": 4}, {"init_lora_weights": "olora", "lora_alpha": 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_lora_is_what_get_peft_model_makes(variant, tiny_folder, batch_of):
    """The start, the output once all has moved, and every gradient: bit for bit."""
    keys, theirs = VARIANTS[variant]
    plan = {name: {"lora": {"r": 4, **keys}} for name in LORA}
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "|".join(LORA), **theirs})
    same_as_peft(tiny_folder("llava"), plan, config, batch_of("llava"))


def test_ia3_is_what_get_peft_model_makes(tiny_folder, batch_of):
    """Keys and values scaled on their way out, and what goes into the MLP's last layer, as in the paper."""
    inside = r".*language_model.*\."
    config = IA3Config(
        target_modules=rf"{inside}(k_proj|v_proj|down_proj)", feedforward_modules=rf"{inside}down_proj"
    )
    same_as_peft(tiny_folder("llava"), {"language": "ia3"}, config, batch_of("llava"))


def test_ia3_by_names_of_its_own(tiny_folder, batch_of):
    config = IA3Config(
        target_modules=r".*language_model.*\.(q_proj|up_proj)", feedforward_modules=r".*\.up_proj"
    )
    plan = {"language": {"ia3": {"modules": ["q_proj", "up_proj"], "feedforward": ["up_proj"]}}}
    same_as_peft(tiny_folder("llava"), plan, config, batch_of("llava"))
    plan["language"]["ia3"]["feedforward"] = ["down_proj"]
    with pytest.raises(UserError, match="ia3 feedforward 'down_proj', which isn't in modules"):
        adapted(tiny_folder("llava"), plan)


def same_as_peft(folder, plan, config, batch):
    inputs, base = batch
    ours = adapted(folder, plan)
    torch.manual_seed(0)
    theirs = get_peft_model(load_model(folder).model, config)
    names = {f"base_model.model.{name}": name for name in trainable_names(ours)}
    assert trainable_names(theirs) == set(names)
    other = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, other[f"base_model.model.{name}"]), name
    torch.testing.assert_close(ours(**inputs).logits, base, rtol=0, atol=2e-6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in sorted(names):
            noise = 0.1 * torch.randn(other[name].shape, generator=generator)
            other[name] += noise
            ours.get_parameter(names[name]).add_(noise)
    out, reference = ours(**inputs), theirs(**inputs)
    assert torch.equal(out.logits, reference.logits)
    assert not torch.allclose(out.logits, base, atol=1e-3)
    out.loss.backward()
    reference.loss.backward()
    for name, own in names.items():
        assert ours.get_parameter(own).grad.any(), name
        assert torch.equal(ours.get_parameter(own).grad, other[name].grad), name
    merged = copy.deepcopy(ours)
    for module in merged.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    torch.testing.assert_close(merged(**inputs).logits, out.logits, rtol=1e-4, atol=1e-5)
    plain = theirs.merge_and_unload()
    torch.testing.assert_close(plain(**inputs).logits, out.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_what_is_left_of_the_base_is_the_same_each_time(init, tiny_folder):
    """A checkpoint has A and B alone: whatever chance says, the rest must come out the same, bit for bit."""
    plan = {"language": {"lora": {"r": 4, "init": init}}}
    first, second = (adapted(tiny_folder("llava"), plan, seed) for seed in (1, 2))
    base = load_model(tiny_folder("llava")).model.state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj"
    assert not torch.equal(first.get_submodule(name).base_layer.weight, base[f"{name}.weight"])
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_which_init_leaves_chance_alone(tiny_folder):
    plan = {"language": {"lora": {"r": 4, "init": "pissa_niter_4"}}}
    adapted(tiny_folder("llava"), plan, seed=5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    one, two = (adapted(tiny_folder("llava"), {"language": "lora"}, seed) for seed in (1, 2))
    name = "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert not torch.equal(one.get_parameter(name), two.get_parameter(name))


def test_half_precision_starts_as_the_base(tiny_folder, batch_of):
    """DoRA and PiSSA but for what 16 bits leave of them; and all adapters are float32."""
    batch = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in batch_of("llava")[0].items()
    }
    plain = load_model(tiny_folder("llava"), dtype="bfloat16").model(**batch).logits
    rounded = ({"lora": {"dora": True}}, {"lora": {"init": "pissa"}})
    exact = ("lora", "ia3", "adapter", {"adapter": {"kind": "parallel"}}, "cross_modal_adapter")
    for value in exact + rounded:
        model = adapted(tiny_folder("llava"), {"language": value}, dtype="bfloat16")
        assert {model.get_parameter(name).dtype for name in trainable_names(model)} == {torch.float32}
        tolerance = 0.02 if value in rounded else 0
        torch.testing.assert_close(model(**batch).logits, plain, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", *METHODS])
def test_on_quantised_weights(kind, method, tiny_folder, batch_of):
    """The quantised base model at the start; every adapter learns."""
    value = METHODS[method][0] if method in METHODS else method
    batch, quantization = batch_of("llava")[0], Quantization(kind)
    plain = load_model(tiny_folder("llava"), quantization=quantization).model(**batch).logits
    if (kind, method) == ("int8", "dora"):
        with pytest.raises(UserError, match=r"found int8 weights \(.*q_proj\); DoRA .* quantise to nf4"):
            adapted(tiny_folder("llava"), {"language": value}, quantization=quantization)
        return
    model = adapted(tiny_folder("llava"), {"language": value}, quantization=quantization)
    assert torch.equal(model(**batch).logits, plain)
    with torch.no_grad():
        for name in trainable_names(model):  # what starts at zero lets no gradient past
            model.get_parameter(name).add_(0.01)
    set_modes(model)
    model(**batch).loss.backward()
    for name in trainable_names(model):
        assert model.get_parameter(name).dtype == torch.float32
        assert model.get_parameter(name).grad.any(), name


@pytest.mark.parametrize("init", ["pissa", "olora", "orthogonal"])
def test_what_reads_the_weights_is_refused_on_quantised_ones(init, tiny_folder):
    model = load_model(tiny_folder("llava"), quantization=Quantization("nf4")).model
    plan = {"*.q_proj": {"lora": {"init": init, "r": 2}}}  # of which no selector tells that it is quantised
    with pytest.raises(UserError, match=rf"found nf4 weights .*; init: {init} needs 16- or 32-bit"):
        adapt(model, plan, find_parts(model))
