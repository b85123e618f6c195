"""Patterns of a stranger's adapters: those without end are ended, ordinary ones pass."""

import json

import pytest

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading import peft_patterns
from lightning_vlm.models.loading.peft_patterns import check_patterns

ENDLESS = r"(\w+\.?)+!"
SLOW = {
    "target_modules": ENDLESS,
    "exclude_modules": ".*.*.*.*.*.*.*.*!",
    "feedforward_modules": f"(?i){ENDLESS}",
    "modules_to_save": ["head", ENDLESS],
    "layers_pattern": [ENDLESS],
    "rank_pattern": {"q_proj": 2, ENDLESS: 4},
    "alpha_pattern": {ENDLESS: 4},
}
ORDINARY = {
    "target_modules": r"^(?!.*visual).*(?:q_proj|k_proj).*",
    "exclude_modules": r"(?:.*?(?:vision|image).*?(?:attn|mlp).*?(?:k_proj|v_proj).*?)",
    "modules_to_save": ["head", r"lm_head.*"],
    "layers_pattern": r"layers|blocks?",
    "rank_pattern": {r".*\.layers\.[0-3]\..*": 4, "no pattern (": 2, "\ud83d+": 1},
    "layers_to_transform": [0, 1],
    "r": 8,
}
NAMES = [f"model.language_model.layers.{layer}.self_attn.{one}_proj" for layer in range(80) for one in "qkvo"]


def write(folder, settings):
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("key", SLOW)
def test_patterns_without_end(key, tmp_path, monkeypatch):
    monkeypatch.setattr(peft_patterns, "SECONDS", 0.5)
    write(tmp_path, {key: SLOW[key]})
    with pytest.raises(UserError, match=rf"adapter_config.json: {key}: found the pattern '.*takes more than"):
        check_patterns(tmp_path, NAMES)


def test_ordinary_patterns(tmp_path):
    for settings in (ORDINARY, {}, [], {"target_modules": ["q_proj"]}, {"target_modules": "all-linear"}):
        write(tmp_path, settings)
        check_patterns(tmp_path, NAMES)


def test_names_alone_need_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(peft_patterns.subprocess, "run", None)
    write(
        tmp_path, {"target_modules": ["q_proj"], "base_model_name_or_path": "me/my-model", "revision": None}
    )
    check_patterns(tmp_path, NAMES)
