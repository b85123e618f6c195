"""Folders of adapters, of PEFT and of ours, that are of another model, not whole, or not adapters."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lightning_vlm.models.adapters.layers import load_adapters
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.loading.peft_adapter import load_peft_adapter
from tests.corpus.case import Case, Right

OURS = "vlm_adapters.json"


def take(folder: str) -> str:
    """Put the adapters into the model that comes along."""
    model = load_model("drawn-vlm").model
    if Path(folder, OURS).exists():
        load_adapters(model, Path(folder))
    else:
        load_peft_adapter(model, Path(folder), "drawn-vlm")
    return "loaded"


@cache
def whole() -> dict[str, bytes]:
    """The files of sound LoRA adapters."""
    model = get_peft_model(load_model("drawn-vlm").model, LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained("sound")
    return {file.name: file.read_bytes() for file in Path("sound").iterdir() if "adapter" in file.name}


def folder(change: Callable[[], Any] = lambda: None) -> Callable[[], str]:
    """A folder of sound adapters, changed in it."""

    def make() -> str:
        files = whole()
        shutil.rmtree("sound", ignore_errors=True)
        Path("a").mkdir()
        for name, data in files.items():
            Path("a", name).write_bytes(data)
        change()
        return "a"

    return make


def config(**more: Any) -> Callable[[], str]:
    """The config says something else; None leaves a key out."""

    def change() -> None:
        file = Path("a/adapter_config.json")
        said = json.loads(file.read_text()) | more
        file.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))

    return folder(change)


def holds(name: str, data: bytes) -> Callable[[], str]:
    """A file holds other bytes."""
    return folder(lambda: Path("a", name).write_bytes(data))


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[], str]:
    """The weights are changed."""

    def write() -> None:
        file = Path("a/adapter_model.safetensors")
        save_file(change(load_file(file)), file)

    return folder(write)


def ours(settings: Any, saved: dict[str, torch.Tensor]) -> Callable[[], str]:
    """A folder of adapters of ours."""

    def make() -> str:
        Path("a").mkdir()
        Path("a", OURS).write_text(settings if isinstance(settings, str) else json.dumps(settings))
        save_file(saved, Path("a/vlm_adapters.safetensors"))
        return "a"

    return make


def first(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], str]:
    """The first weight is changed."""

    def one(saved: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = min(saved)
        return saved | {name: change(saved[name])}

    return weights(one)


FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"

CASES = {
    "sound adapters": Case(folder(), Right("loaded")),
    "adapters of another width": Case(
        weights(lambda saved: {name: torch.zeros(2, 7) for name in saved}),
        "a: its adapters don't fit drawn-vlm: 14 of another shape",
    ),
    "one weight of another shape": Case(
        first(lambda weight: torch.zeros(3, 5)), "a: its adapters don't fit drawn-vlm: 1 of another shape"
    ),
    "another rank than the config's": Case(
        config(r=4), "a: its adapters don't fit drawn-vlm: 14 of another shape"
    ),
    "a pattern of modules": Case(config(target_modules=r"^(?!.*head).*\.q_proj$"), Right("loaded")),
    "a pattern that is none": Case(config(target_modules="(q_proj"), "a: its adapters don't fit drawn-vlm: "),
    "a pattern without end": Case(
        config(target_modules=r"(\w+\.?)+!"), "a/adapter_config.json: target_modules: found the pattern '("
    ),
    "half of the weights": Case(
        weights(lambda saved: dict(list(saved.items())[::2])),
        "a: its adapters don't fit drawn-vlm: 7 missing",
    ),
    "no weights": Case(weights(lambda saved: {}), "a: its adapters don't fit drawn-vlm: 14 missing"),
    "weights of another model": Case(
        weights(lambda saved: {f"other.{name}": weight for name, weight in saved.items()}),
        "a: its adapters don't fit drawn-vlm: 14 missing",
    ),
    "more weights than places": Case(
        weights(lambda saved: saved | {"x.lora_A.weight": torch.zeros(2, 2)}),
        "a: its adapters don't fit drawn-vlm: 1 without a place in the model (x.lora_A.weight)",
    ),
    "adapters of NaN": Case(
        first(lambda weight: weight * float("nan")),
        "a: its adapters don't fit drawn-vlm: 1 with NaN or infinite numbers",
    ),
    "adapters of infinity": Case(
        first(lambda weight: weight + float("inf")),
        "a: its adapters don't fit drawn-vlm: 1 with NaN or infinite numbers",
    ),
    "no file of weights": Case(
        folder(lambda: Path("a", FILE).unlink()),
        "a: found no adapter_model.safetensors; expected it beside adapter_config.json",
    ),
    "weights of 0 bytes in adapters": Case(
        holds(FILE, b""), "a/adapter_model.safetensors: found an empty file; copy or download it again"
    ),
    "weights of text in adapters": Case(
        holds(FILE, b"hello" * 9),
        "a/adapter_model.safetensors: found no safetensors file; copy or download it again",
    ),
    "weights of adapters that break off": Case(
        folder(lambda: Path("a", FILE).write_bytes(Path("a", FILE).read_bytes()[:-100])),
        "a/adapter_model.safetensors: found a file that is cut short (19,852 of 19,952 bytes);",
    ),
    "a pointer of git-lfs in adapters": Case(
        holds(FILE, b"version https://git-lfs.github.com/spec/v1\n"),
        "a/adapter_model.safetensors: found a pointer of git-lfs instead of the file; run git",
    ),
    "adapter_config.json of 0 bytes": Case(
        holds(CONFIG, b""), "a/adapter_config.json: found an empty file; copy or download it again"
    ),
    "adapter_config.json that breaks off": Case(
        holds(CONFIG, b'{"peft_type": "LORA", '),
        "a/adapter_config.json: found broken JSON at line 1, column 23 (Expecting property name",
    ),
    "adapter_config.json that is a list": Case(
        holds(CONFIG, b"[]"), "a/adapter_config.json: found list at the top; expected an object with keys"
    ),
    "an unknown method": Case(
        config(peft_type="LORRA"),
        "a: its adapters don't fit drawn-vlm: adapter_config.json: PEFT doesn't find 'LORRA'",
    ),
    "no method": Case(
        config(peft_type=None),
        "a: its adapters don't fit drawn-vlm: adapter_config.json: PEFT doesn't find 'peft_type'",
    ),
    "modules that aren't there": Case(
        config(target_modules=["w_proj"]),
        "a: its adapters don't fit drawn-vlm: Target modules {'w_proj'} not found in the base",
    ),
    "a rank of 0": Case(
        config(r=0), "a: its adapters don't fit drawn-vlm: `r` should be a positive integer value but the"
    ),
    "a rank of minus one": Case(
        config(r=-1), "a: its adapters don't fit drawn-vlm: `r` should be a positive integer value but the"
    ),
    "a rank that is a text": Case(
        config(r="four"),
        "a: its adapters don't fit drawn-vlm: adapter_config.json: a value of a wrong type",
    ),
    "modules that are a number": Case(
        config(target_modules=3),
        "a: its adapters don't fit drawn-vlm: adapter_config.json: a value of a wrong type",
    ),
    "a pattern that is broken": Case(
        config(target_modules="("),
        "a: its adapters don't fit drawn-vlm: missing ), unterminated subpattern at position 0",
    ),
    "our adapters without settings": Case(
        ours("", {}), "a: found no adapters of ours (Expecting value: line 1 column 1 (char 0)); expected"
    ),
    "our adapters of a list": Case(ours([], {}), "a: found no adapters of ours"),
    "our adapters without weights": Case(
        ours({"adapters": {}}, {}), "a: found no adapters of ours ('weights'); expected vlm_adapters.json"
    ),
    "our adapters of another model": Case(
        ours({"adapters": {"no.layer": "adapter"}, "weights": []}, {}),
        "a: the model has no 'no.layer'; give the base that they were trained on",
    ),
    "our adapters of an unknown method": Case(
        ours({"adapters": {"x": "adaptor"}, "weights": []}, {}),
        "a: found no adapters of ours (plan['x']: found method 'adaptor'; did you mean",
    ),
}
