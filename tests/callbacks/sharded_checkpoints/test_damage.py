"""Damage to a sharded checkpoint is noticed before it is loaded, and a whole one is named."""

import errno
import os
import shutil
from contextlib import contextmanager

import pytest
import torch
from lightning_vlm_callbacks.checkpoint_files import CheckpointError, or_else
from lightning_vlm_callbacks.checksums import CHECKSUMS, SummedFiles
from lightning_vlm_callbacks.sharded_checkpoints import check_folder, read_whole
from lightning_vlm_callbacks.sharded_checkpoints.writing import split_off_pieces, write_pieces
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.support.ranks import call_on_ranks

FILES = [".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"]


def write_two(folder):
    """Two checkpoints of one run, on one of two ranks."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for step in (1, 2):
        weight = distribute_tensor(torch.full((6, 4), float(step)), mesh, [Shard(0)])
        state = {
            "param_groups": [{"lr": 0.1, "params": ["weight"]}],
            "state": {"weight": {"exp_avg": weight}},
        }
        saved = {"state_dict": {"weight": weight}, "optimizer_states": [state], "global_step": step}
        values, rest = split_off_pieces(saved, torch.distributed.get_rank() == 0)
        write_pieces(values, rest, folder / f"step-0000000{step}.ckpt", None)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    call_on_ranks(write_two, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    shutil.copytree(written, tmp_path / "kept")
    return tmp_path / "kept/step-00000002.ckpt"


def refused(folder):
    """The message of what reads a folder."""
    with pytest.raises(CheckpointError) as error:
        read_whole(folder)
    message = str(error.value)
    whole = folder.with_name("step-00000001.ckpt")
    assert message.startswith(f"checkpoint {folder}: found ")
    assert message.endswith(f"; {whole} is whole")
    return message


def test_whole_ones_are_read(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, CHECKSUMS])
    check_folder(folder)
    assert read_whole(folder)["state_dict"]["weight"].tolist() == [[2.0] * 4] * 6


@pytest.mark.parametrize("name", FILES)
def test_changed_bits_are_noticed_wherever_they_are(name, folder):
    file = folder / name
    content = file.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        assert f"a file {name} that was damaged or belongs to another checkpoint" in refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_checkpoint_is_noticed(name, folder):
    """Of the same run, so that all of its shapes and places are those of this one."""
    shutil.copy(folder.with_name("step-00000001.ckpt") / name, folder / name)
    assert f"a file {name} that was damaged or belongs to another checkpoint" in refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_short_is_noticed(name, folder):
    content = (folder / name).read_bytes()
    for length in (0, 1, len(content) // 2, len(content) - 1):
        (folder / name).write_bytes(content[:length])
        assert name in refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_has_gone_is_noticed(name, folder):
    (folder / name).unlink()
    message = refused(folder)
    assert name in message or "never finished" in message


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"../x": "00000000"}', "[" * 100_000, "\xff"])
def test_damaged_checksums_are_noticed(text, folder):
    (folder / CHECKSUMS).write_bytes(text.encode("latin-1"))
    assert f"a list of checksums ({CHECKSUMS}) that can't be read; copy the folder again" in refused(folder)


def test_a_damaged_one_is_not_called_whole(folder):
    before = folder.with_name("step-00000001.ckpt")
    (before / "__1_0.distcp").write_bytes(b"")
    (folder / "meta.pt").unlink()
    assert or_else(folder) == ""


def test_one_without_checksums_is_read_and_it_is_said(folder, caplog):
    (folder / CHECKSUMS).unlink()
    with caplog.at_level("INFO"):
        assert read_whole(folder)["global_step"] == 2
    assert f"checkpoint {folder}: it has no {CHECKSUMS}, so that damage to its pieces" in caplog.text


class Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, room):
        self.room = room

    def write(self, content):
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)


def test_a_full_disk_is_named_also_where_torch_raises_behind_it(tmp_path, monkeypatch):
    @contextmanager
    def create_stream(self, path, mode):
        yield Full(700)

    monkeypatch.setattr(FileSystem, "create_stream", create_stream)
    unfinished = tmp_path / ".unfinished-step-00000003.ckpt/__0_0.distcp"
    name = "step-00000003.ckpt/__0_0.distcp"
    with (
        pytest.raises(OSError, match=f"No space left on device: '{tmp_path / name}'"),
        SummedFiles().create_stream(unfinished, "wb") as file,
    ):
        torch.save(torch.zeros(500), file)
