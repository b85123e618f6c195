"""Each fragment of configs/track: a real run, and what its tracker has of it, read by its own reader."""

from pathlib import Path

import pytest
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_vlm.cli import main
from lightning_vlm.compat.mlflow_parameters import log_parameters

TRACK = Path(__file__).parents[2] / "configs/track"
BASE = """
model:
  name_or_path: drawn-vlm
  adapt: {projector: full, "language.layers[-1:]": {lora: {r: 8}}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 1.0e-3}}
  generation: {max_new_tokens: 4}
data:
  train: {class_path: Drawn, init_args: {size: 12}}
  val: {class_path: Drawn, init_args: {size: 4, seed: 1}}
  batch_size: 4
trainer:
  max_steps: 3
  val_check_interval: 3
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - {class_path: AdaptiveLoRARank, init_args: {min_rank: 4, max_rank: 16, start: 1, every: 1, until: 1}}
    - {class_path: PredictionTable, init_args: {samples: 2}}
    - {class_path: EarlyStopCheckpoint, init_args: {monitor: val/loss}}
"""
RAISES = """
from lightning.pytorch import Callback
class Raises(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 2:
            raise ValueError("the third batch")
"""
LOGGED = {"train/loss", "val/loss", "lr/rest", "train/grad_norm", "val/exact_match"}
"""Some of the curves."""
BLOCK = 2**15
WHOLE = (1, 4)
"""Kinds of chunks that end a record."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("base.yaml").write_text(BASE)
    Path("raises.py").write_text(RAISES)
    return tmp_path


def fit(tracker, *words):
    return main(["fit", "--config", "base.yaml", "--config", str(TRACK / f"{tracker}.yaml"), *words])


def fails(tracker):
    """Let a run fail in its third step."""
    return fit(tracker, "--trainer.callbacks+", "{class_path: raises.Raises}")


def sections(text):
    """Which parts a config has, and its rate."""
    config = yaml.safe_load(text)
    return {"model", "data", "trainer"} <= set(config), config["model"]["optimizer"]["init_args"]["lr"]


def pictures_of_report(folder):
    found = {path.stem for path in Path(folder).rglob("report/*.png")}
    assert {"loss", "learning-rate", "rank-of-each-layer"} <= found
    return found


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(project, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    histograms = "[{class_path: GradientMonitor, init_args: {histogram: true, groups: [projector]}}]"
    assert fit("tensorboard", "--trainer.callbacks+", histograms) == 0
    folder = "runs/lightning-vlm/version_0"
    assert f"{folder}; `tensorboard --logdir runs` shows it" in capsys.readouterr().out
    events = EventAccumulator(folder, size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= LOGGED
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2]
    answers = [tag for tag in tags["images"] if tag.startswith("predictions/")]
    assert len(answers) == 2
    assert [event.step for event in events.Images(answers[0])] == [3]
    shown = {tag.removeprefix("pictures/") for tag in tags["images"] if tag.startswith("pictures/")}
    assert shown == pictures_of_report(folder)
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in tags["tensors"]
        if tag.endswith("/text_summary")
    }
    assert sections(texts["config"]) == (True, 1e-3)
    assert texts["plan"].startswith("| part | layers |")
    assert texts["adaptive_lora_rank/ranks"].count("\n") == 1 + 2 * 7
    counts = events.Histograms("gradients/projector/log2")[0].histogram_value
    assert counts.num == sum(counts.bucket) > 1000
    # Lightning's own default would now be TensorBoard; ours stays CSV.
    assert main(["fit", "--config", "base.yaml", "--trainer.callbacks", "null"]) == 0
    assert Path("lightning_logs/version_0/metrics.csv").is_file()


def test_parameters_go_to_mlflow_from_rank_zero_alone(monkeypatch):
    """Another rank has no client, also where the user named the run."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_parameters(None, {"lr": 0.1})


@pytest.mark.filterwarnings("ignore")
def test_mlflow(project, capsys):
    pytest.importorskip("mlflow", reason="MLflow isn't installed")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    assert fit("mlflow") == 0
    assert "`mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows it" in capsys.readouterr().out
    client = MlflowClient("sqlite:///runs/mlflow.db")
    experiment = client.get_experiment_by_name("lightning-vlm").experiment_id
    (run,) = client.search_runs([experiment])
    first = run.info.run_id
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) >= LOGGED
    assert [metric.step for metric in client.get_metric_history(first, "train/loss")] == [0, 1, 2]
    assert run.data.params["cli/model/optimizer/init_args/lr"] == "0.001"
    files = Path("runs/mlflow", first, "artifacts")
    assert sections((files / "config.yaml").read_text()) == (True, 1e-3)
    assert (files / "tables/plan.csv").read_text().startswith("part,layers,method")
    assert len((files / "tables/adaptive_lora_rank/ranks.csv").read_text().splitlines()) == 1 + 2 * 7
    assert {path.stem for path in (files / "pictures").iterdir()} == pictures_of_report(f"runs/{experiment}")
    assert len([path for path in (files / "images").glob("*.png") if "+step+3+" in path.name]) == 2

    # What resumes continues the run, also with another setting, which MLflow lets no parameter have.
    last = next(Path(f"runs/{experiment}/{first}").rglob("step-*3.ckpt"))
    other = ["--trainer.max_steps", "4", "--data.num_workers", "1"]
    assert fit("mlflow", "--ckpt_path", "last", *other) == 0
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(first, "train/loss")] == [0, 1, 2, 3]
    assert run.data.params["cli/trainer/max_steps"] == "3"
    assert yaml.safe_load((files / "config.yaml").read_text())["trainer"]["max_steps"] == 4

    # Another store, such as on another machine, doesn't have it.
    elsewhere = ["--trainer.logger.tracking_uri", "sqlite:///other.db"]
    assert fit("mlflow", "--ckpt_path", str(last), *other, *elsewhere) == 0
    assert len(MlflowClient("sqlite:///other.db").search_runs(["1"])) == 1

    # A run that fails says so, and keeps what it logged.
    assert fails("mlflow") == 2
    run = next(run for run in client.search_runs([experiment]) if run.info.run_id != first)
    assert run.info.status == "FAILED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")] == [0, 1]


@pytest.mark.filterwarnings("ignore")
def test_trackio(project, capsys, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(project / "trackio"))
    trackio = pytest.importorskip("trackio", reason="Trackio isn't installed: it needs pillow < 13")

    assert fit("trackio") == 0
    shown = capsys.readouterr().out
    assert "`trackio show --project lightning-vlm` shows it" in shown
    trackio.finish()
    first, rows = of_trackio()
    assert set(rows) >= LOGGED
    assert [row["step"] for row in rows["train/loss"]] == [0, 1, 2]
    assert first.config["cli"]["model"]["optimizer"]["init_args"]["lr"] == 1e-3
    assert rows["plan"][0]["plan"]["_value"][0]["part"] == "projector"
    assert len(rows["adaptive_lora_rank/ranks"][0]["adaptive_lora_rank/ranks"]["_value"]) == 2 * 7
    shown = {name.removeprefix("pictures/") for name in rows if name.startswith("pictures/")}
    assert shown == pictures_of_report(f"runs/lightning-vlm/{first.name}")
    assert len([name for name in rows if name.startswith("predictions/")]) == 2
    assert len(list(Path("trackio/media").rglob("*.png"))) == 2 + len(shown)

    # What resumes continues the run, and what fails keeps what it logged.
    assert fit("trackio", "--ckpt_path", "last", "--trainer.max_steps", "4") == 0
    trackio.finish()
    again, rows = of_trackio()
    assert again.id == first.id
    assert [row["step"] for row in rows["train/loss"]] == [0, 1, 2, 3]
    assert fails("trackio") == 2
    trackio.finish()
    _, rows = of_trackio(not_run=first.id)
    assert [row["step"] for row in rows["train/loss"]] == [0, 1]


def of_trackio(not_run=None):
    """The run of a project, but for one, and its rows by the names of what is in them."""
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = [run for run in trackio.Api().runs("lightning-vlm") if run.id != not_run]
    rows = {}
    for row in SQLiteStorage.get_logs("lightning-vlm", run.name, run_id=run.id):
        for name in row:
            rows.setdefault(name, []).append(row)
    return run, rows


@pytest.mark.filterwarnings("ignore")
def test_wandb(project, capsys):
    import wandb

    wandb.teardown()  # a service that an earlier test began would write below that test's folder
    assert fit("wandb") == 0
    assert "wandb sync runs/wandb/offline-run-" in capsys.readouterr().out
    config, first = dict(wandb.run.config), wandb.run.id
    wandb.finish()
    wandb.teardown()
    assert config["cli"]["model"]["optimizer"]["init_args"]["lr"] == 1e-3
    (file,) = Path("runs/wandb").rglob("*.wandb")
    names = {name for record in records_of_wandb(file) for name in names_in(record)}
    shown = ("plan", "predictions", "adaptive_lora_rank/ranks", "pictures/loss")
    assert names >= LOGGED | {f"{name}/_type" for name in shown}
    media = {path.name.rpartition("_")[0].rpartition("_")[0] for path in Path("runs/wandb").rglob("*.png")}
    assert media >= pictures_of_report(f"runs/lightning-vlm/{first}")


def names_in(record):
    return {item.key or "/".join(item.nested_key) for item in record.history.item}


def records_of_wandb(file):
    """What an offline run has written: records in the log format of LevelDB, behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # what is left of a block holds no header
            place += BLOCK - place % BLOCK
            continue
        size = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        record += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in WHOLE:
            found = Record()
            found.ParseFromString(record)
            record = b""
            yield found
