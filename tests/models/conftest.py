"""The tiny models, built once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_vlm.models import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a family."""
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            folders[family] = tiny.build(family, tmp_path_factory.mktemp(family))
        return folders[family]

    return folder
