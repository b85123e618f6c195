import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_vlm.errors import UserError
from lightning_vlm.models.adapters.cross_modal import CrossModal
from lightning_vlm.models.adapters.layers import BOTTLENECK, CROSS_MODAL, Bottleneck
from lightning_vlm.models.plan.methods import Adapter, CrossModalAdapter
from lightning_vlm.optim import parameter_groups


def llama(**options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        **options,
    )
    return LlamaForCausalLM(config)


def lora(model, **options):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **options))


def names(root, groups):
    """Group name -> the names of its parameters; each trainable parameter must be in exactly one group."""
    name_of = {id(parameter): name for name, parameter in root.named_parameters()}
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in root.parameters() if p.requires_grad)
    return {group["name"]: [name_of[id(parameter)] for parameter in group["params"]] for group in groups}


def learns(root, groups, step):
    """Names of the parameters that three steps of a real optimizer change."""
    before = {name: parameter.detach().clone() for name, parameter in root.named_parameters()}
    optimizer = torch.optim.AdamW(groups)
    for _ in range(3):
        optimizer.zero_grad()
        step().backward()
        optimizer.step()
    return {name for name, parameter in root.named_parameters() if not torch.equal(parameter, before[name])}


def test_a_real_language_model():
    model = llama(attention_bias=True)
    groups = parameter_groups(model, 2e-4, 0.1, {"model.layers[0]": 1e-5, "lm_head": 5e-4})
    found = names(model, groups)
    assert list(found) == [
        "model.layers[0]",
        "model.layers[0], no decay",
        "lm_head",
        "rest",
        "rest, no decay",
    ]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-5, 0.1),
        (1e-5, 0.0),
        (5e-4, 0.1),
        (2e-4, 0.1),
        (2e-4, 0.0),
    ]
    assert found["lm_head"] == ["lm_head.weight"]
    assert "model.embed_tokens.weight" in found["rest"]
    layer = [name for name, _ in model.named_parameters() if name.startswith("model.layers.0.")]
    undecayed = [name for name in layer if name.endswith(".bias") or "norm" in name]
    assert len(undecayed) == 6
    assert found["model.layers[0], no decay"] == undecayed
    assert found["model.layers[0]"] == [name for name in layer if name not in undecayed]
    assert found["rest, no decay"][-1] == "model.norm.weight"


def test_lora_gets_no_decay_and_every_matrix_learns():
    model = lora(llama(), modules_to_save=["lm_head"])
    groups = parameter_groups(model, 1e-2, 0.1, {"*.lora_B": 2e-2})
    found = names(model, groups)
    assert list(found) == ["*.lora_B, no decay", "rest", "rest, no decay"]
    assert len(found["*.lora_B, no decay"]) == 4
    assert all(".lora_A." in name for name in found["rest, no decay"])
    assert found["rest"] == ["base_model.model.lm_head.modules_to_save.default.weight"]

    # The four B are zero at first, so two of them each are equal in shape and value.
    ids = torch.arange(8)[None]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns(model, groups, lambda: model(input_ids=ids, labels=ids).loss) == trainable


def test_other_adapters_get_no_decay():
    """Decay would pull IA3's factors to zero, from the one that they start at."""
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = get_peft_model(llama(), config)
    assert list(names(model, parameter_groups(model, 1e-2, 0.1))) == ["rest, no decay"]
    layer = nn.Linear(8, 8).requires_grad_(False)
    layer.register_module(BOTTLENECK, Bottleneck(8, Adapter(reduction=2)))
    layer.register_module(CROSS_MODAL, CrossModal(8, CrossModalAdapter(reduction=2, heads=2)))
    assert list(names(layer, parameter_groups(layer, 1e-2, 0.1))) == ["rest, no decay"]


@pytest.mark.parametrize("options", [{"use_dora": True}, {"target_modules": ["embed_tokens"]}], ids=str)
def test_other_lora_parameters_get_no_decay(options):
    model = get_peft_model(llama(), LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options}))
    assert [group["name"] for group in parameter_groups(model, 1e-3, 0.1)] == ["rest, no decay"]


def test_parameters_of_equal_value_are_not_confused():
    model = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    groups = parameter_groups(model, 1e-2, 0.0, {"[1]": 1e-3})
    assert names(model, groups) == {
        "[1]": ["1.weight"],
        "[1], no decay": ["1.bias"],
        "rest": ["0.weight", "2.weight", "3.weight"],
        "rest, no decay": ["0.bias", "2.bias", "3.bias"],
    }
    x = torch.ones(1, 3)
    everything = {name for name, _ in model.named_parameters()}
    assert learns(model, groups, lambda: sum((layer(x) - 1).square().sum() for layer in model)) == everything


def test_tied_weights_come_once_and_follow_either_name():
    model = llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    found = names(model, parameter_groups(model, 1e-3, 0.1, {"lm_head": 1e-4}))
    assert found["lm_head"] == ["model.embed_tokens.weight"]
    with pytest.raises(
        UserError, match=r"'model\.embed_tokens\.weight' is given two learning rates: 0\.0001"
    ):
        parameter_groups(model, 1e-3, 0.1, {"lm_head": 1e-4, "model.embed_tokens": 1e-5})


def test_norm_weights_of_two_dimensions_get_no_decay():
    model = nn.ModuleDict({"norm": nn.LayerNorm((2, 3)), "table": nn.Embedding(4, 3)})
    found = names(model, parameter_groups(model, 1e-3, 0.1))
    assert found == {"rest": ["table.weight"], "rest, no decay": ["norm.weight", "norm.bias"]}


def test_part_names_select():
    model = nn.ModuleDict({"up": nn.Linear(2, 2), "down": nn.Linear(2, 2)})
    model.parts = {"projector": ["up"]}
    found = names(model, parameter_groups(model, 1e-3, 0.1, {"projector": 1e-2}))
    assert found["projector"] == ["up.weight"]


def test_selectors_may_overlap_at_the_same_rate_only():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    found = names(model, parameter_groups(model, 1e-3, 0.1, {"[1]": 1e-2, "*.weight": 1e-2}))
    assert (found["[1]"], found["*.weight"]) == (["1.weight"], ["0.weight"])
    with pytest.raises(
        UserError, match=r"'1\.weight' .* 0\.01 by selector '\[1\]' and 0\.02 by '\*\.weight'"
    ):
        parameter_groups(model, 1e-3, 0.1, {"[1]": 1e-2, "*.weight": 2e-2})


def test_frozen_parameters_stay_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert names(model, parameter_groups(model, 1e-3, 0.1, {"*.weight": 1e-2})) == {
        "*.weight": ["1.weight"],
        "rest, no decay": ["1.bias"],
    }
    with pytest.raises(UserError, match=r"selector '\[0\]': all 2 parameters .* frozen .*'0\.weight'"):
        parameter_groups(model, 1e-3, 0.1, {"[0]": 1e-2})
    with pytest.raises(UserError, match="nothing to train: all 4 parameters are frozen"):
        parameter_groups(model.requires_grad_(False), 1e-3, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, r"learning_rate: found a learning rate of 0\.0"),
        ({"learning_rate": float("nan")}, "learning_rate: found a learning rate of nan"),
        ({"learning_rates": {"[0]": -1.0}}, r"\[0\]: found a learning rate of -1\.0"),
        ({"learning_rates": {"[2]": 1.0}}, r"selector '\[2\]'"),
        ({"learning_rates": {"rest": 1.0}}, "use learning_rate"),
        ({"weight_decay": -0.1}, r"weight_decay: found -0\.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UserError, match=message):
        parameter_groups(model, **{"learning_rate": 1e-3, "weight_decay": 0.1, **arguments})
