"""LoRA layers by name, other ranks, and what plain PEFT loads of them afterwards."""

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import lora_layers, set_ranks
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Names end alike: `up` and `tower.up`, and there are more than ten layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 6)
        self.tower = nn.ModuleDict({"blocks": nn.ModuleList(Block() for _ in range(11))})
        self.blocks = nn.ModuleList([Block(), Block()])
        self.up = nn.Linear(6, 3)

    def forward(self, x):
        x = self.words(x)
        for block in [*self.tower["blocks"], *self.blocks]:
            x = block(x)
        return self.up(x)


def adapted(wrap=True, **options):
    given = {"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"], **options}
    model = Net()
    config = LoraConfig(**given)
    model = get_peft_model(model, config) if wrap else inject_adapter_in_model(config, model)
    for lora in lora_layers(model).values():
        nn.init.normal_(lora.b, std=0.2)
    return model


X = torch.arange(10).view(2, 5)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("holder", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
def test_plain_peft_loads_what_was_resized(tmp_path, rslora, holder, dropped):
    """By patterns of full names; a dropped layer is no target."""
    model = adapted(use_rslora=rslora, target_modules=["up", "down", "words"])
    root = nn.ModuleDict({"a": nn.ModuleDict({"model": model})}) if holder else model
    names = list(lora_layers(root))
    assert len(names) == 27
    ranks = {name: 1 + i % 6 for i, name in enumerate(names)}
    if dropped:
        ranks[names[0]] = ranks[names[-1]] = 0
    assert set_ranks(root, ranks) == [name for name in names if ranks[name] != 4]
    assert {name: lora.rank for name, lora in lora_layers(root).items()} == {
        n: r for n, r in ranks.items() if r
    }
    for lora in lora_layers(root).values():
        nn.init.normal_(lora.b, std=0.2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(Net(), tmp_path)
    assert torch.equal(again(X), model(X))
    scales = [lora.layer.scaling["default"] for lora in lora_layers(again).values()]
    assert scales == pytest.approx([4.0 if rslora else 2.0] * len(scales), rel=1e-14)


def test_injected_adapters_tell_peft_too():
    model = adapted(wrap=False)
    root = nn.ModuleDict({"model": model})
    set_ranks(root, {"model.up": 2})
    config = model.peft_config["default"]
    assert config.rank_pattern[r"^up"] == 2
    assert config.alpha_pattern[r"^up"] == 4
    assert config.rank_pattern[r"^tower\.blocks\.10\.up"] == 4


def test_new_rows_differ_by_layer_and_seed():
    def rows(seed):
        model = adapted()
        set_ranks(model, dict.fromkeys(lora_layers(model), 6), seed=seed)
        return [lora.a[4:].detach() for lora in lora_layers(model).values() if lora.layer.in_features == 6]

    first, again, other = rows(0), rows(0), rows(1)
    assert all(map(torch.equal, first, again))
    assert len({rows.sum().item() for rows in first + other}) == 2 * len(first)


def test_gaussian_is_read_from_the_config():
    model = adapted(init_lora_weights="gaussian")
    set_ranks(model, {"base_model.model.up": 5000})
    assert lora_layers(model)["base_model.model.up"].a[4:].std().item() == pytest.approx(1 / 5000, rel=0.05)


def test_only_changes_are_told():
    model = adapted()
    before = dict(vars(model.peft_config["default"]))
    assert set_ranks(model, dict.fromkeys(lora_layers(model), 4)) == []
    assert vars(model.peft_config["default"]) == before


def test_dropped_again_is_fine_but_there_is_no_way_back():
    model = adapted()
    name = "base_model.model.up"
    assert set_ranks(model, {name: 0}) == [name]
    assert set_ranks(model, {name: 0}) == []
    with pytest.raises(MisconfigurationException, match=f"found rank 3 for {name}, which has no LoRA"):
        set_ranks(model, {name: 3})
    with pytest.raises(MisconfigurationException, match="found rank 0 for nothing, which has no LoRA"):
        set_ranks(model, {"nothing": 0})


@pytest.mark.parametrize(
    ("options", "found"), [({"use_dora": True}, "DoRA"), ({"init_lora_weights": "mica"}, "MiCALinearVariant")]
)
def test_variants_are_refused(options, found):
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["up"], **options), Net())
    with pytest.raises(MisconfigurationException, match=rf"tower.blocks.0.up: found {found}"):
        lora_layers(model)


def test_several_active_adapters_are_refused():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["up"]))
    assert {lora.adapter for lora in lora_layers(model).values()} == {"default"}
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(MisconfigurationException, match=r"found 2 active adapters \(default, other\)"):
        lora_layers(model)


def test_a_model_without_lora():
    assert lora_layers(Net()) == {}


def test_without_peft(monkeypatch):
    monkeypatch.setattr("lightning_vlm_callbacks.adaptive_lora_rank.lora_layers.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install peft"):
        lora_layers(Net())
