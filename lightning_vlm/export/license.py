"""The licence of a base model, by its own card."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

from lightning_vlm.models.shipped import SHIPPED

_CARD = "README.md"


def license_of(name_or_path: str) -> dict[str, str]:
    """What the card of a base model says, where that is on this machine; nothing is fetched.

    Args:
        name_or_path: Of the base model.

    Returns:
        Its keys `license`, `license_name` and `license_link`, as far as it has them.

    >>> license_of("drawn-vlm"), license_of("nobody/has-this")
    ({'license': 'apache-2.0'}, {})
    """
    folder = SHIPPED.get(name_or_path, Path(name_or_path))
    file: Any = folder / _CARD
    if not folder.is_dir():
        try:
            file = try_to_load_from_cache(name_or_path, _CARD)
        except ValueError:  # no name that the hub could have
            return {}
    if not isinstance(file, str | Path) or not Path(file).is_file():
        return {}
    try:
        found = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    names = ("license", "license_name", "license_link")
    return {name: str(found[name]) for name in names if isinstance(found.get(name), str)}
