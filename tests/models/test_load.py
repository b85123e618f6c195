"""Loading: real folders, options that take effect, errors in one sentence."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from lightning_vlm.errors import UserError
from lightning_vlm.models import shipped
from lightning_vlm.models.loading import load
from lightning_vlm.models.loading.load import load_model, load_processor
from tests.support import tiny
from tests.support.pictures import ONE_PICTURE, smallest_inputs

FAMILIES = sorted(tiny.FAMILIES)
Folder = Callable[[str], Path]


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_same_weights_and_class_as_transformers(family: str, tiny_folder: Folder) -> None:
    loaded = load_model(tiny_folder(family))
    processor = load_processor(tiny_folder(family))
    expected = AutoModelForImageTextToText.from_pretrained(tiny_folder(family))
    assert type(loaded.model) is type(expected)
    for (name, weight), (_, same) in zip(
        loaded.model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert torch.equal(weight, same), name
    assert processor.image_processor is not None
    assert processor.tokenizer is not None


def length_of(given: dict) -> int:
    """How many tokens a language model gets."""
    words = given.get("inputs_embeds")
    return (given["input_ids"] if words is None else words).shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_keeps_no_cache_but_generation_does(
    family: str, tiny_folder: Folder, tmp_path: Path
) -> None:
    model = load_model(tiny_folder(family)).model
    inputs = smallest_inputs(family, tiny_folder(family))
    output = model(**inputs)
    assert getattr(output, "language_model_outputs", output).past_key_values is None
    model.save_pretrained(tmp_path)
    exported = AutoModelForImageTextToText.from_pretrained(tmp_path)  # must be fast too
    (tmp_path / "generation_config.json").unlink()
    # The language models of some generate by themselves, and have no file to say that they keep a cache.
    others = () if family in ONE_PICTURE else (exported,)
    for each in (model, *others, load_model(tmp_path).model):
        lengths = []
        hook = each.get_decoder().register_forward_pre_hook(
            lambda module, args, given, lengths=lengths: lengths.append(length_of(given)),
            with_kwargs=True,
        )
        each.generate(**inputs, min_new_tokens=3, max_new_tokens=3, do_sample=False)
        hook.remove()
        assert lengths == [inputs["input_ids"].shape[1], 1, 1]


def test_checkpointing_without_effect_warns(tiny_folder: Folder) -> None:
    with pytest.warns(UserWarning, match=r"MllamaVisionEncoderLayer in vision doesn't support it"):
        load_model(tiny_folder("mllama"), gradient_checkpointing=True)
    with warnings.catch_warnings(action="error"):
        load_model(tiny_folder("qwen3_vl"), gradient_checkpointing=True)


def test_options_reach_the_model(tiny_folder: Folder) -> None:
    model = load_model(tiny_folder("llava"), dtype="bfloat16", attn_implementation="eager").model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.get_decoder().config._attn_implementation == "eager"
    assert not model.is_gradient_checkpointing
    assert load_model(tiny_folder("llava"), gradient_checkpointing=True).model.is_gradient_checkpointing


def test_a_shipped_name_is_its_folder(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load.resolve("drawn-vlm") == str(shipped.SHIPPED["drawn-vlm"])
    monkeypatch.setitem(shipped.SHIPPED, "drawn-vlm", tiny_folder("smolvlm"))
    assert load_model("drawn-vlm").model.config.model_type == "smolvlm"


def test_chat_template_as_text_or_file_replaces_and_is_saved(tiny_folder: Folder, tmp_path: Path) -> None:
    template = "{% for message in messages %}[{{ message.role }}]{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    for given in (template, str(tmp_path / "chat.jinja")):
        processor = load_processor(tiny_folder("llava"), chat_template=given)
        assert processor.apply_chat_template([{"role": "user", "content": []}]) == "[user]"
        processor.save_pretrained(tmp_path / "saved")
        assert load_processor(tmp_path / "saved").chat_template == template
    (tmp_path / "empty.jinja").write_text(" \n")
    (tmp_path / "no text").write_bytes(b"\xff\xfe\x00")
    for given, found in (
        ("no.jinja", r"found 'no\.jinja'; expected .* \(plain, chatml, .* are ready\)"),
        ("chatlm", r"found 'chatlm'; expected .*; did you mean 'chatml'\?"),
        ("", r"found ''; expected a ready template, a Jinja template or the path of a file with one"),
        (str(tmp_path), "found '.*'; expected"),
        (str(tmp_path / "empty.jinja"), r"found '.*', which is an empty file; expected"),
        (str(tmp_path / "no text"), r"found '.*' \(a file that is no text\); expected"),
        ("a\0b", "found 'a.x00b'; expected"),
        ("x" * 5000, "found 'x+...x+'; expected"),
    ):
        with pytest.raises(UserError, match=f"chat_template: {found}") as error:
            load_processor(tiny_folder("llava"), chat_template=given)
        assert len(str(error.value)) < 300
        assert "\n" not in str(error.value)


def test_no_chat_template_is_no_error(tiny_folder: Folder, tmp_path: Path) -> None:
    folder = copy(tiny_folder("llava"), tmp_path)
    (folder / "chat_template.jinja").unlink()
    assert load_processor(folder).chat_template is None


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "drawn"])
@pytest.mark.parametrize("loader", [load_model, load_processor])
def test_nothing_there(name: str, loader: Callable) -> None:
    with pytest.raises(UserError, match=rf"'{name}': no such folder.*HF_HUB_OFFLINE.*drawn-vlm"):
        loader(name)


def test_folders_that_lack_something(tiny_folder: Folder, tmp_path: Path) -> None:
    for loader in (load_model, load_processor):
        with pytest.raises(UserError, match=r"without config\.json"):
            loader(tmp_path)
    folder = copy(tiny_folder("llava"), tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(UserError, match="no image processor"):
        load_processor(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="set trust_remote_code=True if"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: found broken JSON at line 1"):
        load_model(folder)


def test_a_text_only_model_is_refused(tiny_folder: Folder, tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'llama', which reads no images"):
        load_model(tmp_path)
    load_processor(tiny_folder("llava")).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no image processor"):
        load_processor(tmp_path)


def test_unsupported_attention_is_explained(tiny_folder: Folder) -> None:
    with pytest.raises(UserError, match="attn_implementation"):
        load_model(tiny_folder("llava"), attn_implementation="fast")
