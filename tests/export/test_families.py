"""Exported folders: proved by a process with plain transformers and PEFT, over families and methods."""

import json
from functools import cache

import pytest

from lightning_vlm.errors import UserError
from lightning_vlm.export.verification import verify
from tests.support import tiny
from tests.support.exports import ADAPTER, LORA, lora
from tests.support.pictures import ONE_PICTURE

pytestmark = pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA with rank_pattern")

TOWER = {"vision": {"lora": {"r": 2, "alpha": 3}}, "language.layers[0:1]": {"lora": {"r": 4}}}


MIXED = {**TOWER, "language.layers[1:2]": "full", "head": {"lora": {"r": 2}}}


BOTH = {
    **LORA,
    "language": {"lora": {"r": 2, "modules": ["q_proj"]}},
    "vision": {"adapter": {"reduction": 4}},
}


VARIANTS = {
    "dora": ("llava", lora(dora=True), {}, (False, True)),
    "rslora": ("qwen2_vl", lora(rslora=True), {}, (False, True)),
    "pissa": ("llava", lora(init="pissa"), {}, (False, True)),
    "pissa-niter-rslora": ("llava", lora(init="pissa_niter_4", rslora=True), {}, (False, True)),
    "olora": ("gemma3", lora(init="olora"), {}, (False, True)),
    "dora-pissa": ("llava", lora(init="pissa", dora=True), {}, (False,)),
    "orthogonal": ("smolvlm", lora(init="orthogonal"), {}, (False, True)),
    "ia3": ("qwen2_5_vl", {"language": "ia3", "projector": "full"}, {}, (False, True)),
    "mixed, tied head": ("smolvlm", {**TOWER, "language.layers[1:2]": "full"}, {}, (False, True)),
    "mixed, own head": ("llava", MIXED, {}, (False, True)),
    "full": ("qwen3_vl", "full", {}, (False,)),
    "full, tied": ("gemma3", "full", {}, (False,)),
    "new tokens": ("qwen2_vl", LORA, {"new_tokens": ["<loc_1>", "<loc_2>"]}, (False,)),
    "new tokens, tied": ("smolvlm", LORA, {"new_tokens": ["<loc_1>"]}, (False,)),
    "new tokens, uneven": ("mllama", LORA, {"new_tokens": ["<loc_1>"]}, (False,)),
    "bfloat16": ("llava", LORA, {"dtype": "bfloat16"}, (False, True)),
    "float16": ("qwen2_vl", LORA, {"dtype": "float16"}, (False, True)),
    "nf4": ("llava", LORA, {"quantization": "nf4"}, (False, True)),
    "int8": ("qwen2_5_vl", LORA, {"quantization": "int8"}, (False, True)),
    "chatml": ("smolvlm", LORA, {"chat_template": "chatml"}, (False, True)),
    "our adapters": ("llava", ADAPTER, {}, (True,)),
    "ours and LoRA": ("qwen2_vl", BOTH, {}, (True,)),
    "cross-modal": ("smolvlm", {"language.layers[1:2]": {"cross_modal_adapter": {"heads": 2}}}, {}, (True,)),
}


SETTINGS = {
    "sharded": ("llava", {"shard": "100KB"}),
    "to bfloat16": ("smolvlm", {"dtype": "bfloat16"}),
}
"""How whole models are written."""


NO_PLACE = (
    "llava_next",
    "llava_onevision",
    "llava_next_video",
    "granite4_vision",
    "deepseek_ocr2",
    *ONE_PICTURE,
)
"""Their projector holds a bare parameter that PEFT can't save: `image_newline`, `view_separator`, queries."""


REWRITTEN = ("glm4v_moe",)
"""PEFT takes layers beside its experts for parts of them when it loads adapters; see the test at the end."""
MANY = [
    *((family, False) for family in tiny.FAMILIES),
    *((family, True) for family in tiny.FAMILIES if family not in (*NO_PLACE, *REWRITTEN)),
    *((name, only) for name, variant in VARIANTS.items() for only in variant[3]),
    *((name, False) for name in SETTINGS),
]


@pytest.fixture(scope="module")
def exported(export_of):
    """The folder of a row of `MANY`; written once."""

    @cache
    def folder(name, only):
        if name in SETTINGS:
            family, settings = SETTINGS[name]
            return export_of(family, LORA, only, **settings)
        if name in tiny.FAMILIES:
            return export_of(name, LORA, only)
        family, plan, options, _ = VARIANTS[name]
        return export_of(family, plan, only, **options)

    return folder


@pytest.mark.parametrize(("name", "adapter_only"), MANY)
def test_plain_libraries_make_of_it_what_was_trained(exported, warm_python, name, adapter_only):
    export = exported(name, adapter_only)
    (verification,) = verify([export])
    assert verification.problems == []
    assert verification.off <= 1e-5
    files = {file.name for file in export.folder.iterdir()}
    assert "processor_config.json" in files
    if adapter_only:
        assert "config.json" not in files
        assert files & {"adapter_model.safetensors", "vlm_adapters.safetensors"}
    else:
        assert "generation_config.json" in files
        config = json.loads((export.folder / "config.json").read_text())
        assert "quantization_config" not in config
    if name == "sharded":
        assert sum(file.endswith(".safetensors") for file in files) > 2


def test_a_fresh_process_makes_the_same_of_it(exported):
    """The tests above fork one that has made its imports; users start it."""
    found = verify([exported("llava", False), exported("pissa", True)])
    assert [verification.problems for verification in found] == [[], []]


def test_what_was_trained_is_not_the_base(exported, model_folder, warm_python):
    """Else a folder of the base model would pass."""
    export = exported("llava", False)
    base = export._replace(folder=model_folder("llava"))
    (verification,) = verify([base])
    assert any("logits differ" in problem for problem in verification.problems)
    assert any("checksum" in problem for problem in verification.problems)


def test_pissa_becomes_lora_on_the_original_weights(exported):
    export = exported("pissa", True)
    config = json.loads((export.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (4, 8, True)


@pytest.mark.parametrize("family", REWRITTEN)
def test_adapters_that_peft_would_put_elsewhere_are_refused(family, export_of):
    with pytest.raises(UserError, match="for a part of its experts when it loads adapters; leave --adapter-"):
        export_of(family, LORA, True)
