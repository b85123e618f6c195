"""The norm of the gradient that RunReport measures, against sums by hand."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import RunReport
from lightning_vlm_callbacks.run_report.gradient_norm import gradient_norm
from lightning_vlm_callbacks.run_report.history import read_history


def test_gradient_norm_of_odd_gradients():
    """Sparse with an index twice, complex, and half precision whose squares overflow."""
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).square().sum().backward()
    complex_one = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
    (complex_one * (1 + 2j)).abs().sum().backward()
    half = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    half.grad = torch.full((4,), 4e4, dtype=torch.float16)
    for parameter in (embedding.weight, complex_one, half):
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        expected = torch.linalg.vector_norm(grad.to(torch.complex128))
        found = gradient_norm(torch.optim.SGD([parameter], lr=0.1))
        assert found.item() == pytest.approx(expected.item())


class Seen(Callback):
    """Rates, norms of the gradient and losses, by the number of the step that they belong to."""

    def __init__(self):
        self.rows = {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        norm = torch.cat([parameter.grad.flatten() for parameter in module.parameters()]).double().norm()
        self.rows[trainer.global_step] = [optimizer.param_groups[0]["lr"], norm.item()]

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.rows[trainer.global_step - 1].append(outputs["loss"].item())


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=24)


def test_each_number_as_another_callback_saw_it(make_trainer, classifier, digits, tmp_path):
    seen = Seen()
    trainer = make_trainer(max_epochs=3, callbacks=[seen, RunReport(str(tmp_path))], gradient_clip_val=0.1)
    trainer.fit(classifier(schedule=one_cycle), digits.Digits())
    curves = read_history(tmp_path / "report.jsonl").curves
    rates, norms, losses = (dict(curves[name].points()) for name in ("lr", "grad_norm", "train/loss"))
    assert list(norms) == list(range(24))
    for step, numbers in seen.rows.items():
        assert [rates[step], norms[step], losses[step]] == pytest.approx(numbers, rel=1e-5)
