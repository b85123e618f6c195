"""Shared fixtures. Importing `lightning_vlm` first lets its torchvision mend act before all else."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import pytest

import lightning_vlm  # noqa: F401

# isort: split
# Its log handler keeps the stderr that it meets first, which must not be one that a test captures.
import lightning.pytorch  # noqa: F401


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a family, or of the untrained `shipped` one; made when first asked for."""
    from lightning_vlm.models import shipped, tiny

    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            made = tmp_path_factory.mktemp(name)
            folders[name] = shipped.create(made) if name == "shipped" else tiny.build(name, made)
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def processor_of(model_folder):
    """A new processor of a family, or of the `shipped` model; with a ready chat template if one is named."""
    from transformers import AutoProcessor

    from lightning_vlm.data.templates import chat_template

    def load(name, template=None):
        processor = AutoProcessor.from_pretrained(model_folder(name))
        if template:
            processor.chat_template = chat_template(template, processor)
        return processor

    return load
