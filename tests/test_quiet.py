import io
import logging
import sys
import warnings

import pytest

import lightning_vlm
from lightning_vlm.cli import main
from lightning_vlm.compat import quiet


@pytest.fixture(autouse=True)
def filters():
    """Those of pytest come back afterwards."""
    with warnings.catch_warnings():
        yield


def test_a_terminal_that_knows_few_characters_ends_nothing(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    quiet.install_for_command("predict")
    print("ünïcode", flush=True)
    assert out.getvalue() == b"?n?code\n"


def test_only_what_says_nothing_is_kept_away():
    with warnings.catch_warnings(record=True) as seen:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        quiet.install()
        for message in (
            "Starting from v1.9.0, `tensorboardX` has been removed as a dependency",
            "The number of training batches (12) is smaller than the logging interval Trainer(...)",
            "The 'train_dataloader' does not have many workers which may be a bottleneck. Consider",
            "The dirpath has changed from 'a' to 'b'",
            "Detected call of `lr_scheduler.step()` before `optimizer.step()`",
            "Checkpoint directory a exists and is not empty",
        ):
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message)[:14] for warning in seen] == [
        "The dirpath ha",
        "Detected call ",
        "Checkpoint dir",
    ]


def test_a_command_shows_our_warnings_without_their_place_in_the_code(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", lambda message, category, file, line: f"{file}: {message}")
    assert main(["recipes", "quickstart"]) == 0
    assert (
        warnings.formatwarning("it is empty", UserWarning, lightning_vlm.__file__, 3)
        == "warning: it is empty\n"
    )
    of_another = "/home/me/lightning_vlm/.venv/lib/torch/cuda.py"
    assert warnings.formatwarning("no driver", UserWarning, of_another, 3) == f"{of_another}: no driver"


@pytest.mark.parametrize(("command", "is_said"), [("lint", False), ("plan", False), ("fit", True)])
def test_devices_are_named_where_a_model_runs(command, is_said, monkeypatch):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    for name in quiet.LOGGERS:  # other tests keep theirs
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    quiet.install_for_command(command)
    assert bool(logger.filter(logging.makeLogRecord({"msg": "GPU available: True, used: False"}))) == is_said
    assert logger.filter(logging.makeLogRecord({"msg": "train.jsonl: 5 rows are left out"}))
