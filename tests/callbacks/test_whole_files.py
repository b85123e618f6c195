"""Files of a run on a disk that is full, and checkpoints that were damaged since they were written."""

import os
import random
import resource
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from lightning_vlm_callbacks.checkpoint_files import (
    CheckpointError,
    WholeCheckpointIO,
    damage_of,
    newest_first,
    or_else,
)
from lightning_vlm_callbacks.run_report.record import Record
from lightning_vlm_callbacks.whole_files import write_whole


@contextmanager
def full_after(size):
    """The system refuses to make a file larger than some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full(tmp_path):
    """A file whose disk is full."""
    link = tmp_path / "full.ckpt"
    link.symlink_to("/dev/full")
    return link


def test_what_was_there_stays(tmp_path):
    file = tmp_path / "page.html"
    write_whole(file, "before")
    with full_after(1000), pytest.raises(OSError, match="too large") as error:
        write_whole(file, "x" * 5000)
    assert error.value.filename == str(file)
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_device_is_written_itself(full):
    """Renamed onto it, a page would take the place of /dev/null."""
    with pytest.raises(OSError, match="No space left on device") as error:
        write_whole(full, "x")
    assert error.value.filename == str(full)
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "x")
    assert os.readlink(tmp_path / "link") == "file"
    assert (tmp_path / "file").read_text() == "x"


def test_a_checkpoint_on_a_full_disk(tmp_path, full):
    saved = tmp_path / "step=1.ckpt"
    WholeCheckpointIO().save_checkpoint({"weight": torch.zeros(5)}, saved)
    with full_after(5000), pytest.raises(CheckpointError, match=r"step=1\.ckpt can't be written"):
        WholeCheckpointIO().save_checkpoint({"weight": torch.zeros(5000)}, saved)
    assert torch.load(saved, weights_only=True)["weight"].shape == (5,)
    with pytest.raises(CheckpointError, match=r"the disk is full: .*full\.ckpt"):
        WholeCheckpointIO().save_checkpoint({"weight": torch.zeros(5)}, full)
    assert sorted(os.listdir(tmp_path)) == ["full.ckpt", "step=1.ckpt"]


def test_no_line_of_a_record_is_torn(tmp_path):
    file = tmp_path / "report.jsonl"
    record = Record(file)
    record.add_event(1, "stage", "short", {})
    before = file.read_text()
    with full_after(len(before) + 50), pytest.raises(OSError, match="too large"):
        record.add_event(2, "stage", "x" * 100, {})
    assert file.read_text() == before
    record.add_event(3, "stage", "short", {})
    record.close()
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_never_loaded(tmp_path, seed):
    """Of 60 places, each is refused or doesn't matter."""
    chance = random.Random(seed)
    saved = {"weight": torch.arange(600.0), "small": torch.ones(3), "step": 7}
    whole = tmp_path / "whole.ckpt"
    WholeCheckpointIO().save_checkpoint(saved, whole)
    content = whole.read_bytes()
    refused = 0
    for number in range(60):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file = tmp_path / f"{number}.ckpt"
        file.write_bytes(flipped)
        try:
            found = WholeCheckpointIO().load_checkpoint(file, weights_only=True)
        except CheckpointError:
            refused += 1
            continue
        assert torch.equal(found["weight"], saved["weight"])
        assert torch.equal(found["small"], saved["small"])
        assert found["step"] == 7
    assert refused > 20


def test_a_bit_that_makes_a_tensor_a_folder_is_refused(tmp_path):
    """torch then reads whatever lay in memory, and no checksum is of that bit."""
    file = tmp_path / "flipped.ckpt"
    WholeCheckpointIO().save_checkpoint({"weight": torch.arange(600.0)}, file)
    content = bytearray(file.read_bytes())
    place, end = content.find(b"PK\x01\x02"), len(content)
    while place >= 0:  # each entry of the list at the end
        flipped = content[:]
        flipped[place + 38] ^= 0x10
        file.write_bytes(flipped)
        os.utime(file, ns=(place, place))
        with pytest.raises(CheckpointError, match="damaged contents"):
            WholeCheckpointIO().load_checkpoint(file, weights_only=True)
        place = content.find(b"PK\x01\x02", place + 1, end)


def test_damage_names_a_whole_checkpoint(tmp_path):
    for step in (1, 2, 3):
        WholeCheckpointIO().save_checkpoint(
            {"weight": torch.full((900,), step)}, tmp_path / f"step={step}.ckpt"
        )
    newest = tmp_path / "step=3.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    os.utime(tmp_path / "step=1.ckpt", (4e9, 4e9))  # the clock was ahead
    with pytest.raises(CheckpointError, match=r"step=3\.ckpt: found damaged .*step=2\.ckpt is whole"):
        WholeCheckpointIO().load_checkpoint(newest, weights_only=True)
    newest.write_bytes(content[:1000])
    with pytest.raises(
        CheckpointError, match=r"step=3\.ckpt: found a file that is cut .*step=2\.ckpt is whole"
    ):
        WholeCheckpointIO().load_checkpoint(newest, weights_only=True)
    assert [file.name for file in newest_first(tmp_path)] == [f"step={step}.ckpt" for step in (3, 2, 1)]
    assert or_else(Path(tmp_path, "step=2.ckpt")).endswith("step=1.ckpt is whole")


def test_a_file_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(9)}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert damage_of(tmp_path / "a.ckpt") is None
