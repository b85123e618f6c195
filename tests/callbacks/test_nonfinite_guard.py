"""NonFiniteGuard: what went bad is named, and weights are as if the bad step had never been.

Oracles: traps put into known places; hand-written training loops that never see the bad batches.
"""

import copy
import random
import re
import warnings
from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import NonFiniteBundle, NonFiniteGuard
from lightning_vlm_callbacks.nonfinite_guard.bundle import check_batch, save
from lightning_vlm_callbacks.nonfinite_guard.callback import MAX_LINES, NonFiniteError
from lightning_vlm_callbacks.nonfinite_guard.replay import Diagnosis, replay
from lightning_vlm_callbacks.nonfinite_guard.report import advice
from lightning_vlm_callbacks.nonfinite_guard.state import KeptBuffers, tensors, trial_copy
from lightning_vlm_callbacks.random_states import random_state, set_random_state
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

# isort: split
from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Constant

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)

MARK = 99.0
"""A picture that holds this springs the trap."""


class Trap(nn.Module):
    """Lets all through, but of a marked batch makes NaN, or a value whose derivative is."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.marked = kind, False

    def forward(self, x):
        if not self.marked:
            return x
        if self.kind == "forward":
            return x + (x - x) / (x - x)
        return x + torch.sqrt(x - x)


@pytest.fixture(scope="module")
def trapped(digits):
    """A classifier with a trap in its second block, and AdamW or another optimizer."""

    class Trapped(digits.Classifier):
        def forward(self, pictures):
            for one in self.modules():
                if isinstance(one, Trap):
                    one.marked = bool((pictures == MARK).any())
            return super().forward(pictures)

    def make(kind="forward", **options):
        seed_everything(0, verbose=False)
        made = Trapped(**{"dropout": 0.0, **options})
        made.blocks[1].drop = Trap(kind)
        return made

    return make


@pytest.fixture(scope="module")
def batches_of(digits):
    """Micro-batches of 4 digits; those named are marked."""

    def make(count, marked=(), mark=MARK):
        pictures, labels = (torch.stack(one) for one in zip(*digits.Digits().train, strict=True))
        made = [
            [pictures[i * 4 : i * 4 + 4].clone(), labels[i * 4 : i * 4 + 4].clone()] for i in range(count)
        ]
        for one in marked:
            made[one][0][0, 0, 0, 0] = mark
        return made

    return make


def loader(batches):
    return DataLoader(batches, batch_size=None)


def state_of(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def by_hand(module, batches, left_out=(), accumulate=1, clip=None, optimizer=None):
    """Train without Lightning; the batches of steps left out are never looked at."""
    optimizer = optimizer or module.configure_optimizers()
    for step in range(-(-len(batches) // accumulate)):
        if step in left_out:
            continue
        optimizer.zero_grad()
        for batch in batches[step * accumulate : (step + 1) * accumulate]:
            (nn.functional.cross_entropy(module(batch[0]), batch[1]) / accumulate).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return state_of(module)


def optimizer_state(optimizer):
    return {
        str(path): one for path, one in tensors(dict(enumerate(optimizer.state_dict()["state"].values())))
    }


# Weights are as if the batch had never been seen


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
    expected = by_hand(other, batches, left_out=[1], accumulate=4, clip=0.1, optimizer=by_optimizer)
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


def test_large_finite_gradients_are_no_anomaly(make_trainer, tmp_path):
    """Their squares overflow float32."""

    class Steep(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def training_step(self, batch, batch_idx):
            return (self.weight * batch * 1e30).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-30)

    module, guard = Steep(), NonFiniteGuard(dirpath=tmp_path)
    make_trainer(max_epochs=1, callbacks=[guard]).fit(module, loader([torch.ones(3), torch.ones(3)]))
    assert guard.skipped == 0
    assert torch.allclose(module.weight, torch.full((3,), -1.0))


# What went bad is named


class Sequence(LightningModule):
    """Token ids into classes, all that may go wrong around modules."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        self.embed, self.mix, self.head = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        x = self.mix(self.embed(batch["input_ids"]))
        if self.fault == "between":
            x = x / (x - x)
        logits = self.head(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        if self.fault == "loss":
            loss = loss * torch.log(loss - loss - 1)
        if self.fault == "derivative of the loss":
            loss = loss + torch.sqrt(loss - loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tokens(labels=((1, 2), (0, -100))):
    return {"input_ids": torch.tensor([[1, 2], [3, 4]]), "labels": torch.tensor(labels)}


def diagnosis_of(module, batch, factor=1.0):
    return replay(module, batch, 0, random_state(module.device), factor=factor)[0]


@pytest.mark.parametrize(
    ("fault", "phase", "module", "near"),
    [
        ("between", "input", "head (Linear)", ""),
        ("loss", "loss", "", ""),
        ("derivative of the loss", "backward", "training_step", "head"),
        ("", "none", "", ""),
    ],
)
def test_named_outside_modules(fault, phase, module, near):
    found = diagnosis_of(Sequence(fault), tokens())
    assert (found.phase, found.module, found.near) == (phase, module, near)


def test_named_in_the_batch_and_in_nothing_learned(digits):
    bad = next(iter(digits.Digits().train_dataloader()))
    bad[0][0, 0, 0, 0] = torch.nan
    assert diagnosis_of(digits.Classifier(), bad).phase == "input"
    found = diagnosis_of(Sequence(), tokens([[-100, -100], [-100, -100]]))
    assert (found.phase, found.inputs[0].shape) == ("loss", (2, 2, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("blocks.0.conv.weight", -torch.inf), ("blocks.2.norm.bias", torch.inf), ("head.bias", torch.nan)],
)
def test_named_parameter(trapped, batches_of, name, value):
    module = trapped()
    with torch.no_grad():
        module.get_parameter(name).view(-1)[1] = value
    found = diagnosis_of(module, batches_of(1)[0])
    owner, _, key = name.rpartition(".")
    assert found.phase == "forward"
    assert found.module.split()[0] == owner
    assert found.broken == [key]
    assert str(found) == f"NaN or infinity is in {found.module} itself: {key}"


def test_statistics_that_the_batch_spoils_are_not_what_was_wrong(digits):
    """BatchNorm's become NaN in the replay too; before it they were fine."""

    class Divides(digits.Classifier):
        def forward(self, pictures):
            return super().forward(pictures / 0)

    found = diagnosis_of(Divides(), next(iter(digits.Digits().train_dataloader())))
    assert (found.phase, found.near, found.broken) == ("forward", "stem", [])


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("place", ["stem.2", "blocks.1.drop", "blocks.2.norm", "head", "blocks.0"])
def test_named_module(trapped, batches_of, place, kind):
    """Anywhere: inside residual branches, first, last, and around other modules."""
    module = trapped()
    module.blocks[1].drop = nn.Identity()
    module.set_submodule(place, nn.Sequential(module.get_submodule(place), Trap(kind)))
    found = diagnosis_of(module, batches_of(1, marked=[0])[0])
    assert (found.phase, found.module) == (kind, f"{place}.1 (Trap)")
    assert all(not one.bad for one in found.inputs)


def test_named_in_code_of_a_container(digits, batches_of):
    class Careless(digits.Classifier):
        def forward(self, pictures):
            x = self.stem(pictures)
            return self.head((x / (x - x)).flatten(1)[:, :32])

    found = diagnosis_of(Careless(), batches_of(1)[0])
    assert (found.module, found.near) == ("the LightningModule (Careless)", "head")


def test_named_gradient_of_a_parameter_alone():
    class Power(nn.Module):
        """Its parameter's derivative is infinite where its input's is fine."""

        def __init__(self):
            super().__init__()
            self.exponent = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.exponent.sqrt()

    class Powers(Sequence):
        def __init__(self):
            super().__init__()
            self.mix = nn.Sequential(nn.Linear(4, 4), Power())

    found = diagnosis_of(Powers(), tokens())
    assert (found.phase, found.module, found.parameter) == ("backward", "mix.1 (Power)", "mix.1.exponent")


def test_overflow_that_only_the_loss_scale_makes():
    module = Sequence().half()
    assert diagnosis_of(module, tokens()).phase == "none"
    assert diagnosis_of(module, tokens(), factor=2.0**20).phase == "backward"


def test_masks_of_minus_infinity_are_meant():
    class Attention(nn.Module):
        def forward(self, x, mask):
            scores = (x @ x.transpose(-1, -2) + mask).softmax(-1)
            return scores @ x / (x - x)

    class Masked(Sequence):
        def __init__(self):
            super().__init__()
            self.mix = Attention()

        def training_step(self, batch, batch_idx):
            mask = torch.full((2, 2), -torch.inf).triu(1)
            return self.mix(self.embed(batch["input_ids"]), mask=mask).sum()

    found = diagnosis_of(Masked(), tokens())
    assert (found.phase, found.module) == ("forward", "mix (Attention)")
    assert [one.path for one in found.inputs] == ["[0]", "mask"] or found.inputs[-1].path.endswith("mask")


def test_statistics_of_the_input(trapped, batches_of):
    """Against NumPy, of what the trapped module is given in an ordinary forward."""
    module, (batch,) = trapped(), batches_of(1, marked=[0])
    seen = []
    module.blocks[1].drop.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().numpy()))
    module(batch[0])
    row = diagnosis_of(module, batch).inputs[0].row
    (x, *_) = seen
    numbers = [x.min(), x.max(), x.mean(), abs(x).max()]
    assert row == ["-", str(list(x.shape)), "float32", *(f"{one:.4g}" for one in numbers), "0"]


# A replay leaves nothing behind


class Busy(LightningModule):
    """Changes all it can in a training step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.target = nn.Linear(3, 3).requires_grad_(False)
        self.accuracy = torchmetrics.MeanMetric()
        self.register_buffer("queue", torch.zeros(4, 3))
        self.seen, self.sums, self.held = 0, torch.zeros(2), {"list": [1]}
        self.lock = (one for one in [1])  # can't be copied
        self.alias = [self.net[0].weight]
        self.logged = []

    def training_step(self, batch, batch_idx):
        x = self.net(batch) + random.random() + float(np.random.rand())
        self.seen += 1
        self.sums += x.detach().sum()
        self.held["list"].append(2)
        self.queue = torch.cat((self.queue[1:], x.detach()[:1]))
        self.accuracy(x.detach())
        self.log("loss", x.sum())
        self.log_dict({"more": x.sum()})
        self.logger.experiment.add_scalar("direct", 1)
        with torch.no_grad():
            self.target.weight.lerp_(self.net[0].weight, 0.5)
            torch._foreach_mul_([self.target.bias], 0.5)
        assert self.alias[0].data_ptr() == self.net[0].weight.data_ptr()
        return x.pow(2).sum()


def everything(module):
    return {
        "state": state_of(module),
        "gradients": {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None},
        "seen": module.seen,
        "sums": module.sums.clone(),
        "held": copy.deepcopy(module.held),
        "metric": {name: value.clone() for name, value in module.accuracy.metric_state.items()},
        "ids": [id(one) for one in (*module.parameters(), *module.modules(), module.lock)],
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        "class": type(module),
        "hooks": [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules()],
    }


def test_a_replay_leaves_nothing_behind():
    seed_everything(1, verbose=False)
    module = Busy()
    module.log = module.log_dict = pytest.fail  # it must not get here
    for one in module.parameters():
        one.grad = torch.full_like(one, 2.0) if one.requires_grad else None
        one.register_hook(lambda _: pytest.fail("a hook of the original")) if one.requires_grad else None
    randomness = random_state(module.device)
    torch.rand(3), random.random(), np.random.rand()
    x = torch.randn(8, 3)
    before = everything(module)
    found = replay(module, x, 0, randomness)[0]
    assert found.phase == "none", found
    after = everything(module)
    for name in ("state", "gradients", "metric"):
        assert_same(after.pop(name), before.pop(name))
    assert torch.equal(after.pop("sums"), before.pop("sums"))
    assert after == before


def test_a_replay_draws_the_same_random_numbers():
    module, x = Busy(), torch.randn(8, 3)
    module.log, module.log_dict = (lambda *_, **__: None,) * 2
    seed_everything(3, verbose=False)
    randomness = random_state(module.device)
    first, second = (replay(module, x, 0, randomness)[0].loss for _ in range(2))
    assert first == second
    random.seed(9)
    assert first != replay(module, x, 0, {**randomness, "python": random.getstate()})[0].loss
    np.random.seed(9)
    assert first != replay(module, x, 0, {**randomness, "numpy": np.random.get_state()})[0].loss
    torch.manual_seed(9)
    assert first != replay(module, x, 0, {**randomness, "torch": torch.get_rng_state()})[0].loss


def test_a_copy_shares_weights_only_and_syncs_with_nobody():
    module = Busy()
    module.sync = nn.SyncBatchNorm(3)
    trial = trial_copy(module)
    for (name, one), other in zip(module.named_parameters(), trial.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr(), name
        assert one is not other or not one.requires_grad
    assert trial.queue is not module.queue
    trial.sync(torch.randn(4, 3))  # SyncBatchNorm itself refuses a CPU, let alone a lone rank
    assert module.sync.num_batches_tracked == 0
    assert isinstance(trial, Busy)


def test_a_failed_replay_is_told():
    class Once(Sequence):
        def training_step(self, batch, batch_idx):
            raise ValueError("no more")

    found = diagnosis_of(Once(), tokens())
    assert (found.phase, found.error) == ("error", "ValueError: no more")


def test_buffers():
    """BatchNorm's (whose version doesn't tell), replaced ones, large ones that change late or never."""
    module = nn.ModuleDict({"norm": nn.BatchNorm1d(3), "other": nn.Module()})
    large = torch.zeros(2**16 + 1)
    module["other"].register_buffer("large", large)
    module["other"].register_buffer("constant", large.clone())
    module["other"].register_buffer("replaced", torch.zeros(2))
    kept = KeptBuffers(module)
    kept.keep()
    for step in range(4):
        expected = state_of(module)
        module["norm"](torch.randn(4, 3))
        module["other"].replaced = module["other"].replaced + 1
        if step != 1:
            module["other"].large += 1
        kept.restore()
        assert_same(state_of(module), expected)
        module["norm"](torch.randn(4, 3))
        module["other"].replaced = module["other"].replaced + 1
        module["other"].large += 1
        kept.keep()
    assert [one.value is None for one in kept._kept.values()] == [False, False, False, False, True, False]


# The data


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"a": {"b": torch.tensor([1.0, torch.inf, 2.0])}}, ["a.b: 1 of 3 values are NaN or infinite"]),
        (torch.tensor([torch.nan]), ["the batch: 1 of 1 values are NaN or infinite"]),
        ([torch.zeros(1, 3, 2, 2)], ["[0]: pictures [0] of 1 are one colour (0)"]),
        (
            {"x": torch.stack((torch.rand(3, 4, 4), torch.ones(3, 4, 4), torch.zeros(3, 4, 4)))},
            ["x: pictures [1, 2] of 3 are one colour (0, 1)"],
        ),
        (
            {"x": torch.full((1, 8, 8), 255, dtype=torch.uint8)},
            ["x: pictures [0] of 1 are one colour (255)"],
        ),
        ({"x": torch.rand(2, 3, 3)}, []),
        (
            {"x": torch.cat((torch.rand(1, 1, 3, 2, 2), torch.zeros(1, 1, 3, 2, 2)), 1)},
            ["x: pictures [1] of 2 are one colour (0); it may be padding"],
        ),
        (
            {"input_ids": torch.tensor([0, 9, 10])},
            ["input_ids: ids from 0 to 10; expected 0 to 9, as the embedding has 10 entries"],
        ),
        ({"input_ids": torch.tensor([0, 9]), "labels": torch.tensor([-100, 9])}, []),
        (
            {"input_ids": torch.tensor([0]), "labels": torch.tensor([-100, 11])},
            ["labels: labels from 11 to 11; expected 0 to 9, as the vocabulary has 10 entries"],
        ),
        ({"labels": torch.tensor([-1, 5])}, ["labels: labels from -1 to 5; expected 0 or more"]),
        ({"targets": torch.tensor([-100, -100])}, ["targets: nothing is supervised (all are -100)"]),
        ({"weights": torch.zeros(2)}, ["weights: nothing is supervised (no weight is above 0)"]),
        ({"weights": torch.zeros(0)}, ["weights: nothing is supervised (no weight is above 0)"]),
        ({"text": "words", "n": 3, "mask": torch.tensor([True])}, []),
    ],
)
def test_check_batch(batch, expected):
    assert check_batch(batch, nn.Embedding(10, 2)) == expected


def test_check_batch_of_a_vlm(vlm):
    module = vlm()
    batch = next(iter(drawn(module, 4).train_dataloader()))
    assert check_batch(batch, module) == []
    size = module.model.get_input_embeddings().num_embeddings
    batch.inputs["input_ids"][0, 3] = size
    pixels = batch.inputs["pixel_values"]
    pixels[1] = -1.0
    targets = batch.targets or module.targets(batch)
    batch = batch._replace(targets=targets._replace(weights=targets.weights * 0))
    found = check_batch(batch, module)
    assert len(found) == 3, found
    assert f"expected 0 to {size - 1}" in found[0]
    assert "pictures [5, 6, 7, 8, 9] of 20 are one colour (-1)" in found[1]
    assert "targets.weights: nothing is supervised" in found[2]


def test_advice_says_that_the_loss_scale_goes_down():
    """The seed says up."""
    said = " ".join(advice(Diagnosis("backward"), [], "16-mixed"))
    assert "lower the loss scale" in said
    assert "never raise" in said
    assert "loss scale" not in " ".join(advice(Diagnosis("backward"), [], "bf16-mixed"))
    assert "earlier checkpoint" in advice(Diagnosis("forward", broken=["weight"]), [], "32-true")[0]
    assert "0/0" in advice(Diagnosis("loss"), ["labels: nothing is supervised (..)"], "32-true")[0]


# Reports and bundles


class Pair(NamedTuple):
    x: torch.Tensor
    names: list


@dataclass
class Record:
    pair: Pair
    extra: dict


class Thing:
    def __repr__(self):
        return "<thing>"


def bundle_of(batch, weights=None):
    return NonFiniteBundle(
        batch, 3, 7, 0, 0, "32-true", 1.0, random_state(torch.device("cpu")), [], [], weights
    )


def test_a_batch_comes_back_as_it_was(tmp_path):
    """Without pickled classes in the file."""
    x = torch.arange(6.0)
    batch = Record(Pair(x[2:4], ["a", None]), {"u": UserDict(y=(x, 1)), "t": Thing(), 1: {"z": True}})
    assert save(tmp_path / "b.pt", bundle_of(batch), 1e6) == ""
    held = torch.load(tmp_path / "b.pt", weights_only=True)
    assert held["batch"]["pair"]["x"].untyped_storage().nbytes() == 8  # not all that it is a view of
    back = NonFiniteBundle.load(tmp_path / "b.pt")
    assert isinstance(back.batch, Record)
    assert isinstance(back.batch.pair, Pair)
    assert torch.equal(back.batch.pair.x, x[2:4])
    assert back.batch.pair.names == ["a", None]
    assert isinstance(back.batch.extra["u"], UserDict)
    assert torch.equal(back.batch.extra["u"]["y"][0], x)
    assert (back.batch.extra["t"], back.batch.extra[1]) == ("<thing>", {"z": True})
    assert (back.batch_idx, back.step) == (3, 7)
    set_random_state(back.random)


def test_a_batch_of_an_unknown_class(tmp_path):
    save(tmp_path / "b.pt", bundle_of(Pair(torch.ones(1), [])), 1e6)
    held = torch.load(tmp_path / "b.pt", weights_only=True)
    for name, words in [("my_project:Pair", "import that first"), ("builtins:int", "no longer holds data")]:
        torch.save({**held, "batch": {"__class__": name, "x": 1}}, tmp_path / "c.pt")
        with pytest.raises(MisconfigurationException, match=words):
            NonFiniteBundle.load(tmp_path / "c.pt")


def test_size_limit(tmp_path):
    small, large = torch.zeros(100), {"w": torch.zeros(1000)}
    assert "weights were too large" in save(tmp_path / "a.pt", bundle_of(small, large), 1000)
    assert NonFiniteBundle.load(tmp_path / "a.pt").weights is None
    assert "no bundle" in save(tmp_path / "b.pt", bundle_of(small), 399)
    assert not (tmp_path / "b.pt").exists()
    assert save(tmp_path / "c.pt", bundle_of(small, large), 4400) == ""


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
        "Rank 0, epoch 0, batch 5: a gradient is NaN or infinite. The update of this step was left out",
        "The forward is finite; the gradient goes bad in blocks.1.drop (Trap).\n",
        "| - | [4, 8, 8, 8] |",
        "Bad gradients in the step: stem.0.weight, stem.0.bias,",
        "- The batch passed all checks.\n",
        f"- Learning rate 0.01; precision {precision}.\n",
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
    """Two reports, five lines, then only a count."""
    guard = NonFiniteGuard(dirpath=tmp_path, max_bundles=2, max_bundle_mib=0.0001)
    trainer = make_trainer(max_epochs=1, callbacks=[guard])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(trapped(), loader(batches_of(12, marked=range(1, 12, 2)[:6])))
    lines = [str(one.message) for one in caught if "NonFiniteGuard" in str(one.message)]
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == f"NonFiniteGuard: 6 of 12 steps were left out; reports in {tmp_path}"
    assert lines[-2].endswith("Later ones are only counted.")
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["step-00000001-rank0", "step-00000003-rank0"]
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


# Policies


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
    guard = NonFiniteGuard(dirpath=tmp_path, max_in_a_row=3, max_bundles=1)
    with pytest.raises(NonFiniteError, match=f"step 6: .* after 3 such steps in a row .* {tmp_path}"):
        make_trainer(max_epochs=1, callbacks=[guard]).fit(
            trapped(), loader(batches_of(8, marked=[1, 2, 4, 5, 6]))
        )
    assert guard.skipped == 5


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.mark.parametrize("marked", [[9], [9, 14]])
def test_rollback(trapped, batches_of, make_trainer, tmp_path, marked):
    """By hand: of copies after steps 4 and 8 to the older; the next 2 steps are left out; the schedule goes
    back too and then on. A second time it goes back to the same copy, or to one taken since."""
    batches = batches_of(20, marked=marked)
    options = {"schedule": exponential}
    module = trapped(**options)
    guard = NonFiniteGuard("rollback", dirpath=tmp_path, snapshot_every_n_steps=4, snapshots=2, leave_out=2)
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
            out = 2
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
    assert trainer.global_step == 20
    assert guard.skipped == len(marked)


# Float16


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
            assert len(guard._drops) >= 2
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


@pytest.mark.parametrize("fused", [False, True])
def test_steps_left_out_after_going_back_keep_the_scale(trapped, batches_of, make_trainer, tmp_path, fused):
    module, plugin = trapped(optimizer=adamw(fused)), scaler_of(256.0)
    guard = NonFiniteGuard("rollback", dirpath=tmp_path, leave_out=4)
    trainer = make_trainer(max_epochs=1, plugins=[plugin], callbacks=[guard])
    trainer.fit(module, loader(batches_of(6, marked=[1])))
    assert plugin.scaler.get_scale() == 128  # once, for the bad step itself
    assert_same(state_of(module), state_of(trapped(optimizer=adamw(fused))))


def test_a_scaler_that_shrinks_again_and_again_is_told_once(trapped, batches_of, make_trainer, tmp_path):
    """Here because the derivative is bad at any scale: the replay names it."""
    module, guard = trapped("backward"), NonFiniteGuard(dirpath=tmp_path, max_scale_drops=4)
    trainer = make_trainer(max_epochs=1, plugins=[scaler_of(1024.0)], callbacks=[guard])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader(batches_of(10, marked=range(8))))
    (line,) = [str(one.message) for one in caught if "NonFiniteGuard" in str(one.message)]
    assert "step 3: the loss scale, now 128, shrank 4 times within 100 steps" in line
    assert "goes bad in blocks.1.drop (Trap)" in line
    assert guard.skipped == 0
    assert all(one.isfinite().all() for one in module.parameters())
    low = NonFiniteGuard(dirpath=tmp_path / "low")
    trainer = make_trainer(max_epochs=1, plugins=[scaler_of(1.0)], callbacks=[low])
    with pytest.warns(UserWarning, match="now 1, shrank 1 times"):
        trainer.fit(trapped("backward"), loader(batches_of(2, marked=[0])))


# Two processes


@pytest.mark.parametrize(("kind", "what"), [("forward", "the loss"), ("backward", "a gradient")])
def test_on_one_rank_of_two(trapped, batches_of, make_trainer, on_two_ranks, tmp_path, kind, what):
    """Rank 1's second micro-batch of step 1 is bad. Both skip, rank 1's report is told, and the weights are
    those of a hand-written loop over what both ranks saw."""
    data = [batches_of(16)[:8], batches_of(16, marked=[11])[8:]]
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)}

    def run():
        rank = int(__import__("os").environ["RANK"])
        module, guard = trapped(kind, **options), NonFiniteGuard(dirpath=tmp_path)
        trainer = make_trainer(
            devices=2,
            strategy="ddp",
            max_epochs=1,
            accumulate_grad_batches=2,
            use_distributed_sampler=False,
            callbacks=[guard],
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(module, loader(data[rank]))
        lines = [str(one.message) for one in caught if "NonFiniteGuard: step" in str(one.message)]
        return dict(module.named_parameters()), guard.skipped, lines

    (weights, skipped, lines), (others, skipped_too, nothing) = on_two_ranks(run)
    assert (skipped, skipped_too, nothing) == (1, 1, [])
    assert_same(others, weights)
    where = " on rank 1" if kind == "forward" else ""
    assert lines[0].startswith(f"NonFiniteGuard: step 1: {what} is NaN or infinite{where}; ")
    assert "blocks.1.drop (Trap)" in lines[0]
    assert "step-00000001-rank1/report.md" in lines[0]
    expected = {"step-00000001-rank1"} if kind == "forward" else {f"step-00000001-rank{r}" for r in (0, 1)}
    assert {one.name for one in tmp_path.iterdir()} == expected

    module = trapped(kind, **options)
    optimizer = module.configure_optimizers()
    for step in (0, 2, 3):
        optimizer.zero_grad()
        for micro in (2 * step, 2 * step + 1):
            for rank in range(2):
                pictures, labels = data[rank][micro]
                (nn.functional.cross_entropy(module(pictures), labels) / 4).backward()
        optimizer.step()
    for name, value in module.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), rtol=1e-5, atol=1e-6)


def test_a_loss_that_no_gradient_tells_of(digits, batches_of, make_trainer, on_two_ranks, tmp_path):
    """Infinite on rank 1 alone, by a constant: gradients are finite, yet both ranks leave the step out."""

    class Constant(digits.Classifier):
        def training_step(self, batch, batch_idx):
            bad = batch_idx == 1 and self.global_rank == 1
            return super().training_step(batch, batch_idx) + (torch.inf if bad else 0)

    def run():
        seed_everything(0, verbose=False)
        module, guard = Constant(dropout=0.0), NonFiniteGuard(dirpath=tmp_path)
        options = {"devices": 2, "strategy": "ddp", "max_epochs": 1, "use_distributed_sampler": False}
        make_trainer(callbacks=[guard], **options).fit(module, loader(batches_of(3)))
        return dict(module.named_parameters()), guard.skipped

    (weights, skipped), (others, skipped_too) = on_two_ranks(run)
    assert skipped == skipped_too == 1
    assert_same(others, weights)


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
        guard = NonFiniteGuard("rollback", dirpath=tmp_path, snapshot_every_n_steps=2, leave_out=1)
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
    assert "goes back to an earlier state and leaves out 1 steps" in text


# Resume, fit again, the command line


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


def test_steps_left_out_go_on_after_a_resume(trapped, batches_of, make_trainer, tmp_path):
    """Bit for bit: the bad step is 1, the checkpoint after step 3, and steps 2 to 5 are left out."""
    batches = batches_of(8, marked=[1])

    def fit(stop, data, ckpt_path=None):
        module = trapped()
        guard = NonFiniteGuard("rollback", dirpath=tmp_path / "reports", leave_out=4)
        trainer = make_trainer(max_epochs=-1, max_steps=stop, callbacks=[guard])
        trainer.fit(module, loader(data), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{stop}.ckpt")
        return state_of(module)

    whole = fit(8, batches)
    fit(4, batches)
    assert torch.load(tmp_path / "4.ckpt", weights_only=True)["callbacks"]["NonFiniteGuard"]["still_out"] == 2
    # A plain loader starts over: give it what is left, at the places where Lightning looks for it.
    assert_same(fit(8, [*batches[4:], *batches], tmp_path / "4.ckpt"), whole)


def test_fit_twice(trapped, batches_of, make_trainer, tmp_path):
    guard, batches = NonFiniteGuard(dirpath=tmp_path, max_bundles=1), batches_of(6, marked=[2])
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
  max_steps: 5
  limit_val_batches: 0
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: {name}
      init_args: {{on_nonfinite: rollback, leave_out: 1, max_in_a_row: 2}}
model:
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: .inf}}}}
"""
    )
    with pytest.raises(
        NonFiniteError, match=r"step 3: the loss is .* infinity is in stem\.0 \(Conv2d\) itself"
    ):
        digits.main(["fit", "--config", str(config), "--trainer.callbacks.leave_out", "0"])
    assert (tmp_path / "run" / "nonfinite" / "step-00000001-rank0" / "bundle.pt").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_nonfinite": "ignore"}, "found on_nonfinite='ignore'; expected skip, rollback or stop"),
        ({"max_in_a_row": 0}, "found max_in_a_row=0; expected at least 1"),
        ({"snapshots": 0}, "found snapshots=0"),
        ({"snapshot_every_n_steps": 0}, "found snapshot_every_n_steps=0"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(MisconfigurationException, match=words):
        NonFiniteGuard(**options)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_sharded_models_are_refused(classifier, strategy):
    trainer = SimpleNamespace(strategy=object.__new__(strategy))
    with pytest.raises(
        MisconfigurationException, match=f"found trainer.strategy {strategy.__name__}, .*choose ddp"
    ):
        NonFiniteGuard().setup(trainer, classifier(), "fit")


def test_manual_optimization_is_refused(classifier):
    module = classifier()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="found manual optimization"):
        NonFiniteGuard().setup(SimpleNamespace(strategy=object.__new__(DDPStrategy)), module, "fit")


# Cost


class Reads(TorchDispatchMode):
    """Counts numbers that the host reads from tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_one_number_is_read_for_each_step(classifier, batches_of, make_trainer, tmp_path):
    """Whatever the number of micro-batches."""
    counts = []
    for guard in ([NonFiniteGuard(dirpath=tmp_path)], []):
        trainer = make_trainer(max_epochs=1, accumulate_grad_batches=4, callbacks=guard)
        with Reads() as reads:
            trainer.fit(classifier(), loader(batches_of(12)))
        counts.append(reads.count)
    assert counts[0] - counts[1] == 3


# Vision-language models


@pytest.fixture(scope="module")
def vlm(model_folder):
    def make(**options):
        torch.manual_seed(0)
        adapt = {"projector": "full", "language": {"lora": {"r": 2}}}
        given = {"adapt": adapt, "schedule": Constant(), **options}
        made = VLMModule(str(model_folder("smolvlm")), **given)
        made.configure_model()
        return made

    return make


class Without(Drawn):
    """Drawn samples but some."""

    def __init__(self, size, left_out=()):
        super().__init__("train", size=size, tasks=["vqa", "caption"])
        self.kept = [index for index in range(size) if index not in left_out]

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, index):
        return super().__getitem__(self.kept[index])


def drawn(module, size, batch_size=4, left_out=()):
    source = Without(size, left_out)
    return VLMDataModule(train=source, batch_size=batch_size, shuffle=False, processor=module.processor)


class SpoilPixels(Callback):
    """NaN into one picture of a micro-batch."""

    def __init__(self, batch_idx):
        self.batch_idx = batch_idx

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.batch_idx:
            batch.inputs["pixel_values"].view(-1)[0] = torch.nan


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_vlm_is_as_if_it_had_never_seen_the_batch(vlm, make_trainer, tmp_path, precision):
    """Micro-batch 3, the second of step 1, is bad. VLMModule clips by itself, and divides by the true weights
    of all micro-batches: a replay that counted into its sums would change the next step."""
    runs = []
    for spoil, left_out in ((3, ()), (None, range(4, 8))):
        module, guard = vlm(clip=0.5), NonFiniteGuard(dirpath=tmp_path)
        trainer = make_trainer(
            max_epochs=1,
            accumulate_grad_batches=2,
            use_distributed_sampler=False,
            precision=precision,
            callbacks=[guard, SpoilPixels(spoil)],
        )
        trainer.fit(module, drawn(module, 16, 2, left_out))
        weights = {name: one.detach() for name, one in module.named_parameters()}
        runs.append((weights, optimizer_state(trainer.optimizers[0]), guard.skipped, module.tokens_seen))
    assert [one[2] for one in runs] == [1, 0]
    assert_same(runs[0][0], runs[1][0])
    assert_same(runs[0][1], runs[1][1])
    text = (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert "batch 3: the loss is NaN or infinite" in text
    assert "- inputs.pixel_values: 1 of " in text
    assert "NaN or infinity comes into model.model (SmolVLMModel) from outside any module." in text
    bundle = NonFiniteBundle.load(tmp_path / "step-00000001-rank0" / "bundle.pt")
    with pytest.warns(UserWarning, match=r"the module has no tasks\.weights"):  # which only a fit knows
        found = bundle.replay(vlm())
    assert str(found) in text
    assert set(bundle.batch.tasks) <= {"vqa", "caption"}


def test_a_module_of_a_vlm_is_named(vlm, make_trainer, tmp_path):
    module = vlm()
    layer = module.get_submodule(module.parts["language.layers"][0])[1].mlp
    name = next(name for name, one in module.named_modules() if one is layer)
    layer.register_forward_hook(lambda _, __, output: output / 0 if module.global_step == 1 else None)
    make_trainer(
        max_steps=2, use_distributed_sampler=False, callbacks=[NonFiniteGuard(dirpath=tmp_path)]
    ).fit(module, drawn(module, 8))
    text = (tmp_path / "step-00000001-rank0" / "report.md").read_text()
    assert f"NaN or infinity comes out of {name} ({type(layer).__name__}), whose inputs are finite" in text
