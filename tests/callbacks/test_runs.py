"""Where a run's files go, and that no two runs write into one folder."""

import multiprocessing
import os
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import wandb
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import EarlyStopCheckpoint
from lightning_vlm_callbacks.runs import LoggedMetric, run_folder

tensorboard = pytest.mark.skipif(
    not (find_spec("tensorboard") or find_spec("tensorboardX")), reason="TensorBoard isn't installed"
)


class Folder(Callback):
    """Asks for the folder as callbacks do, and again at the end as a data module does."""

    def setup(self, trainer, pl_module, stage):
        self.folder = run_folder(trainer)

    def teardown(self, trainer, pl_module, stage):
        assert run_folder(trainer) == self.folder


class Elsewhere(Logger):
    """A logger that keeps its logs on a server."""

    name, version = "experiment", 7
    save_dir = None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


class Bucket(Elsewhere):
    save_dir = "s3://bucket/logs"


@pytest.fixture
def fit(make_trainer, tmp_path):
    def run(*callbacks, epochs=1, ckpt_path=None, **options):
        options = {"default_root_dir": tmp_path, "limit_train_batches": 2, "limit_val_batches": 1, **options}
        saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
        trainer = make_trainer(
            callbacks=list(callbacks), enable_checkpointing=saves, max_epochs=epochs, **options
        )
        trainer.fit(BoringModel(), ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


@pytest.mark.parametrize(
    "logger",
    [
        lambda folder: False,
        lambda folder: CSVLogger(folder),
        lambda folder: CSVLogger(folder, name="mine", version="first"),
        pytest.param(lambda folder: TensorBoardLogger(folder), marks=tensorboard),
        lambda folder: WandbLogger(save_dir=folder, project="captions", offline=True),
        lambda folder: [WandbLogger(save_dir=folder, offline=True, id="abc"), CSVLogger(folder)],
        lambda folder: Elsewhere(),
    ],
    ids=["none", "csv", "csv-named", "tensorboard", "wandb", "wandb-id-and-csv", "elsewhere"],
)
def test_the_folder_is_the_one_of_model_checkpoint(fit, tmp_path, logger):
    ours, theirs = Folder(), ModelCheckpoint()
    trainer = fit(ours, theirs, logger=logger(tmp_path))
    assert ours.folder == Path(theirs.dirpath).parent
    if isinstance(trainer.logger, CSVLogger | TensorBoardLogger):
        assert ours.folder == Path(trainer.log_dir)
    assert not list(tmp_path.rglob(".run.lock"))


def test_a_bucket_is_replaced_by_a_disk(fit, tmp_path):
    ours = Folder()
    fit(ours, logger=Bucket())
    assert ours.folder == tmp_path / "experiment" / "version_7"
    with pytest.raises(MisconfigurationException, match=r"found the folder s3://bucket.*set dirpath"):
        fit(EarlyStopCheckpoint(), logger=False, default_root_dir="s3://bucket")


def test_a_second_run_leaves_the_first_alone(fit, tmp_path):
    kept = []
    for _ in range(2):
        keep = EarlyStopCheckpoint()
        trainer = fit(keep, logger=WandbLogger(save_dir=tmp_path, project="captions", offline=True))
        file = Path(keep.last_model_path)
        wandb.finish()  # as at the end of a process
        assert file.parent == tmp_path / "captions" / trainer.logger.version / "checkpoints"
        kept.append(file)
    assert kept[0] != kept[1]
    assert all(file.exists() for file in kept)
    assert not list(tmp_path.rglob("previous-*"))


class Pause(Callback):
    """Says that training has begun and where, then waits until it may end."""

    def __init__(self, pipe):
        self.pipe = pipe

    def on_train_start(self, trainer, pl_module):
        self.pipe.send(str(run_folder(trainer)))
        assert self.pipe.poll(60)


@pytest.fixture
def in_another_process():
    """Begin a run in another process, which goes on until it is killed or released."""
    context, processes = multiprocessing.get_context("fork"), []

    def begin(function):
        mine, theirs = context.Pipe()
        process = context.Process(target=function, args=(Pause(theirs),))
        process.start()
        processes.append(process)
        assert mine.poll(60)
        return process, mine, Path(mine.recv())

    yield begin
    for process in processes:
        process.kill()
        process.join()


def test_two_runs_at_once_without_a_logger(fit, tmp_path, in_another_process):
    torch.set_num_threads(1)
    process, _, folder = in_another_process(
        lambda pause: fit(pause, EarlyStopCheckpoint(), logger=False, epochs=2)
    )
    assert folder == tmp_path
    message = rf"another run that writes into .*{tmp_path.name}: process {process.pid} on .*dirpath"
    with pytest.raises(MisconfigurationException, match=message):
        fit(EarlyStopCheckpoint(), logger=False)
    assert fit(EarlyStopCheckpoint(), logger=False, fast_dev_run=True)  # which writes nothing
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    again = EarlyStopCheckpoint()
    fit(again, logger=False)  # at once
    assert Path(again.last_model_path).exists()
    assert not list(tmp_path.rglob(".run.lock"))


@pytest.mark.parametrize("make", [CSVLogger, pytest.param(TensorBoardLogger, marks=tensorboard)])
def test_two_runs_that_found_the_same_version_number(fit, tmp_path, in_another_process, make):
    torch.set_num_threads(1)
    process, pipe, folder = in_another_process(
        lambda pause: fit(pause, EarlyStopCheckpoint(), logger=make(tmp_path, name="logs"))
    )
    assert folder == tmp_path / "logs" / "version_0"
    logger = make(tmp_path, name="logs")
    logger._version = 0  # as if both had looked at the same moment
    ours = EarlyStopCheckpoint()
    with pytest.warns(UserWarning, match=r"Another run writes into .*version_0 .*version_1"):
        trainer = fit(ours, logger=logger, log_every_n_steps=1)
    assert Path(ours.last_model_path).parent == tmp_path / "logs" / "version_1" / "checkpoints"
    assert trainer.log_dir == str(tmp_path / "logs" / "version_1")
    pipe.send("go on")
    process.join(60)
    assert process.exitcode == 0
    assert len(list(tmp_path.rglob("step-00000002.ckpt"))) == 2
    in_another_process(lambda pause: fit(pause, EarlyStopCheckpoint(), logger=make(tmp_path, version="mine")))
    with pytest.raises(MisconfigurationException, match="the logger's version"):
        fit(EarlyStopCheckpoint(), logger=make(tmp_path, version="mine"))


def test_a_folder_that_is_a_file_is_found_at_setup(fit, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(MisconfigurationException, match=r"can't be written into, .*taken.*change dirpath"):
        fit(EarlyStopCheckpoint(dirpath=str(tmp_path / "taken")), logger=False)


def test_ranks_agree(fit, tmp_path, on_two_ranks):
    """Each rank's logger has found another version number; that of rank zero counts."""

    def one():
        torch.set_num_threads(1)
        ours = Folder()
        logger = CSVLogger(tmp_path, name="logs", version=int(os.environ.get("LOCAL_RANK", 0)))
        fit(ours, logger=logger, devices=2, strategy="ddp")
        try:
            fit(EarlyStopCheckpoint(dirpath=__file__), logger=False, devices=2, strategy="ddp")
        except MisconfigurationException as error:
            return {"folder": str(ours.folder), "error": str(error)}

    first, second = on_two_ranks(one)
    assert first["folder"] == second["folder"] == str(tmp_path / "logs" / "version_0")
    assert first["error"] == second["error"]
    assert "can't be written into" in first["error"]


def test_a_metric_is_new_each_time_that_lightning_gets_one(make_trainer):
    """Also if its value is the same; the trainer shows it between two validations, too."""
    metric, found = LoggedMetric(), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            found.append(metric.is_new(trainer.callback_metrics.get("score")))

        def on_validation_epoch_end(self, trainer, module):
            self.log("score", 1.0)

    options = {"limit_train_batches": 6, "limit_val_batches": 1, "val_check_interval": 2, "max_epochs": 1}
    make_trainer(callbacks=[Watch()], **options).fit(BoringModel())
    # Validations follow the second, the fourth and the sixth batch.
    assert found == [False, False, True, False, True, False]
