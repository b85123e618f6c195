"""What a checkpoint and the config beside it say of a run: its base, its plan, its data, its scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_vlm.training.checkpoint_settings import OF_CHECKPOINT, config_of, read_checkpoint


class Checkpoint(NamedTuple):
    """A checkpoint.

    Args:
        path: The file.
        base: The model that it was trained from.
        arguments: Of its `VLMModule`.
        run: What it was made with, as `describe_run` puts it.
        step: After how many steps.
        config: The file with the config of its run; None if it isn't beside it.
    """

    path: Path
    base: str
    arguments: dict[str, Any]
    run: Mapping[str, Any]
    step: int
    config: Path | None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read what a checkpoint says, without its weights.

    Raises:
        UserError: It isn't a checkpoint of a `VLMModule`.
    """
    given, run, step = read_checkpoint(path)
    base = given["name_or_path"]
    arguments = {name: given[name] for name in (*OF_CHECKPOINT, "token_weights") if name in given}
    del arguments["name_or_path"]
    return Checkpoint(path, base, arguments, run, step, _config(path, base))


def _config(path: Path, base: str) -> Path | None:
    """The config of the run that wrote a checkpoint; one of another model beside it isn't that."""
    file = config_of(path.absolute())
    if file is None:
        return None
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    model = found.get("model") if isinstance(found, Mapping) else None
    return file if isinstance(model, Mapping) and model.get("name_or_path") == base else None
