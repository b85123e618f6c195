from pathlib import Path

import pytest

from lightning_vlm.cli import main
from tools import shipped, shipped_video

ROOT = Path(__file__).parent.parent / "configs"
CONFIGS = [ROOT / "quickstart.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
FEW = [
    *("--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1"),
    *("--trainer.limit_test_batches", "1", "--data.batch_size", "4", "--data.eval_batch_size", "4"),
]


MADE = {"runs/drawn-base": shipped.create, "runs/drawn-video": shipped_video.create}
"""Models that are made by hand before they are trained."""


def name_of(path):
    return path.relative_to(ROOT).with_suffix("").as_posix()


def test_their_number():
    assert len(CONFIGS) == 7


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_each_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, create in MADE.items():
        if f"name_or_path: {folder}" in path.read_text():
            create(Path(folder))
    assert main(["fit", "--config", name_of(path), *FEW]) == 0
    assert list(Path("runs").rglob("metrics.csv"))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=name_of)
def test_each_says_how_to_run_it(path):
    head = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert f"--config {name_of(path)}" in head or f"--config configs/{path.relative_to(ROOT)}" in head
