"""Modules, optimizers and Trainers that a project may well have: right beside each callback, or refused in
one line. What is right is compared with torch by hand."""

import csv
import logging

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_utilities.core import rank_zero
from lightning_vlm_callbacks import (
    AdaptiveLoRARank,
    EarlyStopCheckpoint,
    GradientMonitor,
    GradNorm,
    NonFiniteGuard,
    RunReport,
    StagedUnfreezing,
    TaskWeights,
)
from lightning_vlm_callbacks.run_report.history import read_history
from lightning_vlm_callbacks.staged_unfreezing.scaled_rates import ScaledRates
from torch import nn
from torch.utils.data import DataLoader

INPUTS = torch.linspace(-1, 1, 32).view(8, 4)


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tasks = TaskWeights(["a", "b"])
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch, batch_idx):
        out = self(batch).float()
        return self.tasks.total({"a": out[:, 0].square().mean(), "b": (out[:, 1] - 1).square().mean()})

    def train_dataloader(self):
        return DataLoader(INPUTS, batch_size=4)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ComputesOnceMore(torch.optim.SGD):
    """As SAM does: the gradient is taken at other weights than the step starts from."""

    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        weights = [one for group in self.param_groups for one in group["params"] if one.grad is not None]
        before = [one.detach().clone() for one in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, [one.grad for one in weights], alpha=0.01)
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            torch._foreach_copy_(weights, before)
        super().step()
        return loss


class HandsOn(torch.optim.Optimizer):
    """As many implementations of SAM are: an optimizer inside makes the step, with the groups it knows."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)

    def step(self, closure=None):
        loss = closure()
        self.base_optimizer.step()
        return loss


class Lbfgs(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Sam(Plain):
    def configure_optimizers(self):
        return ComputesOnceMore(self.parameters(), lr=0.1)


class Inner(Plain):
    def configure_optimizers(self):
        return HandsOn(self.parameters(), lr=0.1)


class EmptyGroup(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD([{"params": []}, {"params": list(self.parameters())}], lr=0.1)


class TwoOptimizers(Plain):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self):
        return [torch.optim.SGD(one.parameters(), lr=0.1) for one in (self.body, self.head)]


class Complex(Plain):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.full((4,), 1 + 0.5j))

    def forward(self, x):
        return super().forward((x * self.phase).abs())


class Lazy(Plain):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(2)


class LazyUntilValidation(Plain):
    """Lightning's sanity check is what gives it its shapes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(4))

    def validation_step(self, batch, batch_idx):
        self(batch)

    def val_dataloader(self):
        return self.train_dataloader()


class Sparse(Plain):
    sparse = True

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 4, sparse=self.sparse)

    def forward(self, x):
        return super().forward(x + self.table((x[:, 0] > 0).long()))


class Half(Plain):
    def __init__(self):
        super().__init__()
        self.half()

    def forward(self, x):
        return super().forward(x.half())


class Parametrized(Plain):
    def __init__(self):
        super().__init__()
        nn.utils.parametrizations.weight_norm(self.body[0])
        nn.utils.parametrizations.spectral_norm(self.head)


class SometimesNoLoss(Plain):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 0 else super().training_step(batch, batch_idx)


STAGES = [{"at": 0, "train": {"head": 1.0}}, {"at": 2, "train": {"*": 0.1}}]
CALLBACKS = {
    "staged": lambda folder: StagedUnfreezing(STAGES, unit="step"),
    "monitor": lambda folder: GradientMonitor(every_n_steps=1),
    "skip": lambda folder: GradientMonitor(on_anomaly="skip"),
    "checkpoint": lambda folder: EarlyStopCheckpoint(dirpath=folder),
    "guard": lambda folder: NonFiniteGuard(dirpath=folder),
    "rollback": lambda folder: NonFiniteGuard("rollback", snapshot_every_n_steps=2, dirpath=folder),
    "gradnorm": lambda folder: GradNorm(layer="body.1"),
}
CLOSURES = r"found optimizer \w+, which computes several gradients in a step"
SHAPE = "found head.weight without a shape"
INSIDE = "whose base_optimizer is an optimizer"
MANUAL = "found manual optimization.*; expected automatic_optimization=True"
REFUSED = {
    Lbfgs: {
        "staged": "found optimizer LBFGS, whose learning rate can't be scaled",
        **dict.fromkeys(("skip", "guard", "rollback", "gradnorm"), CLOSURES),
    },
    Sam: dict.fromkeys(("skip", "guard", "rollback", "gradnorm"), CLOSURES),
    Inner: dict.fromkeys(("staged", "rollback"), INSIDE),
    TwoOptimizers: dict.fromkeys(set(CALLBACKS) - {"checkpoint"}, MANUAL),
    Lazy: dict.fromkeys(set(CALLBACKS) - {"checkpoint"}, SHAPE),
    **{
        kind: {}
        for kind in (EmptyGroup, Complex, LazyUntilValidation, Sparse, Half, Parametrized, SometimesNoLoss)
    },
}
"""What is refused beside which callback, and how; all else runs."""


def trainer(callbacks, folder, **options):
    given = {
        "accelerator": "cpu",
        "max_steps": 4,
        "callbacks": callbacks,
        "logger": False,
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return Trainer(**given)


@pytest.mark.parametrize("kind", REFUSED)
def test_right_or_refused(kind, tmp_path):
    for name, make in CALLBACKS.items():
        callback = make(str(tmp_path / name))
        run = trainer([callback], tmp_path, enable_checkpointing=name == "checkpoint")
        message = REFUSED[kind].get(name)
        if message is None:
            run.fit(kind())
            assert run.global_step >= 4, name
            continue
        with pytest.raises(MisconfigurationException, match=message) as error:
            run.fit(kind())
        assert "\n" not in str(error.value)
        assert str(error.value).startswith((type(callback).__name__, "found optimizer LBFGS")), name


def test_a_trainer_of_the_other_package(tmp_path, monkeypatch):
    """`pytorch_lightning` has the same classes under other names, so that no isinstance finds them."""
    # Importing it sends what both packages say on rank zero to its own logger, in all later tests too.
    monkeypatch.setattr(rank_zero, "log", rank_zero.log)
    other = pytest.importorskip("pytorch_lightning")
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "level", logging.ERROR)
    module = type("Other", (other.LightningModule,), dict(vars(Plain)))
    module.__init__ = lambda self: other.LightningModule.__init__(self)
    for make in (*CALLBACKS.values(), lambda folder: AdaptiveLoRARank()):
        callback = make(str(tmp_path))
        run = other.Trainer(accelerator="cpu", max_steps=1, callbacks=[callback], logger=False)
        message = f"^{type(callback).__name__}: found a Trainer of pytorch_lightning.* from lightning.pytorch"
        with pytest.raises(MisconfigurationException, match=message):
            run.fit(module(), DataLoader(INPUTS))


@pytest.mark.parametrize("options", [{"log_every_n_steps": 0}, {"barebones": True}], ids=str)
@pytest.mark.filterwarnings("ignore")  # all but the one that is expected
def test_trainers_that_log_nothing(options, tmp_path):
    for name, make in CALLBACKS.items():
        if name == "checkpoint" and "barebones" in options:
            continue  # Lightning refuses any checkpoint callback there
        checkpoint = {} if "barebones" in options else {"enable_checkpointing": name == "checkpoint"}
        folder = tmp_path / name
        run = Trainer(
            accelerator="cpu",
            max_steps=3,
            default_root_dir=tmp_path,
            callbacks=[make(str(folder))],
            **options,
            **checkpoint,
        )
        run.fit(Plain())
        assert run.global_step == 3
    silent = GradientMonitor()
    with pytest.warns(UserWarning, match=r"measures nothing, as the Trainer's log_every_n_steps is 0"):
        Trainer(accelerator="cpu", max_steps=1, default_root_dir=tmp_path, callbacks=[silent], **options).fit(
            Plain()
        )


# What is right, by hand


class Gradients(Callback):
    """The gradient of each parameter as backward gives it, the first time in each step."""

    def __init__(self):
        self.norms = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        found = [one.grad for one in pl_module.parameters() if one.grad is not None]
        dense = [one.to_dense() if one.is_sparse else one for one in found]
        squares = sum(one.abs().double().square().sum() for one in dense)
        self.norms.setdefault(trainer.global_step, float(squares.sqrt()))


@pytest.mark.parametrize("kind", [Complex, Sparse, Lbfgs, Sam, Half])
def test_norms_are_those_of_the_first_gradient(kind, tmp_path):
    seen, folder = Gradients(), tmp_path / "report"
    callbacks = [
        seen,
        GradientMonitor(every_n_steps=1),
        RunReport(str(folder)),
    ]
    logger = CSVLogger(tmp_path)
    trainer(callbacks, tmp_path, logger=logger).fit(kind())
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("gradients/all/norm")]
    monitored = {int(row["step"]): float(row["gradients/all/norm"]) for row in rows}
    recorded = dict(read_history(folder / "report.jsonl").curves["grad_norm"].points())
    assert monitored == pytest.approx(seen.norms, rel=2e-3 if kind is Half else 1e-5)
    assert recorded == pytest.approx(seen.norms, rel=2e-3 if kind is Half else 1e-5)
    assert bool(rows[0].get("gradients/all/clipped_norm")) == (kind not in (Lbfgs, Sam))


def test_a_sparse_embedding_is_a_dense_one(tmp_path):
    """All that is logged of it, and the weights at the end of a staged run, are the same."""
    logged, weights = [], []
    for sparse in (True, False):
        module = type("Table", (Sparse,), {"sparse": sparse})()
        folder = tmp_path / str(sparse)
        callbacks = [CALLBACKS[name](str(folder)) for name in ("staged", "monitor", "guard")]
        trainer(callbacks, folder, logger=CSVLogger(folder)).fit(module)
        with (folder / "lightning_logs/version_0/metrics.csv").open() as lines:
            rows = list(csv.DictReader(lines))
        logged.append([{key: float(value) for key, value in row.items() if value} for row in rows])
        weights.append(module.state_dict())
    assert any("gradients/table/zeros" in row for row in logged[0])
    for mine, other in zip(*logged, strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name])  # summed in another order


def test_stages_scale_an_optimizer_that_computes_several_gradients(tmp_path):
    """As with rates that are written into groups by hand."""
    stages = [{"at": 0, "train": {"body": 0.25, "head": 1.0}}]
    staged, plain = Sam(), Sam()
    trainer([StagedUnfreezing(stages)], tmp_path).fit(staged)
    groups = [{"params": plain.body.parameters(), "lr": 0.1 * 0.25}, {"params": plain.head.parameters()}]
    plain.configure_optimizers = lambda: ComputesOnceMore(groups, lr=0.1)
    trainer([], tmp_path).fit(plain)
    for name, weight in staged.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name


def test_a_step_that_calls_its_parents_is_scaled_once():
    """Its hooks are called twice, one within the other, if an optimizer of the parent class exists."""
    slow, fast = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    torch.optim.SGD([slow], lr=1.0)
    derived = type(
        "Derived", (torch.optim.SGD,), {"step": lambda self, closure=None: super(derived, self).step()}
    )
    optimizer = derived([slow, fast], lr=1.0)
    rates = ScaledRates([optimizer], lambda one: 0.5 if one is slow else 1.0)
    for _ in range(2):
        optimizer.zero_grad()
        (slow + fast).backward()
        optimizer.step()
    assert [slow.item(), fast.item()] == [-1.0, -2.0]
    assert [group["lr"] for group in optimizer.param_groups] == [1.0]
    rates.remove()


def test_gradnorm_passes_over_a_step_without_loss(tmp_path):
    """Weights are those of a run without these steps."""
    weights = []
    for kind, steps in ((SometimesNoLoss, 6), (Plain, 3)):
        module = kind()
        if kind is Plain:  # the second batch of each epoch is the one with a loss
            module.train_dataloader = lambda: DataLoader(INPUTS[4:], batch_size=4)
        trainer([CALLBACKS["gradnorm"](str(tmp_path))], tmp_path, max_steps=steps).fit(module)
        weights.append(module.tasks.weights)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda params: torch.optim.LBFGS(params), CLOSURES),
        (lambda params: HandsOn(params, lr=0.1), INSIDE),
    ],
)
def test_ranks_of_lora_need_a_plain_optimizer(make, message, tmp_path):
    """State of an optimizer is resized with the layers, where it can be seen."""
    peft = pytest.importorskip("peft")
    module = Plain()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["body.0", "body.1"]), module)
    module.configure_optimizers = lambda: make([one for one in module.parameters() if one.requires_grad])
    callback = AdaptiveLoRARank(min_rank=1, max_rank=4, multiple_of=1)
    with pytest.raises(MisconfigurationException, match=f"^AdaptiveLoRARank: .*{message}"):
        trainer([callback], tmp_path).fit(module)
