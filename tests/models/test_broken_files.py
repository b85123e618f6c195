"""Broken files of models and checkpoints: one line with the file, what it is instead, and the fix."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.checkpoint import check_file
from lightning_vlm.models.loading.load import load_model, load_processor, resolve


def cut(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write(name, content):
    return lambda model: (model / name).write_bytes(content)


def remove(pattern):
    return lambda model: [file.unlink() for file in model.glob(pattern)]


def set_config(**keys):
    def change(model):
        file = model / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))

    return change


def pickled(model):
    (model / "model.safetensors").unlink()
    torch.save({"a": Evil()}, model / "pytorch_model.bin")


def other_shape(model):
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "embed_tokens" in name)
    save_file(
        {**weights, name: weights[name][:10].clone()}, model / "model.safetensors", metadata={"format": "pt"}
    )


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"
MODELS = {
    "cut short": (cut, "model.safetensors: found a file that is cut short"),
    "an empty file": (write("model.safetensors", b""), "model.safetensors: found an empty file"),
    "a web page": (
        write("model.safetensors", b"<!DOCTYPE html><html>"),
        "model.safetensors: found a web page instead",
    ),
    "git-lfs": (
        write("model.safetensors", LFS),
        "found a pointer of git-lfs instead of the file; run git lfs pull",
    ),
    "garbage": (write("model.safetensors", b"\xff" * 99), "model.safetensors: found no safetensors file"),
    "no weights": (remove("model.safetensors"), "found no weights; expected model.safetensors"),
    "a pickle with code": (
        pickled,
        "found weights as a pickle that torch refuses; convert them to safetensors",
    ),
    "broken JSON": (write("config.json", b"{a: 1}"), "config.json: found broken JSON at line 1, column 2"),
    "a list": (write("config.json", b"[]"), "config.json: found list at the top; expected an object"),
    "no config": (remove("config.json"), "found a folder without config.json"),
    "adapters": (
        lambda model: (remove("config.json")(model), write("adapter_config.json", b"{}")(model)),
        "found a folder of adapters; give their base model",
    ),
    "no tokenizer": (remove("tokenizer*"), "found no tokenizer that loads"),
    "a broken tokenizer": (write("tokenizer.json", b"{}"), "its tokenizer files can't be read"),
    "no processor": (remove("*processor*"), "found no image processor"),
    "an unknown family": (
        set_config(model_type="foonet"),
        "doesn't know its model type foonet; a newer one may: pip install -U transformers",
    ),
    "a misspelt family": (set_config(model_type="llavaa"), "did you mean llava?"),
    "a text model": (set_config(model_type="llama"), "found model type 'llama', which reads no images"),
    "code of its own": (
        set_config(model_type="foo", auto_map={"AutoConfig": "c.Foo"}),
        "it comes with Python code of its own",
    ),
    "other shapes": (other_shape, "have other shapes than its config.json says"),
}


@pytest.mark.parametrize(("change", "expected"), MODELS.values(), ids=MODELS)
def test_a_broken_model(tmp_path, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(resolve("drawn-vlm"), model)
    change(model)
    with pytest.raises(UserError) as found:
        load_both(model)
    assert expected in str(found.value)
    assert "\n" not in str(found.value)
    assert not Path("evil").exists()


def load_both(model):
    load_processor(model)
    load_model(model)


def saved(**keys):
    return {"state_dict": {}, "pytorch-lightning_version": "2", **keys}


CHECKPOINTS = {
    "an empty file": (b"", "an empty file"),
    "a web page": (b"<html>", "a web page instead of the file"),
    "git-lfs": (LFS, "a pointer of git-lfs"),
    "the beginning of a zip": (b"PK\x03\x04" + bytes(99), "a file that is cut short"),
    "text": (b"hello", "no file that torch.save wrote"),
    "pickled code": (saved(hyper_parameters=Evil()), "pickled code, which is not run"),
    "weights alone": (saved(), "weights alone (save_weights_only), from which a run can't be resumed"),
}


@pytest.mark.parametrize(("content", "expected"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_broken_checkpoint(tmp_path, monkeypatch, content, expected):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("x.ckpt").write_bytes(content)
    else:
        torch.save(content, "x.ckpt")
    with pytest.raises(UserError, match=r"checkpoint x\.ckpt: found") as found:
        check_file(Path("x.ckpt"), to_resume=True)
    assert expected in str(found.value)
    assert not Path("evil").exists()


def test_weights_alone_can_be_scored_and_a_missing_checkpoint_has_a_neighbour(tmp_path):
    torch.save(saved(), tmp_path / "x.ckpt")
    check_file(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"found no such file; did you mean .*x\.ckpt\?"):
        check_file(tmp_path / "y.ckpt")
