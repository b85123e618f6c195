"""The settings that a checkpoint was trained with, for commands that are given nothing but the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.system_prompts import system_prompts_of
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.checkpoint import check_file, load_file
from lightning_vlm.training.checkpointing import KEY
from lightning_vlm.training.resume_changes import RUN

OF_CHECKPOINT = (
    *("name_or_path", "adapt", "chat_template", "template_options", "revision", "dtype", "new_tokens"),
    *("quantization", "mask_head"),
)
"""What the checkpoint itself says of the model."""
_OF_CONFIG = {
    "model": ("generation", "scores", "attn_implementation"),
    "data": (
        *("max_length", "answer_tokens", "video", "min_pixels", "max_pixels", "pixels_by_detail", "boxes"),
        *("batch_size", "eval_batch_size"),
    ),
    "trainer": ("precision",),
}
"""What is taken from the config of its run: how a model sees and answers, not where data lies. Nothing that
runs code: a stranger's config would trust the stranger."""


def settings_of(checkpoint: Path) -> tuple[dict[str, Any], Path | None]:
    """The settings to use a checkpoint with.

    Args:
        checkpoint: A file that a fit wrote.

    Returns:
        Values by their keys, such as `model.name_or_path`, and the config of the run if it lies beside the
        checkpoint or in the folder above.

    Raises:
        UserError: It is no checkpoint of a `VLMModule`.
    """
    given, run, _ = read_checkpoint(checkpoint)
    found = {f"model.{name}": given[name] for name in OF_CHECKPOINT if given.get(name) is not None}
    pixels = PixelBudget.read(str(run.get("data.max_pixels", "")))
    seen = {
        "data.min_pixels": pixels.least,
        "data.max_pixels": pixels.most,
        "data.pixels_by_detail": pixels.by_detail or None,
        "data.boxes": run.get("data.boxes"),
        "data.max_length": run.get("data.max_length"),
        "data.system_prompts": system_prompts_of(run) or None,
    }
    found |= {name: value for name, value in seen.items() if value is not None}
    config = config_of(checkpoint)
    if config is not None:
        found |= _from_config(config)
    return found, config


def read_checkpoint(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any], int]:
    """What a checkpoint says, without its weights.

    Returns:
        The arguments of its `VLMModule`, what it was made with (as `describe_run` puts it), and after how
        many steps it was saved.

    Raises:
        UserError: It is no checkpoint of a `VLMModule`.
    """
    check_file(path)
    saved = load_file(path, values=False)
    given, own = saved.get("hyper_parameters"), saved.get(KEY)
    if not isinstance(given, Mapping) or "name_or_path" not in given or not isinstance(own, Mapping):
        raise UserError(f"checkpoint {path}: found none of a VLMModule; it names no base model")
    return given, own.get(RUN, {}), saved.get("global_step", 0)


def config_of(checkpoint: Path) -> Path | None:
    """The config that the run of a checkpoint has saved, beside it or in the folder above; None without."""
    for folder in (checkpoint.parent, checkpoint.parent.parent):
        file = folder / "config.yaml"
        if file.is_file():
            return file
    return None


def _from_config(config: Path) -> dict[str, Any]:
    try:
        whole = yaml.safe_load(config.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    found: dict[str, Any] = {}
    for section, names in _OF_CONFIG.items():
        values = whole.get(section) if isinstance(whole, dict) else None
        for name in names:
            value = values.get(name) if isinstance(values, dict) else None
            if value is not None and _names_code(name, value):
                rank_zero_warn(
                    f"{config}: {section}.{name} is left out, as it names code of the hub: {value}"
                )
            elif value is not None:
                found[f"{section}.{name}"] = value
    return found


def _names_code(name: str, value: Any) -> bool:
    """Whether a value names code of the hub, as an attention and a way to generate may."""
    if name == "attn_implementation":
        return "/" in str(value)
    code = {"custom_generate", "trust_remote_code"}
    return name == "generation" and isinstance(value, dict) and bool(code & value.keys())
