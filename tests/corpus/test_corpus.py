"""Each malformed input gives one clear error, or what is right: no other exception, no hang, no silence."""

import os
import signal
from contextlib import contextmanager
from importlib import import_module

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.selectors import SelectorError

from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import UserError
from tests.corpus.case import GOOD_TEXTS, Right, learned

ROWS = ("json_files", "sizes", "tables", "rows", "tools", "boxes")
"""Kinds that `take` reads as data, whose bad rows can be skipped."""
KINDS = {
    name: import_module(f"tests.corpus.{name}")
    for name in (*ROWS, "pictures", "videos", "checkpoints", "adapters", "templates")
}
CASES = [(kind, name) for kind, module in KINDS.items() for name in module.CASES]
REFUSED = (UserError, SelectorError, MisconfigurationException)
SECONDS = 20


@contextmanager
def within_seconds():
    """Ends what takes far too long."""

    def ring(*_):
        raise AssertionError(f"it takes more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda word: word.replace("/", "-"))
def test_malformed_input(kind, name):
    module = KINDS[kind]
    make, expected = module.CASES[name]
    given = make()
    with within_seconds():
        if isinstance(expected, Right):
            assert module.take(given) == expected.value
            return
        with pytest.raises(REFUSED) as refusal:
            module.take(given)
        message = str(refusal.value)
        assert expected in message
        assert len(message.splitlines()) <= 3
        assert "Traceback" not in message
        if kind in ROWS:
            path, options = given if isinstance(given, tuple) else (given, {})
            is_skipped(path, options, message)


def is_skipped(path, options, message):
    """With `on_bad_sample: skip`, good rows are kept, and the bad one is counted; or the file is refused."""
    try:
        source = read(path, on_bad_sample="skip", **options)
    except UserError:
        return
    kept, skipped = [], [str(error) for error in source.skipped]
    for sample in source:
        try:
            kept.append(learned(sample))
        except UserError as error:
            skipped.append(str(error))
    assert set(message.splitlines()) <= set(skipped)
    assert kept in ([], [GOOD_TEXTS])


def test_there_are_as_many_as_promised():
    assert len(CASES) >= 300
    assert not any(os.sep in name for _, name in CASES)
