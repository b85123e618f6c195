import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from lightning_vlm.errors import UserError
from lightning_vlm.optim import Constant, Cosine, Linear, Schedule, ThreePhase, lr_lambda


def rates(steps, scheduler, learning_rate=1.0):
    """The rate that each step of a real optimizer runs with, and the scheduler when it is over."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    scheduler = scheduler(optimizer)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen, scheduler


def ours(schedule, total_steps):
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda(schedule, total_steps))


@pytest.mark.parametrize(
    ("schedule", "theirs"),
    [(Cosine, get_cosine_schedule_with_warmup), (Linear, get_linear_schedule_with_warmup)],
)
@pytest.mark.parametrize(("steps", "warmup_steps"), [(40, 10), (50, 0), (3, 1), (1, 0)])
def test_the_shape_is_that_of_transformers(schedule, theirs, steps, warmup_steps):
    # They take the rate at the start of a step. On a grid twice as fine, each second value of theirs is ours,
    # at the middle.
    fine, _ = rates(2 * steps, lambda optimizer: theirs(optimizer, 2 * warmup_steps, 2 * steps))
    seen, _ = rates(steps, ours(schedule(warmup=warmup_steps / steps), steps))
    assert seen == pytest.approx(fine[1::2], rel=1e-12, abs=1e-12)


def test_warm_up_then_constant():
    seen, _ = rates(20, ours(Constant(warmup=0.2), 20), learning_rate=8.0)
    assert seen == pytest.approx([1, 3, 5, 7] + [8] * 16)
    assert {Constant()(step / 10) for step in range(11)} == {1.0}


def test_cosine_with_a_floor_is_that_of_torch():
    def theirs(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)

    seen, _ = rates(100, theirs)
    assert [Cosine(floor=0.1)(step / 100) for step in range(100)] == pytest.approx(seen, rel=1e-9)


def test_the_three_phases_by_hand():
    schedule = ThreePhase(warmup=0.1, refinement=0.4)
    for progress, rate in [(0, 1e-6), (0.05, 1.005e-4), (0.1, 2e-4), (0.3, 2e-4), (0.6, 2e-4), (1, 1e-5)]:
        assert 2e-4 * schedule(progress) == pytest.approx(rate, rel=1e-12)
    # the warm-up is a straight line, the refinement half a cosine between the two rates
    assert 2e-4 * schedule(0.8) == pytest.approx((2e-4 + 1e-5) / 2)
    assert 2e-4 * schedule(0.7) == pytest.approx(1e-5 + (2e-4 - 1e-5) * (1 + math.cos(math.pi / 4)) / 2)
    seen, _ = rates(1000, ours(schedule, 1000), learning_rate=2e-4)
    assert seen.count(2e-4) == 500
    assert seen[0] == pytest.approx(2e-6, rel=0.01)
    assert seen[-1] == pytest.approx(1e-5, rel=1e-4)


def test_phases_of_the_three_may_be_empty_or_meet():
    assert ThreePhase(warmup=0, refinement=0)(0) == ThreePhase(warmup=0, refinement=0)(1) == 1
    assert ThreePhase(warmup=0.7, refinement=0.3)(0.7) == pytest.approx(1)
    everything = ThreePhase(warmup=0, refinement=1, floor=0)
    assert [everything(p / 9) for p in range(10)] == pytest.approx([Cosine()(p / 9) for p in range(10)])


fractions = st.floats(0, 1)
schedules = st.one_of(
    st.builds(Constant, warmup=st.floats(0, 0.99)),
    st.builds(Linear, warmup=st.floats(0, 0.99), floor=fractions),
    st.builds(Cosine, warmup=st.floats(0, 0.99), floor=fractions),
    st.builds(
        ThreePhase, warmup=st.floats(0, 0.5), refinement=st.floats(0, 0.5), start=fractions, floor=fractions
    ),
)


@given(schedules, fractions, fractions)
def test_up_during_the_warm_up_and_down_after_it(schedule, first, second):
    first, second = sorted([first, second])
    before, after = schedule(first), schedule(second)
    assert 0 <= before <= 1 + 1e-12
    assert 0 <= after <= 1 + 1e-12
    if second < schedule.warmup:
        assert before <= after + 1e-12
    if first >= schedule.warmup:
        assert before >= after - 1e-12


@given(schedules, st.floats(1, 1e6), st.floats(-1e6, 0))
def test_outside_of_training_the_ends_hold(schedule, late, early):
    assert schedule(late) == schedule(1)
    assert schedule(early) == schedule(0)


@given(schedules, st.integers(1, 5000))
def test_no_step_is_wasted(schedule, total_steps):
    factor = lr_lambda(schedule, total_steps)
    assert factor(0) > 0
    assert factor(total_steps - 1) > 0
    assert factor(total_steps) == factor(10 * total_steps) == schedule(1)


def test_the_state_of_the_scheduler_loads_safely_and_resumes(tmp_path):
    whole, _ = rates(20, ours(Cosine(warmup=0.1), 20))
    _, half = rates(10, ours(Cosine(warmup=0.1), 20))
    torch.save(half.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    resumed = ours(Cosine(warmup=0.1), 20)(optimizer)
    resumed.load_state_dict(state)
    seen = []
    for _ in range(10):
        seen.append(resumed.get_last_lr()[0])
        optimizer.step()
        resumed.step()
    assert seen == whole[10:]


@pytest.mark.parametrize(
    ("schedule", "arguments", "message"),
    [
        (Cosine, {"warmup": 100}, r"Cosine: found warmup=100; expected a fraction"),
        (Cosine, {"warmup": 1.0}, r"Cosine: found warmup=1, .* less than 1"),
        (Constant, {"warmup": -0.1}, r"Constant: found warmup=-0\.1"),
        (Linear, {"floor": math.nan}, r"Linear: found floor=nan"),
        (ThreePhase, {"start": 1.5}, r"ThreePhase: found start=1\.5"),
        (ThreePhase, {"warmup": 0.6, "refinement": 0.5}, r"warmup=0\.6 and refinement=0\.5; .* at most 1"),
    ],
)
def test_arguments_out_of_range_are_refused(schedule, arguments, message):
    with pytest.raises(UserError, match=message):
        schedule(**arguments)


@pytest.mark.parametrize("total_steps", [0, -1, math.inf])
def test_a_schedule_needs_a_length(total_steps):
    with pytest.raises(UserError, match="max_steps or max_epochs"):
        lr_lambda(Cosine(), total_steps)


@pytest.mark.parametrize("name", ["Cosine", "lightning_vlm.optim.Cosine"])
def test_on_the_command_line(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule, default=Constant())
    written = {"schedule": {"class_path": name, "init_args": {"warmup": 0.03}}}
    config = parser.parse_object(written)
    assert config.schedule.class_path == "lightning_vlm.optim.Cosine"
    assert parser.instantiate_classes(config).schedule == Cosine(warmup=0.03)
    config = parser.parse_args([f"--schedule={name}", "--schedule.floor=0.1"])
    assert parser.instantiate_classes(config).schedule == Cosine(floor=0.1)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cosine().floor = 0.5
