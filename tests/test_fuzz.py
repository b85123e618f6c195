"""A small piece of `python -m tools.reliability.fuzz`, which always draws the same inputs, and of bytes."""

import logging
import random

import pytest

from tools.reliability import fuzz
from tools.reliability.fuzz_guided import Hunt

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


def test_what_is_wrong_is_found_in_bytes(monkeypatch, tmp_path, capfd):
    """Byte strings become inputs, here without atheris, which proposes better ones."""
    wrong = fuzz.TARGETS["boxes"]._replace(function=lambda text: 1 / (text.count("[") - 1))
    monkeypatch.setitem(fuzz.TARGETS, "boxes", wrong)
    hunted = Hunt("boxes", 600, 10, tmp_path)
    drawn = random.Random(0)
    for _ in range(200):
        hunted(drawn.randbytes(600))
    assert hunted.report() == 1
    said = capfd.readouterr().out
    assert said.startswith("boxes: ")
    assert "ZeroDivisionError" in said
    assert "text='['" in said
