"""Published checkpoints as folders without weights: their shapes, a tiny tokenizer, pictures of their sizes.

`tools/published_shapes.yaml` is the table. Such a folder is all that `lightning-vlm plan` needs:

    python -m tools.published_shapes qwen2.5-vl-3b FOLDER
    lightning-vlm plan --config recipes/lora --model.name_or_path FOLDER --data.train train.jsonl
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import AutoConfig, AutoProcessor, PretrainedConfig

from lightning_vlm.nearest import did_you_mean
from tests.support import tiny

FILE = Path(__file__).with_suffix(".yaml")


class Published(NamedTuple):
    """A row of the table; see the head of the file.

    Args:
        name: Of its file in `configs/models/`.
        family: A key of `families()`.
        checkpoint: Its name on the Hugging Face hub.
        source: Where the shape is from; empty where none is known.
        parameters: What the hub counts, where that is known.
        config: What differs from the family's defaults.
        processor: What belongs to pictures.
        max_pixels: Of a picture, where any size is taken.
        gated: Whether a licence must be accepted on the hub first.
        note: What a person should know, in sentences.
    """

    name: str
    family: str
    checkpoint: str
    source: str = ""
    parameters: int | None = None
    config: Mapping[str, Any] = {}
    processor: Mapping[str, Any] = {}
    max_pixels: int | None = None
    gated: bool = False
    note: tuple[str, ...] = ()


@cache
def published() -> dict[str, Published]:
    """All rows by name.

    >>> published()["qwen2.5-vl-3b"].family
    'qwen2_5_vl'
    """
    rows = yaml.safe_load(FILE.read_text("utf-8"))
    return {
        name: Published(name, **{**row, "note": tuple(row.get("note", ()))}) for name, row in rows.items()
    }


def make_folder(name: str, folder: Path) -> Path:
    """Write the folder of a checkpoint whose shape is known.

    Args:
        name: A row with a shape.
        folder: Made if missing; what is in it is replaced.

    Raises:
        SystemExit: There is no such row, or no shape is known.
    """
    row = published().get(name)
    if row is None:
        sys.exit(f"found no shape {name!r}{did_you_mean(name, published())}")
    if not row.source:
        sys.exit(f"{name}: its shape isn't known here")
    tiny.build(row.family, folder)
    config = published_config(row, AutoConfig.from_pretrained(folder))
    config.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    _set(processor, row.processor)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions:
        processor.tokenizer.model_max_length = positions
    processor.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return folder


def published_config(row: Published, tiny_config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a published checkpoint, its special tokens those of the tiny tokenizer."""
    config = type(tiny_config)(**row.config)
    _copy_tokens(tiny_config, config)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if part is not None:
            part.dtype = "bfloat16"
    return config


def _copy_tokens(source: PretrainedConfig, target: PretrainedConfig) -> None:
    """The ids of special tokens, in all parts."""
    for name, value in vars(source).items():
        is_id = isinstance(value, int | list) and name.endswith(("_token_id", "_token_index", "token_ids"))
        if is_id and hasattr(target, name):
            setattr(target, name, value)
    for name in source.sub_configs:
        part, other = getattr(source, name, None), getattr(target, name, None)
        if part is not None and other is not None:
            _copy_tokens(part, other)


def _set(target: Any, values: Mapping[str, Any]) -> None:
    """Set attributes, below other objects too; a size keeps the form that it has."""
    for name, value in values.items():
        now = getattr(target, name, None)
        if name.endswith("_processor"):
            _set(now, value)
        elif isinstance(value, Mapping) and now is not None and not isinstance(now, Mapping):
            setattr(target, name, type(now)(**value))
        else:
            setattr(target, name, value)


if __name__ == "__main__":
    print(make_folder(sys.argv[1], Path(sys.argv[2])))
