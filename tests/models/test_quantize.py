"""Quantised loading: exactly what is meant, with the numbers that bitsandbytes documents, or a refusal."""

import importlib.util
import math
import sys
import warnings

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.quantizers.quantizers_utils import should_convert_module

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading import quantize
from lightning_vlm.models.loading.fingerprint import Fingerprint
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.loading.quantize import Quantization, bitsandbytes_config, quantised_layers
from lightning_vlm.models.parts import find_parts
from tests.support import tiny
from tests.support.tiny.moe import MIXTURES

FAMILIES = sorted(tiny.FAMILIES)
KINDS = {"nf4": Linear4bit, "int8": Linear8bitLt}
TABLE = torch.tensor(  # the QLoRA paper's appendix E
    [
        *(-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170036193848),
        *(0.7229568362236023, 1),
    ]
)


def below(model, *parts):
    """Names of the plain linear layers in these parts, found without selectors, but for those of patches in
    SigLIP 2 and Gemma 4, by whose weights they say in which dtype pixels are."""
    roots = tuple(path for part in parts for path in find_parts(model)[part])
    return {
        name
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear
        and any(f"{name}.".startswith(f"{root}.") for root in roots)
        and not name.endswith(
            (
                "vision_tower.embeddings.patch_embedding",
                "patch_embedder.input_proj",
                "vision_tower.patch_embed.proj",
            )
        )
    }


def nf4(*parts, **options):
    return Quantization("nf4", list(parts) or ["language"], compute_dtype="float32", **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_quantised_is_what_is_named(family, tiny_folder):
    """And nothing else is another module, or has another dtype or value, than without."""
    plain = load_model(tiny_folder(family)).model
    others = (*MIXTURES, "kosmos-2", "blip-2")  # fused experts aren't linear layers, or the name is another
    read = ("prediction_coefs", "correction_coefs") if family == "gemma3n" else ()
    inner = "self_attn" if family in others else "mlp"
    if family == "qwen3_5_moe":
        inner = "linear_attn"
    if family in ("lfm2_vl", "lfm3_vl"):
        inner = "feed_forward"
    kept = family in ("blip-2", "instructblip")  # transformers keeps their Q-Former in float32
    whole = ["vision", "language"] + (["projector"] if below(plain, "projector") and not kept else [])
    layer, at = "vision.layers[1:2]", ".1."
    if family == "fast_vlm":  # its first stages are convolutions alone
        layer, at = "vision.layers[-1:]", ".4."
    choices = {
        ("nf4", "language"): {name for name in below(plain, "language") if not name.endswith(read)},
        ("int8", *whole): {name for name in below(plain, *whole) if not name.endswith(read)},
        ("nf4", layer, f"language.layers[:1].{inner}"): {
            *(name for name in below(plain, "vision.layers") if at in name),
            *(name for name in below(plain, "language.layers") if f".0.{inner}." in name),
        },
    }
    for (method, *parts), expected in choices.items():
        assert expected
        model = load_model(tiny_folder(family), quantization=Quantization(method, parts)).model
        found = {name for name, one in model.named_modules() if isinstance(one, Linear4bit | Linear8bitLt)}
        assert found == expected, parts
        assert quantised_layers(model) == dict.fromkeys(found, method)
        for name, module in plain.named_modules():
            assert type(model.get_submodule(name)) is (KINDS[method] if name in found else type(module)), name
        weights = dict(model.named_parameters())
        for name, weight in plain.named_parameters():
            if name.removesuffix(".weight") in found:
                assert not weights[name].is_floating_point()
                assert not weights[name].requires_grad
            elif name.removesuffix(".bias") not in found:
                assert torch.equal(weights[name], weight), name
                assert weights[name].dtype == weight.dtype


def test_names_that_begin_or_end_alike():
    """transformers would take `layers.1` for `layers.11` too, or one tower's `fc1` for another's."""
    config = AutoConfig.for_model("smolvlm")
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 12
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        model.fc1 = torch.nn.Linear(1, 1)  # as no family has yet
    for layer in ("vision.layers[1:2]", "language.layers[11]"):
        skip = bitsandbytes_config(model, Quantization("nf4", [layer])).llm_int8_skip_modules
        part, at = layer[: layer.index("[")], 1 if "1:2" in layer else 11
        expected = {name for name in below(model, part) if f"layers.{at}." in name}
        linear = [name for name, one in model.named_modules() if type(one) is torch.nn.Linear]
        assert {name for name in linear if should_convert_module(name, skip)} == expected


@pytest.mark.parametrize("double", [True, False])
def test_values_are_the_nearest_of_the_table_in_blocks_of_64(tiny_folder, double):
    plain = load_model(tiny_folder("llava")).model
    model = load_model(tiny_folder("llava"), quantization=nf4(double_quant=double)).model
    for name in quantised_layers(model):
        weight, packed = plain.get_submodule(name).weight, model.get_submodule(name).weight
        blocks = weight.detach().reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = TABLE[(blocks[..., None] / scale[..., None] - TABLE).abs().argmin(-1)] * scale
        found = dequantize_4bit(packed.data, packed.quant_state).reshape(-1, 64)
        # What double quantisation rounds is the scale, of 8 bits over the range of 256 scales
        off = 0.02 * scale.max() if double else 1e-7
        assert (found - nearest).abs().max() <= off
        scales = found.abs().amax(1, keepdim=True)
        torch.testing.assert_close(found / scales, nearest / scale, rtol=0, atol=1e-6)
        assert torch.equal(scales, scale) is not double


@pytest.mark.parametrize("choice", [nf4(), nf4(double_quant=False), Quantization("int8")])
def test_bytes_of_weights(tiny_folder, choice):
    """4.127, 4.5 and 8 bits a weight, rounded up in each layer; int8 has a scale for each row besides."""
    model = load_model(tiny_folder("llava"), quantization=choice).model
    for name in quantised_layers(model):
        layer, held = model.get_submodule(name), model.get_submodule(name).state_dict()
        constant = ("quant_map", "bitsandbytes", "format", "bias")  # tables and words, the same for any size
        size = sum(one.nbytes for key, one in held.items() if not any(word in key for word in constant))
        weights = layer.in_features * layer.out_features
        blocks = math.ceil(weights / 64)
        expected = {
            "int8": weights + 4 * layer.out_features,
            "nf4": weights / 2
            + (blocks + 4 * math.ceil(blocks / 256) if choice.double_quant else 4 * blocks),
        }
        assert size == expected[choice.method], name


def test_half_precision_is_kept_where_nothing_is_quantised(tiny_folder):
    """Norms, embeddings and head have the dtype that was asked for, and so have the activations."""
    model = load_model(tiny_folder("qwen2_5_vl"), dtype="bfloat16", quantization=Quantization()).model
    kinds = {one.dtype for name, one in model.named_parameters() if "proj.weight" not in name}
    assert kinds == {torch.bfloat16}
    seen = []
    for layer in model.get_decoder().layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    assert model(input_ids=torch.tensor([[5, 6, 7]])).logits.dtype == torch.bfloat16
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_look_without_gradients_leaves_weights_and_gradients_as_they_are(tiny_folder, family):
    """On a CPU with AVX512-BF16 bitsandbytes would pack weights again, for good."""
    model = load_model(tiny_folder(family), quantization=nf4("language.layers[:].self_attn")).model
    ids = torch.tensor([[5, 6, 7, 8]])
    weights = {name: one.clone() for name, one in model.named_parameters()}

    def gradient():
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=inputs).logits.square().sum().backward()
        return inputs.grad

    before = gradient()
    with torch.no_grad():
        model(input_ids=ids)
    assert torch.equal(gradient(), before)
    for name, one in model.named_parameters():
        assert torch.equal(one, weights[name]), name
        assert one.dtype == weights[name].dtype  # a bias too: rounded when loaded, if at all
    layers = [model.get_submodule(name) for name in quantised_layers(model)]
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_biases_are_rounded_before_anything_looks_at_them(tiny_folder):
    model = load_model(tiny_folder("qwen2_5_vl"), quantization=Quantization()).model
    bias = model.get_decoder().layers[0].self_attn.q_proj.bias
    assert bias.dtype == torch.bfloat16
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert model.get_decoder().layers[0].self_attn.q_proj.bias is bias


def test_gradient_checkpointing_changes_nothing(tiny_folder):
    gradients = []
    for checkpointing in (False, True):
        model = load_model(
            tiny_folder("llava"), quantization=nf4(), gradient_checkpointing=checkpointing
        ).model.train()
        inputs = model.get_input_embeddings()(torch.tensor([[5, 6, 7]])).detach().requires_grad_()
        model(inputs_embeds=inputs).logits.square().sum().backward()
        gradients.append(inputs.grad)
        assert model.is_gradient_checkpointing == checkpointing
    assert torch.equal(*gradients)


def test_checkpointing_that_saves_less_warns(tiny_folder):
    with pytest.warns(UserWarning, match="int8 layers keep what goes into them all the same"):
        load_model(tiny_folder("llava"), quantization=Quantization("int8"), gradient_checkpointing=True)
    with warnings.catch_warnings(action="error"):
        load_model(tiny_folder("llava"), quantization=nf4(), gradient_checkpointing=True)


def test_with_its_processor(tiny_folder):
    assert quantised_layers(load_model(tiny_folder("llava"), quantization=nf4()).model)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "int4",
            "quantization: found int4; expected nf4, int8, or some of the keys method, parts, double_quant",
        ),
        (
            {"method": "nf4", "bits": 4},
            "found {'method': 'nf4', 'bits': 4}; expected nf4, int8, or some of the",
        ),
        ({"method": "int4"}, r"quantization\.method: found 'int4'; expected one of: nf4, int8"),
        ({"compute_dtype": "float64"}, r"quantization\.compute_dtype: found 'float64'; expected one of: bfl"),
        ({"parts": []}, r"quantization\.parts: found \[\]; expected a list such as \[language\]"),
        ({"parts": "language"}, r"quantization\.parts: found 'language'; expected a list"),
        ({"method": "int8", "double_quant": False}, "double_quant or compute_dtype with method int8"),
        ({"method": "int8", "compute_dtype": "float32"}, "double_quant or compute_dtype with method int8"),
        (4, "quantization: found 4; expected nf4, int8, or some of the keys"),
    ],
)
def test_bad_settings(given, said):
    with pytest.raises(UserError, match=said):
        Quantization.read(given)


def test_what_is_read():
    assert Quantization.read(None) is None
    assert Quantization.read("int8") == Quantization(method="int8")
    assert Quantization.read({"parts": ["vision"]}) == Quantization(method="nf4", parts=["vision"])
    assert Quantization.read(nf4()) == nf4()


@pytest.mark.parametrize(
    ("family", "parts", "said"),
    [
        ("llava", ["langage"], r"quantization\.parts: .*language"),
        ("llava", ["head"], "'head' names the head, which stays in 16 or 32 bits"),
        ("llava", ["language", "*"], r"'\*' names the head"),
        ("llava", ["language", "*norm*"], r"'\*norm\*' has no linear layer"),
        ("gemma3", ["projector"], "'projector' has no linear layer"),
    ],
)
def test_parts_that_cannot_be(tiny_folder, family, parts, said):
    with pytest.raises(UserError, match=said):
        load_model(tiny_folder(family), quantization=Quantization("nf4", parts))


def test_a_model_that_is_quantised_already(tiny_folder, tmp_path):
    """It loads as it is, is known by its values, and can't be quantised again."""
    model = load_model(tiny_folder("llava"), quantization=nf4()).model
    model.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"found a model that is quantised already \(bitsandbytes\); leave it out"
    ):
        load_model(tmp_path, quantization=nf4())
    again = load_model(tmp_path).model
    assert quantised_layers(again) == quantised_layers(model)
    assert Fingerprint(again).text() == Fingerprint(model).text()


def test_without_bitsandbytes(tiny_folder, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(quantize, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    with pytest.raises(UserError, match="found no bitsandbytes; pip install bitsandbytes"):
        load_model(tiny_folder("llava"), quantization=nf4())
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    assert quantised_layers(load_model(tiny_folder("llava")).model) == {}
