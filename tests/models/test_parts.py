"""Parts must be right per family, complete, and stay so when adapters come in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning_vlm_callbacks.selectors import select_modules, select_parameters
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models import parts
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.parts import find_parts, head_is_tied, parameters_by_part
from tests.support import tiny
from tools import shipped

FAMILIES = sorted(tiny.FAMILIES)
Folder = Callable[[str], Path]

# Written down by reading the modeling files; the first letters of parameter names decide.
LLAVA = {
    "vision": ("model.vision_tower.",),
    "projector": ("model.multi_modal_projector.", "model.image_newline"),
    "language": ("model.language_model.",),
    "head": ("lm_head.",),
}
IDEFICS = {
    "vision": ("model.vision_model.",),
    "projector": ("model.connector.",),
    "language": ("model.text_model.",),
    "head": ("lm_head.",),
}
QWEN = {
    "vision": ("model.visual.patch_embed.", "model.visual.pos_embed.", "model.visual.blocks."),
    "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
    "language": ("model.language_model.",),
    "head": (),
}
GLM = {
    "vision": (
        "model.visual.embeddings.",
        "model.visual.patch_embed.",
        "model.visual.blocks.",
        "model.visual.post_conv_layernorm.",
        "model.visual.downsample.",
        "model.visual.post_layernorm.",
    ),
    "projector": ("model.visual.merger.",),
    "language": ("model.language_model.",),
    "head": ("lm_head.",),
}
BLIP = {
    "vision": ("vision_model.",),
    "projector": ("query_tokens", "qformer.", "language_projection."),
    "language": ("language_model.model.",),
    "head": ("language_model.lm_head.",),
}
PREFIXES = {
    "llava": LLAVA,
    "llava_next": LLAVA,
    "llava_onevision": {**LLAVA, "head": ()},
    "smolvlm": IDEFICS,
    "idefics3": IDEFICS,
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": {**QWEN, "head": ("lm_head.",)},
    "qwen3_5_moe": {**QWEN, "head": ("lm_head.",)},
    "ernie4_5_vl_moe": {
        "vision": ("model.vision_tower.",),
        "projector": ("model.resampler_model.",),
        "language": ("model.language_model.",),
        "head": (),
    },
    "gemma3": {**LLAVA, "head": ()},
    "paligemma": {**LLAVA, "head": ()},
    "internvl": LLAVA,
    "internvl3_5": LLAVA,
    "lfm2_vl": {**LLAVA, "head": ()},
    "lfm3_vl": {**LLAVA, "head": ()},
    "ovis2": {**LLAVA, "projector": ("model.visual_embeddings_table.",), "head": ()},
    "deepseek_vl": {
        **LLAVA,
        "vision": ("model.vision_model.",),
        "projector": ("model.aligner.",),
    },
    "molmo2": LLAVA,
    "deepseek_ocr2": {**LLAVA, "projector": ("model.multi_modal_projector.", "model.view_separator")},
    "got_ocr2": {**LLAVA, "head": ()},
    "minicpmv4_6": {**LLAVA, "projector": ("model.merger.",), "head": ()},
    "lighton_ocr": {
        **LLAVA,
        "vision": ("model.vision_encoder.",),
        "projector": ("model.vision_projection.",),
        "head": (),
    },
    "mistral3": LLAVA,
    "pixtral": LLAVA,
    "mllama": {**LLAVA, "vision": ("model.vision_model.",)},
    "qwen3_5": QWEN,
    "gemma4": {
        **LLAVA,
        "projector": ("model.embed_vision.",),
        "head": (),
        "audio": ("model.audio_tower.", "model.embed_audio."),
    },
    "gemma4_31b": {**LLAVA, "projector": ("model.embed_vision.",), "head": ()},
    "idefics2": IDEFICS,
    "granite4_vision": {
        **LLAVA,
        "projector": ("model.image_newline", "model.layerwise_projectors.", "model.spatial_projectors."),
    },
    "granite_docling": {
        "vision": (
            "model.vision_model.embeddings.",
            "model.vision_model.encoder.",
            "model.vision_model.post_layernorm.",
        ),
        "projector": ("model.vision_model.connector.",),
        "language": ("model.text_model.",),
        "head": (),
    },
    "perception_lm": {**LLAVA, "head": ()},
    "fast_vlm": LLAVA,
    "gemma3n": {
        **LLAVA,
        "projector": ("model.embed_vision.",),
        "head": (),
        "audio": ("model.audio_tower.", "model.embed_audio."),
    },
    "vipllava": LLAVA,
    "llava_next_video": LLAVA,
    "video_llava": {**LLAVA, "vision": ("model.image_tower.", "model.video_tower.")},
    "aya_vision": {**LLAVA, "head": ()},
    "cohere2_vision": {**LLAVA, "head": ()},
    **dict.fromkeys(("glm4v", "glm46v", "glm_ocr", "glm4v_moe"), GLM),
    "kosmos-2": {
        "vision": ("vision_model.",),
        "projector": ("image_to_text_projection.",),
        "language": ("text_model.model.",),
        "head": (),
    },
    "blip-2": {**BLIP, "head": ()},
    "instructblip": BLIP,
    "paddleocr_vl": {
        "vision": ("model.visual.",),
        "projector": ("model.projector.",),
        "language": ("model.language_model.",),
        "head": (),
    },
    "video_llama_3": {
        "vision": ("model.vision_model.",),
        "projector": ("model.projector.",),
        "language": ("model.language_model.",),
        "head": ("lm_head.",),
    },
    "hunyuan_vl": {
        "vision": ("model.vision_tower.embeddings.", "model.vision_tower.layers."),
        "projector": ("model.vision_tower.patch_merger.",),
        "language": ("model.language_model.",),
        "head": (),
    },
    "exaone4_5": {**QWEN, "head": ("lm_head.",)},
    "llama4": {
        "vision": ("vision_model.",),
        "projector": ("multi_modal_projector.",),
        "language": ("language_model.model.",),
        "head": ("language_model.lm_head.",),
    },
}
TIED = (
    "ernie4_5_vl_moe",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "paddleocr_vl",
    "hunyuan_vl",
    "gemma3",
    "paligemma",
    "lfm2_vl",
    "lfm3_vl",
    "ovis2",
    "lighton_ocr",
    "perception_lm",
    "gemma3n",
    "gemma4",
    "gemma4_31b",
    "granite_docling",
    "aya_vision",
    "cohere2_vision",
    "kosmos-2",
    "blip-2",
    "got_ocr2",
    "minicpmv4_6",
)
LAYERS = {  # vision, language
    **dict.fromkeys(PREFIXES, ("model.vision_tower.encoder.layers", "model.language_model.layers")),
    **dict.fromkeys(
        ("smolvlm", "idefics3", "idefics2", "granite_docling"),
        ("model.vision_model.encoder.layers", "model.text_model.layers"),
    ),
    **dict.fromkeys(
        (
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "qwen3_vl_moe",
            "qwen3_5",
            "glm4v",
            "glm46v",
            "glm4v_moe",
            "glm_ocr",
            "exaone4_5",
            "qwen3_5_moe",
        ),
        ("model.visual.blocks", "model.language_model.layers"),
    ),
    **dict.fromkeys(
        ("internvl", "internvl3_5"), ("model.vision_tower.encoder.layer", "model.language_model.layers")
    ),
    "ernie4_5_vl_moe": ("model.vision_tower.blocks", "model.language_model.layers"),
    **dict.fromkeys(
        ("lfm3_vl", "molmo2", "got_ocr2", "hunyuan_vl"),
        ("model.vision_tower.layers", "model.language_model.layers"),
    ),
    "deepseek_vl": ("model.vision_model.encoder.layers", "model.language_model.layers"),
    "deepseek_ocr2": ("model.vision_tower.vision_encoder.layers", "model.language_model.layers"),
    "ovis2": ("model.vision_tower.transformer.encoder.layers", "model.language_model.layers"),
    "lighton_ocr": ("model.vision_encoder.transformer.layers", "model.language_model.layers"),
    **dict.fromkeys(
        ("mistral3", "pixtral"), ("model.vision_tower.transformer.layers", "model.language_model.layers")
    ),
    "mllama": ("model.vision_model.transformer.layers", "model.language_model.layers"),
    "perception_lm": ("model.vision_tower.timm_model.blocks", "model.language_model.layers"),
    "fast_vlm": ("model.vision_tower.timm_model.stages", "model.language_model.layers"),
    "gemma3n": ("model.vision_tower.timm_model.stages", "model.language_model.layers"),
    "video_llava": ("model.image_tower.encoder.layers", "model.language_model.layers"),
    "kosmos-2": ("vision_model.model.encoder.layers", "text_model.model.layers"),
    "blip-2": ("vision_model.encoder.layers", "language_model.model.decoder.layers"),
    "instructblip": ("vision_model.encoder.layers", "language_model.model.layers"),
    "paddleocr_vl": ("model.visual.vision_model.encoder.layers", "model.language_model.layers"),
    "video_llama_3": ("model.vision_model.encoder.layers", "model.language_model.layers"),
    "llama4": ("vision_model.model.layers", "language_model.model.layers"),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, tiny_folder: Folder) -> PreTrainedModel:
    return load_model(tiny_folder(family)).model


def test_each_parameter_is_in_its_part(family: str, model: PreTrainedModel) -> None:
    found = parameters_by_part(model)
    assert list(found) == list(PREFIXES[family])
    names = [name for name, _ in model.named_parameters()]
    for part, prefixes in PREFIXES[family].items():
        assert list(found[part]) == [name for name in names if name.startswith(prefixes)]
    assert sorted(name for part in found.values() for name in part) == sorted(names)


def test_layers_are_the_lists_of_blocks(family: str, model: PreTrainedModel) -> None:
    found = find_parts(model)
    assert (found["vision.layers"], found["language.layers"]) == tuple([path] for path in LAYERS[family])
    last = select_modules(model, ["language.layers[-1:]"], found)
    assert list(last) == [f"{LAYERS[family][1]}.{len(model.get_submodule(LAYERS[family][1])) - 1}"]


def test_a_short_list_is_not_taken_for_the_blocks(tiny_folder: Folder) -> None:
    model = load_model(tiny_folder("llava")).model
    model.model.vision_tower.embeddings.extra = nn.ModuleList([nn.Linear(2, 2)])
    assert find_parts(model)["vision.layers"] == [LAYERS["llava"][0]]


def test_prefix_is_where_the_model_sits(family: str, model: PreTrainedModel) -> None:
    outer = nn.ModuleDict({"inner": nn.ModuleDict({"vlm": model})})
    found = find_parts(model, prefix="inner.vlm")
    assert find_parts(model, prefix="inner.vlm.") == found
    for part in ("vision", "vision.layers", "projector", "language", "language.layers", "head"):
        inside = select_parameters(model, [part], find_parts(model))
        assert list(select_parameters(outer, [part], found)) == [f"inner.vlm.{name}" for name in inside]


def test_tied_head_is_selected_but_owns_nothing(family: str, model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    tied = head.weight is model.get_input_embeddings().weight
    assert tied == (family in TIED)
    assert head_is_tied(model) == tied
    selected = select_parameters(model, ["head"], find_parts(model))
    assert [id(weight) for weight in selected.values()] == [id(head.weight)]
    assert list(parameters_by_part(model)["head"]) == (
        [] if tied else [f"{find_parts(model)['head'][0]}.weight"]
    )


def test_adapters_join_the_part_they_are_in(family: str, model: PreTrainedModel) -> None:
    before = {part: set(own) for part, own in parameters_by_part(model).items()}
    tied = head_is_tied(model)
    inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear"), model)
    head = nn.ModuleDict({"head": model.get_output_embeddings()})
    model.set_output_embeddings(
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["head"]), head)["head"]
    )
    assert head_is_tied(model) == tied
    after = parameters_by_part(model)
    for part, own in after.items():
        adapters = {name for name in own if "lora_" in name}
        # Gemma 3's projector is a bare matrix, Ovis' an embedding.
        assert bool(adapters) == (part != "projector" or family not in ("gemma3", "ovis2"))
        assert {name.replace(".base_layer", "") for name in own if name not in adapters} == before[part]
    assert find_parts(model)["language.layers"] == [LAYERS[family][1]]


def test_shipped_model(tmp_path: Path) -> None:
    model = load_model(shipped.create(tmp_path)).model
    assert head_is_tied(model)
    assert {part: len(own) > 0 for part, own in parameters_by_part(model).items()} == {
        "vision": True,
        "projector": True,
        "language": True,
        "head": False,
    }


def test_a_gap_or_an_overlap_is_named(
    monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, family: str
) -> None:
    whole = find_parts(model)
    monkeypatch.setattr(parts, "find_parts", lambda model: {**whole, "projector": []})
    with pytest.raises(
        UserError, match=r"(connector|projector|projection|merger|visual_embeddings).*\(in none\)"
    ):
        parameters_by_part(model)
    monkeypatch.setattr(
        parts, "find_parts", lambda model: {**whole, "vision": [*whole["vision"], *whole["projector"]]}
    )
    with pytest.raises(UserError, match=r"\(in vision and projector\)"):
        parameters_by_part(model)


def test_a_direct_parameter_goes_to_the_projector(tiny_folder: Folder) -> None:
    """As LLaVA-NeXT keeps `image_newline` beside its tower and projector."""
    model = load_model(tiny_folder("llava")).model
    model.model.image_newline = nn.Parameter(torch.zeros(64))
    found = find_parts(model)["projector"]
    assert sorted(found) == ["model.image_newline", "model.multi_modal_projector"]
    assert "model.image_newline" in parameters_by_part(model)["projector"]
