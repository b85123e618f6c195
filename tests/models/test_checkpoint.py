import shutil

import pytest
import torch

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.checkpoint import base_of, check_base, check_keys
from lightning_vlm.models.loading.fingerprint import Fingerprint
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.loading.quantize import Quantization
from tests.support import tiny


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_a_fingerprint_is_of_the_weights_not_of_the_place(tiny_folder, tmp_path, family):
    first = Fingerprint(load_model(tiny_folder(family)).model).text()
    moved = shutil.copytree(tiny_folder(family), tmp_path / "moved")
    assert Fingerprint(load_model(moved).model).text() == first
    assert Fingerprint(load_model(moved, dtype="bfloat16").model).text() == first
    assert Fingerprint(load_model(tiny.build(family, tmp_path / "other", seed=3)).model).text() != first


def test_a_fingerprint_sees_each_tensor_and_its_shape(tiny_folder):
    model = load_model(tiny_folder("llava")).model
    first = Fingerprint(model).text()
    with torch.no_grad():
        model.lm_head.weight[0, 3] += 1
    second = Fingerprint(model).text()
    assert second != first
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flatten()[None])
    assert Fingerprint(model).text() not in (first, second)


def test_bases(tiny_folder, tmp_path):
    base = Fingerprint(load_model(tiny_folder("llava")).model)
    saved = base_of("a/b", base)
    assert check_base(saved, "elsewhere/b", base) is saved
    other = load_model(tiny.build("llava", tmp_path, seed=3)).fingerprint
    with pytest.raises(
        UserError, match=rf"trained on a/b \({base.text()}\), but model.name_or_path c has other weights"
    ):
        check_base(saved, "c", other)
    for nothing in (None, {}, {"base": "12"}, "12"):
        with pytest.raises(UserError, match="not written by a VLMModule"):
            check_base(nothing, "a/b", base)


@pytest.mark.parametrize("method", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_was_trained_on_quantised_weights_fits_their_base_model_only(
    tiny_folder, tmp_path, method, dtype, family
):
    """Also where only one quantised matrix is another, or its shape."""
    folder = tiny_folder(family)
    quantised = Fingerprint(load_model(folder, dtype=dtype, quantization=Quantization(method)).model)
    saved = base_of("a", quantised)
    check_base(saved, "a", quantised)
    float_model = load_model(folder, dtype=dtype).model
    plain = Fingerprint(float_model)
    check_base(saved, "a", plain)
    layer = float_model.get_decoder().layers[1].mlp.down_proj
    with torch.no_grad():
        layer.weight[0, 3] *= -1
    with pytest.raises(UserError, match="give the same base model, in the dtype that was quantised"):
        check_base(saved, "a", Fingerprint(float_model))
    with torch.no_grad():
        layer.weight[0, 3] *= -1
    check_base(saved, "a", Fingerprint(float_model))
    layer.weight = torch.nn.Parameter(layer.weight.view(-1, 2))
    with pytest.raises(UserError, match="other weights"):
        check_base(saved, "a", Fingerprint(float_model))
    other = load_model(tiny.build(family, tmp_path, seed=3), dtype=dtype, quantization=Quantization(method))
    with pytest.raises(UserError, match="has other weights"):
        check_base(saved, "a", other.fingerprint)


def test_quantised_weights_fit_nothing_that_was_trained_otherwise(tiny_folder):
    def base(method, *parts):
        one = Quantization(method, list(parts)) if method else None
        return Fingerprint(load_model(tiny_folder("llava"), quantization=one).model)

    nf4 = base("nf4", "language")
    with pytest.raises(
        UserError, match=r"on weights in 16 or 32 bits, but .* 14 weights in nf4; expected .*none"
    ):
        check_base(base_of("a", base(None)), "a", nf4)
    with pytest.raises(UserError, match=r"on 14 weights in int8, but .* nf4; expected the same or none"):
        check_base(base_of("a", base("int8", "language")), "a", nf4)
    with pytest.raises(UserError, match=r"on 34 weights in nf4, but .* 14 weights in nf4"):
        check_base(base_of("a", base("nf4", "language", "vision", "projector")), "a", nf4)


def test_all_keys_in_one_error():
    own = {name: torch.zeros(2) for name in ("a", "b", "c", "frozen")}
    check_keys({name: own[name] for name in "abc"}, own, {"a", "b", "c"})
    with pytest.raises(UserError, match=r"2 frozen here \(c, frozen\)"):
        check_keys(own, own, {"a", "b"})
    given = {"a": torch.zeros(3), **{f"x{at}": torch.zeros(1) for at in range(5)}}
    with pytest.raises(UserError) as error:
        check_keys(given, own, {"a", "b", "c"})
    assert "5 unknown (x0, x1, x2, ...); 2 missing (b, c); 1 of another shape (a (3,) for (2,))" in str(
        error.value
    )
