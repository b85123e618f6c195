"""Checkpoints and folders of models that are empty, cut, of another kind, or not whole."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lightning_vlm.models.loading.checkpoint import check_file
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.models.shipped import SHIPPED
from tests.corpus.case import Case


def take(path: str) -> None:
    """Open a checkpoint to resume from it, or the folder of a model and its processor."""
    if path.endswith(".ckpt"):
        check_file(Path(path), to_resume=True)
    else:
        load_processor(path)
        load_model(path)


def file(content: Any) -> Callable[[], str]:
    """A checkpoint of these bytes, or of what torch saves."""

    def make() -> str:
        if isinstance(content, bytes):
            Path("a.ckpt").write_bytes(content)
        else:
            torch.save(content, "a.ckpt")
        return "a.ckpt"

    return make


def cut(part: float, change: Callable[[bytes], bytes] = bytes) -> Callable[[], str]:
    """A whole checkpoint, of which only the first part is there."""

    def make() -> str:
        file(WHOLE)()
        data = Path("a.ckpt").read_bytes()
        return file(change(data[: int(len(data) * part)]))()

    return make


def model(change: Callable[[Path], Any]) -> Callable[[], str]:
    """A copy of the model that comes along, changed."""

    def make() -> str:
        shutil.copytree(SHIPPED["drawn-vlm"], "model")
        change(Path("model"))
        return "model"

    return make


def without(name: str) -> Callable[[Path], Any]:
    """The folder lacks a file."""
    return lambda folder: (folder / name).unlink()


def holding(name: str, data: bytes) -> Callable[[Path], Any]:
    """A file of the folder holds other bytes."""
    return lambda folder: (folder / name).write_bytes(data)


def setting(**more: Any) -> Callable[[Path], Any]:
    """The model's config has other keys."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | more))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    """The weights of the model are changed."""

    def write(folder: Path) -> None:
        saved = load_file(folder / "model.safetensors")
        change(saved)
        save_file(saved, folder / "model.safetensors", {"format": "pt"})

    return write


def archive() -> str:
    """A ZIP archive that torch didn't write."""
    with zipfile.ZipFile("a.ckpt", "w") as packed:
        packed.writestr("hello.txt", "hello")
    return "a.ckpt"


def half(folder: Path) -> None:
    """The weights break off."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


WHOLE = {
    "state_dict": {"weight": torch.zeros(100)},
    "pytorch-lightning_version": "2.6.0",
    "optimizer_states": [],
    "lr_schedulers": [],
    "loops": {},
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
PAGE = b"<!DOCTYPE html><html></html>"


class Own:
    """A class that only the sender has."""


CASES = {
    # Checkpoints
    "no such checkpoint": Case(lambda: "no.ckpt", "checkpoint no.ckpt: found no such file"),
    "a folder as a checkpoint": Case(
        lambda: Path("a.ckpt").mkdir() or "a.ckpt", "checkpoint a.ckpt: found a folder"
    ),
    "a checkpoint of 0 bytes": Case(
        file(b""), "checkpoint a.ckpt: found a file that torch can't read: an empty file; copy or download"
    ),
    "a checkpoint of text": Case(
        file(b"hello"),
        "checkpoint a.ckpt: found a file that torch can't read: no file that torch.save wrote;",
    ),
    "a checkpoint of nulls": Case(
        file(b"\0" * 4096),
        "checkpoint a.ckpt: found a file that torch can't read: no file that torch.save wrote;",
    ),
    "a page as a checkpoint": Case(
        file(PAGE), "checkpoint a.ckpt: found a file that torch can't read: a web page instead of the file;"
    ),
    "a pointer of git-lfs as a checkpoint": Case(
        file(LFS), "checkpoint a.ckpt: found a file that torch can't read: a pointer of git-lfs instead of"
    ),
    "half a checkpoint": Case(
        cut(0.5), "checkpoint a.ckpt: found a file that torch can't read: a file that is cut short (959"
    ),
    "a checkpoint without its end": Case(
        cut(0.98), "checkpoint a.ckpt: found a file that torch can't read: a file that is cut short (1,880"
    ),
    "a checkpoint with noise in it": Case(
        cut(1, lambda data: data[:100] + b"\xff" * 300 + data[400:]),
        "checkpoint a.ckpt: found a file that torch can't read; copy it again",
    ),
    "another archive": Case(archive, "checkpoint a.ckpt: found a file that torch can't read; copy it again"),
    "a plain pickle": Case(
        file(pickle.dumps({"state_dict": {}})),
        "checkpoint a.ckpt: found pickled code, which is not run; expected a checkpoint of a",
    ),
    "half a pickle": Case(
        file(pickle.dumps({"state_dict": {}})[:9]),
        "checkpoint a.ckpt: found pickled code, which is not run; expected a checkpoint of a",
    ),
    "an object of one's own": Case(
        file({**WHOLE, "more": Own()}),
        "checkpoint a.ckpt: found pickled code, which is not run; expected a checkpoint of a",
    ),
    "a tensor as a checkpoint": Case(
        file(torch.zeros(3)), "checkpoint a.ckpt: found no checkpoint of Lightning (no state_dict or version)"
    ),
    "a list as a checkpoint": Case(
        file([1, 2]), "checkpoint a.ckpt: found no checkpoint of Lightning (no state_dict or version)"
    ),
    "an empty checkpoint": Case(
        file({}), "checkpoint a.ckpt: found no checkpoint of Lightning (no state_dict or version)"
    ),
    "weights alone": Case(
        file({"weight": torch.zeros(3)}),
        "checkpoint a.ckpt: found no checkpoint of Lightning (no state_dict or version)",
    ),
    "a checkpoint without a version": Case(
        file({"state_dict": {}}),
        "checkpoint a.ckpt: found no checkpoint of Lightning (no state_dict or version)",
    ),
    "a checkpoint without the optimizer": Case(
        file({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}),
        "checkpoint a.ckpt: found weights alone (save_weights_only), from which a run can't be",
    ),
    # Folders of models
    "an empty folder": Case(
        lambda: Path("model").mkdir() or "model",
        "model 'model': found a folder without config.json; expected one that save_pretrained",
    ),
    "a folder without config.json": Case(
        model(without("config.json")),
        "model 'model': found a folder without config.json; expected one that save_pretrained",
    ),
    "a folder without weights": Case(
        model(without("model.safetensors")),
        "model 'model': found no weights; expected model.safetensors, or its parts and their",
    ),
    "a folder without a tokenizer": Case(
        model(without("tokenizer.json")),
        "model 'model': found no tokenizer that loads; expected tokenizer.json beside config.json",
    ),
    "a folder without a processor": Case(
        model(without("processor_config.json")),
        "model 'model': found no image processor; expected processor_config.json or",
    ),
    "config.json of 0 bytes": Case(
        model(holding("config.json", b"")),
        "model 'model': config.json: found an empty file; copy or download it again",
    ),
    "config.json that breaks off": Case(
        model(holding("config.json", b'{"model_type": ')),
        "model 'model': config.json: found broken JSON at line 1, column 16 (Expecting value)",
    ),
    "config.json that is a list": Case(
        model(holding("config.json", b"[]")),
        "model 'model': config.json: found list at the top; expected an object with keys",
    ),
    "config.json that isn't UTF-8": Case(
        model(holding("config.json", b"\xff\xfe{}")),
        "model 'model': config.json: found text that is not UTF-8",
    ),
    "an unknown type of model": Case(
        model(setting(model_type="foonet")),
        "model 'model': transformers 5.23.0 doesn't know its model type foonet; a newer one may:",
    ),
    "a type that is a number": Case(
        model(setting(model_type=3)),
        "model 'model': transformers 5.23.0 doesn't know its model type 3; a newer one may: pip",
    ),
    "a model of texts alone": Case(
        model(setting(model_type="llama")), "model 'model': found model type 'llama', which reads no images"
    ),
    "weights of 0 bytes": Case(
        model(holding("model.safetensors", b"")),
        "model 'model': model.safetensors: found an empty file; copy or download it again",
    ),
    "weights that are text": Case(
        model(holding("model.safetensors", b"hello" * 100)),
        "model 'model': model.safetensors: found no safetensors file; copy or download it again",
    ),
    "weights that are a page": Case(
        model(holding("model.safetensors", PAGE)),
        "model 'model': model.safetensors: found a web page instead of the file; download the",
    ),
    "weights that are a pointer of git-lfs": Case(
        model(holding("model.safetensors", LFS)),
        "model 'model': model.safetensors: found a pointer of git-lfs instead of the file; run",
    ),
    "weights with an absurd head": Case(
        model(holding("model.safetensors", b"\xff" * 8 + b"{}")),
        "model 'model': model.safetensors: found no safetensors file; copy or download it again",
    ),
    "half the weights": Case(
        model(half), "model 'model': model.safetensors: found a file that is cut short (4,708,940 of"
    ),
    "a tokenizer that breaks off": Case(
        model(holding("tokenizer.json", b'{"version": "1.0", ')),
        "model 'model': tokenizer.json: found broken JSON at line 1, column 20 (Expecting",
    ),
    "a tokenizer of 0 bytes": Case(
        model(holding("tokenizer.json", b"")),
        "model 'model': tokenizer.json: found an empty file; copy or download it again",
    ),
    "a processor that is a list": Case(
        model(holding("processor_config.json", b"[]")),
        "model 'model': processor_config.json: found list at the top; expected an object with",
    ),
}
