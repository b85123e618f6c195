"""Best, latest and periodic checkpoints, stopping, exact resume, and what is left when a machine dies."""

import multiprocessing
import os
import random
import resource
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.plugins.io import torch_io
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint
from lightning_vlm_callbacks.stop_rule import Rule, Standing, decide


def everything_of(trainer, module):
    """Weights, statistics, optimizer and schedules after a run."""
    state = {"model": module.state_dict(), "optimizers": [one.state_dict() for one in trainer.optimizers]}
    state["schedules"] = [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs]
    return tensors_and_numbers(state)


def tensors_and_numbers(value, path=""):
    if isinstance(value, dict):
        return {
            k: v for key, one in value.items() for k, v in tensors_and_numbers(one, f"{path}/{key}").items()
        }
    if isinstance(value, list | tuple):
        return tensors_and_numbers(dict(enumerate(value)), path)
    return {path: value.clone() if isinstance(value, torch.Tensor) else value}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


@pytest.fixture
def run(digits, classifier, make_trainer, tmp_path):
    """A run of the digits project: its end, its Trainer and its callback."""

    def fit(
        name="run", ckpt_path=None, callbacks=(), data=None, module=None, chance=0, trainer=None, **options
    ):
        options = {"monitor": "val/loss", "dirpath": str(tmp_path / name), **options}
        keep = EarlyStopCheckpoint(**options)
        given = {"max_epochs": 3, **(trainer or {})}
        made = make_trainer(callbacks=[*callbacks, keep], enable_checkpointing=True, **given)
        data = digits.Digits(**{"size": 128, **(data or {})})
        one = classifier(**{"dropout": 0.3, **(module or {})})
        if chance:  # chance stands elsewhere in a new process
            torch.manual_seed(chance)
            random.seed(chance)
        made.fit(one, data, ckpt_path=ckpt_path, weights_only=True)
        return everything_of(made, one), made, keep

    return fit


def plateau(optimizer):
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
    return schedule(optimizer, patience=0, factor=0.5, threshold=0.2)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=30)


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize(
    "limit",
    [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 32}, {"max_epochs": 4, "max_steps": 28}],
    ids=str,
)
@pytest.mark.parametrize("schedule", [None, "plateau"])
def test_epoch_end(run, tmp_path, stateful, limit, schedule):
    options = {"data": {"stateful": stateful}, "trainer": limit, "keep_periodic": None}
    if schedule:
        options["module"] = {"schedule": plateau, "interval": "epoch"}
    whole, trainer, _ = run("whole", **options)
    for step in (8, 16):
        resumed, other, _ = run(
            f"resumed-{step}", ckpt_path=tmp_path / "whole" / f"step-{step:08d}.ckpt", chance=5, **options
        )
        assert_same(whole, resumed)
        assert other.current_epoch == trainer.current_epoch


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 20}], ids=str)
@pytest.mark.parametrize("schedule", [None, "plateau", "onecycle"])
def test_mid_epoch(run, tmp_path, limit, schedule, accumulate):
    options = {
        "trainer": {**limit, "accumulate_grad_batches": accumulate},
        "keep_periodic": None,
        "every_n_steps": 1,
        "data": {"size": 112 if accumulate == 1 else 160},
    }
    options["trainer"]["val_check_interval"] = 3
    if schedule:
        options["module"] = {
            "schedule": {"plateau": plateau, "onecycle": one_cycle}[schedule],
            "interval": "step",
        }
    if schedule == "plateau":
        options["trainer"]["num_sanity_val_steps"] = 0
        options["callbacks"] = [Constant()]
    whole, _, keep = run("whole", **options)
    files = sorted((tmp_path / "whole").glob("step-*.ckpt"))
    for file in files[1:9:2]:
        resumed, _, other = run(f"resumed-{file.stem}", ckpt_path=file, chance=5, **options)
        assert_same(whole, resumed)
        # No validation was left out, nor made twice.
        states = keep.state_dict(), other.state_dict()
        assert states[0]["best"] == states[1]["best"]
        assert states[0]["waited"] == states[1]["waited"]


@pytest.mark.parametrize("epochs", [-1, 3])
def test_stopped_inside_an_epoch(run, tmp_path, epochs):
    """A run that is given more steps goes on in the epoch in which it stopped."""
    options = {"monitor": None, "every_n_epochs": None}
    whole, trainer, _ = run("whole", trainer={"max_epochs": epochs, "max_steps": 20}, **options)
    run("stopped", trainer={"max_epochs": epochs, "max_steps": 11}, **options)
    resumed, other, _ = run(
        "resumed",
        ckpt_path=tmp_path / "stopped/latest.ckpt",
        chance=5,
        trainer={"max_epochs": epochs, "max_steps": 20},
        **options,
    )
    assert_same(whole, resumed)
    assert other.current_epoch == trainer.current_epoch
    assert other.fit_loop.epoch_progress == trainer.fit_loop.epoch_progress


class Constant(Callback):
    """Plateau schedules want their metric at once."""

    def on_train_batch_start(self, trainer, module, *_):
        if "val/loss" not in trainer.callback_metrics:
            trainer.callback_metrics["val/loss"] = torch.tensor(5.0)


def test_bfloat16(run, tmp_path):
    options = {"trainer": {"precision": "bf16-mixed"}, "every_n_steps": 3, "keep_periodic": None}
    whole, *_ = run("whole", **options)
    resumed, *_ = run("resumed", ckpt_path=tmp_path / "whole/step-00000012.ckpt", chance=5, **options)
    assert_same(whole, resumed)


# The decision


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(st.integers(-8, 8).map(lambda one: one / 4), min_size=1, max_size=20),
    patience=st.integers(1, 4),
    delta=st.sampled_from([0.0, 0.25, 1.0]),
    mode=st.sampled_from(["min", "max"]),
)
def test_decides_as_lightning_does(scores, patience, delta, mode):
    """On finite scores: the same best score, the same stop."""
    theirs = EarlyStopping("x", min_delta=delta, patience=patience, mode=mode)
    standing = Standing()
    for score in scores:
        should_stop, _ = theirs._evaluate_stopping_criteria(torch.tensor(score))
        decision = decide(Rule(mode, delta, patience), standing, score)
        standing = decision.standing
        assert decision.should_stop == should_stop
        assert standing.best == theirs.best_score.item()
        assert decision.is_best == (standing.waited == 0)
        if should_stop:
            assert f"the last is {score:g}" in decision.reason
            return


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_numbers(bad):
    """The seed's best score would stay NaN for ever."""
    standing = Standing()
    for score, best in ((bad, None), (3.0, 3.0), (bad, 3.0), (2.0, 2.0)):
        decision = decide(Rule(patience=2), standing, score)
        standing = decision.standing
        assert standing.best == best
        assert decision.is_best == (score == best)
        assert not decision.should_stop


# What is kept


class Scores(Callback):
    """Validation says what it is told to."""

    def __init__(self, scores):
        self.scores = scores

    def on_validation_epoch_end(self, trainer, module):
        at = trainer.current_epoch if not isinstance(self.scores, dict) else trainer.global_step
        module.log("score", torch.tensor(float(self.scores[at])), sync_dist=True)


def names_in(folder):
    return sorted(one.name for one in folder.iterdir() if one.name.startswith("step"))


def test_best_latest_and_periodic(run, tmp_path):
    """8 steps an epoch; the best is that of the second epoch and is never deleted."""
    *_, keep = run(
        callbacks=[Scores([3, 1, 2, 2, 2])], monitor="score", keep_periodic=2, trainer={"max_epochs": 5}
    )
    folder = tmp_path / "run"
    assert names_in(folder) == [f"step-{step:08d}.ckpt" for step in (16, 32, 40)]
    assert os.readlink(folder / "best.ckpt") == "step-00000016.ckpt"
    assert os.readlink(folder / "latest.ckpt") == "step-00000040.ckpt"
    assert keep.best_model_path == str(folder / "step-00000016.ckpt")
    assert keep.last_model_path == str(folder / "step-00000040.ckpt")
    assert keep.best_model_score == 1
    assert not [one.name for one in folder.iterdir() if one.name.startswith(".")]


def test_best_has_the_weights_that_were_validated(run, tmp_path, digits, classifier, make_trainer):
    *_, trainer, keep = run(every_n_epochs=None, module={"dropout": 0.0}, trainer={"max_epochs": 4})
    (scores,) = make_trainer(enable_checkpointing=True, callbacks=[keep]).validate(
        classifier(), digits.Digits(), ckpt_path=tmp_path / "run/best.ckpt", verbose=False
    )
    assert scores["val/loss"] == pytest.approx(keep.best_model_score, rel=1e-6)
    (again,) = trainer.validate(datamodule=digits.Digits(), ckpt_path="best", verbose=False)
    assert again == scores


def test_every_n_epochs_and_steps(run, tmp_path):
    run(monitor=None, every_n_epochs=2, keep_periodic=None, trainer={"max_epochs": 5})
    assert names_in(tmp_path / "run") == [f"step-{step:08d}.ckpt" for step in (16, 32, 40)]
    assert not (tmp_path / "run/best.ckpt").exists()
    run("steps", monitor=None, every_n_epochs=None, every_n_steps=5, keep_periodic=None)
    assert names_in(tmp_path / "steps") == [f"step-{step:08d}.ckpt" for step in (5, 10, 15, 20, 24)]


def test_what_others_left_stays(run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("notes.txt", "step-00000008.ckpt", "step-8.ckpt", ".unfinished-step-00000004.ckpt"):
        (folder / name).write_text("another's")
    with pytest.warns(UserWarning, match=r"another run's checkpoints were moved to .*previous-1"):
        run(every_n_steps=1, trainer={"max_epochs": 1})
    assert (folder / "notes.txt").read_text() == (folder / "step-8.ckpt").read_text() == "another's"
    assert (folder / "previous-1/step-00000008.ckpt").read_text() == "another's"
    assert not (folder / ".unfinished-step-00000004.ckpt").exists()


def test_two_in_one_run(run, tmp_path):
    other = EarlyStopCheckpoint("val/accuracy", mode="max", dirpath=str(tmp_path / "other"))
    run(callbacks=[other])
    assert (tmp_path / "other/best.ckpt").exists()
    assert (tmp_path / "run/best.ckpt").exists()
    other = EarlyStopCheckpoint("val/accuracy", mode="max", dirpath=str(tmp_path / "run"))
    with pytest.raises(MisconfigurationException, match="two EarlyStopCheckpoint with one folder"):
        run(callbacks=[other])


# Stopping


def test_stops_and_goes_on(run, tmp_path):
    """The wait is counted on when resumed, and the patience given then is the one in force."""
    scores, options = [3, 2, 2, 2, 2, 2, 2, 2], {"monitor": "score", "keep_periodic": None}
    options["trainer"] = {"max_epochs": 8}
    _, trainer, keep = run("whole", callbacks=[Scores(scores)], patience=3, **options)
    assert trainer.current_epoch == 5
    assert trainer.should_stop
    assert keep.best_model_score == 2
    file = tmp_path / "whole/step-00000024.ckpt"  # has waited for one
    for patience, epochs in ((3, 5), (2, 4), (None, 8)):
        _, trainer, _ = run(
            f"patience-{patience}", callbacks=[Scores(scores)], patience=patience, ckpt_path=file, **options
        )
        assert trainer.current_epoch == epochs


def test_another_metric_on_resume(run, tmp_path):
    run("whole", callbacks=[Scores([3, 2, 1])], monitor="score")
    with pytest.warns(UserWarning, match=r"judged by score \(min\), now it is val/accuracy \(max\)"):
        _, _, keep = run(
            "resumed",
            monitor="val/accuracy",
            mode="max",
            ckpt_path=tmp_path / "whole/latest.ckpt",
            trainer={"max_epochs": 4},
        )
    assert 0 < keep.best_model_score <= 1


def test_a_metric_that_is_missing(run):
    with pytest.raises(MisconfigurationException, match=r"found no metric 'val/los'.*val/accuracy, val/loss"):
        run(monitor="val/los")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mean"}, "found mode 'mean'; expected 'min' or 'max'"),
        ({"monitor": None, "patience": 2}, "found patience 2 without a metric"),
        ({"every_n_steps": 0}, "found every_n_steps 0; expected at least 1"),
        ({"keep_periodic": -1}, "found keep_periodic -1"),
        ({"dirpath": "s3://bucket/run"}, "expected a folder on a local or shared disk"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        EarlyStopCheckpoint(**options)


def test_loaders_that_forget_where_they_are(run):
    with pytest.warns(UserWarning, match="DataLoader, which can't resume inside one exactly"):
        run(every_n_steps=3, data={"stateful": False}, trainer={"max_epochs": 1})


def test_fast_dev_run_writes_nothing(run, tmp_path):
    run(trainer={"fast_dev_run": True})
    assert not (tmp_path / "run").exists()


# When the machine dies


def _killed(fit, at):
    """In a process of its own: die at the `at`-th thing that is done on the disk."""
    done = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    def half(checkpoint, file):
        nonlocal done
        done += 1
        if done == at:
            file = str(file)
            whole(checkpoint, file)
            with open(file, "r+b") as half_written:
                half_written.truncate(os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        whole(checkpoint, file)

    whole, torch_io._atomic_save = torch_io._atomic_save, half
    for name in ("fsync", "replace", "symlink", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    fit()
    os._exit(7)


def test_killed_at_any_moment(run, tmp_path):
    """`latest` is whole, and going on from it ends as the run that was never killed."""
    torch.set_num_threads(1)
    options = {"every_n_steps": 3, "trainer": {"max_epochs": 2}}
    whole, *_ = run("whole", **options)
    fork, points = multiprocessing.get_context("fork"), (18, 20, 22, 24, 25, 27, 31, 34, 37, 43)
    processes = {}
    for at in points:
        name = f"killed-{at}"
        processes[at] = fork.Process(target=_killed, args=(lambda name=name: run(name, **options), at))
        processes[at].start()
        processes[at].join(60)
        assert processes[at].exitcode == -signal.SIGKILL, f"nothing was done for the {at}th time"
        folder = tmp_path / name
        steps = {
            link: torch.load(folder / f"{link}.ckpt", weights_only=True)["global_step"]
            for link in ("latest", "best")
            if os.path.lexists(folder / f"{link}.ckpt")
        }
        assert steps["latest"] >= 3
        for file in folder.glob("step-*.ckpt"):
            torch.load(file, weights_only=True)
        resumed, *_ = run(name, ckpt_path=folder / "latest.ckpt", chance=at, **options)
        assert_same(whole, resumed)
        assert not list(folder.glob(".unfinished-*"))


def test_disk_full(run, tmp_path):
    """The system itself refuses to write more than 2 KiB to a file."""

    class Full(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            self.trainer = trainer
            if trainer.global_step == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))

    full = Full()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(
            MisconfigurationException, match=r"could not save step 6 in .*: .*large.*are whole"
        ):
            run(callbacks=[full], every_n_steps=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(tmp_path / "run/latest.ckpt", weights_only=True)["global_step"] == 3
    assert full.trainer.checkpoint_callback.last_model_path == str(tmp_path / "run/step-00000003.ckpt")
    assert names_in(tmp_path / "run") == ["step-00000003.ckpt"]
    assert not list((tmp_path / "run").glob(".unfinished-*"))


# History


# Ranks


def _on_rank(run, tmp_path):
    options = {
        "data": {"stateful": False, "size": 96},
        "trainer": {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2},
        "keep_periodic": None,
    }
    whole, trainer, _ = run("whole", callbacks=[OwnChance()], **options)
    files = sorted((tmp_path / "whole").glob("step-*.ckpt"))
    resumed, *_ = run("resumed", ckpt_path=files[0], chance=100 + trainer.global_rank, **options)
    states = torch.load(files[0], weights_only=True)["callbacks"]
    ranks = next(value["ranks"] for key, value in states.items() if key.startswith("EarlyStopCheckpoint"))
    apart = not torch.equal(ranks[0]["random"]["torch"], ranks[1]["random"]["torch"])
    return {"whole": whole, "resumed": resumed, "apart": apart, "epochs": trainer.current_epoch}


class OwnChance(Callback):
    """Dropout of its own on each rank."""

    def on_train_start(self, trainer, module):
        torch.manual_seed(trainer.global_rank)


def test_two_ranks(on_two_ranks, run, tmp_path):
    ranks = on_two_ranks(_on_rank, run, tmp_path)
    for rank in ranks:
        assert_same(rank["whole"], rank["resumed"])
        assert rank["apart"]
        assert rank["epochs"] == 3
    for name, value in ranks[0]["whole"].items():
        if name.startswith("/model") and "running" not in name and "num_batches" not in name:
            assert torch.equal(value, ranks[1]["whole"][name]), name


def _stops_on_rank(run, tmp_path):
    class Disagree(Callback):
        """Better and better for rank 0, worse and worse for rank 1: in the mean always the same."""

        def on_validation_epoch_end(self, trainer, module):
            way = (-1, 1)[trainer.global_rank]
            module.log("score", torch.tensor(float(way * trainer.current_epoch)))

    _, trainer, keep = run(
        callbacks=[Disagree()],
        monitor="score",
        patience=2,
        data={"stateful": False},
        trainer={"max_epochs": 6, "devices": 2, "strategy": "ddp"},
    )
    return {"epochs": trainer.current_epoch, "best": keep.best_model_score}


def test_ranks_stop_together(on_two_ranks, run, tmp_path):
    assert on_two_ranks(_stops_on_rank, run, tmp_path) == [{"epochs": 3, "best": 0.0}] * 2


class Sharded(LightningModule):
    """A model whose weights lie half here, half there."""

    def configure_model(self):
        if hasattr(self, "net"):
            return
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
        for layer in self.net:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])
        self.log("val/loss", loss, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _sharded_on_rank(digits, make_trainer, tmp_path):
    def fit(name, ckpt_path=None):
        keep = EarlyStopCheckpoint("val/loss", dirpath=str(tmp_path / name), keep_periodic=None)
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
        trainer = make_trainer(
            max_epochs=3, callbacks=[keep], enable_checkpointing=True, devices=2, strategy=strategy
        )
        module = Sharded()
        trainer.fit(module, digits.Digits(stateful=False), ckpt_path=ckpt_path)
        trainer.strategy.barrier()
        return {name: one.to_local().clone() for name, one in module.state_dict().items()}

    whole = fit("whole")
    return {"whole": whole, "resumed": fit("resumed", tmp_path / "whole/step-00000004.ckpt")}


def test_sharded(on_two_ranks, digits, make_trainer, tmp_path):
    """A checkpoint is a folder then."""
    for rank in on_two_ranks(_sharded_on_rank, digits, make_trainer, tmp_path):
        assert_same(rank["whole"], rank["resumed"])
    folder = tmp_path / "whole"
    assert [(folder / name).is_dir() for name in names_in(folder)] == [True] * 3
    assert (folder / os.readlink(folder / "latest.ckpt")).is_dir()
