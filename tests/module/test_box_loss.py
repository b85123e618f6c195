"""The box loss in training: exact however a step is split, with all weights, logged, and said where idle."""

import csv
import dataclasses
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from lightning_vlm import VLMDataModule
from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.losses.boxes import box_overlap, l1
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.optim import Constant
from tests.module.test_normalisation import off

KINDS = ("soft", "wasserstein", "iou")
FAMILY = "qwen2_5_vl"
PLAN = {"language": "full", "head": "full"}


class Record(Callback):
    """What a step had."""

    def __init__(self):
        self.gradients, self.losses, self.batches = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append(batch)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.requires_grad})

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step > len(self.losses):
            self.losses.append(trainer.callback_metrics["train/loss"].item())


@pytest.fixture(scope="module")
def source(listed, words):
    """Eight samples of uneven weight: boxes, text alone, answers without boxes, and one without weight."""
    boxes = list(Drawn("train", size=6, tasks=["grounding"], seed=3))
    others = list(Drawn("train", size=1, tasks=["vqa"]))
    samples = [*boxes[:3], words(answer="Red and blue. " * 9), *boxes[3:], *others]
    samples = [dataclasses.replace(one, weight=0.5 + at % 3) for at, one in enumerate(samples)]
    samples[1] = dataclasses.replace(samples[1], weight=0.0)
    return listed(samples)


@pytest.fixture(scope="module")
def fresh(module):
    def make(kind, family=FAMILY, **options):
        box_loss = kind if isinstance(kind, dict) or kind is None else {"kind": kind}
        given = {"adapt": PLAN, "schedule": Constant(), "clip": None, **options}
        return module(family, optimizer=partial(torch.optim.SGD, lr=0.1), box_loss=box_loss, **given)

    return make


def run(make_trainer, module, source, batch_size=8, accumulate=1, packed=False, callbacks=(), **options):
    record = Record()
    batching = {"batching": "packed", "max_tokens": 2000} if packed else {"batch_size": batch_size}
    data = VLMDataModule(train=source, val=source, shuffle=False, **batching)
    given = {"max_epochs": 1, "accumulate_grad_batches": accumulate, "precision": "64-true", **options}
    trainer = make_trainer(callbacks=[*callbacks, record], **given)
    trainer.fit(module, data)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if "val/" in name}
    return record, scores


def by_hand(one, batch, kind, task_weights=None):
    """Loss and gradient of a step from the model's own logits over the whole vocabulary, box by box."""
    one.double()
    inputs = {
        name: value.double() if value.is_floating_point() else value for name, value in batch.inputs.items()
    }
    logits = one.model(**inputs, use_cache=False).logits.flatten(0, 1)
    targets, numbers = one.targets(batch), one.targets(batch).numbers
    losses = F.cross_entropy(logits[targets.positions], targets.labels, reduction="none")
    tokenizer = one.processor.tokenizer
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))
    rows = batch.coordinates.positions - 1
    learned = torch.isin(rows, targets.positions)
    place = torch.searchsorted(targets.positions, rows[learned])
    right = torch.tensor([int(tokenizer.decode(targets.labels[at])) for at in place])
    probabilities = logits[rows[learned]][:, digits].softmax(1)
    values = torch.arange(10.0, dtype=torch.float64)
    added = torch.zeros_like(losses)
    if kind == "wasserstein":
        distances = (values - right[:, None]).abs()
        added = added.index_add(0, place, 0.3 * (probabilities * distances).sum(1))
    elif kind == "iou":
        errors = (probabilities * values).sum(1) - right
        items, axes, worth = (getattr(batch.coordinates, name)[learned] for name in ("item", "axis", "worth"))
        for item in items.unique():
            target = batch.coordinates.targets[item].double()
            box = target.clone()
            for axis in range(4):
                of_axis = (items == item) & (axes == axis)
                box[axis] = target[axis] + (errors * worth.double())[of_axis].sum()
            cost = 1 - box_overlap(box, target) + 2.5 * l1(box, target)
            own = place[items == item]
            added = added.index_add(0, own, (2.0 * cost / len(own)).expand(len(own)))
    weights = targets.weights.double()
    total = losses + added
    samples = batch.samples.flatten()[targets.positions]
    factors = torch.tensor([(task_weights or {}).get(batch.tasks[sample], 1.0) for sample in samples])
    loss = (factors * weights * total).sum() / weights.sum()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in one.named_parameters() if p.requires_grad}
    shares = 1.0 if kind != "iou" else numbers.share.double()
    unscaled = added[numbers.places] / {"wasserstein": 0.3, "iou": 2.0}.get(kind, 1.0) / shares
    mean = (weights[numbers.places] * shares * unscaled).sum() / (weights[numbers.places] * shares).sum()
    return loss.item(), gradients, mean.item()


@pytest.fixture(scope="module")
def whole(fresh, source, make_quiet):
    return {kind: run(make_quiet, fresh(kind), source) for kind in KINDS}


@pytest.mark.parametrize("kind", ["wasserstein", "iou"])
@pytest.mark.parametrize("task_weights", [None, {"grounding": 3.0}])
def test_a_step_is_that_by_hand(fresh, source, make_quiet, batch_of, tmp_path, kind, task_weights):
    logger = CSVLogger(tmp_path)
    one = fresh(kind, task_weights=task_weights)
    record, scores = run(make_quiet, one, source, logger=logger)
    loss, gradients, mean = by_hand(fresh(kind), batch_of(fresh(kind), source), kind, task_weights)
    assert record.losses == pytest.approx([loss], rel=1e-6)
    assert off(record.gradients[0], gradients) < 1e-7
    with open(f"{logger.log_dir}/metrics.csv") as lines:
        logged = [float(row["train/box_loss"]) for row in csv.DictReader(lines) if row.get("train/box_loss")]
    assert logged == pytest.approx([mean], rel=1e-5)
    assert scores["val/box_loss"] < mean  # a step later


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "accumulate", "packed"), [(2, 4, False), (1, 8, False), (0, 1, True)])
def test_however_a_step_is_split(whole, fresh, source, make_quiet, kind, size, accumulate, packed):
    found, scores = run(make_quiet, fresh(kind), source, size, accumulate, packed)
    expected, their_scores = whole[kind]
    assert len(found.gradients) == 1
    assert found.losses[-1] == pytest.approx(expected.losses[-1], rel=1e-6)
    assert off(found.gradients[0], expected.gradients[0]) < 1e-9
    assert scores == pytest.approx(their_scores, rel=1e-6)


def test_on_ranks(whole, fresh, source, make_quiet, on_two_ranks):
    def on_rank():
        ranks = {"strategy": "ddp", "devices": 2}
        found = {kind: run(make_quiet, fresh(kind), source, 4, 1, **ranks) for kind in KINDS}
        return {kind: (one.gradients[0], one.losses, scores) for kind, (one, scores) in found.items()}

    for rank in on_two_ranks(on_rank):
        for kind, (gradients, losses, scores) in rank.items():
            expected, their_scores = whole[kind]
            assert losses == pytest.approx(expected.losses, rel=1e-6)
            assert off(gradients, expected.gradients[0]) < 1e-9
            assert scores == pytest.approx(their_scores, rel=1e-6)


def test_validation_is_cross_entropy_whatever_is_trained(fresh, source, make_quiet):
    """The same weights have the same loss and perplexity, beside which the box loss has a name of its own."""
    data = VLMDataModule(val=source, batch_size=3)
    found = {}
    for kind in (None, *KINDS):
        (found[kind],) = make_quiet().validate(fresh(kind), data, verbose=False)
    for kind in KINDS:
        assert found[kind].pop("val/box_loss") > 0.1
        assert found[kind] == found[None]


def test_boxes_without_weight_have_no_loss(fresh, source, batch_of):
    one = fresh("iou", token_weights=KindWeights(box=0.0))
    assert one.targets(batch_of(one, source)).numbers is None
    assert one.loss_sums(batch_of(one, source)).loss_sum > 0


def test_sampled_inputs_leave_the_right_numbers(fresh, source, make_quiet):
    """What the model reads is changed, what it should write isn't."""
    sampling = ScheduledSampling(probability=1.0, decay="constant")
    record, _ = run(make_quiet, fresh("iou"), source, 8, 1, callbacks=[sampling], max_epochs=2)
    batch = record.batches[-1]
    numbers = batch.targets.numbers
    decoded = [fresh("iou").processor.tokenizer.decode(one) for one in batch.targets.labels[numbers.places]]
    assert [float(text) for text in decoded] == numbers.values.tolist()
    behind = batch.targets.positions[numbers.places] + 1
    assert not torch.equal(batch.inputs["input_ids"].flatten()[behind], batch.targets.labels[numbers.places])


@pytest.mark.parametrize("plan", [{"head": "lora"}, {"language": "lora"}])
def test_adapters(fresh, source, make_quiet, plan):
    """A head with LoRA is called; a frozen one has no gradient, what goes into it has."""
    record, _ = run(make_quiet, fresh("iou", "llava", adapt=plan), source)
    plain, _ = run(make_quiet, fresh(None, "llava", adapt=plan), source)
    assert off(record.gradients[0], plain.gradients[0]) > 0.01


def test_half_precision(fresh, source, make_quiet, whole):
    for precision in ("bf16-mixed", "bf16-true"):
        found, _ = run(make_quiet, fresh("iou"), source, precision=precision)
        assert found.losses == pytest.approx(whole["iou"][0].losses, rel=2e-2)
        assert off(found.gradients[0], whole["iou"][0].gradients[0]) < 0.1


def test_without_a_box_it_is_said_once(fresh, make_quiet, listed, words):
    source = listed([words(), words()])
    with pytest.warns(UserWarning, match="model.box_loss does nothing: no answer so far has a box") as said:
        run(make_quiet, fresh("iou"), source, batch_size=1, max_epochs=2)
    assert sum("box_loss" in str(one.message) for one in said) == 1


def test_boxes_whose_numbers_share_a_token_are_counted(fresh, make_quiet, listed):
    """Kosmos-2 writes a corner as one token."""
    source = listed(Drawn("train", size=3, tasks=["grounding"]))
    one = fresh("iou", "kosmos-2", adapt={"language": "lora"})
    with pytest.warns(UserWarning, match="none of the 3 boxes so far can be used, for their numbers share"):
        run(make_quiet, one, source, precision="32-true")


def test_a_model_without_digits_is_refused(fresh, source, make_quiet, monkeypatch):
    monkeypatch.setattr("lightning_vlm.training.box_term.number_tokens", lambda *_: {})
    with pytest.raises(UserError, match=r"model\.box_loss: found iou, but the model has no tokens of digits"):
        run(make_quiet, fresh("iou"), source)


def test_a_checkpoint_keeps_it(fresh, tmp_path):
    one = fresh({"kind": "soft", "sigma": 2.0})
    assert one.hparams["box_loss"] == dataclasses.asdict(one.box_loss)
    assert type(one)(**one.hparams).box_loss == one.box_loss
