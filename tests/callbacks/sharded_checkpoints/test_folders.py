"""A sharded checkpoint of a stranger runs nothing and reads nothing else; a damaged one is named."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.sharded_checkpoints import check_folder, is_sharded, read_whole
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, save

WEIGHT = torch.arange(6.0).view(2, 3)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mknod, (str(self.file),)


def write(folder, **values):
    state = {
        "state_dict": {"a.weight": WEIGHT, **values},
        "optimizer_0": {
            "state": {"a.weight": {"step": torch.tensor(3.0), "exp_avg": WEIGHT * 2}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": ["a.bias", "a.weight"]}],
        },
    }
    save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"global_step": 3, "pytorch-lightning_version": "2.6.6"}, folder / "meta.pt")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("written") / "step-00000003.ckpt")


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / written.name))


def test_whole_is_what_one_file_would_hold(written):
    check_folder(written)
    found = read_whole(written)
    assert found["global_step"] == 3
    torch.testing.assert_close(found["state_dict"], {"a.weight": WEIGHT}, rtol=0, atol=0)
    (state,) = found["optimizer_states"]
    assert state["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1]}]
    torch.testing.assert_close(state["state"], {1: {"step": torch.tensor(3.0), "exp_avg": WEIGHT * 2}})
    shapes = read_whole(written, device="meta")
    assert shapes["state_dict"]["a.weight"].is_meta
    assert shapes["optimizer_states"][0]["param_groups"] == state["param_groups"]


def change_list(folder, change):
    metadata = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(change(metadata) or metadata))


def elsewhere(path):
    def change(metadata):
        for place in metadata.storage_data.values():
            place.relative_path = path

    return change


def huge(metadata):
    metadata.state_dict_metadata["state_dict.a.weight"].size = torch.Size([10**9, 10**9])


def beyond_the_end(metadata):
    next(iter(metadata.storage_data.values())).length = 10**12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elsewhere("/etc/passwd"), "a value in the file /etc/passwd; expected one in the folder itself"),
        (elsewhere("../other/__0_0.distcp"), "a value in the file ../other/__0_0.distcp; expected one in"),
        (elsewhere("__9_0.distcp"), "no file __9_0.distcp, which its list names; copy the folder again"),
        (huge, r"state_dict.a.weight of shape \(1000000000, 1000000000\), more than its files can hold"),
        (beyond_the_end, "too short a file __0_0.distcp; copy the folder again"),
        (lambda metadata: {"no": "list"}, r"a list \(.metadata\) that can't be read; copy the folder again"),
    ],
)
def test_a_list_that_cannot_be_true(change, message, folder):
    change_list(folder, change)
    with pytest.raises(MisconfigurationException, match=rf"^checkpoint {folder}: found {message}"):
        check_folder(folder)


def test_code_in_the_list_is_not_run(folder, tmp_path):
    change_list(folder, lambda metadata: Evil(tmp_path / "ran"))
    for read in (check_folder, read_whole):
        with pytest.raises(
            MisconfigurationException, match=r"holds pickled code \(posix.mknod\), which is not run"
        ):
            read(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_a_value_is_not_run(tmp_path):
    folder = write(tmp_path / "evil", value=Evil(tmp_path / "ran"))
    for read in (check_folder, read_whole):
        with pytest.raises(MisconfigurationException, match=r"state_dict\.value, which holds pickled code"):
            read(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_rest_is_not_run(folder, tmp_path):
    torch.save(Evil(tmp_path / "ran"), folder / "meta.pt")
    with pytest.raises(pickle.UnpicklingError):
        read_whole(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["meta.pt", ".metadata"])
def test_a_half_written_folder(missing, folder):
    (folder / missing).unlink()
    assert not is_sharded(folder)
    with pytest.raises(MisconfigurationException, match="found a checkpoint that was never finished"):
        check_folder(folder)


def test_another_folder(tmp_path):
    with pytest.raises(
        MisconfigurationException, match=r"found a folder that is no checkpoint; expected \.metadata"
    ):
        check_folder(tmp_path)
