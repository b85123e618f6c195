"""Reports say where it began, and how to run it again."""

import re
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import NonFiniteGuard
from lightning_vlm_callbacks.nonfinite_guard.callback import MAX_REPORTS
from lightning_vlm_callbacks.nonfinite_guard.diagnosis import Diagnosis, advice
from torch import nn

from tests.support.nonfinite import loader

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


def test_advice_says_that_the_loss_scale_goes_down():
    """A greater scale would make the overflow worse."""
    said = " ".join(advice(Diagnosis("backward"), [], "16-mixed"))
    assert "lower the loss scale" in said
    assert "never raise" in said
    assert "loss scale" not in " ".join(advice(Diagnosis("backward"), [], "bf16-mixed"))
    assert "earlier checkpoint" in advice(Diagnosis("forward", broken=["weight"]), [], "32-true")[0]
    assert "0/0" in advice(Diagnosis("loss"), ["labels: nothing is supervised (..)"], "32-true")[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_report_and_three_lines(trapped, batches_of, make_trainer, tmp_path, precision):
    """What the report says, and that its lines name the same module with a new model, dropout included."""
    module, batches = trapped("backward", dropout=0.3), batches_of(8, marked=[5])
    guard = NonFiniteGuard(dirpath=tmp_path)
    trainer = make_trainer(max_epochs=1, accumulate_grad_batches=2, callbacks=[guard], precision=precision)
    with pytest.warns(
        UserWarning, match=r"step 2: a gradient is NaN or infinite; the forward is finite; the"
    ):
        trainer.fit(module, loader(batches))
    assert all(one.isfinite().all() for one in module.state_dict().values())
    (folder,) = tmp_path.iterdir()
    assert folder.name == "step-00000002-rank0"
    text = (folder / "report.md").read_text()
    for words in (
        "# NaN or infinity at step 2\n",
        "Rank 0, epoch 0, batch 5: a gradient is NaN or infinite. The update of this step was skipped",
        "The forward is finite; the gradient goes bad in blocks.1.drop (Trap).\n",
        "| [0] | [4, 8, 8, 8] |",
        "Bad gradients in the step: stem.0.weight, stem.0.bias,",
        "- The batch passed all checks.\n",
        f"- precision {precision}; lr 0.01.\n",
        "1. Look for a derivative that is infinite where the value is fine: sqrt,",
    ):
        assert words in text, words
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    assert code.count("\n") == 3
    printed = []
    scope = {"module": trapped("backward", dropout=0.3), "print": printed.append}
    exec(code, scope)
    assert str(printed[0]) == "the forward is finite; the gradient goes bad in blocks.1.drop (Trap)"
    # The same random numbers, weights and precision: the same loss.
    again = scope["bundle"].replay(trapped("forward", dropout=0.3).eval().requires_grad_(False))
    assert again.phase == "forward"
    assert printed[0].loss == scope["bundle"].replay(trapped("backward", dropout=0.3)).loss


def test_bounded(trapped, batches_of, make_trainer, tmp_path):
    """Three lines with a report each, then only a count."""
    guard = NonFiniteGuard(dirpath=tmp_path, max_bundle_mib=0.0001)
    trainer = make_trainer(max_epochs=1, callbacks=[guard])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(trapped(), loader(batches_of(12, marked=range(1, 12, 2)[:6])))
    lines = [str(one.message) for one in caught if "NonFiniteGuard" in str(one.message)]
    assert len(lines) == MAX_REPORTS + 1
    assert lines[-1] == f"NonFiniteGuard: 6 of 12 steps were skipped; reports in {tmp_path}"
    assert lines[-2].endswith("Later ones are only counted.")
    assert [one.name for one in sorted(tmp_path.iterdir())] == [
        f"step-0000000{step}-rank0" for step in (1, 3, 5)
    ]
    assert [one.name for one in (tmp_path / "step-00000001-rank0").iterdir()] == ["report.md"]
    assert "there is no bundle" in (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert trainer.callback_metrics["nonfinite/skipped"] == 6


def test_a_report_that_cannot_be_written_ends_nothing(trapped, batches_of, make_trainer, tmp_path):
    (tmp_path / "step-00000001-rank0").write_text("")
    guard = NonFiniteGuard(dirpath=str(tmp_path))
    with pytest.warns(UserWarning, match="no report could be written: FileExistsError"):
        make_trainer(max_epochs=1, callbacks=[guard]).fit(trapped(), loader(batches_of(3, marked=[1])))
    assert guard.skipped == 1


def test_not_reproducible(batches_of, digits, make_trainer, tmp_path):
    """NaN that a callback puts into a gradient is not there the second time."""

    class Spoil(Callback):
        def on_after_backward(self, trainer, module):
            if trainer.global_step == 1:
                module.head.weight.grad[0, 0] = torch.nan

    guard = NonFiniteGuard(dirpath=tmp_path)
    make_trainer(max_epochs=1, callbacks=[Spoil(), guard]).fit(digits.Classifier(), loader(batches_of(3)))
    text = (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert re.search(r"Not reproducible: run again, loss \(\d.* and gradients are finite\.", text)
    assert "Bad gradients in the step: head.weight." in text


def test_a_step_that_takes_its_batch_apart(batches_of, digits, make_trainer, tmp_path):
    class Popping(digits.Classifier):
        def training_step(self, batch, batch_idx):
            labels = batch.pop("labels")
            return nn.functional.cross_entropy(self(batch.pop("pictures")), labels)

    batches = [dict(zip(("pictures", "labels"), one, strict=True)) for one in batches_of(3)]
    batches[1]["pictures"][0] = torch.nan
    make_trainer(max_epochs=1, callbacks=[NonFiniteGuard(dirpath=tmp_path)]).fit(Popping(), loader(batches))
    text = (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert "- pictures: 64 of 256 values are NaN or infinite" in text
    assert "NaN or infinity comes into the LightningModule" in text
