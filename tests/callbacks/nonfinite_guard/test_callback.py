"""NonFiniteGuard: weights are as if the bad step had never been.

Oracles: hand-written training loops that never see the bad batches.
"""

import copy

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import NonFiniteBundle, NonFiniteGuard
from lightning_vlm_callbacks.nonfinite_guard.callback import NonFiniteError
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from tests.support.nonfinite import assert_same, by_hand, loader, optimizer_state, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


@pytest.mark.parametrize(("kind", "optimizer"), [("forward", "adamw"), ("backward", "sgd")])
def test_as_if_never_seen(trapped, batches_of, make_trainer, tmp_path, kind, optimizer):
    """Batch 5 is the second micro-batch of step 1. Clipping would have spread its NaN."""
    if optimizer == "adamw":
        options = {}
    else:
        options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1)}
    module, batches = trapped(kind, **options), batches_of(16, marked=[5])
    trainer = make_trainer(
        max_epochs=1,
        accumulate_grad_batches=4,
        gradient_clip_val=0.1,
        callbacks=[NonFiniteGuard(dirpath=tmp_path)],
    )
    trainer.fit(module, loader(batches))
    other = trapped(kind, **options)
    by_optimizer = other.configure_optimizers()
    expected = by_hand(other, batches, skipped_steps=[1], accumulate=4, clip=0.1, optimizer=by_optimizer)
    assert_same(state_of(module), expected)
    assert_same(optimizer_state(trainer.optimizers[0]), optimizer_state(by_optimizer))
    assert trainer.global_step == 4
    assert NonFiniteBundle.load(tmp_path / "step-00000001-rank0/bundle.pt").batch_idx == 5
    # Without the guard nothing is left.
    spoiled = trapped(kind, **options)
    make_trainer(max_epochs=1, accumulate_grad_batches=4, gradient_clip_val=0.1).fit(spoiled, loader(batches))
    assert not any(one.isfinite().any() for one in spoiled.parameters())


def test_a_module_that_seeds_each_batch(digits, batches_of, make_trainer, tmp_path):
    """As VLMModule does, for dropout: the replay draws what the batch drew."""

    class Seeds(digits.Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(batch_idx)

        def training_step(self, batch, batch_idx):
            if torch.rand(1).item() == self.unlucky:
                batch = [batch[0] / 0, batch[1]]
            return super().training_step(batch, batch_idx)

    module = Seeds()
    module.unlucky = torch.rand(1, generator=torch.Generator().manual_seed(2)).item()
    guard = NonFiniteGuard(dirpath=tmp_path)
    with pytest.warns(
        UserWarning,
        match="step 2: the loss is NaN or infinite; NaN or infinity comes into the LightningModule",
    ):
        make_trainer(max_epochs=1, callbacks=[guard]).fit(module, loader(batches_of(4)))
    assert guard.skipped == 1


class Steep(LightningModule):
    """A loss whose slope is that of its batch."""

    def __init__(self, optimizer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_gradients_whose_squares_float32_cannot_hold(make_trainer, tmp_path, clip):
    """Adam would never move these weights again, and clipping would make zeros of the gradients."""

    def fit(*callbacks):
        batches = loader([torch.ones(3), torch.full((3,), 1e30), torch.ones(3), torch.ones(3)])
        module = Steep(lambda weights: torch.optim.AdamW(weights, lr=0.1))
        trainer = make_trainer(max_epochs=1, gradient_clip_val=clip, callbacks=list(callbacks))
        trainer.fit(module, batches)
        return module, trainer.optimizers[0]

    guard = NonFiniteGuard(dirpath=tmp_path)
    with pytest.warns(
        UserWarning, match=r"step 1: the squares of .* largest gradient is that of weight; see"
    ):
        module, optimizer = fit(guard)
    expected = Steep(lambda weights: torch.optim.AdamW(weights, lr=0.1))
    by_hand = expected.configure_optimizers()
    for _ in range(3):
        expected.weight.grad = torch.ones(3) / (3**0.5 if clip else 1)
        by_hand.step()
    assert guard.skipped == 1
    torch.testing.assert_close(module.weight, expected.weight)
    torch.testing.assert_close(optimizer_state(optimizer), optimizer_state(by_hand))
    if clip is None:  # what it would be without the guard
        (squares,) = (state["exp_avg_sq"] for state in fit()[1].state.values())
        assert squares.isinf().all()


def test_large_gradients_in_half_precision_are_no_anomaly(make_trainer, tmp_path):
    """Their norm overflows float16 and not float32."""
    module = Steep(lambda weights: torch.optim.SGD(weights, lr=2**-16)).half()
    guard = NonFiniteGuard(dirpath=tmp_path)
    batches = loader([torch.full((3,), 2.0**14, dtype=torch.float16)])
    make_trainer(max_epochs=1, callbacks=[guard]).fit(module, batches)
    assert guard.skipped == 0
    assert module.weight.tolist() == [0.75] * 3


def test_stop(trapped, batches_of, make_trainer, tmp_path):
    module, guard = trapped(), NonFiniteGuard("stop", dirpath=tmp_path)
    batches = batches_of(6, marked=[3])
    with pytest.raises(
        NonFiniteError, match=r"step 3: the loss is .* inputs are finite; see .*rank0/report.md"
    ) as e:
        make_trainer(max_epochs=1, callbacks=[guard]).fit(module, loader(batches))
    assert str(e.value).endswith("Stopped, as on_nonfinite is stop")
    assert_same(state_of(module), by_hand(trapped(), batches[:3]))


def test_too_many_in_a_row(trapped, batches_of, make_trainer, tmp_path):
    """Three, not counting those before a good step."""
    guard = NonFiniteGuard(dirpath=tmp_path, max_in_a_row=3)
    with pytest.raises(NonFiniteError, match=f"step 6: .* after 3 such steps in a row .* {tmp_path}"):
        make_trainer(max_epochs=1, callbacks=[guard]).fit(
            trapped(), loader(batches_of(8, marked=[1, 2, 4, 5, 6]))
        )
    assert guard.skipped == 5


def test_resumed_is_uninterrupted(trapped, batches_of, make_trainer, tmp_path):
    """Bad steps before and after the checkpoint."""
    first, second = batches_of(8, marked=[4]), batches_of(16, marked=[8 + 3])[8:]

    class Two(torch.utils.data.IterableDataset):
        """Another epoch, other batches."""

        def __iter__(self):
            return iter(copy.deepcopy(second if self.trainer.current_epoch else first))

    def fit(epochs, ckpt_path=None, save_to=None):
        module, data = trapped(), Two()
        guard = NonFiniteGuard(dirpath=tmp_path / "reports")
        data.trainer = trainer = make_trainer(max_epochs=epochs, callbacks=[guard])
        trainer.fit(module, DataLoader(data, batch_size=None), ckpt_path=ckpt_path, weights_only=True)
        if save_to:
            trainer.save_checkpoint(save_to)
        return state_of(module), optimizer_state(trainer.optimizers[0]), guard.state_dict()

    whole = fit(2)
    fit(1, save_to=tmp_path / "half.ckpt")
    resumed = fit(2, ckpt_path=tmp_path / "half.ckpt")
    assert_same(resumed[0], whole[0])
    assert_same(resumed[1], whole[1])
    assert resumed[2] == whole[2]
    assert resumed[2]["skipped"] == 2


def test_the_state_in_a_checkpoint_of_an_earlier_version():
    guard = NonFiniteGuard()
    counts = {"skipped": 7, "in_a_row": 1, "explained": 3, "still_out": 0, "drops": [4, 5]}
    guard.load_state_dict({**counts, "lines": 5, "drops_told": True})
    assert guard.state_dict() == {**counts, "drops_reported": True}


def test_fit_twice(trapped, batches_of, make_trainer, tmp_path):
    guard, batches = NonFiniteGuard(dirpath=tmp_path), batches_of(6, marked=[2])
    runs = []
    for _ in range(2):
        module = trapped()
        make_trainer(max_epochs=1, callbacks=[guard]).fit(module, loader(batches))
        runs.append((state_of(module), guard.state_dict()))
    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert guard.state_dict()["explained"] == 1
    assert not guard._window


@pytest.mark.parametrize("name", ["lightning_vlm_callbacks.NonFiniteGuard", "NonFiniteGuard"])
def test_from_yaml(digits, tmp_path, name):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  accelerator: cpu
  devices: 1
  default_root_dir: {tmp_path}/run
  max_steps: 8
  limit_val_batches: 0
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: {name}
      init_args: {{on_nonfinite: rollback, snapshot_every_n_steps: 100, max_in_a_row: 2}}
model:
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: .inf}}}}
"""
    )
    with pytest.raises(
        NonFiniteError, match=r"step 5: the loss is .* infinity is in stem\.0 \(Conv2d\) itself"
    ):
        digits.main(["fit", "--config", str(config), "--trainer.callbacks.snapshot_every_n_steps", "2"])
    assert (tmp_path / "run" / "nonfinite" / "step-00000001-rank0" / "bundle.pt").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_nonfinite": "ignore"}, "found on_nonfinite='ignore'; expected skip, rollback or stop"),
        ({"max_in_a_row": 0}, "found max_in_a_row=0; expected at least 1"),
        ({"snapshot_every_n_steps": 0}, "found snapshot_every_n_steps=0"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(MisconfigurationException, match=words):
        NonFiniteGuard(**options)


class Reads(TorchDispatchMode):
    """Counts numbers that the host reads from tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_one_number_is_read_for_each_step(classifier, batches_of, make_trainer, tmp_path):
    """Whatever the number of micro-batches; and one at the end."""
    counts = []
    for guard in ([NonFiniteGuard(dirpath=tmp_path)], []):
        trainer = make_trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=guard)
        with Reads() as reads:
            trainer.fit(classifier(), loader(batches_of(12)))
        counts.append(reads.count)
    assert counts[0] - counts[1] == 3 + 1
