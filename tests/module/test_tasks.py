"""Weights of tasks in a VLMModule: sums, splits, resume, uncertainty, initial losses, GradNorm."""

import csv
import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import GradNorm, StagedUnfreezing
from torch.utils.data import DataLoader

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.losses.tasks import make_task_weights
from lightning_vlm.losses.weights import token_weights
from lightning_vlm.models.experts import mixtures_of
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.optim import Constant
from tests.support import tiny
from tests.support.dead import DEAD

PLAN = {"projector": "full", "language": {"lora": {"r": 4}}}
TASKS = ("vqa", "ocr", "caption")
FAMILIES = tuple(tiny.FAMILIES)
WAYS = [{"vqa": 3.0, "ocr": 0.5}, "inverse_initial_loss", "uncertainty"]
WAY_IDS = ["fixed", "inverse", "uncertainty"]


@pytest.fixture(scope="module")
def source(listed):
    """18 samples of three tasks in turn, of uneven weight; none has a system turn, which Pixtral drops."""

    def make(at, one):
        turns = tuple(message for message in one.messages if message.role != "system")
        return dataclasses.replace(one, messages=turns, task=TASKS[at % 3], weight=0.5 + at % 2)

    return listed(make(at, one) for at, one in enumerate(Drawn("train", size=18, seed=5)))


@pytest.fixture
def fresh(module):
    def make(family="llava", **options):
        given = {"adapt": PLAN, "schedule": Constant(), "clip": 0.5, "no_gradient_needed": DEAD.get(family)}
        options = {**given, **options}
        one = module(family, optimizer=partial(torch.optim.SGD, lr=0.2), **options)
        with torch.no_grad():
            for at, (name, weight) in enumerate(one.named_parameters()):
                if "lora_B" in name:
                    weight.normal_(std=0.1, generator=torch.Generator().manual_seed(at))
        return one

    return make


class Keep(Callback):
    """Each optimizer step as a whole."""

    def __init__(self):
        self.steps, self.weights, self.gradients = [], [], []

    def on_train_start(self, trainer, module):
        run = module.steps.run

        def kept(*args):
            self.weights.append(module.tasks.weights.clone())
            self.steps.append(run(*args))
            return self.steps[-1]

        module.steps.run = kept

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.grad is not None})

    def on_train_end(self, trainer, module):
        del module.steps.run


def fit(make_quiet, one, source, batch_size=6, accumulate=1, callbacks=(), ckpt_path=None, **options):
    keep = Keep()
    data = VLMDataModule(train=source, val=source, batch_size=batch_size, shuffle=False)
    options = {"max_epochs": 2, "limit_val_batches": 0, **options}
    trainer = make_quiet(callbacks=[keep, *callbacks], accumulate_grad_batches=accumulate, **options)
    trainer.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
    keep.trainer = trainer
    return keep


def by_hand(one, batch):
    """Σ wℓ and Σ w of each task, from all logits of the family's own forward."""
    logits = one.model(**batch.inputs, use_cache=False).logits[:, :-1].float()
    labels = batch.inputs["input_ids"][:, 1:].clamp(max=logits.shape[-1] - 1)  # Mllama's picture has no logit
    losses = F.cross_entropy(logits.mT, labels, reduction="none")
    weights = token_weights(batch.kinds, one.token_weights, batch.factors)[:, 1:]
    of = [[at for at, task in enumerate(batch.tasks) if task == name] for name in TASKS]
    return (
        torch.stack([(losses * weights)[rows].sum() for rows in of]),
        torch.stack([weights[rows].sum() for rows in of]),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_and_gradient_are_a_plain_recomputation(make_quiet, fresh, source, batch_of, listed, family):
    one, plain = (fresh(family, task_weights=WAYS[0], clip=None) for _ in range(2))
    keep = fit(make_quiet, one, source, max_steps=1)
    sums, counts = by_hand(plain, batch_of(plain, listed(source.items[:6])))
    torch.testing.assert_close(keep.steps[0].sums, sums.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(keep.steps[0].counts, counts)
    loss = (torch.tensor([3.0, 0.5, 1.0]) * sums).sum() / counts.sum()
    assert keep.steps[0].loss.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    expected = {name: weight.grad for name, weight in plain.named_parameters() if weight.grad is not None}
    torch.testing.assert_close(keep.gradients[0], expected, rtol=1e-3, atol=1e-5)


def end(one):
    return {name: weight.detach().clone() for name, weight in one.named_parameters() if weight.requires_grad}


def off(found, expected):
    apart = sum((found[name].double() - expected[name].double()).square().sum() for name in expected)
    return (apart / sum(one.double().square().sum() for one in expected.values())).sqrt().item()


@pytest.mark.parametrize("way", WAYS, ids=WAY_IDS)
def test_any_split_is_the_same_training(make_quiet, fresh, source, on_two_ranks, way):
    def run(*split, **options):
        one = fresh(task_weights=way)
        keep = fit(make_quiet, one, source, *split, **options)
        ends = torch.stack([torch.cat((step.loss[None], step.sums, step.counts)) for step in keep.steps])
        return [end(one), one.tasks.weights.clone(), ends, keep.gradients[0]]

    whole = run(6)
    start = end(fresh(task_weights=way))
    moved = {name: whole[0][name] - one for name, one in start.items()}
    ranks = on_two_ranks(lambda: run(1, 3, strategy="ddp", devices=2))
    for found in (run(2, 3), *ranks):
        assert off(found[3], whole[3]) < 2e-6
        assert off({name: found[0][name] - one for name, one in start.items()}, moved) < 1e-5
        torch.testing.assert_close(found[1], whole[1], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[2], whole[2], rtol=1e-5, atol=1e-4)
    for name, one in ranks[0][0].items():
        assert torch.equal(one, ranks[1][0][name])
    assert torch.equal(ranks[0][1], ranks[1][1])
    assert whole[1].unique().numel() == 3


def test_uncertainty_has_the_gradient_of_kendalls_loss(make_quiet, fresh, source):
    """That of Σ e^-s S + s C/2 over ΣC, in s and (by the weights of tasks) in all else."""
    one = fresh(task_weights="uncertainty", clip=1e-3)
    keep = fit(make_quiet, one, source, 2, 3)
    s = torch.zeros(3, requires_grad=True)
    for step, weights, gradients in zip(keep.steps, keep.weights, keep.gradients, strict=True):
        torch.testing.assert_close(weights, torch.exp(-s.detach()))
        loss = (torch.exp(-s) * step.sums + s * step.counts / 2).sum() / step.counts.sum()
        (slope,) = torch.autograd.grad(loss, s)
        torch.testing.assert_close(gradients["tasks.log_variances"], slope, rtol=1e-5, atol=1e-6)
        s = (s - 0.01 * slope).detach().requires_grad_()  # its own rate, not clipped, with all else
    assert not torch.equal(keep.weights[0], keep.weights[-1])


def test_an_uncertainty_has_bounds():
    table = make_task_weights("uncertainty", ["a", "b"])
    with torch.no_grad():
        table.log_variances.copy_(torch.tensor([-50.0, 50.0]))
    table.end_step(torch.ones(2), torch.ones(2))
    assert table.weights.log().tolist() == pytest.approx([6.9, -6.9])


def test_uncertainty_has_a_group_of_its_own(make_quiet, fresh, source):
    one = fresh(task_weights="uncertainty")
    one.optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    fit(make_quiet, one, source, max_steps=1)
    (group,) = [
        group
        for group in one.optimizers().param_groups
        if any(one.tasks.log_variances is weight for weight in group["params"])
    ]
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.01, 0.0, 1)


def test_clipping_knows_no_uncertainty(make_quiet, fresh, source):
    """Its gradient is in no norm, and it is no "rest" to be clipped."""
    keep = fit(make_quiet, fresh(task_weights="uncertainty"), source, max_steps=1)
    one = fresh(task_weights="uncertainty", clip={"projector": 1.0, "language": 1.0, "rest": 1.0})
    with pytest.raises(UserError, match='found "rest", but the other selectors take all'):
        fit(make_quiet, one, source, max_steps=1)
    logged = keep.trainer.callback_metrics["train/grad_norm"]
    others = [one for name, one in keep.gradients[0].items() if "tasks" not in name]
    torch.testing.assert_close(logged, torch.nn.utils.get_total_norm(others))


def test_a_checkpoint_of_another_way_can_be_tested(make_quiet, fresh, source, tmp_path):
    data = VLMDataModule(train=source, test=source, batch_size=6)
    trainer = make_quiet(max_steps=1)
    trainer.fit(fresh(task_weights={"ocr": 2.0}), data)
    trainer.save_checkpoint(tmp_path / "fixed.ckpt")
    one, again = fresh(task_weights="uncertainty"), make_quiet(max_steps=1)
    again.fit(one, data)
    again.test(one, data, ckpt_path=tmp_path / "fixed.ckpt", weights_only=True, verbose=False)
    with pytest.raises(UserError, match="found uncertainty, but the checkpoint was trained with fixed"):
        again.fit(one, data, ckpt_path=tmp_path / "fixed.ckpt", weights_only=True)


def test_inverse_initial_loss(make_quiet, fresh, source):
    keep = fit(make_quiet, fresh(task_weights="inverse_initial_loss"), source)
    losses = torch.stack([step.sums / step.counts for step in keep.steps])
    assert keep.weights[0].tolist() == [1, 1, 1]
    for step in range(1, 6):
        inverse = 1 / losses[:step].mean(0)
        torch.testing.assert_close(keep.weights[step], 3 * inverse / inverse.sum(), rtol=1e-5, atol=0)


def rows_of(folder, key):
    with open(folder / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row[key]]


@pytest.mark.parametrize("way", WAYS, ids=WAY_IDS)
def test_resumed_is_uninterrupted(make_quiet, fresh, source, tmp_path, way):
    def run(folder, **options):
        one = fresh(task_weights=way)
        saves = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        logger = CSVLogger(tmp_path, name="", version=folder)
        more = {"callbacks": [saves], "enable_checkpointing": True, "logger": logger, "log_every_n_steps": 4}
        fit(make_quiet, one, source, 2, 3, **more, **options)
        logged = rows_of(tmp_path / folder, "train/loss/ocr")
        return one, [(row["step"], row["train/loss/ocr"], row["train/task_weight/ocr"]) for row in logged]

    whole, logged = run("whole")
    resumed, logged_later = run("resumed", ckpt_path=tmp_path / "whole/step=2.ckpt")
    for name, weight in end(whole).items():
        assert torch.equal(weight, end(resumed)[name]), name
    assert torch.equal(whole.tasks.weights, resumed.tasks.weights)
    assert logged == logged_later
    assert [step for step, *_ in logged] == ["3"]


def test_logged_is_the_mean_since_it_was_last_logged(make_quiet, fresh, source, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    one = fresh(task_weights=WAYS[0])
    keep = fit(make_quiet, one, source, 2, 1, logger=logger, log_every_n_steps=2, max_epochs=1)
    rows = rows_of(tmp_path, "train/task_weight/ocr")
    assert [row["step"] for row in rows] == ["1", "3", "5", "7"]
    for at, row in enumerate(rows):
        two = keep.steps[2 * at : 2 * at + 2]
        sums, counts = sum(step.sums for step in two), sum(step.counts for step in two)
        for task, total, weight in zip(("vqa", "ocr", "caption"), sums, counts, strict=True):
            logged = row[f"train/loss/{task}"]
            assert float(logged) == pytest.approx((total / weight).item()) if weight else logged == ""
        assert float(row["train/task_weight/ocr"]) == 0.5


def test_validation_knows_no_weights_of_tasks(make_quiet, fresh, source):
    data = VLMDataModule(train=source, val=source, batch_size=6)
    scores = []
    for way in (None, WAYS[0]):
        one = fresh(task_weights=way)
        one.optimizer = partial(torch.optim.SGD, lr=1e-20)
        trainer = make_quiet(max_epochs=1, limit_train_batches=1)
        trainer.fit(one, data)
        metrics = trainer.callback_metrics.items()
        scores.append({name: value.item() for name, value in metrics if "val" in name})
    assert scores[0] == scores[1]
    assert "val/loss/ocr" in scores[0]


@pytest.mark.parametrize("way", [*WAYS, None], ids=[*WAY_IDS, "GradNorm"])
def test_a_task_without_weight_and_one_that_never_comes(make_quiet, fresh, source, way, listed):
    """The tokens of one weigh nothing, so its loss is 0 over 0; the data names another that no step has."""
    items = [dataclasses.replace(one, weight=0.0) if one.task == "ocr" else one for one in source.items]
    items.append(dataclasses.replace(items[0], task="grounding"))
    one = fresh(task_weights=way)
    callbacks = [] if way else [GradNorm()]
    keep = fit(make_quiet, one, listed(items), callbacks=callbacks, max_steps=3)
    assert one.tasks.names == (*TASKS, "grounding")
    assert all(weight.isfinite().all() for weight in end(one).values())
    assert all(step.loss.isfinite() and step.sums.isfinite().all() for step in keep.steps)
    expected = {"vqa": 3.0, "ocr": 0.5} if way is WAYS[0] else {}
    for task in ("ocr", "grounding"):
        assert one.tasks.weights[one.tasks.index(task)].item() == pytest.approx(expected.get(task, 1.0))


def test_a_frozen_uncertainty_warns(make_quiet, fresh, source):
    one = fresh(task_weights="uncertainty")
    parts = {"projector": 1.0}
    stages = StagedUnfreezing([{"at": 0.0, "train": parts}, {"at": 0.5, "train": {**parts, "language": 1.0}}])
    with pytest.warns(UserWarning, match="log_variances is frozen"):
        fit(make_quiet, one, source, callbacks=[stages])


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ({"ocrr": 2.0}, "task 'ocrr': the training data has no such task.*did you mean 'ocr'"),
        ({"ocr": 0.0}, "task_weights.ocr: found 0.0; expected a finite number > 0"),
        ({"ocr": float("nan")}, "task_weights.ocr: found nan"),
        ({"ocr": 1e38}, r"task_weights.ocr: found 1e\+38; .* from 1e-06 to 1,000,000"),
        ("uncertain", "task_weights: found 'uncertain'; expected inverse_initial_loss or uncertainty"),
    ],
)
def test_bad_weights(make_quiet, fresh, source, way, says):
    with pytest.raises(UserError, match=says):
        fit(make_quiet, fresh(task_weights=way), source)


def test_another_way_or_other_tasks_cannot_go_on(make_quiet, fresh, source, tmp_path, listed):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    options = {"callbacks": [saves], "enable_checkpointing": True, "max_steps": 1}
    fit(make_quiet, fresh(task_weights="inverse_initial_loss"), source, **options)
    path = tmp_path / "step=1.ckpt"
    with pytest.raises(UserError, match="found uncertainty, but the checkpoint was trained with inverse_"):
        fit(make_quiet, fresh(task_weights="uncertainty"), source, ckpt_path=path)
    renamed = listed(dataclasses.replace(one, task=f"my {one.task}") for one in source.items)
    with pytest.raises(UserError, match="found tasks my vqa, my ocr, my caption, but the checkpoint has vqa"):
        fit(make_quiet, fresh(task_weights="inverse_initial_loss"), renamed, ckpt_path=path)


def test_another_data_module(make_quiet, fresh, source):
    """Nobody knows its tasks beforehand: those with a weight are kept apart, all others are one."""
    one = fresh(task_weights={"ocr": 2.0})
    own = VLMDataModule(train=source, batch_size=6, shuffle=False, processor=one.processor)
    loader = DataLoader(list(own.train_dataloader()), batch_size=None)
    keep = Keep()
    make_quiet(max_epochs=1, callbacks=[keep]).fit(one, loader)
    assert one.tasks.names == ("ocr", "other tasks")
    known = fit(make_quiet, fresh(task_weights={"ocr": 2.0}), source, max_epochs=1)
    for mine, other in zip(keep.steps, known.steps, strict=True):
        torch.testing.assert_close(mine.sums[1], other.sums[[0, 2]].sum())
        torch.testing.assert_close(mine.loss, other.loss)
    with pytest.raises(UserError, match="uncertainty without a VLMDataModule"):
        make_quiet(max_epochs=1).fit(fresh(task_weights="uncertainty"), loader)


class KeepNorms(Callback):
    """What GradNorm measured, and the weights of the model that it measured."""

    def __init__(self, gradnorm):
        self.gradnorm, self.before, self.norms, self.weights = gradnorm, [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.before.append(end(module))
        self.weights.append(module.tasks.weights.clone())

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.norms.append(self.gradnorm._statistics.norms.clone())


SPLIT = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6")
"""Several samples are made of a conversation, so that its batches aren't those that are taken by hand."""
FLAT = ("blip-2",)
"""The MLP of their last layer gets tokens without their rows; an error names other layers to choose."""
LAST = {"gemma3n": ".altup_unembed_projections."}
"""Family -> the list that its last LoRA B is in, where that isn't the list of its layers."""
NF4 = Quantization("nf4", ["language"], compute_dtype="float32")


@pytest.mark.parametrize(
    ("family", "options", "layer"),
    [
        *((family, {}, None) for family in FAMILIES if family not in (*FLAT, *SPLIT)),
        ("llava", {"gradient_checkpointing": True}, None),
        ("llava", {"quantization": NF4}, None),
        ("qwen2_5_vl", {"quantization": NF4, "gradient_checkpointing": True}, None),
        ("llava", {"adapt": {"language": "full", "projector": "full"}}, "language.layers[-1].mlp.down_proj"),
    ],
)
def test_gradnorm_measures_autograds_norms(
    make_quiet, fresh, source, batch_of, listed, family, options, layer
):
    gradnorm = GradNorm(layer=layer)
    keep = KeepNorms(gradnorm)
    one = fresh(family, **options)
    fit(make_quiet, one, source, callbacks=[gradnorm, keep], max_epochs=1)
    assert len(keep.norms) == 3
    plain = fresh(family, **options)
    flattened = tuple(f"model.{mixture.path}." for mixture in mixtures_of(plain.model))
    name, weight = next(
        (name, weight)
        for name, weight in reversed(list(plain.named_parameters()))
        if (
            "lora_B" in name and LAST.get(family, ".layers.") in name and not name.startswith(flattened)
            if layer is None
            else name.endswith("layers.1.mlp.down_proj.weight")
        )
        and weight.requires_grad
    )
    for at, (before, norms) in enumerate(zip(keep.before, keep.norms, strict=True)):
        plain.load_state_dict(before, strict=False)
        sums, counts = by_hand(plain, batch_of(plain, listed(source.items[6 * at : 6 * at + 6])))
        expected = [
            torch.autograd.grad(task / counts.sum(), weight, retain_graph=True)[0].norm() for task in sums
        ]
        torch.testing.assert_close(norms, torch.stack(expected), rtol=2e-4, atol=1e-6, msg=name)
    assert one.tasks.weights.sum().item() == pytest.approx(3.0)
    assert one.tasks.weights.unique().numel() == 3


def test_gradnorm_where_rows_go_through_the_model_in_groups(
    make_quiet, fresh, source, batch_of, listed, words
):
    """Rows with and without a picture, in turn, of all tasks; each sample by itself is what is right."""
    items = list(source.items[:6])
    for at in (1, 3, 5):
        items[at] = words(answer="Red and blue. " * at, task=TASKS[at % 3])
    gradnorm = GradNorm()
    one, plain = fresh("mllama"), fresh("mllama")
    keep = KeepNorms(gradnorm)
    fit(make_quiet, one, listed(items), callbacks=[gradnorm, keep], max_steps=1)
    weight = [weight for name, weight in plain.named_parameters() if "lora_B" in name][-1]
    alone = [by_hand(plain, batch_of(plain, listed([item]))) for item in items]
    total = sum(counts.sum() for _, counts in alone)
    for task in range(3):
        loss = sum(sums[task] for sums, _ in alone) / total
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        torch.testing.assert_close(keep.norms[0][task], gradient.norm(), rtol=2e-4, atol=1e-6)


def test_gradnorm_on_any_split_and_resumed(make_quiet, fresh, source, on_two_ranks, tmp_path):
    def run(*split, folder=None, **options):
        one = fresh()
        callbacks = [GradNorm()]
        if folder:
            options["enable_checkpointing"] = True
            callbacks.append(ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}"))
        fit(make_quiet, one, source, *split, callbacks=callbacks, **options)
        return [end(one), one.tasks.weights.clone()]

    whole = run(6, folder=tmp_path)
    first, second = on_two_ranks(lambda: run(1, 3, strategy="ddp", devices=2))
    assert torch.equal(first[1], second[1])
    for weights in (run(2, 3)[1], first[1]):
        torch.testing.assert_close(weights, whole[1], rtol=1e-4, atol=1e-5)
    again = run(6, folder=tmp_path / "again", ckpt_path=tmp_path / "step=3.ckpt")
    assert torch.equal(again[1], whole[1])
    assert all(torch.equal(weight, again[0][name]) for name, weight in whole[0].items())


def test_gradnorm_beside_weights_that_learn(make_quiet, fresh, source):
    with pytest.raises(MisconfigurationException, match="task_weights: uncertainty changes; expected one"):
        fit(make_quiet, fresh(task_weights="uncertainty"), source, callbacks=[GradNorm()])


def test_weights_stay_float32_in_a_model_of_bfloat16():
    table = make_task_weights("uncertainty", ["a", "b"])
    table.weights.copy_(torch.tensor([1.001, 2.003]))
    torch.nn.Sequential(table, torch.nn.Linear(1, 1)).to(torch.bfloat16)
    assert table.weights.dtype == table.log_variances.dtype == torch.float32
    assert table.weights.tolist() == pytest.approx([1.001, 2.003])
