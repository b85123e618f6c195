import json

import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_vlm.data.conversation import Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from tools import shipped


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return shipped.create(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def processor(base):
    return AutoProcessor.from_pretrained(base)


@pytest.fixture(scope="module")
def model(base):
    return AutoModelForImageTextToText.from_pretrained(base)


def test_it_stays_small(base):
    assert sum(file.stat().st_size for file in base.iterdir()) < 10_000_000


def test_it_is_the_same_each_time_and_another_with_another_seed(base, tmp_path, monkeypatch):
    again = shipped.create(tmp_path / "again")
    assert {file.name for file in again.iterdir()} == {file.name for file in base.iterdir()}
    assert all(file.read_bytes() == (again / file.name).read_bytes() for file in base.iterdir())
    tokenizer = AutoProcessor.from_pretrained(base).tokenizer
    monkeypatch.setattr(shipped, "_tokenizer", lambda: tokenizer)
    other = shipped.create(tmp_path / "other", seed=1)
    weights = "model.safetensors"
    assert (other / weights).read_bytes() != (base / weights).read_bytes()


def test_the_chat_it_reads(processor):
    """ChatML, as Qwen writes it, with one image token for each patch."""
    image = PIL.Image.new("RGB", (100, 40), "red")
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
    ]
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert processor.decode(batch["input_ids"][0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n" + 16 * "<image>" + "What?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert batch["pixel_values"].shape == (1, 3, 64, 64)


def test_every_parameter_learns_but_the_layer_norm_that_llava_skips(processor, model):
    image = PIL.Image.new("RGB", (64, 64), "red")
    batch = processor(text="<image>What?", images=image, return_tensors="pt")
    model(**batch, labels=batch["input_ids"]).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    model.zero_grad()
    assert without == {f"model.vision_tower.post_layernorm.{kind}" for kind in ("weight", "bias")}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_it_stops_at_the_end_of_its_turn(processor, model):
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id == end
    assert model.generation_config.pad_token_id == processor.tokenizer.pad_token_id != end
    inputs = processor(text="<image>Hi", images=PIL.Image.new("RGB", (8, 8)), return_tensors="pt")
    with torch.no_grad():
        assert model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1] <= 16 + 2 + 3


@pytest.mark.parametrize("text", ["Ünïcödé 漢字 🙂", " two  spaces\n\ttab ", "a\x00b", "[123, 457, 991, 88]"])
def test_any_text_survives_the_tokenizer(processor, text):
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_drawn_conversations_are_short(processor):
    """A drawn box takes nine tokens, four of them numbers (a rare number one more)."""
    tokenizer = processor.tokenizer
    boxes = [str(item.messages[-1].parts[0]) for item in Drawn("val", size=200, tasks=["grounding"])]
    lengths = [len(tokenizer.tokenize(box)) for box in boxes]
    assert min(lengths) == 9
    assert sum(lengths) < 9.5 * len(boxes)
    for conversation in Drawn("val", size=200):
        words = [part.text for m in conversation.messages for part in m.parts if isinstance(part, Text)]
        assert len(tokenizer.encode(" ".join(words))) < 150


def test_command(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shipped, "create", lambda directory: directory)
    shipped.main([str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().out
    with pytest.raises(UserError, match="DIR"):
        shipped.main([])


def test_its_configuration_is_plain_transformers(base):
    config = json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert "auto_map" not in config
