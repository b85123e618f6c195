import shutil

import pytest
import torch

from lightning_vlm.errors import UserError
from lightning_vlm.models import tiny
from lightning_vlm.models.checkpoint import check_base, check_keys, fingerprint
from lightning_vlm.models.load import load_model


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_a_fingerprint_is_of_the_weights_not_of_the_place(tiny_folder, tmp_path, family):
    first = fingerprint(load_model(tiny_folder(family)))
    moved = shutil.copytree(tiny_folder(family), tmp_path / "moved")
    assert fingerprint(load_model(moved)) == first
    assert fingerprint(load_model(moved, dtype="bfloat16")) == first
    assert fingerprint(load_model(tiny.build(family, tmp_path / "other", seed=3))) != first


def test_a_fingerprint_sees_each_tensor_and_its_shape(tiny_folder):
    model = load_model(tiny_folder("llava"))
    first = fingerprint(model)
    with torch.no_grad():
        model.lm_head.weight[0, 3] += 1
    second = fingerprint(model)
    assert second != first
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flatten()[None])
    assert fingerprint(model) not in (first, second)


def test_bases():
    saved = {"name_or_path": "a/b", "base": "12", "seed": 3}
    assert check_base(saved, "elsewhere/b", "12") is saved
    with pytest.raises(
        UserError, match=r"trained on a/b \(12\), but model.name_or_path c has other weights \(34\)"
    ):
        check_base(saved, "c", "34")
    for nothing in (None, {}, {"base": "12"}, "12"):
        with pytest.raises(UserError, match="not written by a VLMModule"):
            check_base(nothing, "a/b", "12")


def test_keys_all_told_in_one_error():
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
