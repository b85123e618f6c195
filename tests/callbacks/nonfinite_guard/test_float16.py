"""Overflow that a GradScaler handles, and NaN that it doesn't."""

import warnings

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning_vlm_callbacks import NonFiniteGuard

from tests.support.nonfinite import assert_same, loader, state_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


def scaler_of(start, growth_interval=2000):
    return MixedPrecision(
        "16-mixed", "cpu", torch.amp.GradScaler("cpu", start, growth_interval=growth_interval)
    )


def adamw(fused):
    return lambda p: torch.optim.AdamW(p, lr=1e-2, fused=fused)


@pytest.mark.parametrize("fused", [False, True])
def test_scaler_overflow_is_no_anomaly(trapped, batches_of, make_trainer, tmp_path, fused):
    """The guard changes nothing then, and says nothing."""
    runs = []
    for guard in (NonFiniteGuard(dirpath=tmp_path), None):
        module, plugin = trapped(optimizer=adamw(fused)), scaler_of(2.0**24)
        trainer = make_trainer(max_epochs=1, plugins=[plugin], callbacks=[guard] if guard else [])
        trainer.fit(module, loader(batches_of(12)))
        runs.append((state_of(module), plugin.scaler.get_scale()))
        if guard:
            assert guard.skipped == 0
            assert len(guard.state_dict()["drops"]) >= 2
    assert runs[0][1] == runs[1][1] < 2.0**24
    assert_same(runs[0][0], runs[1][0])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_loss_under_a_scaler(trapped, batches_of, make_trainer, tmp_path, fused):
    """Is one: the weights are those of a run without that batch."""
    batches = batches_of(8, marked=[4])
    runs = []
    for data in (batches, [*batches[:4], *batches[5:]]):
        module, guard = trapped(optimizer=adamw(fused)), NonFiniteGuard(dirpath=tmp_path)
        make_trainer(max_epochs=1, plugins=[scaler_of(256.0)], callbacks=[guard]).fit(module, loader(data))
        runs.append((state_of(module), guard.skipped))
    assert [skipped for _, skipped in runs] == [1, 0]
    # The scaler halves its scale, which changes how float16 rounds tiny gradients.
    for name, value in runs[1][0].items():
        torch.testing.assert_close(runs[0][0][name], value, rtol=0.05, atol=2e-3)
    assert "loss scale 256." in (tmp_path / "step-00000004-rank0" / "report.md").read_text()


def test_a_scaler_that_shrinks_again_and_again_is_reported_once(trapped, batches_of, make_trainer, tmp_path):
    """Here because the derivative is bad at any scale: the replay names it."""
    module, guard = trapped("backward"), NonFiniteGuard(dirpath=tmp_path)
    trainer = make_trainer(max_epochs=1, plugins=[scaler_of(2.0**16)], callbacks=[guard])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader(batches_of(14, marked=range(12))))
    (line,) = [str(one.message) for one in caught if "NonFiniteGuard" in str(one.message)]
    assert "step 9: the loss scale, now 128, shrank 10 times within 100 steps" in line
    assert "goes bad in blocks.1.drop (Trap)" in line
    assert guard.skipped == 0
    assert all(one.isfinite().all() for one in module.parameters())
    low = NonFiniteGuard(dirpath=tmp_path / "low")
    trainer = make_trainer(max_epochs=1, plugins=[scaler_of(1.0)], callbacks=[low])
    with pytest.warns(UserWarning, match="now 1, shrank 1 times"):
        trainer.fit(trapped("backward"), loader(batches_of(2, marked=[0])))


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_after_going_back_keep_the_scale(trapped, batches_of, make_trainer, tmp_path, fused):
    module, plugin = trapped(optimizer=adamw(fused)), scaler_of(256.0)
    guard = NonFiniteGuard("rollback", dirpath=tmp_path, snapshot_every_n_steps=4)
    trainer = make_trainer(max_epochs=1, plugins=[plugin], callbacks=[guard])
    trainer.fit(module, loader(batches_of(6, marked=[1])))
    assert plugin.scaler.get_scale() == 128  # once, for the bad step itself
    assert_same(state_of(module), state_of(trapped(optimizer=adamw(fused))))
