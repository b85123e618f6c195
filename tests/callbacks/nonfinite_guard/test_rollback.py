"""Going back to an earlier state, and leaving out the steps that follow."""

import copy

import pytest
import torch
from lightning_vlm_callbacks import NonFiniteGuard
from torch import nn

from tests.support.nonfinite import assert_same, loader, optimizer_state, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.mark.parametrize("marked", [[9], [9, 14], [9, 18]])
def test_rollback(trapped, batches_of, make_trainer, tmp_path, marked):
    """By hand: of copies after steps 4 and 8 to the older; the next 4 steps are skipped; the schedule goes
    back too and then on. A second time it goes back to the same copy, even if there is one taken since."""
    batches = batches_of(28, marked=marked)
    options = {"schedule": exponential}
    module = trapped(**options)
    guard = NonFiniteGuard("rollback", dirpath=tmp_path, snapshot_every_n_steps=4)
    trainer = make_trainer(max_epochs=1, callbacks=[guard])
    trainer.fit(module, loader(batches))

    other = trapped(**options)
    configured = other.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    ring, out = [], 0

    def copies():
        return copy.deepcopy((other.state_dict(), optimizer.state_dict(), scheduler.state_dict()))

    ring.append(copies())
    for step, batch in enumerate(batches, 1):
        if out:
            out -= 1
            scheduler.step()
            continue
        if step - 1 in marked:
            del ring[1:]
            weights, of_optimizer, of_scheduler = copy.deepcopy(ring[0])
            other.load_state_dict(weights)
            optimizer.load_state_dict(of_optimizer)
            scheduler.load_state_dict(of_scheduler)
            out = 4
            continue
        optimizer.zero_grad()
        nn.functional.cross_entropy(other(batch[0]), batch[1]).backward()
        optimizer.step()
        scheduler.step()
        if step % 4 == 0:
            ring = [*ring, copies()][-2:]
    assert_same(state_of(module), state_of(other))
    assert_same(optimizer_state(trainer.optimizers[0]), optimizer_state(optimizer))
    assert trainer.optimizers[0].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert trainer.global_step == 28
    assert guard.skipped == len(marked)


def test_skipping_goes_on_after_a_resume(trapped, batches_of, make_trainer, tmp_path):
    """Bit for bit: the bad step is 1, the checkpoint after step 3, and steps 2 to 5 are skipped."""
    batches = batches_of(8, marked=[1])

    def fit(stop, data, ckpt_path=None):
        module = trapped()
        guard = NonFiniteGuard("rollback", dirpath=tmp_path / "reports", snapshot_every_n_steps=4)
        trainer = make_trainer(max_epochs=-1, max_steps=stop, callbacks=[guard])
        trainer.fit(module, loader(data), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{stop}.ckpt")
        return state_of(module)

    whole = fit(8, batches)
    fit(4, batches)
    assert torch.load(tmp_path / "4.ckpt", weights_only=True)["callbacks"]["NonFiniteGuard"]["still_out"] == 2
    # A plain loader starts over: give it what is left, at the places where Lightning looks for it.
    assert_same(fit(8, [*batches[4:], *batches], tmp_path / "4.ckpt"), whole)


def test_rollback_on_two_ranks_and_what_talks_to_others(
    trapped, batches_of, make_trainer, on_two_ranks, tmp_path
):
    """Replicas stay equal. One rank can't run a training_step with a collective again, which mustn't hang."""

    def run():
        rank = int(__import__("os").environ["RANK"])
        module = trapped()
        step = module.training_step
        talks = type(
            "Talks",
            (type(module),),
            {
                "training_step": lambda self, batch, batch_idx: (
                    self.all_gather(batch[0].sum()).sum() * 0 + step.__func__(self, batch, batch_idx)
                )
            },
        )
        module.__class__ = talks
        guard = NonFiniteGuard("rollback", dirpath=tmp_path, snapshot_every_n_steps=2)
        trainer = make_trainer(
            devices=2, strategy="ddp", max_epochs=1, use_distributed_sampler=False, callbacks=[guard]
        )
        trainer.fit(module, loader(batches_of(16, marked=[5])[8 * (1 - rank) :][:8]))
        return dict(module.named_parameters()), guard.skipped

    (weights, skipped), (others, skipped_too) = on_two_ranks(run)
    assert (skipped, skipped_too) == (1, 1)
    assert_same(others, weights)
    (folder,) = tmp_path.iterdir()
    assert folder.name == "step-00000005-rank1"
    text = (folder / "report.md").read_text()
    assert "could not be run again: RuntimeError: it talks to other ranks" in text
    assert "goes back to an earlier state and skips 2 updates" in text
