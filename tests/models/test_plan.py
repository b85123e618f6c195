"""Plans are read, or refused in one line, before there is a model."""

import re

import pytest

from lightning_vlm import VLMModule
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.plan.methods import Adapter, LoraSettings
from lightning_vlm.models.plan.plan import (
    SHORTCUTS,
    PlanEntry,
    expand,
    quantised_problem,
    read_plan,
)

MISTAKES = [
    ({"language": "lorra"}, "plan['language']: found method 'lorra'; did you mean 'lora'?"),
    ({"language": {"dora": {}}}, "found method 'dora'"),
    ({"language": {"full": {}}}, "'full' has no settings; write language: full"),
    ({"language": {"lora": {}, "full": {}}}, "found keys ['full', 'lora']; expected one, the method"),
    ({"language": None}, "found method None; expected one of: frozen, full, lora"),
    ({"language": {"lora": 16}}, "found lora: 16; expected keys r, alpha"),
    ({"language": {"lora": {"drop_out": 0.1}}}, "found lora key 'drop_out'; did you mean 'dropout'?"),
    ({"language": {"lora": {"r": 0}}}, "lora r=0; expected a whole number >= 1"),
    ({"language": {"lora": {"r": "8"}}}, "lora r='8'"),
    ({"language": {"lora": {"r": None}}}, "lora r=None"),
    ({"language": {"lora": {"r": 3, "init": "orthogonal"}}}, "lora r=3; expected an even number"),
    ({"language": {"lora": {"modules": 3}}}, "lora modules=3"),
    ({"language": {"lora": {"alpha": -1}}}, "lora alpha=-1; expected a number > 0"),
    ({"language": {"lora": {"dropout": 1.0}}}, "lora dropout=1.0; expected a number in [0, 1)"),
    ({"language": {"lora": {"modules": "q_proj"}}}, "lora modules='q_proj'; expected a list"),
    ({"language": {"lora": {"dora": 1}}}, "lora dora=1; expected true or false"),
    ({"language": {"lora": {"rslora": "yes"}}}, "lora rslora='yes'; expected true or false"),
    ({"language": {"lora": {"init": "pisa"}}}, "lora init='pisa'; expected one of default, gaussian"),
    ({"language": {"lora": {"init": "pissa_niter_"}}}, "pissa, pissa_niter_16, olora"),
    ({"language": {"lora": {"init": "eva"}}}, "lora init='eva'; expected another, as it needs data"),
    ({"language": {"lora": {"init": True}}}, "lora init=True"),
    ({"language": {"ia3": {"modules": []}}}, "ia3 modules=[]; expected a list of names"),
    ({"language": {"ia3": {"feedforward": "fc2"}}}, "ia3 feedforward='fc2'"),
    ({"language": "prefix"}, "found method 'prefix'; PEFT's prefix tuning wraps the whole model"),
    ({"language": {"adapter": {"reduction": 0}}}, "adapter reduction=0; expected a whole number >= 1"),
    ({"language": {"adapter": {"kind": "serial"}}}, "adapter kind='serial'; expected sequential or parallel"),
    ({"language": {"adapter": {"scale": 0}}}, "adapter scale=0; expected a number > 0"),
    ({"language": {"cross_modal_adapter": {"heads": 0}}}, "heads=0; expected a whole number >= 1"),
    ({"language": {"cross_modal_adapter": {"reduction": 0.5}}}, "reduction=0.5; expected a whole number"),
    ({"language": "lora", "vision": "ia3"}, "found lora ('language') and ia3 ('vision'); PEFT saves one"),
    (
        {"language": {"lora": {"dora": True}}, "vision": "lora"},
        "plan['vision']: found lora dora=False, but True in 'language'; PEFT keeps it once",
    ),
    ({"language": {"lora": {"rslora": True}}, "vision": "lora"}, "lora rslora=False, but True"),
    ({"language": "lora", "vision": {"lora": {"init": "olora"}}}, "lora init='olora', but 'default'"),
]


@pytest.mark.parametrize(("plan", "message"), MISTAKES)
def test_mistakes(plan, message):
    with pytest.raises(UserError, match=re.escape(message)):
        read_plan(plan)
    with pytest.raises(UserError, match=re.escape(message)):  # though there is no such model
        VLMModule("no/such-model", adapt=plan)


def test_defaults():
    lora = read_plan({"language": "lora"})["language"]
    assert lora == PlanEntry("lora", LoraSettings(r=16, alpha=None, dropout=0.0, modules=None))
    assert (lora.settings.scale, LoraSettings(r=3).scale, LoraSettings(alpha=5).scale) == (32, 6, 5)
    assert LoraSettings(r=64, rslora=True).scale == 16
    assert read_plan({"a": {"adapter": {"kind": "parallel"}}})["a"].settings == Adapter(16, "parallel", 1.0)


def test_shortcuts_are_plans_of_their_own():
    for name in ("lora", "qlora", "full", "projector-only", "mixed-16gb"):
        assert read_plan(expand(name))
    plan = expand("lora")
    assert plan == expand(None) == {"projector": "full", "language": {"lora": {"r": 16}}}
    plan["language"]["lora"] = {"r": 2}
    del plan["projector"]
    assert expand("lora")["language"] == {"lora": {"r": 16}}, "a person may edit theirs"
    assert VLMModule("no/such-model", adapt="projector-only").adapt == {"projector": "full"}
    with pytest.raises(UserError, match="found 'mixed-16'; did you mean 'mixed-16gb'"):
        VLMModule("no/such-model", adapt="mixed-16")


def test_a_shortcut_is_not_changed_by_what_is_done_with_it():
    expand("mixed-16gb")["language.layers[0%:25%]"]["lora"]["r"] = 99
    assert SHORTCUTS["mixed-16gb"]["language.layers[0%:25%]"] == {"lora": {"r": 8}}


@pytest.mark.parametrize(
    ("value", "nf4", "int8"),
    [
        ("full", "can't train; use lora", "can't train; use lora"),
        ({"lora": {"dora": True}}, None, "quantise to nf4, or leave dora out"),
        ({"lora": {"init": "pissa"}}, "init: pissa needs 16- or 32-bit", "init: pissa needs 16- or 32-bit"),
        ({"lora": {"init": "olora"}}, "use init: default", "use init: default"),
        ({"lora": {"init": "gaussian", "rslora": True}}, None, None),
        ("ia3", None, None),
        ("adapter", None, None),
        ("frozen", None, None),
    ],
)
def test_what_quantised_weights_can_have(value, nf4, int8):
    entry = read_plan({"language": value})["language"]
    for kind, expected in (("nf4", nf4), ("int8", int8)):
        found = quantised_problem(entry, kind)
        assert (found is None) == (expected is None)
        assert expected is None or expected in found


@pytest.mark.parametrize(
    ("plan", "quantization", "message"),
    [
        (
            {"language": {"lora": {"dora": True}}},
            "int8",
            "plan['language']: language will be quantised to int8;",
        ),
        ({"language.layers[0:8]": {"lora": {"init": "pissa"}}}, "nf4", "init: pissa needs 16- or 32-bit"),
        ({"language": "full"}, "nf4", "quantised weights can't train; use lora"),
        ("full", "int8", "plan['language']: language will be quantised to int8"),
        ({"vision": "full"}, Quantization("nf4", parts=["vision"]), "plan['vision']"),
    ],
)
def test_what_quantised_weights_cannot_have_is_refused_before_they_are_loaded(plan, quantization, message):
    with pytest.raises(UserError, match=re.escape(message)):
        VLMModule("no/such-model", adapt=plan, quantization=quantization)


def test_what_is_not_quantised_is_free():
    """Norms aren't, nor is what the quantised parts leave out."""
    plan = {"language.norm": "full", "language_model": "full", "vision": {"lora": {"init": "pissa"}}}
    VLMModule("no/such-model", adapt=plan, quantization="nf4")
    assert VLMModule("no/such-model", adapt="qlora").source.quantization == Quantization("nf4")
    assert VLMModule("no/such-model", adapt="qlora", quantization="int8").source.quantization.method == "int8"
    assert VLMModule("no/such-model", adapt="lora").source.quantization is None
