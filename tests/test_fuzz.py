"""A small piece of `python -m tools.reliability.fuzz`, which always draws the same inputs."""

import logging

import pytest

from tools.reliability import fuzz

LOG = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@pytest.fixture(autouse=True)
def same_log():
    level = LOG.level
    yield
    LOG.setLevel(level)


@pytest.mark.parametrize("target", ["readers", "boxes", "render", "selectors", "config", "templates"])
def test_anything_is_refused_or_right(target, monkeypatch):
    monkeypatch.setattr(fuzz, "BATCH", 60)
    count, found = fuzz.fuzz(target, seconds=0, first=0)
    assert not found
    assert count.tried >= 60


def test_what_is_wrong_is_found(monkeypatch):
    """In its smallest form: what fails on one bracket."""
    wrong = fuzz.TARGETS["boxes"]._replace(function=lambda text: 1 / (text.count("[") - 1))
    monkeypatch.setitem(fuzz.TARGETS, "boxes", wrong)
    _, found = fuzz.fuzz("boxes", seconds=0, first=0)
    assert len(found) == 1
    assert "ZeroDivisionError" in found[0]
    assert "text='['" in found[0]
