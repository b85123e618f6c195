"""A folder that isn't what was trained fails."""

import json

import pytest
from safetensors.torch import load_file, save_file

from lightning_vlm.export.verification import verify
from tests.support.exports import change_one_bit, lora


def _edit(file, change):
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))


def _renamed(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["stray"] = weights.pop(next(iter(weights)))
    save_file(weights, file, metadata={"format": "pt"})


def _template(folder):
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + " ")


def _scale(folder):
    _edit(folder / "adapter_config.json", lambda one: one.update(lora_alpha=5, alpha_pattern={}))


def _loose(folder):
    """Targets by their last name, as PEFT users write them: they reach the tower too."""
    _edit(folder / "adapter_config.json", lambda one: one.update(target_modules=["q_proj", "k_proj"]))


BROKEN = {
    "a bit": (False, change_one_bit, "checksum of model.vision_tower"),
    "a name": (False, _renamed, "checksum of "),
    "the template": (
        False,
        _template,
        "chat template",
    ),
    "the pictures": (
        False,
        lambda folder: _edit(
            folder / "processor_config.json",
            lambda one: one["image_processor"].update(image_mean=[0.1, 0.5, 0.5]),
        ),
        "pixel_values",
    ),
    "a setting of the model": (
        False,
        lambda folder: _edit(folder / "config.json", lambda one: one["text_config"].update(rms_norm_eps=0.1)),
        "logits differ",
    ),
    "the weights' file": (False, lambda folder: (folder / "model.safetensors").unlink(), "doesn't load"),
    "the scale": (True, _scale, "logits differ"),
    "where adapters go": (True, _loose, "adapter_model.safetensors"),
}


@pytest.fixture(scope="module")
def broken(export_of, warm_interpreter):
    """Two folders for each way to break one, all loaded in one process."""
    exports = []
    for only, harm, _ in BROKEN.values():
        export = export_of("llava", lora(), only)
        harm(export.folder)
        exports.append(export)
    with warm_interpreter.used():
        return dict(zip(BROKEN, verify(exports), strict=True))


@pytest.mark.parametrize("harm", BROKEN)
def test_a_folder_that_is_not_the_model_fails(broken, harm):
    assert any(BROKEN[harm][2] in problem for problem in broken[harm].problems), broken[harm]
