"""What the answers of a run depend on, so that only the same run goes on with them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.distributed.tensor import DTensor

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.read.picture_files import PictureFiles
from lightning_vlm.module import VLMModule
from lightning_vlm.training.run_facts import describe_data

_OF_DATA = ("eval_batch_size", "max_length", "answer_tokens", "boxes", "on_bad_sample")


def facts_of(trainer: Trainer, module: VLMModule, **more: Any) -> dict[str, Any]:
    """All that the answers of a run depend on, by the names that a config has for it.

    The weights that ever train are summed up, and the others are those of a base model, so that two models
    with the same facts are the same. Pictures that a data file names are taken to be the same.

    Args:
        trainer: That predicts.
        module: With its model.
        more: Further options.
    """
    data = getattr(trainer, "datamodule", None)
    facts: dict[str, Any] = {
        "trainer.precision": str(trainer.precision),
        "the number of processes": trainer.world_size,
        "model.name_or_path": module.name_or_path,
        "model.generation": str(module.generation),
        "the model": f"{module.loaded.fingerprint.text()} {_trained(module)}",
        "model.chat_template": _short(str(getattr(module.processor, "chat_template", None))),
        "model.template_options": str(module.source.template_options),
        **more,
    }
    if isinstance(data, VLMDataModule):
        source = data.source("predict")
        facts |= {f"data.{name}": getattr(data, name) for name in _OF_DATA}
        facts["data.video"] = str(data.video)
        facts["data.max_pixels"] = str(data.pixels)
        facts["data.predict"] = f"{describe_data(source)} {_files(data.given['predict'])}"
    return json.loads(json.dumps(facts, default=str))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of what isn't as it was.

    >>> changes({"data.max_length": 512, "prompt": "a"}, {"data.max_length": 256, "prompt": "a"})
    ['data.max_length']
    """
    return [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]


def _trained(module: VLMModule) -> str:
    """The weights that differ from those of the base model."""
    sums = []
    for name, weight in module.named_parameters():
        if name not in module.trained.names:
            continue
        values = weight.detach()
        whole = (values.full_tensor() if isinstance(values, DTensor) else values).double()
        sums.append(torch.stack((whole.sum(), whole.square().sum())))
    if not sums:
        return "as it is"
    return _short(str(torch.stack(sums).cpu().tolist()))


def _files(given: Any) -> str:
    """A fingerprint of the files that were named: their names, sizes and times."""
    paths = [Path(given)] if isinstance(given, str | Path) else []
    if isinstance(given, PictureFiles):
        paths = given.paths()
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            about = path.stat()
            digest.update(f"{path} {about.st_size} {about.st_mtime_ns}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:8]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:8]
