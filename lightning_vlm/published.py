"""What is known of the model families that are proved."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from lightning_vlm.nearest import did_you_mean

_FILE = Path(__file__).with_name("families.yaml")


class Family(NamedTuple):
    """What is known of a model family.

    Args:
        name: Its type in transformers (`config.model_type`).
        video: Whether videos are read as videos, with their times.
        packing: Whether samples can share a row exactly.
        nf4: What quantising leaves in 16 bits beside the embeddings, the head and the tower.
        codec: How its published checkpoints write a box, by its name in `data.boxes`; empty: they have no
            format for it.
        checkpoints: Published ones to try, by their names on the Hugging Face hub.
    """

    name: str
    video: bool
    packing: bool
    nf4: str
    codec: str
    checkpoints: tuple[str, ...]


@functools.cache
def families() -> Mapping[str, Family]:
    """All families that are proved, by name.

    >>> families()["qwen2_5_vl"].checkpoints[0]
    'Qwen/Qwen2.5-VL-3B-Instruct'
    """
    rows = yaml.safe_load(_FILE.read_text("utf-8"))
    found = {}
    for name, row in rows.items():
        found[name] = Family(
            name=name,
            video=row.get("video", False),
            packing=row.get("packing", True),
            nf4=row.get("nf4", ""),
            codec=row.get("codec", ""),
            checkpoints=tuple(row.get("try", ())),
        )
    return found


def is_published(name: str) -> bool:
    """Whether a name is that of a checkpoint that `lightning-vlm families` lists."""
    return name in _checkpoints()


def near_published(name: str) -> str:
    """`; did you mean ...?` with a checkpoint that `lightning-vlm families` lists; or nothing.

    >>> near_published("Qwen2.5-VL-3B-Instruct"), near_published("Qwen/Qwen2.5-VL-3B-Instruct")
    ('; did you mean Qwen/Qwen2.5-VL-3B-Instruct?', '')
    """
    return "" if is_published(name) else did_you_mean(name, _checkpoints())


def _checkpoints() -> list[str]:
    return [name for family in families().values() for name in family.checkpoints]
