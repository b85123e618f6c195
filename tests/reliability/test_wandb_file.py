"""A real offline run of Weights & Biases whose file is whole, and the same file as a full disk leaves it."""

from types import SimpleNamespace

import pytest
import wandb

from lightning_vlm.outputs.wandb_file import has_end, say_if_cut


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Of a run that has logged more than a block."""
    folder = tmp_path_factory.mktemp("wandb")
    with wandb.init(dir=folder, mode="offline", project="p", settings=wandb.Settings(silent=True)) as run:
        for step in range(150):
            run.log({f"curve{number}": step * number for number in range(40)})
    (found,) = folder.rglob("run-*.wandb")
    assert found.stat().st_size > 100_000
    return found


def test_whole(file):
    assert has_end(file)


@pytest.mark.parametrize("lost", [1, 5_000, 40_000, 90_000])
def test_cut(lost, file, tmp_path):
    short = tmp_path / file.name
    short.write_bytes(file.read_bytes()[:-lost])
    assert not has_end(short)


@pytest.mark.parametrize("cut", [False, True])
def test_it_is_said(cut, file, tmp_path, capsys):
    written = tmp_path / file.name
    written.write_bytes(file.read_bytes()[: -5_000 if cut else None])
    run = SimpleNamespace(offline=True, dir=str(tmp_path / "files"))
    say_if_cut(SimpleNamespace(_experiment=run))
    said = capsys.readouterr().err
    expected = f"warning: Weights & Biases: {written} has no end, as where the disk was full; what was logged"
    assert said.startswith(expected) if cut else said == ""
