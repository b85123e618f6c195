"""When is measured, at which cost, and which groups."""

import csv
from fnmatch import fnmatch
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning_vlm_callbacks import GradientMonitor
from lightning_vlm_callbacks.gradient_monitor.measurement import Measurement
from lightning_vlm_callbacks.selectors import SelectorError
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.callbacks.gradient_monitor.support import (
    STATS,
    Plain,
    See,
    assert_close,
    assert_equal,
    flat_statistics,
    names_of,
    weights_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")


def test_logged_with_the_step_it_belongs_to(fit, tmp_path):
    logger = CSVLogger(tmp_path)
    fit([GradientMonitor(every_n_steps=2)], steps=7, logger=logger)
    with open(tmp_path / "lightning_logs/version_0/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["gradients/all/norm"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    every = fit([GradientMonitor(max_norm=None)], steps=7).logger.of("all")
    assert [float(row["gradients/all/norm"]) for row in rows] == [
        every[step][1]["norm"] for step in (1, 3, 5)
    ]
    default = fit([GradientMonitor()], steps=7, log_every_n_steps=3).logger.of("all")
    assert [step for step, _ in default] == [2, 5]
    assert fit([GradientMonitor()], steps=2, log_every_n_steps=0).logger.lines == []


class Operations(TorchDispatchMode):
    """Which operations ran, and to which device they copied."""

    def __init__(self):
        super().__init__()
        self.names, self.to = [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(str(function))
        if "_to_copy" in str(function):
            self.to.append((options or {}).get("device"))
        return function(*arguments, **(options or {}))


def test_one_copy_and_no_waiting(monkeypatch):
    """On a GPU that is only pretended, on which asking for a value raises."""
    stream = SimpleNamespace(record_event=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    with FakeTensorMode():
        parameters = [nn.Parameter(torch.empty(3000, n, device="cuda")) for n in range(1, 6)]
        for one in parameters:
            one.grad = torch.empty_like(one)
        with pytest.raises(DataDependentOutputException):
            parameters[0].grad.sum().item()
        with Operations() as done:
            measured = Measurement(0, {"all": parameters})
            measured.before_step(False, buffers={})
            measured.after_step(clipped=True)
    assert [str(device) for device in done.to if device is not None] == ["cpu"]
    assert measured._packed.read().shape == (7 * 4,)  # two small ones are one
    parameters = [nn.Parameter(torch.ones(3))]
    parameters[0].grad = torch.ones(3)
    with Operations() as done:
        measured = Measurement(0, {"all": parameters})
        measured.before_step(True, buffers={})
        measured.after_step(clipped=True)
    assert "aten.histc.default" in done.names
    assert not [name for name in done.names if "_local_scalar_dense" in name]


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_clipped_norm_is_that_of_clipped_gradients(fit, nesterov):
    """Nesterov's momentum spoils gradients in the step: then it is left out."""

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=nesterov, foreach=True)

    logger = fit([GradientMonitor()], Plain(optimizer), gradient_clip_val=0.1).logger
    found = [values.get("clipped_norm") for _, values in logger.of("all")]
    assert found == [None] * 6 if nesterov else found == pytest.approx([0.1] * 6, rel=1e-4)


def test_training_is_the_same_with_it(fit, classifier, digits):
    def weights(*callbacks):
        seed_everything(1)
        model = classifier()
        fit([*callbacks], model, 8, digits.Digits(64, 16), gradient_clip_val=0.5)
        return weights_of(model)

    assert_equal(weights(GradientMonitor(on_anomaly="skip")), weights())


def test_groups(fit, classifier, digits):
    assert names_of(fit([GradientMonitor()], steps=1).logger) == ["stem", "head", "all"]
    given = ["blocks[-2:]", "*.bias", "head"]
    see = See()
    logger = fit([GradientMonitor(given), see], classifier(), 1, digits.Digits(16)).logger
    assert names_of(logger) == [*given, "all"]
    for group, pattern in zip(given, ["blocks.[12].*", "*.bias", "head.*"], strict=True):
        gradients = [gradient for name, gradient in see.all[0].items() if fnmatch(name, pattern)]
        expected = flat_statistics(gradients)
        ((_, found),) = logger.of(group)
        assert_close({name: found[name] for name in expected}, expected)
    assert set(logger.of("*.bias")[0][1]) == STATS
    with pytest.raises(SelectorError, match="stem"):
        fit([GradientMonitor(["sten"])])


def test_default_groups(fit):
    """A module inside of which all is, and parts."""

    class Wrapped(Plain):
        def __init__(self):
            super().__init__()
            self.model = nn.ModuleDict({"net": nn.ModuleDict({"stem": self.stem, "head": self.head})})
            del self.stem, self.head

        def forward(self, pictures):
            net = self.model["net"]
            return net["head"](torch.relu(net["stem"](pictures.flatten(1))))

    logger = fit([GradientMonitor()], Wrapped(), 1).logger
    assert names_of(logger) == ["model.net.stem", "model.net.head", "all"]
    model = Wrapped()
    model.parts = {"low": ["model.net.stem"], "low.bias": ["model.net.stem.bias"], "none": []}
    assert names_of(fit([GradientMonitor()], model, 1).logger) == ["low", "all"]


def test_frozen_at_first(fit, recwarn, dead_after):
    """What trains later belongs to its group from then on; what is frozen isn't dead."""

    class Unfreeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.stem.requires_grad_(trainer.global_step >= 3)

    dead_after(2)
    logger = fit([Unfreeze(), GradientMonitor()]).logger
    assert [step for step, _ in logger.of("stem")] == [3, 4, 5]
    assert [step for step, _ in logger.of("head")] == list(range(6))
    assert not [one for one in recwarn if "GradientMonitor" in str(one.message)]
