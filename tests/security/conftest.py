"""What strangers give: pickles that run code, a model's folder, and a way to see whether anything ran."""

import os

import pytest

from lightning_vlm.models.shipped import SHIPPED


class Evil:
    """Runs a command wherever it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch evil",)


@pytest.fixture(scope="session")
def stranger():
    """A model as a stranger gives it; copies of it are made worse."""
    return SHIPPED["drawn-vlm"]


@pytest.fixture
def nothing_ran(tmp_path, monkeypatch):
    """Work in an empty folder; fail if something that a stranger gave has run."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    ran = [str(path) for path in tmp_path.rglob("*") if path.name in ("evil", "evil2")]
    assert not ran, "a stranger's code ran"
