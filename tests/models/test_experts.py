"""Experts of a mixture: LoRA on the weights that they have in one tensor, and routers that stay frozen."""

import pytest
import torch
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import describe_fixed, lora_layers, set_ranks
from lightning_vlm_callbacks.gradnorm.layer import shared_layer
from peft import get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForImageTextToText

from lightning_vlm.errors import UserError
from lightning_vlm.models.experts import expert_parameters, mixtures_of, router_parameters, router_reader
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.loading.quantize import Quantization, chosen_layers
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from lightning_vlm.models.plan.table import plan_rows
from tests.support.tiny.moe import MIXTURES

LORA = {"language": {"lora": {"r": 6, "alpha": 9}}}
IDS = torch.tensor([[5, 9, 200, 7, 31, 8, 90, 41, 300, 17]])


def adapted(folder, plan):
    model = load_model(folder).model
    torch.manual_seed(0)
    adapt(model, plan, find_parts(model))
    return model


def moved(model):
    """The model in float64, with LoRA that has an effect."""
    model.double().set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in sorted(trainable_names(model)):
            weight = model.get_parameter(name)
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return model


@pytest.mark.parametrize("family", MIXTURES)
def test_lora_adds_b_a_to_each_expert(family, tiny_folder):
    """Outputs, and gradients of A and B, against weights that are put together by hand, in float64."""
    model = moved(adapted(tiny_folder(family), LORA))
    (path,) = find_parts(model)["language"]
    decoder = model.get_submodule(path)
    hidden = torch.randn(1, 10, decoder.config.hidden_size, dtype=torch.float64)
    decoder(inputs_embeds=hidden, use_cache=False).last_hidden_state.square().sum().backward()
    plain = load_model(tiny_folder(family)).model.double()
    plain.set_experts_implementation("eager")
    plain_decoder = plain.get_submodule(path)
    weights = {name: weight.detach() for name, weight in plain_decoder.named_parameters()}
    a_and_b = {}
    number, top_k = 4, mixtures_of(model)[0].top_k
    rank = max(6 // top_k, 1)
    for name, weight in expert_parameters(plain).items():
        inputs_first = getattr(plain.get_submodule(name.rpartition(".")[0]), "is_transposed", False)
        a, b = (model.get_parameter(one) for one in adapters_of(model, name))
        a_and_b[name] = (a, b, a.detach().clone().requires_grad_(), b.detach().clone().requires_grad_())
        a, b = a_and_b[name][2:]
        assert a.shape[0] == b.shape[1] == number * rank
        changed = []
        for expert in range(number):
            change = 9 / 6 * b[:, expert::number] @ a[expert * rank : (expert + 1) * rank]
            changed.append(weight[expert].detach() + (change.T if inputs_first else change))
        weights[name.removeprefix(f"{path}.")] = torch.stack(changed)
    for name, module in decoder.named_modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, torch.nn.Linear):
            a, b = (getattr(module, f"lora_{matrix}")["default"].weight for matrix in "AB")
            change = module.scaling["default"] * b @ a
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + change.detach()
    given = {"inputs_embeds": hidden, "use_cache": False}
    expected = functional_call(plain_decoder, weights, (), given).last_hidden_state
    with torch.no_grad():
        found = decoder(**given).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    expected.square().sum().backward()
    for name, (a, b, expected_a, expected_b) in a_and_b.items():
        if a.grad is None:  # experts for pictures, of which there are none
            assert expected_a.grad is None
            assert "vision_moe" in name
            continue
        assert a.grad.abs().max() > 0, name
        torch.testing.assert_close(a.grad, expected_a.grad, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(b.grad, expected_b.grad, rtol=1e-9, atol=1e-9, msg=name)


def adapters_of(model, name):
    """Names of the A and B of a parameter of experts, as PEFT's own wrappers say which is which."""
    path, _, weight = name.rpartition(".")
    inner = model.get_submodule(path)
    while inner.parameter_name != weight:
        path, inner = f"{path}.base_layer", inner.base_layer
    return [f"{path}.lora_{matrix}.default.weight" for matrix in "AB"]


@pytest.mark.parametrize("plan", ["full", LORA, {"language": "ia3"}, {"language": {"adapter": {}}}])
@pytest.mark.parametrize("family", MIXTURES)
def test_routers_are_frozen_unless_a_selector_names_only_them(family, plan, tiny_folder):
    if plan == "full":
        plan = {"language": "full"}
    model = adapted(tiny_folder(family), plan)
    routers = router_parameters(model)
    assert routers
    assert not trainable_names(model) & routers.keys()
    rows = {row[0]: row for row in plan_rows(model, find_parts(model), plan)}
    assert rows["language.routers"][2:5] == ("frozen", "", 0)
    named = adapted(tiny_folder(family), {**plan, "language.routers": "full"})
    found = trainable_names(named) & routers.keys()
    assert found == {name for name in routers if "correction_bias" not in name}
    assert trainable_names(named) - found == trainable_names(model)
    rows = {row[0]: row for row in plan_rows(named, find_parts(named), {**plan, "language.routers": "full"})}
    assert rows["language.routers"][4] == sum(routers[name].numel() for name in found)
    assert sum(row[4] for name, row in rows.items() if name != "all") == rows["all"][4]


def test_the_table_says_the_rank_in_experts(tiny_folder):
    model = adapted(tiny_folder("qwen3_vl_moe"), LORA)
    assert plan_rows(model, find_parts(model), LORA)[0][3] == "6, experts 3"


def test_which_experts_have_adapters(tiny_folder):
    """Those below the selector, by the last names of their parameters, and none with expert_r: 0."""
    folder = tiny_folder("qwen3_vl_moe")
    one_layer = adapted(folder, {"language.layers[-1:]": {"lora": {"r": 2, "modules": ["down_proj"]}}})
    assert trainable_names(one_layer) == {
        f"model.language_model.layers.1.mlp.experts.lora_{matrix}.default.weight" for matrix in "AB"
    }
    without = adapted(folder, {"language": {"lora": {"r": 2, "expert_r": 0}}})
    assert not [name for name in trainable_names(without) if "experts" in name]
    chosen = adapted(folder, {"language": {"lora": {"r": 2, "expert_r": 5}}})
    name = "model.language_model.layers.1.mlp.experts.lora_A.default.weight"
    assert len(chosen.get_parameter(name)) == 4 * 5


@pytest.mark.parametrize("rslora", [False, True])
def test_the_factor_in_experts_is_that_of_other_layers(rslora, tiny_folder):
    model = adapted(tiny_folder("qwen3_vl_moe"), {"language": {"lora": {"r": 8, "rslora": rslora}}})
    factors = [one.scaling["default"] for one in model.modules() if isinstance(one, LoraLayer)]
    assert len(factors) == 2 * (4 + 2)
    assert factors == pytest.approx([factors[0]] * 12)


@pytest.mark.parametrize(
    ("settings", "found"),
    [({"dora": True}, "dora"), ({"init": "pissa"}, "init=pissa"), ({"init": "olora"}, "init=olora")],
)
def test_what_peft_cannot_do_for_experts_is_refused(settings, found, tiny_folder):
    folder = tiny_folder("qwen3_vl_moe")
    message = rf"plan\['language'\]: found {found}, which PEFT can't do for experts"
    with pytest.raises(UserError, match=message):
        adapted(folder, {"language": {"lora": {"r": 2, **settings}}})
    adapted(folder, {"language": {"lora": {"r": 2, "expert_r": 0, **settings}}})


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_routers_have_no_adapters(method, tiny_folder):
    with pytest.raises(
        UserError, match=rf"found {method} for the routers of experts; expected full or frozen"
    ):
        adapted(tiny_folder("qwen3_vl_moe"), {"language.routers": method})


def test_dropout_stays_on_layers_beside_experts(tiny_folder):
    plan = {"language": {"lora": {"r": 2, "dropout": 0.3}}}
    layer = adapted(tiny_folder("qwen3_vl_moe"), plan).model.language_model.layers[0]
    assert layer.self_attn.q_proj.lora_dropout["default"].p == 0.3
    assert isinstance(layer.mlp.experts.lora_dropout["default"], torch.nn.Identity)


def test_ranks_that_move_leave_experts_as_they_are(tiny_folder):
    """AdaptiveLoRARank sees linear layers only, and PEFT's config still says the ranks in experts."""
    model = adapted(tiny_folder("qwen3_vl_moe"), {"language": {"lora": {"r": 4}}})
    layers = lora_layers(model)
    assert len(layers) == 2 * 4
    assert not [name for name in layers if "experts" in name]
    assert describe_fixed(model) == "; LoRA on 4 single parameters (experts) keeps its rank"
    set_ranks(model, {next(iter(layers)): 2})
    saved = get_peft_model_state_dict(model, adapter_name="default", save_embedding_layers=False)
    again = load_model(tiny_folder("qwen3_vl_moe")).model
    again = inject_adapter_in_model(model.peft_config["default"], again)
    assert {name: weight.shape for name, weight in get_peft_model_state_dict(again).items()} == {
        name: weight.shape for name, weight in saved.items()
    }


def test_gradnorm_measures_a_layer_that_is_called(tiny_folder):
    model = adapted(tiny_folder("qwen3_vl_moe"), LORA)
    name, _ = shared_layer(model, None, None)
    assert name == "model.language_model.layers.1.self_attn.o_proj.lora_B.default"


@pytest.mark.parametrize("family", [*MIXTURES, "gemma4"])
def test_what_a_router_says_is_understood(family, tiny_folder):
    """Logits are its weight times what it reads, and the experts with the largest scores are chosen."""
    model = mixture_of_gemma4(tiny_folder) if family == "gemma4" else load_model(tiny_folder(family)).model
    for mixture in mixtures_of(model):
        router = model.get_submodule(mixture.router_path)
        (weight,) = (one for one in router.parameters() if one.ndim == 2 and len(one) == mixture.number)
        hidden = torch.randn(7, weight.shape[1])
        found = router_reader(model, mixture)(router(hidden))
        expected = hidden @ weight.T
        if family == "gemma4":
            expected = router.proj(router.norm(hidden) * router.scale * router.scalar_root_size)
        torch.testing.assert_close(found.logits.softmax(-1), expected.softmax(-1))
        assert mixture.number == 4
        assert mixture.top_k == (1 if family == "llama4" else 2)
        scores = expected.softmax(-1)
        if family == "ernie4_5_vl_moe":
            scores = scores + router.moe_statics.e_score_correction_bias.squeeze()
        chosen = scores.topk(mixture.top_k).indices
        assert torch.equal(found.chosen.sort().values, chosen.sort().values)


def mixture_of_gemma4(tiny_folder):
    config = AutoConfig.from_pretrained(tiny_folder("gemma4"))
    text = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    for name, value in text.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config)


def test_routers_are_not_quantised(tiny_folder):
    """Gemma 4's has a plain linear layer inside."""
    model = mixture_of_gemma4(tiny_folder)
    routers = {name for name in router_parameters(model) if name.endswith("proj.weight")}
    assert len(routers) == len(mixtures_of(model)) > 0
    chosen = chosen_layers(model, Quantization("nf4"), find_parts(model))
    assert not routers & {f"{name}.weight" for name in chosen}
    assert any(name.endswith("mlp.down_proj") for name in chosen)
