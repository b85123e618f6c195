"""The card of an exported model: what is in it is true, and nothing of it is about this machine."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.export import servers
from lightning_vlm.export.card import Card, write_card
from lightning_vlm.export.history import history_of, public
from lightning_vlm.export.snippet import Loading
from lightning_vlm.export.trained import ExportRequest, load_trained
from tests.support.fitted import fit


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("home-of-somebody"))


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory, warm_interpreter):
    out = tmp_path_factory.mktemp("exported") / "model"
    with warm_interpreter.used():
        assert main(["export", "--ckpt_path", str(checkpoint), "--out", str(out), "--samples", "1"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(checkpoint):
    return load_trained(ExportRequest(checkpoint))


def card_of(trained, checkpoint, folder, **changes):
    """The text of a card."""
    card = Card(
        trained,
        history_of(checkpoint, trained.saved),
        Loading(),
        [],
        4,
        1e-7,
        "LlavaForConditionalGeneration",
    )
    write_card(card._replace(**changes), folder)
    return (folder / "README.md").read_text()


def test_the_card_is_valid_and_true(exported, checkpoint):
    card = ModelCard.load(exported / "README.md")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "image-text-to-text",
        "tags": ["lightning-vlm", "full", "lora"],
    }
    saved = torch.load(checkpoint, weights_only=True)["lightning_vlm"]
    assert saved["run"]["data.train"] in card.text
    tasks = [Drawn("train", size=24)[number].task for number in range(24)]
    for task in set(tasks):
        assert f"| {task} | {tasks.count(task)} |" in card.text
    record = [
        json.loads(line) for line in (checkpoint.parent.parent / "report.jsonl").read_text().splitlines()
    ]
    (loss,) = [row["metrics"]["val/loss"] for row in record if "val/loss" in row.get("metrics", {})]
    assert f"| `loss` | {loss:.4g} |" in card.text
    (config,) = re.findall("```yaml\n(.*?)```", card.text, re.DOTALL)
    assert yaml.safe_load(config)["model"]["adapt"] == {"projector": "full", "language": {"lora": {"r": 4}}}
    assert saved["base"] in card.text


def test_nothing_of_the_machine_is_in_the_folder(exported, checkpoint):
    for file in exported.iterdir():
        content = file.read_bytes()
        for place in (checkpoint.parent, exported.parent, Path.home(), Path.cwd()):
            assert str(place).encode() not in content, file.name


def test_its_lines_load_the_model(exported, monkeypatch):
    (code,) = re.findall("```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    scope = {}
    exec(code, scope)
    assert type(scope["model"]).__name__ == "LlavaForConditionalGeneration"


def test_what_is_not_known_is_said(trained, checkpoint, tmp_path):
    """A checkpoint away from its run, of a base model without a card."""
    alone = tmp_path / "elsewhere" / "last.ckpt"
    module = trained.module
    before = module.name_or_path
    module.name_or_path = "/secret/place/my-base"
    try:
        text = card_of(trained, alone, tmp_path)
    finally:
        module.name_or_path = before
    assert "/secret" not in text
    assert "a local folder named my-base" in text
    assert "None is known" in text
    assert "Its licence is unknown" in text
    assert "Nothing is known of the speed" in text
    assert "what the checkpoint says of its run" in text
    assert "license:" not in text


def test_adapters_name_a_base_on_the_hub_and_how_vllm_takes_them(trained, checkpoint, tmp_path):
    module = trained.module
    before = module.name_or_path
    module.name_or_path = "somebody/a-llava"
    loading = Loading(base="somebody/a-llava", has_peft=True)
    try:
        text = card_of(
            trained, checkpoint, tmp_path, loading=loading, adapters={"r": 24, "peft_type": "LORA"}
        )
        other = card_of(trained, checkpoint, tmp_path, loading=loading, adapters={"modules_to_save": ["x"]})
    finally:
        module.name_or_path = before
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "somebody/a-llava"
    assert data["base_model_relation"] == "adapter"
    assert data["library_name"] == "peft"
    assert "vllm serve somebody/a-llava --enable-lora --max-lora-rank 32 --lora-modules my-model=." in text
    assert "--enable-lora" not in other
    assert "takes no modules trained in full" in other


@pytest.mark.parametrize(
    ("architecture", "tower", "commands", "refused"),
    [
        ("Qwen2_5_VL", "", ["vllm serve .", "--mmproj", "FROM ."], []),
        ("Mllama", "", ["FROM ."], ["**vLLM**: no", "**llama.cpp**: no"]),
        ("Llava", "pixtral", ["vllm serve .", "--mmproj", "mmproj-model.gguf"], []),
        ("Llava", "clip_vision_model", ["vllm serve ."], ["**llama.cpp**: no", "**Ollama**: no"]),
        ("Brandnew", "", [], ["**vLLM**: unknown, and not tried", "**llama.cpp**: no"]),
    ],
)
def test_servers_are_said_as_their_lists_have_them(
    architecture, tower, commands, refused, trained, checkpoint, tmp_path
):
    name = f"{architecture}ForConditionalGeneration"
    text = card_of(trained, checkpoint, tmp_path, architecture=name, tower=tower)
    for found in (*commands, *refused):
        assert found in text
    assert servers.VLLM_SOURCE in text
    assert "tried, see above" in text


def test_a_config_for_others_has_neither_secrets_nor_places():
    config = {
        "train": "data/pets/train.jsonl",
        "val": "HuggingFaceM4/A-OKVQA",
        "token": "hf_abc",
        "url": "https://me:secret@host/x.jsonl",
        "template": f"{{{{ x }}}}\n{Path.home()}/y",
        "windows": "C:\\Users\\me\\train.jsonl",
        "none": None,
        "steps": 3,
    }
    found = public(config)
    assert found["train"] == ".../train.jsonl"
    assert found["val"] == "HuggingFaceM4/A-OKVQA"
    assert found["url"] == "https://***@host/x.jsonl"
    assert found["windows"] == ".../train.jsonl"
    assert found["steps"] == 3
    assert "token" not in found
    assert "none" not in found
    assert str(Path.home()) not in str(found)
