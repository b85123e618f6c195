"""Checkpoints, weights, adapters and settings from strangers: none of them runs anything."""

import io
import json
import pickle
import shutil
import struct
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from lightning_vlm import VLMModule
from lightning_vlm.chat.opened import Where, open_model
from lightning_vlm.cli import main
from lightning_vlm.compare.entrants import read_entrants
from lightning_vlm.config.yaml_file import read_config
from lightning_vlm.errors import UserError
from lightning_vlm.export.trained import read_checkpoint_file
from lightning_vlm.migrate.reading import read as read_config_of_others
from lightning_vlm.models.loading.checkpoint import check_file
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.training.checkpoint_settings import settings_of
from tests.security.conftest import Evil

pytestmark = pytest.mark.usefixtures("nothing_ran")

CODE = """
import os
os.system("touch evil")
from transformers import *
from lightning_vlm import FamilyHooks
class EvilProcessor(LlavaProcessor): pass
class EvilConfig(LlavaConfig): pass
class EvilModel(LlavaForConditionalGeneration): pass
class EvilTokenizer(PreTrainedTokenizerFast): pass
class EvilImages(SiglipImageProcessor): pass
class Hooks(FamilyHooks): pass
def generate(model, **options): pass
"""
LIGHTNING = {
    "state_dict": {},
    "pytorch-lightning_version": "2.6.0",
    "optimizer_states": [],
    "lr_schedulers": [],
    "loops": {},
    "hyper_parameters": {"name_or_path": "none"},
    "lightning_vlm": {},
}


def old_tar(content):
    """The format of torch 0.1: a tar of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


CHECKPOINTS = {
    "at the top": lambda: saved(Evil()),
    "in weights": lambda: saved({**LIGHTNING, "state_dict": {"model.a": Evil()}}),
    "in a callback's state": lambda: saved({**LIGHTNING, "callbacks": {"EarlyStopCheckpoint": Evil()}}),
    "in an optimizer's state": lambda: saved({**LIGHTNING, "optimizer_states": [Evil()]}),
    "in hyperparameters": lambda: saved({**LIGHTNING, "hyper_parameters": {"name_or_path": Evil()}}),
    "as a key": lambda: saved({**LIGHTNING, "callbacks": {Evil(): 1}}),
    "in the format before zip": lambda: saved(
        {**LIGHTNING, "callbacks": Evil()}, _use_new_zipfile_serialization=False
    ),
    "a plain pickle": lambda: pickle.dumps({**LIGHTNING, "callbacks": Evil()}),
    "a plain pickle of protocol 0": lambda: pickle.dumps({**LIGHTNING, "callbacks": Evil()}, protocol=0),
    "in a tar": lambda: old_tar({**LIGHTNING, "callbacks": Evil()}),
}


@pytest.mark.parametrize("content", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_that_are_programs(content):
    """By whatever opens them: resuming, predict, export, compare and chat."""
    Path("x.ckpt").write_bytes(content())
    for opens in (
        lambda: check_file(Path("x.ckpt"), to_resume=True),
        lambda: settings_of(Path("x.ckpt")),
        lambda: read_checkpoint_file(Path("x.ckpt")),
        lambda: open_model("x.ckpt", Where("cpu")),
        lambda: read_entrants(["x.ckpt", "drawn-vlm"]),
    ):
        with pytest.raises(UserError):
            opens()
    with pytest.raises((pickle.UnpicklingError, RuntimeError), match="weights_only"):
        VLMModule.load_from_checkpoint("x.ckpt")


def test_checkpoints_that_are_programs_in_commands(stranger, capsys):
    Path("x.ckpt").write_bytes(CHECKPOINTS["in a callback's state"]())
    base = ["--model.name_or_path", str(stranger), "--data.train", "none.jsonl"]
    for words in (
        ["fit", *base, "--ckpt_path", "x.ckpt"],
        ["predict", "--ckpt_path", "x.ckpt", "--data.predict", "none.jsonl"],
        ["export", "--ckpt_path", "x.ckpt", "--out", "exported"],
        ["compare", "x.ckpt", str(stranger), "--data", "none.jsonl"],
        ["chat", "x.ckpt", "--device", "cpu"],
    ):
        assert main(words) == 2, words
        assert "found pickled code, which is not run" in capsys.readouterr().err


def test_checkpoints_at_an_address(stranger, monkeypatch, capsys):
    """Lightning itself unpickles these."""
    Path("x.ckpt").write_bytes(CHECKPOINTS["in a callback's state"]())
    Path("q.jsonl").write_text(json.dumps({"question": "What?", "answer": "Red."}))
    monkeypatch.setenv("TORCH_HOME", str(Path("hub").absolute()))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory="."))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    place = f"http://127.0.0.1:{server.server_port}/x.ckpt"
    off = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    try:
        words = ["--model.name_or_path", str(stranger), "--data.val", "q.jsonl", *off]
        assert main(["validate", *words, "--ckpt_path", place]) == 2
        assert "pickled code, which isn't run" in capsys.readouterr().err
        for address in (place, f"file://{Path('x.ckpt').absolute()}"):
            with pytest.raises(pickle.UnpicklingError):
                VLMModule.load_from_checkpoint(address)
    finally:
        server.shutdown()
        server.server_close()


def test_a_checkpoint_names_code(stranger, monkeypatch):
    """The arguments in it can't turn on what a person must turn on."""
    Path("evil_hooks.py").write_text(CODE)
    monkeypatch.syspath_prepend(".")
    shutil.copytree(stranger, "model")
    Path("model/evil_model.py").write_text(CODE)
    edit("model/config.json", model_type="evil", auto_map=AUTO_MAP)
    arguments = {"name_or_path": "model", "adapt": {"language": "lora"}, "trust_remote_code": True}
    more = ({}, {"family": "evil_hooks.Hooks"}, {"_instantiator": "evil_hooks.generate"})
    for number, named in enumerate(more):
        content = {**LIGHTNING, "hyper_parameters": {**arguments, **named}}
        torch.save(content, f"{number}.ckpt")
        with pytest.raises((UserError, ValueError), match=r"trust_remote_code|instantiator"):
            VLMModule.load_from_checkpoint(f"{number}.ckpt").configure_model()
        assert main(["export", "--ckpt_path", f"{number}.ckpt", "--out", "exported"]) == 2
        assert main(["chat", f"{number}.ckpt", "--device", "cpu"]) == 2
    assert "evil_hooks" not in sys.modules


def test_the_config_beside_a_checkpoint_names_code():
    Path("run").mkdir()
    torch.save(LIGHTNING, "run/x.ckpt")
    model = {
        "family": "evil_hooks.Hooks",
        "trust_remote_code": True,
        "attn_implementation": "evil/kernel",
        "generation": {"custom_generate": "evil/generate", "trust_remote_code": True},
        "optimizer": {"class_path": "evil_hooks.generate"},
    }
    callbacks = {"callbacks": [{"class_path": "evil_hooks.Hooks"}], "precision": "32-true"}
    Path("run/config.yaml").write_text(yaml.safe_dump({"model": model, "trainer": callbacks}))
    with pytest.warns(UserWarning, match="names code of the hub"):
        settings, _ = settings_of(Path("run/x.ckpt"))
    assert settings == {"model.name_or_path": "none", "trainer.precision": "32-true"}


def edit(file, **values):
    """Change keys of a JSON file of a model's folder."""
    path = Path(file)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def weights(content, **options):
    Path("model/model.safetensors").unlink()
    torch.save(content, "model/pytorch_model.bin", **options)


def adapter(**more):
    base = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "target_modules": ["q_proj"]}
    edit("model/adapter_config.json", **base, **more)
    torch.save({"base_model.model.a": Evil()}, "model/adapter_model.bin")


def generation():
    Path("model/custom_generate").mkdir()
    Path("model/custom_generate/generate.py").write_text(CODE)
    edit("model/generation_config.json", custom_generate="model", trust_remote_code=True)


AUTO_MAP = {"AutoConfig": "evil_model.EvilConfig", "AutoModelForImageTextToText": "evil_model.EvilModel"}
MODELS = {
    "a pickle as weights": lambda: weights({"a": Evil()}),
    "an old pickle as weights": lambda: weights({"a": Evil()}, _use_new_zipfile_serialization=False),
    "a pickle beside weights": lambda: torch.save({"a": Evil()}, "model/pytorch_model.bin"),
    "a model class": lambda: edit("model/config.json", auto_map=AUTO_MAP),
    "a model type": lambda: edit("model/config.json", model_type="evil", auto_map=AUTO_MAP),
    "a processor class": lambda: edit(
        "model/processor_config.json",
        processor_class="EvilProcessor",
        auto_map={"AutoProcessor": "evil_model.EvilProcessor"},
    ),
    "a tokenizer class": lambda: edit(
        "model/tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil_model.EvilTokenizer", "evil_model.EvilTokenizer"]},
    ),
    "a class of pictures": lambda: edit(
        "model/preprocessor_config.json",
        image_processor_type="EvilImages",
        auto_map={"AutoImageProcessor": "evil_model.EvilImages"},
    ),
    "a function as a class": lambda: edit("model/tokenizer_config.json", tokenizer_class="os.system"),
    "a way to generate": generation,
    "adapters as a pickle": adapter,
    "adapters of a class": lambda: adapter(
        auto_mapping={"base_model_class": "EvilModel", "parent_library": "evil_model"}
    ),
    "a kernel": lambda: edit("model/config.json", attn_implementation="evil/kernel"),
    "a kernel by its other name": lambda: edit("model/config.json", _attn_implementation="evil/kernel"),
    "a dtype": lambda: edit("model/config.json", dtype="__import__('os').system('touch evil')"),
    "a quantisation": lambda: edit(
        "model/config.json", quantization_config={"quant_method": "evil", "module": "evil_model"}
    ),
}
REFUSED = {
    "a pickle as weights": "found weights as a pickle that torch refuses",
    "an old pickle as weights": "found weights as a pickle that torch refuses",
    "a model type": "it comes with Python code of its own",
    "a processor class": "it comes with Python code of its own",
    "adapters as a pickle": "found adapters as a pickle that torch refuses",
    "adapters of a class": "found adapters as a pickle that torch refuses",
    "a kernel": "its config.json asks for attention code from the hub ('evil/kernel')",
    "a kernel by its other name": "its config.json asks for attention code from the hub ('evil/kernel')",
    "a dtype": "has no attribute",
}
"""What a person reads; the others load without what was named."""


@pytest.mark.parametrize("worse", MODELS)
def test_folders_of_models_that_are_programs(worse, stranger, monkeypatch):
    shutil.copytree(stranger, "model")
    shutil.copytree(stranger, "base")
    Path("model/evil_model.py").write_text(CODE)
    monkeypatch.syspath_prepend("model")
    MODELS[worse]()
    if worse in REFUSED:
        with pytest.raises(UserError) as caught:
            open_model("model", Where("cpu"))
        assert REFUSED[worse] in str(caught.value)
    else:
        open_model("model", Where("cpu"))
    assert "evil_model" not in sys.modules


def test_adapters_that_are_programs_beside_the_base_of_a_run(stranger):
    """Where transformers would take them by itself."""
    shutil.copytree(stranger, "model")
    adapter()
    with pytest.raises(UserError):
        load_model("model")
    load_processor("model")


def tensors(header, data=b"\0" * 12, length=None):
    """A file of safetensors with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), places=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(places)}


HEADERS = {
    "a header of 2^60 bytes": tensors(b"{}", length=2**60),
    "a header of 2^64 - 1 bytes": tensors(b"{}", length=2**64 - 1),
    "a header longer than the file": tensors(b"{" * 1000, length=99_000_000),
    "a header of 0 bytes": tensors(b"", length=0),
    "tensors that overlap": tensors({"a": entry(), "b": entry(places=(4, 12))}),
    "a hole between tensors": tensors({"a": entry(), "b": entry(shape=(1,), places=(9, 12))}),
    "an unknown dtype": tensors({"a": entry("OBJECT")}),
    "a shape that overflows": tensors({"a": entry(shape=(2**33, 2**33))}),
    "a negative shape": tensors({"a": entry(shape=(-1,), places=(8, 0))}),
    "a shape of terabytes": tensors({"a": entry(shape=(2**40,), places=(0, 2**42))}),
    "offsets beyond 64 bits": tensors({"a": entry(places=(0, 2**70))}),
    "lists in lists": tensors(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no JSON": tensors(b"\xff" * 64),
    "no object": tensors(b"[]"),
    "nothing": b"",
    "five bytes": b"12345",
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_absurd_headers_of_safetensors(content, stranger):
    shutil.copytree(stranger, "model")
    Path("model/model.safetensors").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_model("model")
    assert "\n" not in str(caught.value)


YAML = {
    "apply": "model: !!python/object/apply:os.system ['touch evil']",
    "new": "model: !!python/object/new:os.system ['touch evil']",
    "name": "model: !!python/name:os.system",
    "module": "model: !!python/module:os",
    "in a list": "data:\n  train: [!!python/object/apply:os.system ['touch evil']]",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_that_is_a_program(text):
    Path("x.yaml").write_text(text)
    with pytest.raises(UserError):
        read_config("x.yaml")
    with pytest.raises(UserError):
        read_config_of_others("x.yaml", "trl")


def test_a_config_that_is_a_program():
    Path("x.yaml").write_text(YAML["apply"])
    assert main(["fit", "--config", "x.yaml"]) == 2
    assert main(["migrate", "x.yaml"]) == 2


SCRIPTS = {
    "a substitution": "swift sft --model $(touch evil) --dataset a.jsonl\n",
    "backquotes": "swift sft --model `touch evil` --dataset a.jsonl\n",
    "a second command": "touch evil; swift sft --model a --dataset a.jsonl; touch evil2\n",
    "a trap": "trap 'touch evil' EXIT\nswift sft --model a --dataset a.jsonl\n",
    "a variable": "X=$(touch evil)\nswift sft --model $X --dataset a.jsonl\n",
    "a here document": "swift sft --model a --dataset a.jsonl <<E\n$(touch evil)\nE\n",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_migrate_runs_no_script(text):
    Path("x.sh").write_text(text)
    main(["migrate", "x.sh", "--out", "ours.yaml"])
    for name in ("args.bin", "args.pkl", "args.pt"):
        Path(name).write_bytes(pickle.dumps(Evil()))
        assert main(["migrate", name]) == 2
