"""Which checkpoints are kept, and what is left when the machine dies or its disk is full."""

import multiprocessing
import os
import resource
import signal

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint, checkpoint_files

from tests.support.checkpoints import Scores, assert_same, names_in


def test_best_latest_and_periodic(run, tmp_path):
    """8 steps an epoch; the best is that of the second epoch and is never deleted."""
    *_, keep = run(
        callbacks=[Scores([3, 1, 2, 2, 2])], monitor="score", keep_periodic=2, trainer={"max_epochs": 5}
    )
    folder = tmp_path / "run"
    assert names_in(folder) == [f"step-{step:08d}.ckpt" for step in (16, 32, 40)]
    assert os.readlink(folder / "best.ckpt") == "step-00000016.ckpt"
    assert os.readlink(folder / "latest.ckpt") == "step-00000040.ckpt"
    assert keep.best_model_path == str(folder / "step-00000016.ckpt")
    assert keep.last_model_path == str(folder / "step-00000040.ckpt")
    assert keep.best_model_score == 1
    assert not [one.name for one in folder.iterdir() if one.name.startswith(".")]


def test_best_has_the_weights_that_were_validated(run, tmp_path, digits, classifier, make_trainer):
    *_, trainer, keep = run(every_n_epochs=None, module={"dropout": 0.0}, trainer={"max_epochs": 4})
    (scores,) = make_trainer(enable_checkpointing=True, callbacks=[keep]).validate(
        classifier(), digits.Digits(), ckpt_path=tmp_path / "run/best.ckpt", verbose=False
    )
    assert scores["val/loss"] == pytest.approx(keep.best_model_score, rel=1e-6)
    (again,) = trainer.validate(datamodule=digits.Digits(), ckpt_path="best", verbose=False)
    assert again == scores


def test_every_n_epochs_and_steps(run, tmp_path):
    run(monitor=None, every_n_epochs=2, keep_periodic=None, trainer={"max_epochs": 5})
    assert names_in(tmp_path / "run") == [f"step-{step:08d}.ckpt" for step in (16, 32, 40)]
    assert not (tmp_path / "run/best.ckpt").exists()
    run("steps", monitor=None, every_n_epochs=None, every_n_steps=5, keep_periodic=None)
    assert names_in(tmp_path / "steps") == [f"step-{step:08d}.ckpt" for step in (5, 10, 15, 20, 24)]


def test_what_others_left_stays(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("notes.txt", "step-00000008.ckpt", "step-8.ckpt", ".unfinished-step-00000004.ckpt"):
        (folder / name).write_text("another's")
    with pytest.warns(UserWarning, match=r"another run's checkpoints were moved to .*previous-1"):
        run(every_n_steps=1, trainer={"max_epochs": 1})
    assert (folder / "notes.txt").read_text() == (folder / "step-8.ckpt").read_text() == "another's"
    assert (folder / "previous-1/step-00000008.ckpt").read_text() == "another's"
    assert not (folder / ".unfinished-step-00000004.ckpt").exists()


def test_two_in_one_run(run, tmp_path):
    other = EarlyStopCheckpoint("val/accuracy", mode="max", dirpath=str(tmp_path / "other"))
    run(callbacks=[other])
    assert (tmp_path / "other/best.ckpt").exists()
    assert (tmp_path / "run/best.ckpt").exists()
    other = EarlyStopCheckpoint("val/accuracy", mode="max", dirpath=str(tmp_path / "run"))
    with pytest.raises(MisconfigurationException, match="two EarlyStopCheckpoint with one folder"):
        run(callbacks=[other])


def test_fast_dev_run_writes_nothing(run, tmp_path):
    run(trainer={"fast_dev_run": True})
    assert not (tmp_path / "run").exists()


def _killed(fit, at):
    """In a process of its own: die at the `at`-th thing that is done on the disk."""
    done = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    def half(checkpoint, file):
        nonlocal done
        done += 1
        if done == at:
            file = str(file)
            whole(checkpoint, file)
            with open(file, "r+b") as half_written:
                half_written.truncate(os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        whole(checkpoint, file)

    whole, checkpoint_files.save_whole = checkpoint_files.save_whole, half
    for name in ("fsync", "replace", "symlink", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    fit()
    os._exit(7)


def test_killed_at_any_moment(run, tmp_path):
    """`latest` is whole, and going on from it ends as the run that was never killed."""
    torch.set_num_threads(1)
    options = {"every_n_steps": 3, "trainer": {"max_epochs": 2}}
    whole, *_ = run("whole", **options)
    fork, points = multiprocessing.get_context("fork"), (18, 20, 22, 24, 25, 27, 31, 34, 37, 43)
    processes = {}
    for at in points:
        name = f"killed-{at}"
        processes[at] = fork.Process(target=_killed, args=(lambda name=name: run(name, **options), at))
        processes[at].start()
        processes[at].join(60)
        assert processes[at].exitcode == -signal.SIGKILL, f"nothing was done for the {at}th time"
        folder = tmp_path / name
        steps = {
            link: torch.load(folder / f"{link}.ckpt", weights_only=True)["global_step"]
            for link in ("latest", "best")
            if os.path.lexists(folder / f"{link}.ckpt")
        }
        assert steps["latest"] >= 3
        for file in folder.glob("step-*.ckpt"):
            torch.load(file, weights_only=True)
        resumed, *_ = run(name, ckpt_path=folder / "latest.ckpt", chance=at, **options)
        assert_same(whole, resumed)
        assert not list(folder.glob(".unfinished-*"))


def test_disk_full(run, tmp_path):
    """The system itself refuses to write more than 2 KiB to a file."""

    class Full(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.trainer = trainer
            if trainer.global_step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))

    full = Full()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            MisconfigurationException, match=r"could not save step 6 in .*: .*large.*are whole"
        ):
            run(callbacks=[full], every_n_steps=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(tmp_path / "run/latest.ckpt", weights_only=True)["global_step"] == 3
    assert full.trainer.checkpoint_callback.last_model_path == str(tmp_path / "run/step-00000003.ckpt")
    assert names_in(tmp_path / "run") == ["step-00000003.ckpt"]
    assert not list((tmp_path / "run").glob(".unfinished-*"))
