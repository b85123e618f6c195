"""The loss of masks is exact however a step is split, and a stopped run continues to the bit."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Constant
from tests.module.test_normalisation import off

SOURCE = Drawn("train", size=8, tasks=["segmentation", "vqa"], seed=3)


class Record(Callback):
    """The gradients of each step."""

    def __init__(self):
        self.gradients = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.requires_grad})


def fresh():
    module = VLMModule(
        "drawn-vlm",
        new_tokens=["<seg>"],
        adapt={"language": "full", "projector": "full"},
        mask_head=True,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=Constant(),
        clip=None,
    )
    torch.manual_seed(0)  # for the weights of the new head
    module.configure_model()
    return module


def run(make_quiet, module, batch_size=8, accumulate=1, packed=False, callbacks=(), **options):
    record = Record()
    batching = {"batching": "packed", "max_tokens": 2000} if packed else {"batch_size": batch_size}
    data = VLMDataModule(train=SOURCE, val=SOURCE, boxes="seg", shuffle=False, **batching)
    given = {"max_epochs": 1, "accumulate_grad_batches": accumulate, "precision": "64-true", **options}
    trainer = make_quiet(callbacks=[*callbacks, record], **given)
    trainer.fit(module, data)
    return record.gradients, float(trainer.callback_metrics["val/mask_loss"])


@pytest.fixture(scope="module")
def whole(make_quiet):
    return run(make_quiet, fresh())


@pytest.mark.parametrize(("size", "accumulate", "packed"), [(2, 4, False), (1, 8, False), (0, 1, True)])
def test_however_a_step_is_split(whole, make_quiet, size, accumulate, packed):
    gradients, loss = run(make_quiet, fresh(), size, accumulate, packed)
    assert len(gradients) == len(whole[0]) == 1
    assert any("mask_head" in name for name in gradients[0])
    assert off(gradients[0], whole[0][0]) < 1e-9
    assert loss == pytest.approx(whole[1], rel=1e-6)


def test_on_ranks(whole, make_quiet, on_two_ranks):
    def on_rank():
        return run(make_quiet, fresh(), 4, 1, strategy="ddp", devices=2)

    for gradients, loss in on_two_ranks(on_rank):
        assert off(gradients[0], whole[0][0]) < 1e-9
        assert loss == pytest.approx(whole[1], rel=1e-6)


class Stop(Callback):
    """Ends a run after some batches, as Ctrl-C would."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def test_a_stopped_run_continues_to_the_bit(make_quiet, tmp_path):
    def weights(callbacks=(), ckpt_path=None):
        data = VLMDataModule(train=SOURCE, boxes="seg", batch_size=2)
        module = fresh()
        trainer = make_quiet(callbacks=list(callbacks), max_epochs=2)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return {name: one.clone() for name, one in module.state_dict().items()}

    expected = weights()
    path = tmp_path / "stopped.ckpt"
    assert off(weights([Stop(path)]), expected) > 0
    found = weights(ckpt_path=path)
    assert all(torch.equal(found[name], one) for name, one in expected.items())
