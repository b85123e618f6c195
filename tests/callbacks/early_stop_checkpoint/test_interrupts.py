"""A run that is interrupted anywhere is saved after its last whole step, and resumes as if it hadn't been."""

import os
import random
import signal

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning_vlm_callbacks import EarlyStopCheckpoint

from tests.support.checkpoints import assert_same, plateau, tensors_and_numbers


class At(Callback):
    """Does something at the n-th call of a hook, after training has begun."""

    def __init__(self, hook, call, action):
        self.left, self.action = call, action
        setattr(self, hook, self.hook)

    def hook(self, trainer, *_, **__):
        if trainer.training or trainer.validating:
            self.left -= 1
            if self.left == 0:
                self.action()


def fail():
    raise RuntimeError("the user's code")


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


RAISES = {fail: RuntimeError, terminate: SIGTERMException, interrupt: SystemExit}


class Constant(Callback):
    """The plateau schedule steps after each batch, before the first validation."""

    def on_train_start(self, trainer, module):
        trainer.callback_metrics.setdefault("val/loss", torch.tensor(3.0))


@pytest.fixture(autouse=True)
def default_ctrl_c():
    """A shell starts processes in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(digits, classifier, make_trainer, tmp_path):
    """A run of the digits project with accumulation, validation inside and at the end of an epoch, BatchNorm,
    dropout and a plateau schedule: its weights, optimizer state and schedule at the end."""

    def fit(
        name,
        *callbacks,
        ckpt_path=None,
        chance=None,
        save_on_exit=True,
        optimizer=None,
        action=None,
        **options,
    ):
        keep = EarlyStopCheckpoint(
            "val/loss",
            every_n_epochs=None,
            dirpath=str(tmp_path / name),
            save_on_exit=save_on_exit,
        )
        options = {"max_epochs": 3, "accumulate_grad_batches": 2, "val_check_interval": 4, **options}
        trainer = make_trainer(
            callbacks=[Constant(), *callbacks, keep], enable_checkpointing=True, logger=False, **options
        )
        module = classifier(dropout=0.3, schedule=plateau, interval="step")
        if optimizer is not None:
            module.optimizer = lambda parameters: optimizer(parameters, lr=0.1)
            optimizer.action = staticmethod(action)
        if chance is not None:
            torch.manual_seed(chance)
            random.seed(chance)
        trainer.fit(module, digits.Digits(size=112), ckpt_path=ckpt_path, weights_only=True)
        (schedule,) = trainer.lr_scheduler_configs
        return {
            **{name: value.clone() for name, value in module.state_dict().items()},
            **tensors_and_numbers(trainer.optimizers[0].state_dict()),
            **tensors_and_numbers(schedule.scheduler.state_dict()),
            "best": keep.best_model_score,
            "waited": keep.state_dict()["waited"],
            "loggers": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }

    return fit


# An epoch has 7 batches in 4 steps, and is validated (2 batches) after its 4th batch, or at its end.
MOMENTS = [
    (fail, "on_train_batch_start", 6),  # inside a window
    (fail, "on_after_backward", 12),
    (fail, "on_train_batch_end", 8),  # of another callback, the step is made
    (fail, "on_validation_batch_start", 2),
    (fail, "on_validation_end", 1),
    (fail, "on_train_epoch_end", 2),
    (fail, "on_train_epoch_start", 3),
    (terminate, "on_train_batch_start", 10),
    (terminate, "on_validation_batch_start", 1),
    (terminate, "on_train_epoch_end", 1),
    (interrupt, "on_before_backward", 4),
    (interrupt, "on_before_optimizer_step", 6),
]


WHOLE = {}


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(("action", "hook", "call"), MOMENTS)
def test_interrupted_anywhere(run, tmp_path, action, hook, call, at_end):
    options = {"val_check_interval": 1.0 if at_end else 4}
    if at_end not in WHOLE:
        WHOLE[at_end] = run("whole", **options)
    with pytest.raises(RAISES[action]):
        run("run", At(hook, call, action), **options)
    torch.load(tmp_path / "run/latest.ckpt", weights_only=True)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(WHOLE[at_end], run("run", ckpt_path="last", chance=5, **options))
    assert not list((tmp_path / "run").glob(".unfinished-*"))


class InTheStep(torch.optim.SGD):
    """An optimizer that fails, or gets a signal, when it has changed half of the weights."""

    def step(self, closure=None):
        loss = closure()
        self.steps = getattr(self, "steps", 0) + 1
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            if number == 3 and self.steps == 4:
                self.action()
            if parameter.grad is not None:
                parameter.data -= 0.1 * parameter.grad
        return loss


def test_never_in_the_middle_of_a_step(run, tmp_path):
    """A signal waits until the step is whole. An exception leaves weights that are no state of any run."""
    whole = run("whole", optimizer=InTheStep, action=lambda: None)
    with pytest.raises(SIGTERMException):
        run("signal", optimizer=InTheStep, action=terminate)
    assert torch.load(tmp_path / "signal/latest.ckpt", weights_only=True)["global_step"] == 4
    resumed = run("signal", ckpt_path="last", chance=5, optimizer=InTheStep, action=lambda: None)
    assert_same(whole, resumed)
    with (
        pytest.raises(RuntimeError, match="the user's code"),
        pytest.warns(UserWarning, match="RuntimeError struck in the middle of an optimizer step"),
    ):
        run("fails", optimizer=InTheStep, action=fail, val_check_interval=1.0)
    assert not list(tmp_path.glob("fails/*"))


def test_nothing_is_saved_where_nothing_is_new_or_asked_for(run, tmp_path):
    for options in ({"save_on_exit": False}, {"call": 1}):
        call = options.pop("call", 6)
        with pytest.raises(RuntimeError):
            run("run", At("on_train_batch_start", call, fail), val_check_interval=1.0, **options)
        assert not list(tmp_path.glob("run/*"))


def test_a_second_ctrl_c_stops_at_once(run, tmp_path):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(SystemExit):
        run("run", At("on_train_batch_start", 6, twice), val_check_interval=1.0)
    assert not list(tmp_path.glob("run/*"))


def test_other_handlers_stay(run, tmp_path):
    """A handler of the user's for SIGTERM is called too, and one for SIGINT isn't replaced."""
    called = []
    before = signal.signal(signal.SIGTERM, lambda *_: called.append("term"))
    ours = signal.signal(signal.SIGINT, lambda *_: called.append("int"))
    try:
        with pytest.raises(SIGTERMException):
            run("run", At("on_train_batch_start", 4, interrupt), At("on_train_batch_start", 6, terminate))
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ours)
    assert called == ["int", "term"]


def test_slurm_requeues_at_a_whole_step(run, tmp_path, monkeypatch):
    """Lightning's handler of SIGUSR1 saves in the middle of a step; here it waits for the next whole one."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "77"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = {"default_root_dir": str(tmp_path / "root"), "plugins": [SLURMEnvironment()]}
    whole = run("whole", **options)

    def requeue():
        os.kill(os.getpid(), signal.SIGUSR1)

    with pytest.raises(SIGTERMException):
        run(
            "run",
            At("on_train_batch_start", 4, requeue),
            At("on_train_batch_start", 9, terminate),
            **options,
        )
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"
    assert (tmp_path / "run/.slurm-job").read_text() == "77"
    hpc = torch.load(tmp_path / "root/hpc_ckpt_1.ckpt", weights_only=True)
    assert hpc["global_step"] == 2
    assert_same(whole, run("hpc", chance=5, **options))  # as Lightning resumes by itself
    os.remove(tmp_path / "root/hpc_ckpt_1.ckpt")
    assert_same(whole, run("run", ckpt_path="last", chance=6, **options))


def test_a_signal_to_one_of_two_ranks(run, tmp_path, on_two_ranks):
    """Both leave after the same step, or after the validation that is under way, and resume as one run."""
    ranks = {"devices": 2, "strategy": "ddp", "max_epochs": 2, "use_distributed_sampler": False}

    def one():
        torch.set_num_threads(1)
        rank = int(os.environ["LOCAL_RANK"])
        whole = run("whole", **ranks)
        for hook, call, sender in (("on_before_backward", 2, 1), ("on_validation_batch_start", 1, 0)):
            at = At(hook, call if rank == sender else 10**6, terminate)
            name = f"run-{hook}"
            with pytest.raises(SIGTERMException):
                run(name, at, **ranks)
            assert_same(whole, run(name, ckpt_path="last", chance=rank, **ranks))
        with pytest.raises(RuntimeError):
            run("fails", At("on_before_backward", 3, fail), **ranks)
        return {"saved": os.path.exists(tmp_path / "fails/latest.ckpt")}

    assert on_two_ranks(one) == [{"saved": False}] * 2
