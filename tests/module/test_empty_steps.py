"""A step in which no token has weight is no step, and a run of nothing else stops with the reason."""

import copy
import csv
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_vlm_callbacks import AdaptiveLoRARank, GradientMonitor, GradNorm, NonFiniteGuard

from lightning_vlm import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.optim import Constant, Linear

PLAN = {"projector": "full", "language": {"lora": {"r": 4}}}
ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)


class AllState(Callback):
    """Everything that a step may change, as it is after each batch."""

    def __init__(self):
        self.after, self.metrics = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        state = {
            "weights": {name: one.detach() for name, one in module.named_parameters()},
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            "tasks": module.tasks.state(),
        }
        self.after.append(copy.deepcopy(state))
        self.metrics.append(dict(trainer.logged_metrics))


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def fit(make_trainer, module, samples, batch_size=1, callbacks=(), max_length=None, **options):
    data = VLMDataModule(train=samples, batch_size=batch_size, shuffle=False, max_length=max_length)
    state = AllState()
    trainer = make_trainer(max_epochs=1, callbacks=[*callbacks, state], **options)
    trainer.fit(module, data)
    return trainer, state


@pytest.mark.parametrize("optimizer", [ADAMW, SGD])
@pytest.mark.parametrize("task_weights", [None, "uncertainty", "inverse_initial_loss"])
def test_leaves_all_as_it_was(make_quiet, module, listed, words, optimizer, task_weights):
    samples = [words(weight=weight, task=task) for weight, task in [(1, "a"), (0, "b"), (0, "a"), (1, "b")]]
    one = module("llava", adapt=PLAN, optimizer=optimizer, schedule=Linear(), task_weights=task_weights)
    trainer, state = fit(make_quiet, one, listed(samples))
    first, second, third, last = state.after
    assert equal(first, second)
    assert equal(first, third)
    assert not equal(first["weights"], last["weights"])
    assert trainer.global_step == 4
    assert last["schedule"]["last_epoch"] == 2


def test_is_as_if_it_had_not_been(make_quiet, module, listed, words):
    kept = [words(answer="Red. " * (1 + at)) for at in range(3)]
    empty = words(weight=0.0)
    states = []
    for samples in (kept, [empty, kept[0], empty, kept[1], empty, kept[2], empty]):
        one = module("llava", adapt=PLAN, optimizer=ADAMW, schedule=Constant())
        _, state = fit(make_quiet, one, listed(samples))
        states.append(state.after[-1])
    assert equal(states[0]["weights"], states[1]["weights"])
    assert equal(states[0]["optimizer"]["state"], states[1]["optimizer"]["state"])


def test_half_empty_window_is_a_step(make_quiet, module, listed, words):
    """Accumulated over a sample with weight and one without, against the first by itself."""
    full, empty = words(), words(weight=0.0)
    after = []
    for samples, window in (([full], 1), ([full, empty], 2), ([empty, full], 2)):
        one = module("llava", adapt=PLAN, optimizer=ADAMW, schedule=Constant())
        trainer, state = fit(make_quiet, one, listed(samples), accumulate_grad_batches=window)
        assert trainer.global_step == 1
        after.append(state.after[-1]["weights"])
    for other in after[1:]:
        for name, weight in after[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_largest_weights_and_the_least(make_quiet, module, listed, words):
    """The sums of the largest stay finite, and one that float32 can't divide by is no weight."""
    tables = {"largest": KindWeights(response=1e6), "least": KindWeights(response=1e-30)}
    samples = listed([words(weight=1e6)] * 2)
    one = module("llava", adapt=PLAN, token_weights=tables["largest"], task_weights={"chat": 1e6})
    _, state = fit(make_quiet, one, samples, batch_size=2)
    assert state.metrics[-1]["train/loss"].isfinite()
    assert all(weight.isfinite().all() for weight in state.after[-1]["weights"].values())
    one = module("llava", adapt=PLAN, token_weights=tables["least"])
    with pytest.raises(UserError, match="no token of 2 samples has weight"):
        fit(make_quiet, one, listed([words(weight=1e-9)] * 2))


def test_logs_nothing(make_quiet, module, listed, words, tmp_path):
    samples = [words(weight=weight, task=task) for weight, task in [(1, "a"), (0, "b"), (1, "b")]]
    logger = CSVLogger(tmp_path)
    fit(make_quiet, module("llava", adapt=PLAN), listed(samples), logger=logger)
    with open(logger.experiment.metrics_file_path, newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert {row["step"] for row in rows} == {0, 2}
    for name, at in {"": {0, 2}, "/a": {0}, "/b": {2}}.items():
        losses = {row["step"]: row[f"train/loss{name}"] for row in rows if f"train/loss{name}" in row}
        assert losses.keys() == at
        assert all(loss > 0 for loss in losses.values())


def test_beside_callbacks_that_watch_steps(make_quiet, module, listed, words):
    """They close a window at the next step that is one, and a rank that was due changes then."""
    tasks = "ab" * 6
    samples = [words(weight=float(at not in (3, 4, 5)), task=task) for at, task in enumerate(tasks)]
    rank = AdaptiveLoRARank(start=4, every=4, until=8)
    watchers = [NonFiniteGuard(), GradientMonitor(), GradNorm(), rank]
    one = module("llava", adapt={"language": {"lora": {"r": 4}}}, clip=None)
    trainer, state = fit(make_quiet, one, listed(samples), callbacks=watchers)
    assert trainer.global_step == 12
    assert equal(state.after[2]["weights"], state.after[5]["weights"])
    assert [step for step, _ in rank._history][1:] == [7, 8]


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_resumes_among_empty_steps(make_quiet, module, listed, words, tmp_path, stop):
    """Saved before, between or behind steps that are empty, against the uninterrupted run."""
    weights = [1, 0, 1, 0, 0, 1, 1]
    samples = listed([words(answer="Red. " * (1 + at), weight=weight) for at, weight in enumerate(weights)])
    states = []
    for path in (None, tmp_path / f"epoch=0-step={stop}.ckpt"):
        one = module("llava", adapt=PLAN, optimizer=ADAMW, schedule=Linear())
        save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
        state = AllState()
        trainer = make_quiet(max_epochs=1, callbacks=[save, state], enable_checkpointing=True)
        data = VLMDataModule(train=samples, batch_size=1, shuffle=False)
        trainer.fit(one, data, ckpt_path=path)
        states.append(state.after)
    assert len(states[1]) == 7 - stop
    assert equal(states[0][stop:], states[1])


# A run that learns nothing


def test_stops_where_all_is_too_long(make_quiet, module, listed, words):
    samples = [words(question="word " * (30 + at)) for at in range(8)]
    one = module("llava", adapt=PLAN, optimizer=ADAMW)
    lengths = [len(one.processor.tokenizer("word " * count)["input_ids"]) for count in (30, 37)]
    found = "training data: all of 8 samples were skipped: 8 longer than data.max_length 20"
    with pytest.raises(UserError, match=found) as caught:
        fit(make_quiet, one, listed(samples), batch_size=2, max_length=20)
    shortest, longest = map(int, str(caught.value).partition("(")[2].partition(" tokens")[0].split(" to "))
    assert longest - shortest == lengths[1] - lengths[0]
    assert f"raise data.max_length (to {longest} for all)" in str(caught.value)


def test_stops_after_64_samples(make_quiet, module, listed, words):
    samples = [words(question="word " * 30)] * 200
    one = module("llava", adapt=PLAN)
    with pytest.raises(UserError, match="all of 64 samples were skipped: 64 longer than"):
        fit(make_quiet, one, listed(samples), batch_size=4, max_length=20)


def test_looks_ahead_where_the_first_step_is_empty(make_quiet, module, listed, words):
    """It doesn't wait for the end of a pass; and long samples in front of a sorted file don't stop it."""
    long = words(question="word " * 30)
    one = module("llava", adapt=PLAN)
    with pytest.raises(UserError, match="all of 20 samples were skipped"):
        fit(make_quiet, one, listed([long] * 20), batch_size=2, max_length=20, limit_train_batches=3)
    samples = listed([long] * 60 + [words()] * 20)
    trainer, _ = fit(make_quiet, one, samples, batch_size=2, max_length=60, limit_train_batches=35)
    assert trainer.global_step == 35


def test_a_fit_stops_where_nearly_all_samples_are_skipped(make_quiet, module, listed, words):
    samples = [words(question="word " * 30)] * 9 + [words()]
    one = module("llava", adapt=PLAN)
    with pytest.raises(UserError, match="9 of 10 samples were skipped: 9 longer than"):
        fit(make_quiet, one, listed(samples), batch_size=2, max_length=60)


def test_stops_where_nothing_has_weight(make_quiet, module, listed, words):
    one = module("llava", adapt=PLAN)
    with pytest.raises(UserError, match="no token of 4 samples has weight; expected answers of weight above"):
        fit(make_quiet, one, listed([words(weight=0.0)] * 4))


def test_the_end_of_a_fit_says_how_many_samples_were_skipped(make_quiet, module, listed, words):
    samples = [words(question="word " * 30)] * 2 + [words()] * 2
    one = module("llava", adapt=PLAN)
    with pytest.warns(UserWarning, match=r"Of 4 training samples 2 \(50%\) were skipped: 2 longer than"):
        fit(make_quiet, one, listed(samples), max_length=60)


def test_validation_of_nothing_is_not_a_loss(make_quiet, module, listed, words):
    one = module("llava", adapt=PLAN)
    data = VLMDataModule(val=listed([words(question="word " * 30)] * 3), batch_size=2, max_length=20)
    trainer = make_quiet()
    found = r"val/loss isn't logged, for nothing could be scored: all of 3 samples .* 3 longer than"
    with pytest.warns(UserWarning, match=found):
        assert trainer.validate(one, data, verbose=False) == [{}]


# Ranks


def test_ranks_agree(make_quiet, module, listed, words, on_two_ranks):
    """A step is empty if it is so on all ranks; and all stop with one message, though only one counts bad."""
    full, empty, long = words(), words(weight=0.0), words(question="word " * 30)
    samples = {
        "steps": listed([full, full, empty, full, empty, empty, full, empty]),
        "stops": listed([long, empty] * 2),
    }

    def on_rank():
        found = {}
        for name, some in samples.items():
            made = module("llava", adapt={"projector": "full"}, optimizer=ADAMW)
            try:
                _, state = fit(make_quiet, made, some, max_length=60, devices=2, strategy="ddp")
                found[name] = [step["weights"] for step in state.after]
            except UserError as error:
                found[name] = str(error)
        return found

    ranks = on_two_ranks(on_rank)
    assert equal(ranks[0]["steps"], ranks[1]["steps"])
    first, second, third, last = ranks[0]["steps"]
    assert not equal(first, second)
    assert equal(second, third)
    assert not equal(third, last)
    assert ranks[0]["stops"] == ranks[1]["stops"]
    found = "training data: 2 of 4 samples were skipped: 2 longer than data.max_length 60 ("
    assert ranks[0]["stops"].startswith(found)
    assert ", and no token of the others has weight" in ranks[0]["stops"]
