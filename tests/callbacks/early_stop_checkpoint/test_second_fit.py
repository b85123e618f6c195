"""A second fit isn't a new run; `last` and `best` find checkpoints, in a new process too; artifacts."""

import os
import signal
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint


class Scores(LightningModule):
    """A module whose scores are given, one for each epoch."""

    def __init__(self, *scores):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)
        self.scores = list(scores)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("score", torch.tensor(float(self.scores[self.current_epoch])))

    def test_step(self, batch, batch_idx):
        self.log("weight", self.layer.weight.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 2), 2)

    val_dataloader = test_dataloader = train_dataloader


def keeper(folder=None, **options):
    return EarlyStopCheckpoint("score", dirpath=None if folder is None else str(folder), **options)


@pytest.fixture
def trainer_of(make_trainer, tmp_path):
    def make(keep, *callbacks, **options):
        options = {"default_root_dir": tmp_path, "max_epochs": 3, "enable_checkpointing": True, **options}
        return make_trainer(callbacks=[*callbacks, keep], **options)

    return make


def test_one_trainer_fits_twice(trainer_of, tmp_path):
    """The end is the end of one fit of that length."""
    scores = (3, 1, 2, 4, 0.5, 5)
    whole = keeper(tmp_path / "whole")
    trainer_of(whole, max_epochs=6).fit(Scores(*scores))
    keep, module = keeper(tmp_path / "twice"), Scores(*scores)
    trainer = trainer_of(keep)
    trainer.fit(module)
    best = Path(keep.best_model_path)
    assert best.name == "step-00000004.ckpt"
    trainer.fit(module)  # which has nothing to do
    assert best.exists()
    assert keep.best_model_score == 1
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module)
    for name in ("best_model_score", "current_score"):
        assert getattr(keep, name) == getattr(whole, name)
    for name in ("best_model_path", "last_model_path"):
        assert Path(getattr(keep, name)).name == Path(getattr(whole, name)).name
    names = [sorted(file.name for file in (tmp_path / name).iterdir()) for name in ("whole", "twice")]
    assert names[0] == names[1]


def test_the_waiting_goes_on_too(trainer_of, tmp_path):
    keep, module = keeper(tmp_path, patience=3), Scores(1, 2, 2, 2, 2, 2)
    trainer = trainer_of(keep)
    trainer.fit(module)
    trainer.fit_loop.max_epochs = 6
    trainer.fit(module)
    assert trainer.current_epoch == 4


def test_one_callback_in_two_trainers(trainer_of, tmp_path):
    """Steps are counted from 0 again, but the better file stays the best, and nothing is overwritten."""
    keep = keeper(tmp_path)
    trainer_of(keep).fit(Scores(1, 2, 3))
    best = Path(keep.best_model_path)
    weights = torch.load(best, weights_only=True)["state_dict"]
    assert best.name == "step-00000002.ckpt"
    trainer_of(keep, max_epochs=2).fit(Scores(2, 3))
    assert Path(keep.best_model_path) == best
    for name, weight in torch.load(best, weights_only=True)["state_dict"].items():
        assert torch.equal(weight, weights[name])
    assert os.readlink(tmp_path / "best.ckpt") == best.name
    assert Path(keep.last_model_path).name == "step-00000004.ckpt"
    trainer_of(keep, max_epochs=1).fit(Scores(0.5))
    assert Path(keep.best_model_path).name == "step-00000002-v2.ckpt"
    assert keep.best_model_score == 0.5


def test_two_trainers_with_two_folders(trainer_of, tmp_path):
    """The best comes along, so that it is found in the folder of the run that goes on."""
    keep = keeper()
    for version, scores in enumerate([(1, 2, 3), (2, 3, 4)]):
        trainer = trainer_of(keep, logger=CSVLogger(tmp_path, version=version))
        trainer.fit(Scores(*scores))
    best = Path(keep.best_model_path)
    assert best.parent == tmp_path / "lightning_logs/version_1/checkpoints"
    assert torch.load(best, weights_only=True)["callbacks"][keep.state_key]["best"] == 1
    assert trainer.test(ckpt_path="best", weights_only=True, verbose=False)


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def loggers(folder):
    return {
        "none": lambda: False,
        "csv": lambda: CSVLogger(folder, name="mine"),
        "wandb": lambda: WandbLogger(save_dir=folder, project="mine", offline=True),
    }


@pytest.mark.parametrize("logger", ["none", "csv", "wandb"])
def test_last_and_best_in_a_new_process(trainer_of, tmp_path, logger, caplog):
    """A job that always gives `last` starts, goes on as often as it is stopped, and keeps its best."""
    make, steps = loggers(tmp_path)[logger], []

    class Begin(Callback):
        def on_train_start(self, trainer, module):
            steps.append(trainer.global_step)

    for stop in (3, 5, None):
        keep = keeper()
        trainer = trainer_of(keep, Begin(), *([StopAt(stop)] if stop else []), logger=make(), max_epochs=4)
        try:
            trainer.fit(Scores(1, 0.5, 2, 3), ckpt_path="last", weights_only=True)
        except SystemExit:
            assert stop
        wandb.finish()
    assert steps == [0, 3, 5]
    folder = Path(keep.last_model_path).parent
    assert keep.best_model_path == str(folder / "step-00000004.ckpt")
    assert os.path.exists(keep.best_model_path)
    assert len(list(tmp_path.rglob("latest.ckpt"))) == (1 if logger == "none" else 3)
    if logger != "none":
        assert f"ckpt_path last is {tmp_path}" in caplog.text
    assert not list(tmp_path.rglob("previous-*"))


def test_jobs_of_a_sweep_go_on_with_their_own(trainer_of, tmp_path, monkeypatch):
    """Two SLURM jobs log under one name, and are requeued together."""

    def fit(job, stop):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(job))
        keep = keeper(every_n_steps=1)
        callbacks = [StopAt(stop)] if stop else []
        trainer = trainer_of(keep, *callbacks, logger=CSVLogger(tmp_path, name="sweep"))
        module = Scores(job, job, job)
        begun = []
        module.on_train_start = lambda: begun.append(trainer.global_step)
        try:
            trainer.fit(module, ckpt_path="last", weights_only=True)
        except SystemExit:
            assert stop
        return begun[0], keep.best_model_score

    assert [fit(1, 5), fit(2, 3)] == [(0, 1.0), (5, 1.0)]  # a new job finds the newest
    assert fit(1, None) == (5, 1.0)


def test_best_of_a_fixed_folder(trainer_of, tmp_path):
    trainer_of(keeper(tmp_path / "mine")).fit(Scores(2, 1, 3))
    found = trainer_of(keeper(tmp_path / "mine")).test(
        Scores(), ckpt_path="best", weights_only=True, verbose=False
    )
    weights = torch.load(tmp_path / "mine/best.ckpt", weights_only=True)["state_dict"]
    assert found[0]["weight"] == pytest.approx(float(weights["layer.weight"].sum()))


def test_two_with_one_folder_are_refused(make_trainer, tmp_path):
    two = [keeper(tmp_path), EarlyStopCheckpoint(dirpath=str(tmp_path))]
    with pytest.raises(MisconfigurationException, match="two EarlyStopCheckpoint with one folder"):
        make_trainer(callbacks=two, enable_checkpointing=True, max_epochs=1).fit(Scores(1))


@pytest.mark.parametrize("log_model", [True, "all"])
def test_artifacts_of_wandb(trainer_of, tmp_path, log_model, monkeypatch):
    """As Lightning's ModelCheckpoint has them: at the end, or each time that one is saved."""
    logged = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=tmp_path, project="mine", log_model=log_model)
    run, log = logger.experiment, logger.experiment.log_artifact

    def log_artifact(artifact, aliases):
        logged.append((artifact.metadata["original_filename"], artifact.metadata["score"], tuple(aliases)))
        assert artifact.metadata["EarlyStopCheckpoint"]["monitor"] == "score"
        return log(artifact, aliases=aliases)

    monkeypatch.setattr(run, "log_artifact", log_artifact)
    trainer_of(keeper(), logger=logger).fit(Scores(2, 1, 3))
    wandb.finish()
    best, last = ("step-00000004.ckpt", 1.0), ("step-00000006.ckpt", 3.0)
    assert logged[-2:] == [(*best, ("latest", "best")), (*last, ("latest",))]
    assert [entry[0] for entry in logged[:-2]] == (["step-00000002.ckpt"] if log_model == "all" else [])


def test_sparse_gradients_are_trained_and_resumed(trainer_of, tmp_path):
    class Sparse(Scores):
        def __init__(self, *scores):
            super().__init__(*scores)
            torch.manual_seed(0)
            self.layer = torch.nn.Embedding(4, 2, sparse=True)

        def training_step(self, batch, batch_idx):
            return self.layer(batch.long()).square().mean()

    whole, stopped = Sparse(3, 2, 1), Sparse(3, 2, 1)
    trainer_of(keeper(tmp_path / "whole")).fit(whole)
    with pytest.raises(SystemExit):
        trainer_of(keeper(tmp_path / "stopped"), StopAt(4)).fit(stopped)
    resumed = Sparse(3, 2, 1)
    trainer_of(keeper(tmp_path / "stopped")).fit(resumed, ckpt_path="last", weights_only=True)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


def test_every_hook_of_model_checkpoint_is_ours():
    """It derives from ModelCheckpoint, which must do nothing by itself, in a later version either."""
    hooks = [name for name in vars(ModelCheckpoint) if hasattr(Callback, name) and not name.startswith("_")]
    assert len(hooks) > 8
    for name in hooks:
        assert getattr(EarlyStopCheckpoint, name) is not getattr(ModelCheckpoint, name), name
