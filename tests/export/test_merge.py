"""Merged weights are the formula's, and a wrong merge is found."""

import pytest
import torch
from safetensors.torch import load_file

from lightning_vlm.errors import UserError
from lightning_vlm.export.merge import merge
from lightning_vlm.export.trained import ExportRequest, load_trained
from tests.support.exports import LORA


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_the_formula(export_of, checkpoint_of, model_folder, rslora):
    plan = {"language": {"lora": {"r": 4, "alpha": 6, "rslora": rslora}}}
    folder = export_of("llava", plan, False).folder
    saved = torch.load(checkpoint_of("llava", plan), weights_only=True)["state_dict"]
    files = (folder, model_folder("llava"))
    merged, base = (load_file(one / "model.safetensors") for one in files)
    assert merged.keys() == base.keys()
    adapted = {name.split(".lora_A")[0].split(".layers.")[1]: name for name in saved if ".lora_A." in name}
    found = 0
    for name in merged:
        key = name.split(".layers.")[-1].removesuffix(".weight")
        if "vision" in name or key not in adapted:
            assert torch.equal(merged[name], base[name]), name
            continue
        a, b = saved[adapted[key]].double(), saved[adapted[key].replace("lora_A", "lora_B")].double()
        expected = base[name].double() + 6 / (2 if rslora else 4) * b @ a
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-7)
        found += 1
    assert found == len(adapted) == 14


def test_a_wrong_merge_is_found_where_it_is(checkpoint_of):
    """One layer merges something else, and changes a weight beside it."""
    model = load_trained(ExportRequest(checkpoint_of("llava", LORA))).module.model
    name = "model.language_model.layers.1.mlp.up_proj"
    layer = model.get_submodule(name)
    merge_right = layer.merge

    def merge_wrong(**options):
        merge_right(**options)
        layer.get_base_layer().weight[0, 0] += 0.01
        model.get_parameter("lm_head.weight")[0, 0] += 0.01

    layer.merge = merge_wrong
    with pytest.raises(UserError, match=rf"trained: {name}.weight makes its layer differ .* \(and 1 more\)"):
        merge(model)


def test_a_weight_beside_the_merged_ones_is_named(checkpoint_of):
    model = load_trained(ExportRequest(checkpoint_of("llava", LORA))).module.model
    layer = model.get_submodule("model.language_model.layers.1.mlp.up_proj")
    merge_right = layer.merge

    def merge_wrong(**options):
        merge_right(**options)
        model.get_parameter("lm_head.weight")[0, 0] += 0.01

    layer.merge = merge_wrong
    with pytest.raises(UserError, match=r"trained: lm_head\.weight changed; nothing was written"):
        merge(model)
