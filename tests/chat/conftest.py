"""A fitted checkpoint, its exported folders, and pictures to ask about."""

import pytest

from lightning_vlm.cli import main
from tests.support.fitted import fit, questions


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Of the shipped model, LoRA and a projector trained in full."""
    return fit(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="session")
def asked(tmp_path_factory):
    """A file of questions about pictures beside it."""
    return questions(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="session")
def merged(checkpoint, tmp_path_factory, warm_interpreter):
    """The whole model, exported."""
    with warm_interpreter.used():
        return _export(checkpoint, tmp_path_factory.mktemp("exported") / "merged")


@pytest.fixture(scope="session")
def adapters(checkpoint, tmp_path_factory, warm_interpreter):
    """Its adapters alone, exported."""
    with warm_interpreter.used():
        return _export(checkpoint, tmp_path_factory.mktemp("exported") / "adapters", "--adapter-only")


def _export(checkpoint, out, *more):
    assert main(["export", "--ckpt_path", str(checkpoint), "--out", str(out), "--samples", "1", *more]) == 0
    return out
