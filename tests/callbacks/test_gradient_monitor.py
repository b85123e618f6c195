"""GradientMonitor: true statistics, at the right step, without waiting; anomalies; steps left out."""

import csv
import math
import os
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradientMonitor
from lightning_vlm_callbacks.gradient_monitor.rules import Limits, Usual, Watch, anomaly
from lightning_vlm_callbacks.gradient_monitor.statistics import (
    OCTAVES,
    Measurement,
    octaves,
    reductions,
    statistics,
)
from lightning_vlm_callbacks.selectors import SelectorError
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")
STATS = {"norm", "mean", "std", "max", "zeros", "clipped_norm", "update_ratio"}


class Kept(Logger):
    """Keeps what is logged: a list of (step, values)."""

    name, version = "kept", "0"

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_metrics(self, metrics, step=None):
        if values := {name: value for name, value in metrics.items() if name.startswith("gradients/")}:
            self.lines.append((step, values))

    def log_hyperparams(self, *_, **__):
        pass

    def of(self, group):
        """The statistics of a group: a list of (step, values)."""
        start = f"gradients/{group}/"
        found = [
            (step, {name.removeprefix(start): x for name, x in values.items() if name.startswith(start)})
            for step, values in self.lines
        ]
        return [(step, values) for step, values in found if values]


class Plain(LightningModule):
    """Without norms over a batch or dropout, so that a batch may be split; a pixel of digits is often 0."""

    def __init__(self, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(64, 16), nn.Linear(16, 10)
        self.optimizer = optimizer

    def forward(self, pictures):
        return self.head(torch.relu(self.stem(pictures.flatten(1))))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Poison(Callback):
    """Multiplies gradients of one parameter at some steps."""

    def __init__(self, name, factors):
        self.name, self.factors = name, factors

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.get_parameter(self.name).grad.mul_(self.factors.get(trainer.global_step, 1.0))


class See(Callback):
    """Keeps gradients by name."""

    def __init__(self):
        self.all = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.all.append({name: one.grad.clone() for name, one in pl_module.named_parameters()})


class Drop(Callback):
    """Takes gradients away at some steps, as a person would by hand."""

    def __init__(self, *steps):
        self.steps = steps

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for one in pl_module.parameters():
            one.grad = None if trainer.global_step in self.steps else one.grad


@pytest.fixture(scope="module")
def samples(digits):
    return digits.Digits(24).train


@pytest.fixture
def fit(make_trainer, digits, tmp_path):
    """Train `Plain`, or a module, on batches of 8 for some steps; its trainer, whose logger kept all."""

    def make(callbacks, module=None, steps=6, data=None, ckpt_path=None, **options):
        given = {"logger": Kept(), "max_steps": steps, "max_epochs": None, "default_root_dir": tmp_path}
        trainer = make_trainer(callbacks=callbacks, **{**given, **options})
        data = data or DataLoader(digits.Digits(24).train, 8)
        trainer.fit(module or Plain(), data, ckpt_path=ckpt_path)
        return trainer

    return make


def flat_statistics(gradients):
    """By torch, of all elements in one vector."""
    flat = torch.cat([one.flatten().double() for one in gradients])
    return {
        "norm": torch.linalg.vector_norm(flat).item(),
        "mean": flat.mean().item(),
        "std": flat.std(correction=0).item(),
        "max": flat.abs().max().item(),
        "zeros": (flat == 0).double().mean().item(),
    }


def weights_of(module):
    return [one.detach().clone() for one in module.parameters()]


def optimizer_state(trainer):
    states = trainer.optimizers[0].state_dict()["state"]
    return {f"{number} {name}": x.clone() for number, of in states.items() for name, x in of.items()}


def assert_equal(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def assert_close(found, expected, rel=1e-5):
    assert found == {name: pytest.approx(value, rel=rel, abs=1e-8) for name, value in expected.items()}


# Rules


def test_the_usual_norm_is_numpys():
    """Mean and variance of the first 25, then ZClip's equations; above the limit, the limit enters."""
    given = np.random.default_rng(0).lognormal(0, 0.4, 400)
    given[[3, 50, 51]] = math.nan, math.inf, math.nan
    given[[60, 200]] = 40, 1e6
    usual = Usual()
    for norm in given:
        usual = usual.after(float(norm), max_z=4.0)
    finite = given[np.isfinite(given)]
    mean, variance = finite[:25].mean(), finite[:25].var()
    cut = 0
    for norm in finite[25:]:
        limit = mean + 4 * max(variance**0.5, 0.05 * mean)
        cut += norm > limit
        norm = min(norm, limit)
        mean = 0.97 * mean + 0.03 * norm
        variance = 0.97 * variance + 0.03 * (norm - mean) ** 2
    assert cut > 2
    assert usual == (len(finite), pytest.approx(mean, rel=1e-12), pytest.approx(variance, rel=1e-12))


def test_a_spike_is_soon_forgotten_and_a_lasting_rise_soon_usual():
    usual = Usual(25, 1.0, 0.01)
    spiked = usual.after(1e9, max_z=6.0)
    assert spiked.mean == pytest.approx(1 + 0.03 * 0.6)
    assert spiked.limit(6.0) < 2
    steps = 0
    while usual.limit(6.0) < 10.0:
        usual, steps = usual.after(10.0, max_z=6.0), steps + 1
    assert 3 < steps < 20


def test_what_never_moved_is_not_judged_by_its_mean():
    usual = Usual()
    for _ in range(30):
        usual = usual.after(0.0, max_z=6.0)
    assert usual.limit(6.0) == math.inf
    assert usual.after(1.0, max_z=6.0).mean == pytest.approx(0.03)
    assert Usual(1000, 1.0, 0.0).limit(6.0) == pytest.approx(1.3)  # not 1.0: steady isn't fragile
    assert Usual(24, 1.0, 0.01).limit(6.0) == math.inf
    assert Usual(25, 1.0, 0.01).limit(None) == math.inf


@pytest.mark.parametrize(
    ("norm", "dead_for", "kind"),
    [
        (1.0, 0, None),
        (1.61, 0, "exploding"),
        (1.59, 0, None),
        (math.inf, 0, "nan"),
        (math.nan, 0, "nan"),
        (0.0, 2, None),
        (0.0, 3, "dead"),
        (None, 2, None),
        (None, 4, "dead"),
        (0.9e-7, 0, "vanishing"),
        (1.1e-7, 0, None),
    ],
)
def test_anomaly(norm, dead_for, kind):
    usual, limits = Usual(25, 1.0, 0.01), Limits(100.0, 6.0, 1e-7, 3)
    assert anomaly(norm, usual, dead_for, limits) == kind
    assert anomaly(norm, usual, dead_for, Limits(None, None, None, None)) == (kind if kind == "nan" else None)


def test_the_absolute_limit_needs_no_warm_up():
    limits = Limits(100.0, None, None, None)
    assert [anomaly(norm, Usual(), 0, limits) for norm in (100.0, 100.1)] == [None, "exploding"]


def test_a_watch_tells_each_kind_and_group_once():
    watch = Watch(Limits(100.0, 6.0, 1e-7, 3))
    norms = [
        {"a": 200.0, "b": None},
        {"a": math.nan, "b": 0.0},
        {"a": 300.0, "b": None},
        {"a": 1.0, "b": None},
    ]
    found = [watch.judge(step, one) for step, one in enumerate(norms)]
    assert [alarm for alarm, _ in found] == [True, True, True, False]
    assert [len(news) for _, news in found] == [1, 1, 1, 0]
    assert "dead in 'b': no gradient" in found[2][1][0]
    assert list(watch.counts()) == [
        "exploding in 'a' 2× (steps 0 to 2)",
        "nan in 'a' 1× (steps 1 to 1)",
        "dead in 'b' 2× (steps 2 to 3)",
    ]
    assert watch.judge(4, {"b": 1.0}) == (False, [])
    assert watch.judge(5, {"b": None}) == (False, [])  # counts anew
    assert watch.usual["b"].seen == 2  # a zero is a norm
    other = Watch(watch.limits)
    other.restore(watch.state())
    assert vars(other) == vars(watch)
    assert Watch(watch.limits, scaled=True).judge(0, {"a": math.inf}) == (False, [])


# Statistics


def statistics_of(*gradients):
    rows = {name: row.tolist() for name, row in reductions(list(gradients)).items()}
    return statistics(rows, [one.numel() for one in gradients])


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32] * 3,
        [torch.bfloat16] * 3,
        [torch.float16, torch.float32, torch.bfloat16],
        [torch.float64, torch.float32, torch.float64],
    ],
)
def test_statistics_are_those_of_one_long_vector(dtypes):
    torch.manual_seed(0)
    gradients = [torch.randn(size).to(dtype) for size, dtype in zip([(7, 9), (5,), ()], dtypes, strict=True)]
    gradients[0][gradients[0] > 0.5] = 0
    gradients[1][2] = -3.5
    assert_close(statistics_of(*gradients), flat_statistics(gradients))


def test_more_elements_than_float32_counts():
    ones = torch.ones(2**24 + 2**22, dtype=torch.bfloat16)
    ones[:100] = 0
    found = statistics_of(ones)
    assert found["zeros"] == pytest.approx(100 / len(ones), rel=0.02)
    assert found["norm"] == pytest.approx((len(ones) - 100) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_shows(bad):
    gradients = [torch.tensor([1.0, bad, 0.0]), torch.ones(3)]
    for found in statistics_of(*gradients), statistics_of(*reversed(gradients)):
        assert not any(math.isfinite(found[name]) for name in ("norm", "std", "max"))
        assert found["zeros"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_constant_has_no_spread(size):
    for value in (0.1, 0.3, 1e-4):
        found = statistics_of(torch.full((size,), value))
        assert found["std"] == pytest.approx(0, abs=1e-3 * value)


def test_weights_of_zero_have_no_ratio():
    rows = {"norm": [1.0], "sum": [1.0], "max": [1.0], "nonzero": [2.0], "weight": [0.0], "update": [1.0]}
    assert "update_ratio" not in statistics(rows, [2])
    assert statistics({**rows, "weight": [4.0]}, [2])["update_ratio"] == 0.25


def test_small_tensors_are_joined_within_their_groups_and_types():
    small = [nn.Parameter(torch.randn(size)) for size in (3, 4, 5, 6)]
    small.append(nn.Parameter(torch.randn(7, dtype=torch.float64)))
    large = [nn.Parameter(torch.randn(100, 100)) for _ in range(2)]
    parameters = [*small, *large]
    for one in parameters[1:]:
        one.grad = torch.randn_like(one)
    large[1].grad = large[1].grad.T  # not in the order of memory
    groups = {
        "a": small[:3],
        "b": [small[2], small[3], small[4], large[0]],
        "all": parameters,
        "c": small[:1],
    }
    measured = Measurement(0, groups)
    # 1 alone in a; 2 in a and b; 3 in b, 4 in b but double; the large ones
    assert sorted(measured._sizes) == [4, 5, 6, 7, 10000, 10000]
    assert set(measured.places) == {"a", "b", "all"}
    spare = {}
    for _ in range(2):
        before = [one.detach().clone() for one in parameters]
        measured = Measurement(0, groups)
        measured.before_step(False, spare)
        with torch.no_grad():
            for one in parameters[1:]:
                one.mul_(0.9).sub_(0.01)
        measured.after_step(clipped=True)
        found, _ = measured.read()
        for name, group in groups.items():
            if name == "c":
                continue
            of = [number for number, one in enumerate(parameters) if one.grad is not None and _in(one, group)]
            expected = flat_statistics([parameters[number].grad for number in of])
            moved = flat_statistics([before[number] - parameters[number].detach() for number in of])["norm"]
            expected["clipped_norm"] = expected["norm"]
            expected["update_ratio"] = moved / flat_statistics([before[number] for number in of])["norm"]
            assert_close(found[name], expected)


def _in(one, group):
    return any(one is other for other in group)


def numpy_octaves(gradients):
    values = np.abs(torch.cat([one.flatten() for one in gradients]).numpy())
    return np.histogram(np.log2(values.clip(2.0**-40, 2.0**8)), bins=range(-40, 9))[0]


def test_octaves_are_numpys_histogram():
    torch.manual_seed(0)
    gradients = [torch.randn(300, 20) * 10.0 ** torch.randint(-14, 4, (300, 1)), torch.zeros(50)]
    assert octaves(gradients).tolist() == numpy_octaves(gradients).tolist()
    big = octaves([torch.full((2**20,), 0.3), torch.full((2**20,), 3.0)])
    assert big.sum() <= 2**16 + 2
    assert big[OCTAVES.index(-2)] == big[OCTAVES.index(1)] == big.sum() / 2


# True gradients


def plain_by_hand(samples, steps, clip, rate=0.1):
    """Statistics of each step of SGD on batches of 8, by torch.autograd and arithmetic."""
    model, found = Plain(), []
    for step in range(steps):
        pictures, labels = samples[8 * step : 8 * step + 8]
        loss = nn.functional.cross_entropy(model(pictures), labels)
        gradients = dict(
            zip(["stem", "head"], _pairs(torch.autograd.grad(loss, list(model.parameters()))), strict=True)
        )
        gradients["all"] = gradients["stem"] + gradients["head"]
        weights = {"stem": list(model.stem.parameters()), "head": list(model.head.parameters())}
        weights["all"] = weights["stem"] + weights["head"]
        scale = min(1.0, clip / flat_statistics(gradients["all"])["norm"])
        one = {}
        for name in gradients:
            one[name] = flat_statistics(gradients[name])
            one[name]["clipped_norm"] = scale * one[name]["norm"]
            weight = flat_statistics([w.detach() for w in weights[name]])["norm"]
            one[name]["update_ratio"] = rate * scale * one[name]["norm"] / weight
        found.append(one)
        with torch.no_grad():
            for weight, gradient in zip(weights["all"], gradients["all"], strict=True):
                weight -= rate * scale * gradient
    return found


def _pairs(items):
    return [list(items[:2]), list(items[2:])]


@pytest.mark.parametrize("batch", [8, 2])
def test_gradients_are_those_of_the_whole_step(fit, samples, batch):
    """Accumulated, before and after clipping."""
    trainer = fit(
        [GradientMonitor()],
        steps=3,
        data=DataLoader(samples, batch),
        accumulate_grad_batches=8 // batch,
        gradient_clip_val=0.5,
    )
    check_plain(trainer.logger, samples)


def check_plain(logger, samples):
    expected = plain_by_hand(samples, 3, clip=0.5)
    assert any(one["stem"]["zeros"] > 0.2 for one in expected)
    assert any(one["all"]["clipped_norm"] < 0.9 * one["all"]["norm"] for one in expected)
    for group in ("stem", "head", "all"):
        assert [step for step, _ in logger.of(group)] == [0, 1, 2]
        for step, found in logger.of(group):
            assert_close(found, expected[step][group])


def test_gradients_are_those_of_the_whole_step_on_two_ranks(fit, samples, on_two_ranks):
    def run():
        model = Plain()
        half = DistributedSampler(samples, 2, int(os.environ["RANK"]), shuffle=False)
        trainer = fit(
            [GradientMonitor()],
            model,
            3,
            DataLoader(samples, 4, sampler=half),
            gradient_clip_val=0.5,
            devices=2,
            strategy="ddp",
            use_distributed_sampler=False,
        )
        return {"lines": trainer.logger.lines, "weights": weights_of(model)}

    first, second = on_two_ranks(run)
    logger = Kept()
    logger.lines = first["lines"]
    check_plain(logger, samples)
    assert_equal(first["weights"], second["weights"])


@pytest.fixture(scope="module")
def vlm(model_folder):
    """A VLM, all of it trained but the end of its tower, which LLaVA doesn't use and DDP would wait for."""

    def make():
        adapt = dict.fromkeys(["vision.layers[0:2]", "projector", "language", "head"], "full")
        made = VLMModule(str(model_folder("llava")), adapt=adapt, clip=0.05, chat_template="plain")
        made.configure_model()
        return made

    return make


def vlm_data(module, batch):
    source = Drawn("train", size=8)
    return VLMDataModule(train=source, batch_size=batch, shuffle=False, processor=module.processor)


@pytest.fixture(scope="module")
def vlm_expected(vlm):
    """By torch.autograd, of the mean loss over all tokens of one big batch."""
    module = vlm()
    sums = module.loss_sums(next(iter(vlm_data(module, 8).train_dataloader())))
    named = {name: one for name, one in module.model.named_parameters() if one.requires_grad}
    gradients = torch.autograd.grad(sums.loss_sum / sums.weight_sum, list(named.values()))
    found = dict(zip(named, gradients, strict=True))
    starts = {
        "vision": "model.vision_tower",
        "projector": "model.multi_modal_projector",
        "language": "model.language_model",
        "head": "lm_head",
        "all": "",
    }
    expected = {
        group: flat_statistics([one for name, one in found.items() if name.startswith(start)])
        for group, start in starts.items()
    }
    for one in expected.values():
        one["clipped_norm"] = one["norm"] * min(1, 0.05 / expected["all"]["norm"])
    assert expected["all"]["clipped_norm"] < expected["all"]["norm"]
    return expected


@pytest.mark.parametrize("split", ["8", "4×2", "2 ranks × 4"])
def test_gradients_of_a_vlm_are_those_of_the_whole_step(vlm, make_trainer, on_two_ranks, vlm_expected, split):
    """With the module's own normalisation and clipping; the groups are its parts."""

    def run(batch, **options):
        module, logger = vlm(), Kept()
        watched = GradientMonitor()
        given = {"logger": logger, "max_steps": 1, "callbacks": [watched], "use_distributed_sampler": False}
        make_trainer(**given, **options).fit(module, vlm_data(module, batch))
        return logger.lines

    logger = Kept()
    if split == "2 ranks × 4":
        logger.lines, _ = on_two_ranks(lambda: run(4, devices=2, strategy="ddp"))
    else:
        batch = {"8": 8, "4×2": 2}[split]
        logger.lines = run(batch, accumulate_grad_batches=8 // batch)
    assert names_of(logger) == ["vision", "projector", "language", "head", "all"]
    for group, expected in vlm_expected.items():
        ((step, found),) = logger.of(group)
        assert step == 0
        assert 0 <= found.pop("update_ratio") < 1  # the first rate of the warm-up may be 0
        assert found.pop("zeros") == pytest.approx(expected["zeros"], abs=1e-3)  # some are a rounding error
        assert_close(found, {name: x for name, x in expected.items() if name != "zeros"}, rel=1e-4)


def test_sparse_gradients_count_whole(fit):
    class Words(LightningModule):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4, sparse=True), nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.head(self.table(batch[0])).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = DataLoader(TensorDataset(torch.tensor([1, 2, 1])), 3)
    logger = fit([GradientMonitor()], Words(), 1, data).logger
    ((_, found),) = logger.of("table")
    assert found["zeros"] == pytest.approx(0.8)


def test_bf16_mixed(fit, classifier, digits):
    """Against gradients that another callback saw."""
    see = See()
    logger = fit([GradientMonitor(), see], classifier(), 2, digits.Digits(32), precision="bf16-mixed").logger
    for (_, found), gradients in zip(logger.of("all"), see.all, strict=True):
        expected = flat_statistics(gradients.values())
        assert_close({name: found[name] for name in expected}, expected)


# fp16


def scaled_run(fit, scale, optimizer=None, **options):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    watched = GradientMonitor(**options)
    model = Plain(optimizer) if optimizer else Plain()
    return fit([watched], model, plugins=[MixedPrecision("16-mixed", "cpu", scaler)]), watched, scaler


@pytest.mark.parametrize("on_anomaly", ["warn", "skip", "stop"])
def test_what_the_scaler_skips_is_no_anomaly(fit, samples, recwarn, on_anomaly):
    trainer, watched, scaler = scaled_run(fit, 2.0**20, on_anomaly=on_anomaly)
    assert trainer.global_step == 6
    norms = [found["norm"] for _, found in trainer.logger.of("all")]
    skipped = sum(not math.isfinite(norm) for norm in norms)
    assert 0 < skipped < 6
    assert scaler.get_scale() == 2.0 ** (20 - skipped)
    assert trainer.logger.of("all")[0][1]["update_ratio"] == 0
    model = Plain()  # of the first step that was made
    pictures, labels = samples[8 * (skipped % 3) : 8 * (skipped % 3) + 8]
    gradients = torch.autograd.grad(
        nn.functional.cross_entropy(model(pictures), labels), list(model.parameters())
    )
    assert norms[skipped] == pytest.approx(flat_statistics(gradients)["norm"], rel=1e-2)
    assert watched._watch.usual["all"].seen == 6 - skipped
    assert not [one for one in recwarn if "GradientMonitor" in str(one.message)]


def test_a_scaler_with_a_fused_optimizer_is_refused(fit):
    def fused(parameters):
        return torch.optim.AdamW(parameters, fused=True)

    with pytest.raises(MisconfigurationException, match="fused=False"):
        scaled_run(fit, 2.0, fused)
    assert fit([GradientMonitor()], Plain(fused), 1).global_step == 1


# When, and at which cost


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
            measured.before_step(False, spare={})
            measured.after_step(clipped=True)
    assert [str(device) for device in done.to if device is not None] == ["cpu"]
    assert measured._packed.read().shape == (7 * 4,)  # two small ones are one
    parameters = [nn.Parameter(torch.ones(3))]
    parameters[0].grad = torch.ones(3)
    with Operations() as done:
        measured = Measurement(0, {"all": parameters})
        measured.before_step(True, spare={})
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


# Groups


def names_of(logger):
    return list(dict.fromkeys(name.split("/")[1] for name in logger.lines[0][1]))


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


def test_frozen_at_first(fit, recwarn):
    """What trains later belongs to its group from then on; what is frozen isn't dead."""

    class Unfreeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.stem.requires_grad_(trainer.global_step >= 3)

    logger = fit([Unfreeze(), GradientMonitor(dead_after=2)]).logger
    assert [step for step, _ in logger.of("stem")] == [3, 4, 5]
    assert [step for step, _ in logger.of("head")] == list(range(6))
    assert not [one for one in recwarn if "GradientMonitor" in str(one.message)]


# Anomalies


def warnings_of(recwarn):
    return [str(one.message) for one in recwarn if "GradientMonitor" in str(one.message)]


def test_warn_is_told_once_and_counted(fit, recwarn):
    poison = Poison("head.bias", dict.fromkeys(range(2, 12), 1e5))
    trainer = fit([poison, GradientMonitor()], steps=12, gradient_clip_val=0.1)
    assert trainer.global_step == 12
    first, last = warnings_of(recwarn)
    assert "step 2: exploding in 'head': norm" in first
    assert "exploding in 'all'" in first
    assert "stem" not in first + last
    assert "exploding in 'head' 10× (steps 2 to 11)" in last


def test_exploding_against_what_is_usual(fit, recwarn):
    """Far below the absolute limit."""
    fit([Poison("head.bias", {27: 30.0}), GradientMonitor(max_norm=1e9)], steps=30)
    assert "step 27: exploding in 'head'" in warnings_of(recwarn)[0]
    assert len(warnings_of(recwarn)) == 2


def test_what_is_usual_begins_anew_with_what_trains(fit, recwarn):
    """The same jump as above, but as another part begins to train it is no surprise."""

    class Unfreeze(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            pl_module.stem.requires_grad_(trainer.global_step >= 27)

    fit([Unfreeze(), Poison("head.bias", {27: 30.0}), GradientMonitor(max_norm=1e9)], steps=30)
    assert not warnings_of(recwarn)


@pytest.mark.parametrize("kind", ["vanishing", "dead"])
@pytest.mark.parametrize("on_anomaly", ["warn", "skip", "stop"])
def test_vanishing_and_dead_are_only_told(fit, recwarn, kind, on_anomaly):
    factor = {"vanishing": 1e-9, "dead": 0.0}[kind]
    poisons = [Poison(f"stem.{name}", dict.fromkeys(range(20), factor)) for name in ("weight", "bias")]
    trainer = fit([*poisons, GradientMonitor(on_anomaly=on_anomaly, dead_after=3)])
    assert trainer.global_step == 6
    first, last = warnings_of(recwarn)
    assert f"step {0 if kind == 'vanishing' else 2}: {kind} in 'stem'" in first
    assert f"{kind} in 'stem' {6 if kind == 'vanishing' else 4}×" in last


def test_no_gradient_at_all(fit, recwarn):
    """Neither of a group, which is dead, nor of any."""

    class Unused(Plain):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.empty = nn.Parameter(torch.empty(0))

        def forward(self, pictures):
            return super().forward(pictures) + self.empty.sum()

    logger = fit([GradientMonitor(dead_after=3)], Unused()).logger
    assert "dead in 'unused': no gradient" in warnings_of(recwarn)[0]
    assert logger.of("unused") == []
    logger = fit([Drop(2), GradientMonitor(dead_after=1)], Unused()).logger
    assert [step for step, _ in logger.of("all")] == [0, 1, 3, 4, 5]
    assert any("dead in 'all': no gradient" in one for one in warnings_of(recwarn))


@pytest.mark.parametrize("factor", [1e5, math.nan, math.inf])
def test_stop(fit, recwarn, factor):
    """After the step that follows, at which it is read."""
    trainer = fit([Poison("head.bias", {2: factor}), GradientMonitor(on_anomaly="stop")])
    assert trainer.global_step == 4
    assert f"step 2: {'exploding' if factor == 1e5 else 'nan'} in 'head'" in warnings_of(recwarn)[0]


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
}


class States(Callback):
    """Weights and the optimizer's state after each step."""

    def __init__(self):
        self.all = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.all.append([*weights_of(pl_module), *optimizer_state(trainer).values()])


@pytest.mark.parametrize(("name", "every_n_steps"), [("AdamW", 1), ("Adam, fused", 4), ("SGD", 3)])
def test_a_skipped_step_changes_nothing(fit, recwarn, name, every_n_steps):
    """Bit for bit; and the run is the one in which gradients were taken away by hand."""
    optimizer, seen, by_hand = OPTIMIZERS[name], States(), States()
    poisons = [Poison("stem.weight", {2: math.nan, 4: 1e5}), Poison("head.bias", {5: -math.inf})]
    watched = GradientMonitor(on_anomaly="skip", every_n_steps=every_n_steps)
    trainer = fit([*poisons, watched, seen], Plain(optimizer), 8, gradient_clip_val=0.5)
    fit([Drop(2, 4, 5), by_hand], Plain(optimizer), 8, gradient_clip_val=0.5)
    for skipped in (2, 4, 5):
        assert_equal(seen.all[skipped], seen.all[skipped - 1])
    assert not torch.equal(seen.all[3][0], seen.all[2][0])
    for one, other in zip(seen.all, by_hand.all, strict=True):
        assert_equal(one, other)
    logged = dict(trainer.logger.of("all"))
    assert list(logged) == [step for step in range(8) if (step + 1) % every_n_steps == 0]
    assert {name for step in logged for name in logged[step] if step in (2, 4, 5)} <= STATS - {
        "clipped_norm",
        "update_ratio",
    }
    told = warnings_of(recwarn)
    assert ["step 2: nan in 'stem'" in told[0], "step 4: exploding in 'stem'" in told[1]] == [True, True]
    assert "nan in 'all' 2× (steps 2 to 5)" in told[-1]
    assert math.isfinite(watched._watch.usual["all"].mean)


@pytest.mark.parametrize("where", ["loss", "after the ranks agreed"])
def test_skip_on_two_ranks(fit, samples, on_two_ranks, where):
    """What only one rank sees, all leave out."""

    class OnOne(Callback):
        def on_after_backward(self, trainer, pl_module):
            if where != "loss" and trainer.global_rank == 1 and trainer.global_step == 2:
                pl_module.head.bias.grad.fill_(math.nan)

    class NaNLoss(Plain):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            bad = where == "loss" and self.global_rank == 1 and self.global_step == 2
            return loss * math.nan if bad else loss

    def run():
        seen = States()
        watched = GradientMonitor(on_anomaly="skip")
        fit(
            [OnOne(), watched, seen],
            NaNLoss(OPTIMIZERS["AdamW"]),
            5,
            DataLoader(samples, 4),
            devices=2,
            strategy="ddp",
            gradient_clip_val=0.5,
        )
        return seen.all

    first, second = on_two_ranks(run)
    for one, other in zip(first, second, strict=True):
        assert_equal(one, other)
    assert_equal(first[2], first[1])
    assert not torch.equal(first[3][0], first[2][0])
    assert all(torch.isfinite(one).all() for one in first[4])


def test_stop_on_two_ranks(fit, samples, on_two_ranks):
    class OnOne(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_rank == 1 and trainer.global_step == 2:
                pl_module.head.bias.grad.fill_(1e5)

    def run():
        callbacks = [OnOne(), GradientMonitor(on_anomaly="stop")]
        return fit(callbacks, steps=9, data=DataLoader(samples, 4), devices=2, strategy="ddp").global_step

    assert on_two_ranks(run) == [4, 4]


def test_twenty_skips_in_a_row_are_an_error(fit, tmp_path):
    poison = Poison("head.bias", dict.fromkeys(range(3, 99), 1e5))
    with pytest.raises(
        MisconfigurationException, match=r"skipped 20 steps in a row.*raise max_norm \(100.0\)"
    ):
        fit([poison, GradientMonitor(on_anomaly="skip")], steps=99)
    poison.factors.pop(15)
    assert fit([poison, GradientMonitor(on_anomaly="skip")], steps=30).global_step == 30


# Runs


class Save(Callback):
    """A checkpoint after a step."""

    def __init__(self, file, step):
        self.file, self.step = file, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize(
    ("at", "every_n_steps", "on_anomaly"),
    [
        (3, 3, "warn"),
        (5, 1, "warn"),
        (5, 3, "skip"),
        (6, 1, "skip"),
    ],  # a step is measured but not read, or not
)
def test_resumed_is_uninterrupted(fit, classifier, digits, tmp_path, at, every_n_steps, on_anomaly):
    """Weights, optimizer, what is usual and what was counted, logged values: the same, bit for bit."""
    file = tmp_path / "at.ckpt"

    def run(*callbacks, **options):
        seed_everything(2)
        model = classifier(dropout=0.0)
        watched = GradientMonitor(on_anomaly=on_anomaly, every_n_steps=every_n_steps, dead_after=3)
        poison = [
            Poison("head.bias", {3: math.nan, 9: 1e5}),
            Poison("stem.0.weight", dict.fromkeys(range(2, 9), 0.0)),
        ]
        data = digits.Digits(64, 16)  # 4 steps an epoch
        if on_anomaly == "warn":
            poison = poison[1:]
        trainer = fit([*poison, watched, *callbacks], model, -1, data, max_epochs=3, **options)
        return weights_of(model), optimizer_state(trainer), watched.state_dict(), trainer.logger.lines

    whole = run(Save(file, at))
    resumed = run(ckpt_path=file)
    assert_equal(resumed[0], whole[0])
    assert_equal(list(resumed[1].values()), list(whole[1].values()))
    assert repr(resumed[2]) == repr(whole[2])  # repr, as NaN is in the history
    assert repr(resumed[3]) == repr([line for line in whole[3] if line[0] >= at])


def test_a_stop_that_is_due_survives_a_resume(fit, tmp_path):
    """The step that gives the reason has been read, for the checkpoint, but not acted on."""
    file = tmp_path / "at.ckpt"

    def run(*callbacks, **options):
        watched = GradientMonitor(on_anomaly="stop")
        trainer = fit([Poison("head.bias", {2: 1e6}), watched, *callbacks], **options)
        return trainer.global_step

    assert run(Save(file, 3)) == run(ckpt_path=file)


def test_all_of_the_state_comes_back(tmp_path):
    """As a checkpoint has it: nothing but primitives."""
    first, second = GradientMonitor(), GradientMonitor()
    first._watch.judge(3, {"a": 1e3, "b": None})
    first._skips = 7
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second._skips == 7
    assert second.state_dict() == first.state_dict()


def test_the_constructor_wins_on_resume(fit, tmp_path, recwarn):
    file = tmp_path / "at.ckpt"
    fit([GradientMonitor(["stem", "head"]), Save(file, 4)])
    watched = GradientMonitor(["head"], max_norm=1e-3)
    fit([watched], ckpt_path=file)
    assert watched.limits.max_norm == 1e-3
    assert "step 4: exploding in 'head'" in warnings_of(recwarn)[0]
    assert watched._watch.usual["head"].seen == 6


def test_fit_again_begins_anew(fit):
    watched = GradientMonitor()
    first = fit([watched])
    state = watched.state_dict()
    second = fit([watched])
    assert watched.state_dict() == state
    assert second.logger.lines == first.logger.lines


def test_from_a_config(digits, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"""
seed_everything: 0
trainer:
  accelerator: cpu
  max_steps: 4
  log_every_n_steps: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  logger:
    class_path: lightning.pytorch.loggers.CSVLogger
    init_args: {{save_dir: {tmp_path}}}
  callbacks:
    - class_path: GradientMonitor
      init_args:
        groups: [stem, "blocks[-1]"]
        on_anomaly: skip
        table: true
""")
    digits.main(["fit", "--config", str(config)])
    table = capsys.readouterr().out
    assert [line.split()[0] for line in table.splitlines()[-4:]] == ["group", "stem", "blocks[-1]", "all"]
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "gradients/blocks[-1]/update_ratio" in text


def test_histograms_to_wandb(fit, tmp_path, monkeypatch):
    """A real run, offline."""
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    with pytest.raises(MisconfigurationException, match="no WandbLogger"):
        fit([GradientMonitor(histogram=True)])
    sent = []
    log = logger.experiment.log
    monkeypatch.setattr(
        logger.experiment, "log", lambda values, **options: (sent.append(values), log(values, **options))
    )
    see = See()
    fit([GradientMonitor(histogram=True), see], steps=2, logger=[logger, Kept()])
    logger.experiment.finish()
    found = [one for one in sent if "gradients/head/log2" in one]
    assert [one["trainer/global_step"] for one in found] == [0, 1]
    for one, gradients in zip(found, see.all, strict=True):
        histogram = one["gradients/head/log2"]
        head = [gradients["head.weight"], gradients["head.bias"]]
        assert list(histogram.histogram) == numpy_octaves(head).tolist()
        assert list(histogram.bins) == list(range(-40, 9))
    norms = [one["gradients/all/norm"] for one in sent if "gradients/all/norm" in one]
    assert len(norms) == 2


# Refused


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_other_strategies_are_refused(strategy):
    trainer = SimpleNamespace(strategy=object.__new__(strategy))
    with pytest.raises(MisconfigurationException, match=f"{strategy.__name__}, with which a rank may not"):
        GradientMonitor().setup(trainer, Plain(), "fit")
    GradientMonitor().setup(trainer, Plain(), "validate")


def test_manual_optimization_is_refused(fit):
    model = Plain()
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        fit([GradientMonitor()], model, -1, max_epochs=1)


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 0},
        {"max_norm": -1.0},
        {"max_z": math.nan},
        {"min_norm": 0},
        {"on_anomaly": "ignore"},
    ],
)
def test_arguments_out_of_range(options):
    (name,) = options
    with pytest.raises(MisconfigurationException, match=f"{name}: found .*expected"):
        GradientMonitor(**options)
