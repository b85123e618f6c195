from pathlib import Path

import pytest

from lightning_vlm.cli import main
from tools import shipped, shipped_video

ROOT = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(ROOT.rglob("*.yaml"))
FEW = [
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--data.batch_size", "4", "--data.eval_batch_size", "4"),
]


MADE = {"runs/drawn-base": shipped.create, "runs/drawn-video": shipped_video.create}
"""Models that are made by hand before they are trained."""


def test_their_number():
    assert len(CONFIGS) == 9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, create in MADE.items():
        if f"name_or_path: {folder}" in path.read_text():
            create(Path(folder))
    # What only adds to another config comes behind it.
    before = ["--config", str(ROOT / "quickstart.yaml")] if "callbacks+" in path.read_text() else []
    assert main(["fit", *before, "--config", str(path), *FEW]) == 0
    assert list(Path("runs").rglob("metrics.csv"))


def test_each_says_how_to_run_it():
    for path in CONFIGS:
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any(f"configs/{path.relative_to(ROOT)}" in line for line in head), path
