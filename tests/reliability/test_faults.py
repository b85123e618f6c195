"""A small piece of `python -m tools.reliability.faults`, and mendings that need no whole run."""

import fcntl
import multiprocessing
import os
from types import SimpleNamespace

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_vlm_callbacks.early_stop_checkpoint.previous_runs import newest_of
from lightning_vlm_callbacks.folder_lock import NAME, FolderLock
from lightning_vlm_callbacks.whole_files import check_writable

from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.callbacks.answer_progress import Progress, Step
from lightning_vlm.callbacks.answer_store import unfinished_beside
from lightning_vlm.data.skip_list import SkipList, write_skip_list
from lightning_vlm.errors import UserError
from lightning_vlm.export.command import folder_beside
from lightning_vlm.failures.describe import explain
from lightning_vlm.failures.interrupt import interruption
from lightning_vlm.outputs.tracker_faults import go_on_without
from tools.reliability import fault_runs
from tools.reliability.damaged import damaged_last, deleted
from tools.reliability.full_disks import tracker

UNSEEN = {"it is said once", "it says so once"}
"""Warnings of a process that pytest has forked go to pytest."""
fork = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is never disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fault_runs.write_config(folder)
    assert fault_runs.run(folder, "fit", "--config", "run.yaml").code == 0
    return folder


def test_a_full_disk_ends_no_run_for_its_report(whole, tmp_path):
    if not fault_runs.may_mount(tmp_path):
        pytest.skip("disks can't be made here")
    assert set(tracker(False, "RunReport", steps=12)(tmp_path, whole).wrong) <= UNSEEN


def test_the_newest_checkpoint_is_damaged(whole, tmp_path):
    assert damaged_last(tmp_path, whole).wrong == ()


def test_checkpoints_are_deleted_while_the_run_lasts(whole, tmp_path):
    assert set(deleted("kept")(tmp_path, whole).wrong) <= UNSEEN


def other_process(hold):
    """Runs something in another process, which then lives until it is killed."""
    ready = fork.Event()

    def live():
        held = hold()
        ready.set()
        fork.Event().wait(60)
        del held

    process = fork.Process(target=live)
    process.start()
    assert ready.wait(20)
    return process


def test_answers_that_another_run_writes(tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text("")

    def hold():
        stream = file.open("r+b")
        fcntl.lockf(stream, fcntl.LOCK_EX)
        return stream

    process = other_process(hold)
    try:
        with pytest.raises(UserError, match=r"another run is writing .*answers\.jsonl; wait"):
            AnswerFile(file).check()
    finally:
        process.kill()
        process.join()
    AnswerFile(file).check()


def test_what_killed_exports_leave(tmp_path):
    out, left = tmp_path / "model", tmp_path / ".model-abcdefgh"
    foreign = tmp_path / ".model-12345678"  # not of an export
    foreign.mkdir()
    process = other_process(lambda: FolderLock(left))
    try:
        with pytest.raises(UserError, match="another export is writing"), folder_beside(out):
            pass
    finally:
        process.kill()
        process.join()
    assert (left / NAME).exists()
    with folder_beside(out) as folder:
        (folder / "pictures").mkdir()
        (folder / "config.json").write_text("{}")
    assert sorted(os.listdir(tmp_path)) == [".model-12345678", "model"]
    assert os.listdir(out) == ["config.json"]


def test_clocks_that_were_set_back(tmp_path):
    """The first of each pair is older, and has the later time."""
    runs = [tmp_path / f"version_{number}" for number in (9, 10)]
    for run in runs:
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints/latest.ckpt").write_text("")
    os.utime(runs[0] / "checkpoints/latest.ckpt", (4e9, 4e9))
    assert newest_of(runs, "latest.ckpt") == runs[1] / "checkpoints/latest.ckpt"

    steps = [Step((1,), (0,), (number,), (), {}) for number in range(3)]
    for run, count in zip(runs, (1, 3), strict=True):
        progress = Progress(run / "answers.jsonl")
        progress.begin({"seed": 0}, steps[:count])
        progress.close()
    os.utime(Progress(runs[0] / "answers.jsonl").file, (4e9, 4e9))
    assert unfinished_beside(tmp_path / "new", "answers.jsonl", {"seed": 0}) == runs[1] / "answers.jsonl"

    older, newer = tmp_path / "step-00000009.ckpt", tmp_path / "step-00000010.ckpt"
    for file in (older, newer):
        file.write_text("")
    os.utime(older, (4e9, 4e9))
    keeper = SimpleNamespace(best_model_path=str(older), last_model_path=str(newer))
    trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), global_step=10, checkpoint_callbacks=[keeper])
    assert f"the newest checkpoint is {newer}" in str(interruption(SIGTERMException(), trainer))


def test_a_tracker_that_cannot_write():
    class Tracker:
        log_dir = "/x/log"

        def log_metrics(self, metrics, step=None):
            raise OSError(28, "No space left on device")

        save = after_save_checkpoint = finalize = log_metrics

    logger = Tracker()
    go_on_without([logger])
    with pytest.warns(UserWarning, match="Tracker: the disk is full: /x/log can't") as said:
        log_twice(logger)
    assert len(said) == 1


def log_twice(logger):
    logger.log_metrics({})
    logger.log_metrics({})


def test_a_list_is_whole_or_not_there(tmp_path):
    (tmp_path / "skip.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        write_skip_list(tmp_path / "skip.jsonl", [], {})
    assert "the disk is full: " in explain(error.value)
    write_skip_list(tmp_path / "other.jsonl", [], {})
    assert SkipList.read(tmp_path / "other.jsonl").files == []


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new/folder/file")
    check_writable(tmp_path / "file")
    for path, words in (("file/x", "Not a directory"), ("", "Is a directory")):
        with pytest.raises(OSError, match=words):
            check_writable(tmp_path / path)
