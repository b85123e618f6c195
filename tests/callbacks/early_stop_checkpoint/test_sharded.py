"""Runs whose weights lie over several ranks write folders, from which any number of ranks resumes."""

import os
import re
import resource
import time

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint, StagedUnfreezing
from lightning_vlm_callbacks.early_stop_checkpoint import copies
from lightning_vlm_callbacks.early_stop_checkpoint.checkpoint_folder import CheckpointFolder, step_of
from lightning_vlm_callbacks.sharded_checkpoints import check_folder, read_whole

from tests.support.checkpoints import assert_same, names_in
from tests.support.pieces import Pieces, fsdp2, whole, whole_weights
from tests.support.project import Samples
from tools.reliability import sharded_checkpoints

STAGES = [{"at": 0, "train": {"net.head": 1.0}}, {"at": 4, "train": {"*": 1.0}}]


class OwnChance(Callback):
    """Dropout of its own on each rank."""

    def on_train_start(self, trainer, module):
        torch.manual_seed(trainer.global_rank)


def everything(trainer, module):
    """Weights and the optimizer's state, whole, by name."""
    found = whole_weights(module)
    for name, parameter in module.named_parameters():
        for key, value in trainer.optimizers[0].state.get(parameter, {}).items():
            found[f"{name}.{key}"] = whole(value)
    return found


def fit(make_trainer, folder, ranks, ckpt_path=None, asynchronous=False, dropout=0.0, callbacks=()):
    seed_everything(7, verbose=False)
    keep = EarlyStopCheckpoint(
        "val/loss", dirpath=str(folder), every_n_steps=1, keep_periodic=None, asynchronous=asynchronous
    )
    given = fsdp2(ranks) if ranks > 1 else {}
    callbacks = [OwnChance(), StagedUnfreezing(STAGES, unit="step"), *callbacks, keep]
    trainer = make_trainer(callbacks=callbacks, enable_checkpointing=True, max_epochs=2, **given)
    module = Pieces(dropout=dropout)
    trainer.fit(module, Samples(size=24, batch_size=8 // ranks), ckpt_path=ckpt_path, weights_only=True)
    return everything(trainer, module)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_resumed_is_uninterrupted(asynchronous, make_trainer, on_two_ranks, tmp_path):
    """Bit for bit, from a step of either stage and from inside either epoch."""

    def run():
        options = {"asynchronous": asynchronous, "dropout": 0.2}
        found = {"whole": fit(make_trainer, tmp_path / "whole", 2, **options)}
        for step in (2, 5):
            file = tmp_path / f"whole/step-0000000{step}.ckpt"
            found[str(step)] = fit(make_trainer, tmp_path / f"from-{step}", 2, ckpt_path=file, **options)
        return found

    for rank in on_two_ranks(run):
        assert_same(rank["2"], rank["whole"])
        assert_same(rank["5"], rank["whole"])
    folder = tmp_path / "whole"
    assert names_in(folder) == [f"step-0000000{step}.ckpt" for step in range(1, 7)]
    assert all((folder / name / "meta.pt").is_file() for name in names_in(folder))
    assert os.readlink(folder / "latest.ckpt") == "step-00000006.ckpt"
    assert not list(folder.glob(".unfinished*"))


def test_another_number_of_ranks(make_trainer, on_two_ranks, tmp_path):
    """To rounding: two ranks go on where one was, and one where two were."""
    alone = fit(make_trainer, tmp_path / "1", 1)
    two = on_two_ranks(lambda: fit(make_trainer, tmp_path / "2", 2))[0]
    after = "step-00000003.ckpt"
    one_then_two = on_two_ranks(lambda: fit(make_trainer, tmp_path / "12", 2, tmp_path / "1" / after))[0]
    two_then_one = fit(make_trainer, tmp_path / "21", 1, tmp_path / "2" / after)
    for found in (two, one_then_two, two_then_one):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_a_folder_that_was_published_just_before_a_kill_is_replaced(tmp_path):
    """No link pointed at it yet, so the resumed run writes it again."""
    folder = CheckpointFolder(tmp_path)
    for content in ("left", "written again"):
        written = folder.unfinished("step-00000005.ckpt")
        written.mkdir()
        (written / "meta.pt").write_text(content)
        folder.publish("step-00000005.ckpt")
    assert (tmp_path / "step-00000005.ckpt/meta.pt").read_text() == "written again"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005.ckpt"]


class Slow(Callback):
    """Lets writing begin only when the next step has been made, which has changed the weights."""

    def __init__(self):
        self.weights, self.made, self.ended = {}, 0, False
        write = copies.write_pieces

        def late(values, rest, folder, group):
            while self.made <= step_of(folder.name.removeprefix(".unfinished-")) and not self.ended:
                time.sleep(0.005)
            write(values, rest, folder, group)

        copies.write_pieces = late

    def on_train_batch_end(self, trainer, module, *_):
        self.made = trainer.global_step
        self.weights[self.made] = whole_weights(module)

    def on_train_end(self, trainer, module):
        self.ended = True

    def on_exception(self, trainer, module, exception):
        self.ended = True


def test_what_is_written_later_is_the_state_from_then(make_trainer, on_two_ranks, tmp_path):
    def run():
        slow = Slow()
        fit(make_trainer, tmp_path, 2, asynchronous=True, callbacks=[slow])
        return slow.weights

    weights, _ = on_two_ranks(run)
    assert not torch.equal(weights[1]["net.head.weight"], weights[2]["net.head.weight"])
    for step in range(1, 7):
        written = read_whole(tmp_path / f"step-0000000{step}.ckpt")["state_dict"]
        assert_same(written, weights[step])


def test_a_failure_in_the_background_is_raised_on_all_ranks(make_trainer, on_two_ranks, tmp_path):
    """One rank can't write more than 2 KiB to a file from step 3 on."""

    class Full(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 2 and trainer.global_rank == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run():
        try:
            with pytest.raises(MisconfigurationException) as error:
                fit(make_trainer, tmp_path, 2, asynchronous=True, callbacks=[Full()])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return str(error.value)

    for message in on_two_ranks(run):
        match = re.match(
            r"EarlyStopCheckpoint could not save step (\d) in .*: rank 1: "
            r"/.*/step-0000000\d.ckpt/__1_0.distcp can't be written \(file too large\).*are whole",
            message,
        )
        assert match, message
        failed = int(match[1])  # what was still being written, or the next
        assert failed in (2, 3)
    assert os.readlink(tmp_path / "latest.ckpt") == f"step-0000000{failed - 1}.ckpt"
    check_folder(tmp_path / "latest.ckpt")
    assert not list(tmp_path.glob(".unfinished*"))


def test_killed_while_writing(capsys):
    """One of the many kills of the command."""
    assert sharded_checkpoints.main(["--kills", "1", "--seed", "1"]) == 0
    assert "1 kills while a sharded checkpoint was written" in capsys.readouterr().out
