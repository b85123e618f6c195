"""TrainerSchedule against the schedule that transformers' Trainer makes."""

import pytest
import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainingArguments

from lightning_vlm.errors import UserError
from lightning_vlm.optim import TrainerSchedule, lr_lambda

RATE, STEPS = 3e-4, 23
CASES = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"lr_end": 1e-5, "power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 5},
}
"""Each kind of transformers, and arguments for it."""


def test_every_kind_is_tried():
    assert {kind.value for kind in SchedulerType} == {*CASES, "reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize("warmup", [0, 0.1, 4])
@pytest.mark.parametrize("kind", CASES)
def test_each_step_has_the_rate_of_the_trainer(kind, warmup, tmp_path):
    arguments = CASES[kind]
    model = nn.Linear(1, 1)
    given = TrainingArguments(
        str(tmp_path),
        learning_rate=RATE,
        lr_scheduler_type=kind,
        lr_scheduler_kwargs=dict(arguments),
        warmup_steps=warmup,
        use_cpu=True,
    )
    trainer = Trainer(model, given)
    trainer.create_optimizer_and_scheduler(STEPS)
    rates = []
    for _ in range(STEPS):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    shares = {key: value / RATE if key == "lr_end" else value for key, value in arguments.items()}
    factor = lr_lambda(TrainerSchedule(kind, warmup, shares), STEPS)
    assert [RATE * factor(step) for step in range(STEPS)] == pytest.approx(rates, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"kind": "cosin"}, "did you mean cosine"),
        ({"kind": "reduce_lr_on_plateau"}, "follows a score"),
        ({"warmup": -1}, "steps or a share"),
        ({"kind": "cosine_with_min_lr", "arguments": {"min_lr": 1e-6}}, "min_lr_rate"),
        ({"arguments": {"cycles": 2}}, "can't have the arguments"),
    ],
)
def test_what_it_refuses(words, expected):
    with pytest.raises(UserError, match=expected):
        TrainerSchedule(**words)


def test_it_can_be_saved_with_a_scheduler():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda(TrainerSchedule(), 5))
    assert scheduler.state_dict()["lr_lambdas"] == [None]
