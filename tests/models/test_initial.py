"""What a model's files lack is new and starts as it should; what they have is never touched."""

import math
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.initial import (
    check_missing_weights_train,
    initial_checks,
    initial_table,
)
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.parts import find_parts, parameters_by_part
from lightning_vlm.models.plan.adapt import adapt
from tests.support import tiny

FAMILIES = sorted(tiny.FAMILIES)


def without(folder, to, *words):
    """A copy of a model's folder that lacks the weights with these words in their names."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    left = {name: one for name, one in weights.items() if not any(word in name for word in words)}
    assert len(left) < len(weights)
    save_file(left, to / "model.safetensors", metadata={"format": "pt"})
    return to


PROJECTOR = (
    "projector",
    "connector",
    "model.merger",
    "visual.merger",
    "deepstack_merger",
    "image_newline",
    "vision_projection",
    "visual_embeddings",
)
PROJECTOR += ("image_to_text", "qformer", "query_tokens", "language_projection", "embed_vision", "resampler")
PROJECTOR += ("image_pooling", "aligner", "view_sep")
PROJECTOR += ("mlp_AR", "perceive")  # PaddleOCR-VL's and HunYuan-VL's, in their files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_projector_is_xavier_and_a_pretrained_one_stays(family, tiny_folder, tmp_path):
    loaded = load_model(tiny_folder(family))
    assert loaded.missing == {}
    whole = loaded.model
    loaded = load_model(without(tiny_folder(family), tmp_path / "model", *PROJECTOR))
    model = loaded.model
    projector = parameters_by_part(model)["projector"]
    assert loaded.missing.keys() == projector.keys()
    for name, weight in model.named_parameters():
        if name not in projector:
            assert torch.equal(weight, whole.get_parameter(name)), name
        elif weight.ndim > 1:
            fans = weight[0].numel() + weight.shape[0] * weight[0, 0].numel()
            bound = math.sqrt(6 / fans)
            assert 0.95 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.1)
        elif name.endswith("bias"):
            assert not weight.any()
        elif "norm" in name.lower() or "ln_" in name or ".ln." in name:
            values = {"gemma3": 0.0}.get(family, 1.0)  # Gemma's norms scale by one more than their weight
            assert (weight == values).all(), name
    checks = {one.what: one for one in initial_checks(model, find_parts(model), loaded.missing)}
    assert all(one.fine for one in checks.values())
    assert checks["projector: standard deviation"].weights == sum(w.ndim > 1 for w in projector.values())
    words = ("norm", "ln_", ".ln.")
    norms = sum(w.ndim == 1 and any(word in name.lower() for word in words) for name, w in projector.items())
    assert (checks["new norms: off the identity"].weights if norms else 0) == norms


def test_new_layer_scales(tiny_folder, tmp_path):
    pretrained = load_model(tiny_folder("internvl")).model
    loaded = load_model(without(tiny_folder("internvl"), tmp_path / "model", "lambda_1"))
    model = loaded.model
    scales = {name: one for name, one in model.named_parameters() if "lambda_" in name}
    assert len(scales) == 4
    for name, one in scales.items():
        expected = torch.full_like(one, 1e-4) if "lambda_1" in name else pretrained.get_parameter(name)
        assert torch.equal(one, expected), name
    checks = {one.what: one for one in initial_checks(model, find_parts(model), loaded.missing)}
    assert checks["new layer scales: off 1e-4"].fine
    assert checks["new layer scales: off 1e-4"].weights == 2


def test_other_weights_stay_as_transformers_draws_them(tiny_folder, tmp_path):
    loaded = load_model(without(tiny_folder("llava"), tmp_path / "model", "lm_head"))
    assert loaded.missing.keys() == {"lm_head.weight"}
    assert loaded.model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_new_weights_must_train(tiny_folder, tmp_path):
    folder = without(tiny_folder("llava"), tmp_path / "model", "projector", "post_layernorm")

    def adapted(plan):
        loaded = load_model(folder)
        adapt(loaded.model, plan, loaded.parts)
        return loaded

    lora = {"language": {"lora": {"r": 2}}, "projector": {"lora": {"r": 2}}}
    with pytest.raises(
        UserError, match=r"files lack model\..*, \.\.\. \(6 in all\): they would stay randomly"
    ):
        check_missing_weights_train(adapted(lora).missing, nn.Module())
    loaded = adapted({"projector": "full"})
    with pytest.raises(
        UserError, match=r"files lack [\w.]*post_layernorm\.\w+, [\w.]*post_layernorm\.\w+: they"
    ):
        check_missing_weights_train(loaded.missing, loaded.model)
    unused = [name for name in loaded.missing if "post_layernorm" in name]
    check_missing_weights_train(loaded.missing, loaded.model, unused)
    check_missing_weights_train(adapted({"projector": "full", "vision": "full"}).missing, nn.Module())


def test_what_is_drawn_at_each_load_is_no_part_of_the_fingerprint(tiny_folder, tmp_path):
    folder = without(tiny_folder("llava"), tmp_path / "model", "projector")
    models = [load_model(folder) for _ in range(2)]
    weights = [loaded.model.model.multi_modal_projector.linear_1.weight for loaded in models]
    assert not torch.equal(*weights)
    texts = {loaded.fingerprint.text() for loaded in models}
    assert len(texts) == 1
    assert load_model(tiny_folder("llava")).fingerprint.text() not in texts


PLAN = {"projector": "full", "language": {"lora": {"r": 2}}}


@pytest.mark.parametrize(
    ("what", "word", "spoil"),
    [
        ("projector: standard deviation", "linear_2.weight", lambda one: one.mul_(100)),
        ("projector: standard deviation", "linear_2.weight", lambda one: one[0].fill_(torch.nan)),
        ("LoRA: B", "1.mlp.up_proj.lora_B", lambda one: one[0, 0].fill_(1e-3)),
        ("new norms: off the identity", "layer_norm.weight", lambda one: one[0].fill_(0)),
        ("new norms: off the identity", "layer_norm.bias", lambda one: one[0].fill_(0.1)),
        ("new layer scales: off 1e-4", "1.lambda_2", lambda one: one[3].fill_(0.1)),
    ],
)
def test_each_check_names_what_is_wrong(tiny_folder, tmp_path, what, word, spoil):
    folder = without(
        tiny_folder("internvl"), tmp_path / "model", "multi_modal_projector.layer_norm", "lambda_"
    )
    loaded = load_model(folder)
    model = loaded.model
    adapt(model, PLAN, loaded.parts)
    checks = {one.what: one for one in initial_checks(model, find_parts(model), loaded.missing)}
    assert len(checks) == 4
    assert all(one.fine for one in checks.values())
    (weight,) = [one for name, one in model.named_parameters() if word in name]
    with torch.no_grad():
        spoil(weight)
    found = {one.what: one for one in initial_checks(model, find_parts(model), loaded.missing)}
    assert [one for one in found if not found[one].fine] == [what]
    assert found[what].worst in next(name for name, one in model.named_parameters() if one is weight)
    console = Console(width=200)
    with console.capture() as shown:
        console.print(initial_table(found.values()))
    (line,) = [line for line in shown.get().splitlines() if "look: " in line]
    assert what in line
    assert found[what].worst in line


def test_adapters_that_begin_elsewhere_are_not_asked_for_zeros(tiny_folder):
    model = load_model(tiny_folder("llava")).model
    adapt(model, {"language": {"lora": {"r": 2, "init": "pissa"}}}, find_parts(model))
    assert any(one.any() for name, one in model.named_parameters() if "lora_B" in name)
    checks = initial_checks(model, find_parts(model), missing={})
    assert [one.what for one in checks] == ["projector: standard deviation"]
