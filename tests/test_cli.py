import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from lightning_vlm_callbacks.run_report.history import read_history

from lightning_vlm.cli import main
from lightning_vlm.config import COMMANDS
from tools import shipped


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(shipped.create(tmp_path_factory.mktemp("base")))


@pytest.fixture
def project(tmp_path, monkeypatch, base):
    """A folder with a data file, a picture and a config, to work in."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (40, 30), "red").save("cat.png")
    ask = {
        "role": "user",
        "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What?"}],
    }
    lines = [
        {"messages": [ask, {"role": "assistant", "content": f"cat {n}"}], "task": "vqa"} for n in range(6)
    ]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = {
        "model": {
            "name_or_path": base,
            "adapt": {"projector": "full", "language": {"lora": {"r": 2}}},
            "generation": {"max_new_tokens": 2},
        },
        "data": {
            **dict.fromkeys(("train", "val", "test", "predict"), "data.jsonl"),
            "batch_size": 2,
        },
        "trainer": {
            "max_steps": 2,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs"},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": "runs", "filename": "last", "enable_version_counter": False},
                }
            ],
        },
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def command(*words):
    return main([*words[:1], "--config", "config.yaml", *words[1:]])


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom lightning_vlm.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'lightning', 'transformers', 'peft', 'wandb', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lightning-vlm COMMAND --config FILE" in done.stdout
    from lightning_vlm.run import VLMCLI

    listed = re.findall(r"^  (\w+) ", done.stdout.split("options:")[0], re.MULTILINE)
    assert listed == [*COMMANDS]
    assert {name for name, command in COMMANDS.items() if command.module is None} == {*VLMCLI.subcommands()}


def test_version_no_command_and_unknown_command(capsys):
    assert main(["--version"]) == 0
    assert main([]) == 2
    assert main(["fti"]) == 2
    assert "did you mean fit?" in capsys.readouterr().err


def test_last_and_best_in_a_new_process(project, capsys, caplog):
    """A job starts from scratch, and goes on from its latest checkpoint the next time."""
    keeper = {"class_path": "EarlyStopCheckpoint", "init_args": {"monitor": "val/loss"}}
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["trainer"] |= {"callbacks": [keeper], "log_every_n_steps": 1}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert command("test", "--ckpt_path", "best") == 2
    assert "--ckpt_path best: found no best checkpoint of an earlier run" in capsys.readouterr().err
    assert command("fit", "--ckpt_path", "last", "--trainer.max_steps", "3") == 0
    assert command("fit", "--ckpt_path", "last", "--trainer.max_steps", "6") == 0
    folders = [Path(f"runs/lightning_logs/version_{number}") for number in range(2)]
    steps = [os.readlink(folder / "checkpoints/latest.ckpt") for folder in folders]
    assert steps == ["step-00000003.ckpt", "step-00000006.ckpt"]
    curves = read_history(folders[1] / "report.jsonl").curves
    assert list(dict(curves["train/loss"].points())) == list(range(6))  # those of the job before, too
    assert f"report      {folders[1]}/report.html" in capsys.readouterr().out.splitlines()
    assert (folders[1] / "report.html").stat().st_size > 5000
    assert command("test", "--ckpt_path", "best") == 0
    best = (folders[1] / "checkpoints/best.ckpt").resolve()
    assert f"ckpt_path best is {best}, of the newest earlier run" in caplog.text


def test_fit_validate_test_predict_and_fit_again(project, capsys):
    assert command("fit") == 0
    assert Path("runs/last.ckpt").is_file()
    shown = capsys.readouterr().out
    folder = "runs/lightning_logs/version_0"
    for line in (
        "checkpoint  runs/last.ckpt",
        f"log         {folder}",
        "            (it has no training loss: 2 steps are fewer than trainer.log_every_n_steps 50)",
        f"config      {folder}/config.yaml",
    ):
        assert line in shown.splitlines()
    assert "report.html" not in shown  # nothing was logged
    saved = yaml.safe_load(Path(folder, "config.yaml").read_text())
    assert saved["data"]["train"] == "data.jsonl"
    assert not Path("answers.jsonl").exists()

    # What it says to type next is right.
    commands = [shlex.split(line) for line in shown.replace("\\\n", "").splitlines()]
    commands = [words[1:] for words in commands if words[:1] == ["lightning-vlm"]]
    assert [words[0] for words in commands] == ["validate", "test", "predict", "compare", "export"]
    scores = {}
    for words in commands[:-1]:
        assert main(words) == 0
        scores[words[0]] = capsys.readouterr().out
    assert "export --ckpt_path runs/last.ckpt" in " ".join(commands[-1])
    assert "Validation: 6 samples" in scores["validate"]
    for stage in ("validate", "test"):
        row = next(line for line in scores[stage].splitlines() if "│ all" in line)
        logged = read_csv(Path("runs/lightning_logs").rglob("metrics.csv"))[stage]
        wanted = [logged[name] for name in ("exact_match", "token_f1", "loss", "perplexity")]
        assert [float(cell) for cell in row.split("│")[2:6]] == pytest.approx(wanted, abs=6e-4)

    assert "6 in runs/lightning_logs/version_3/answers.jsonl" in scores["predict"]
    lines = Path("runs/lightning_logs/version_3/answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["reference"] for line in lines] == [f"cat {n}" for n in range(6)]

    assert command("fit") == 0  # a second run in the same folder

    capsys.readouterr()
    with pytest.warns(UserWarning, match="finished run"):
        assert command("fit", "--ckpt_path", "runs/last.ckpt") == 0
    shown = capsys.readouterr().out
    assert "training    none; the run was over at step 2" in shown
    assert "picture  " not in shown


def read_csv(files):
    """What `validate` and `test` have logged."""
    found = {}
    for file in files:
        for row in csv.DictReader(file.open()):
            for stage, prefix in (("validate", "val/"), ("test", "test/")):
                scores = {
                    name: float(value) for name, value in row.items() if name.startswith(prefix) and value
                }
                if scores:
                    found[stage] = {name.removeprefix(prefix): value for name, value in scores.items()}
    return found


def test_predict_with_a_writer_of_the_config(project, capsys):
    from lightning_vlm.run import run

    writer = {"class_path": "AnswerWriter", "init_args": {"out": "mine.jsonl", "show": 1}}
    Path("writer.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [writer]}}))
    done = run(["predict", "--config", "config.yaml", "--config", "writer.yaml"])
    assert done.trainer.predict_loop.predictions == [], "answers pile up in memory"
    assert len(Path("mine.jsonl").read_text().splitlines()) == 6
    assert not list(Path("runs").rglob("answers.jsonl"))
    assert capsys.readouterr().out.count("\nprompt ") == 1
    assert command("predict", "--config", "writer.yaml", "--out", "other.jsonl") == 2
    assert "AnswerWriter" in capsys.readouterr().err


def test_without_a_logger_no_file_of_the_user_is_overwritten(project, capsys):
    before = Path("config.yaml").read_text()
    assert command("fit", "--trainer.logger", "false", "--trainer.max_steps", "1") == 0
    assert command("validate", "--trainer.logger", "false") == 0
    assert Path("config.yaml").read_text() == before
    assert yaml.safe_load(Path("checkpoints/config.yaml").read_text())["trainer"]["max_steps"] == 1
    assert "--config checkpoints/config.yaml" in capsys.readouterr().out


def test_the_command_line_beats_the_checkpoint(project, capsys):
    assert command("fit") == 0
    assert command("test", "--ckpt_path", "runs/last.ckpt", "--model.token_weights.response", "3") == 0
    first = capsys.readouterr().out
    assert "Test: 6 samples" in first
    # what can't hold together is an error that names it
    assert (
        command("test", "--ckpt_path", "runs/last.ckpt", "--model.adapt", "{language: {lora: {r: 4}}}") == 2
    )
    message = capsys.readouterr().err
    assert "model.adapt" in message
    assert "lora_A" in message or "projector" in message


def test_configs_compose(project):
    extra = {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]}}
    Path("extra.yaml").write_text(yaml.safe_dump(extra))
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint

    from lightning_vlm.run import run

    done = run(["fit", "--config", "config.yaml", "--config", "extra.yaml", "--trainer.max_steps", "1"])
    kinds = [type(callback) for callback in done.trainer.callbacks]
    assert LearningRateMonitor in kinds
    assert ModelCheckpoint in kinds


def test_what_was_measured_is_in_the_saved_config(project):
    auto = ["--data.max_tokens", "auto", "--model.gradient_checkpointing", "auto"]
    assert command("fit", "--data.batching", "packed", *auto) == 0
    (file,) = Path("runs").rglob("config.yaml")
    saved = yaml.safe_load(file.read_text())
    assert saved["data"]["max_tokens"] >= 10
    assert saved["model"]["gradient_checkpointing"] is False
    assert main(["fit", "--config", str(file), "--trainer.max_steps", "1"]) == 0


@pytest.mark.filterwarnings("ignore:resumed with a change")
def test_weights_and_biases(project, capsys):
    import wandb

    wandb.teardown()  # a service that an earlier test began would write below that test's folder
    logger = "{class_path: WandbLogger, init_args: {save_dir: wb, offline: true, project: test}}"
    assert command("fit", "--trainer.logger", logger, "--trainer.max_steps", "1") == 0
    config, first = dict(wandb.run.config), wandb.run.id
    wandb.finish()
    assert config["cli"]["data"]["train"] == "data.jsonl"
    assert list(Path("wb").rglob("*.wandb"))
    folder = Path("wb/test", first)
    assert (folder / "config.yaml").is_file()
    assert "wandb sync wb/wandb/offline-run-" in capsys.readouterr().out

    # What resumes goes on in the same run, and its pictures are there too.
    keeps = "{class_path: EarlyStopCheckpoint, init_args: {every_n_epochs: 1}}"
    again = "--ckpt_path", "runs/last.ckpt", "--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1"
    saved = "--config", str(folder / "config.yaml"), "--trainer.callbacks", "null"
    assert main(["fit", *saved, "--trainer.callbacks", f"[{keeps}]", *again]) == 0
    second = wandb.run.id
    wandb.finish()
    assert second == first
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]["init_args"]["id"] is None
    )
    assert (folder / "report.html").is_file()
    sent = [path.name for path in Path("wb").rglob("*.png") if "media" in path.parts]
    assert any(name.startswith("learning-rate_") for name in sent)

    last = "--ckpt_path", "last", "--trainer.max_steps", "4"
    assert main(["fit", *saved, "--trainer.callbacks", f"[{keeps}]", *last]) == 0
    assert wandb.run.id == first
    assert (folder / "checkpoints" / "step-00000004.ckpt").is_file()
    wandb.finish()

    # Without a checkpoint it is another run.
    assert main(["fit", *saved, "--ckpt_path", "null"]) == 0
    assert wandb.run.id != first
    wandb.finish()
    wandb.teardown()  # Its process takes relative folders from where it began.


def test_debug_shows_the_traceback(project):
    from lightning_vlm.errors import UserError

    with pytest.raises(UserError):
        command("fit", "--trainer.gradient_clip_val", "1.0", "--debug")


def test_a_fit_that_saves_nothing_claims_no_checkpoint_of_an_earlier_run(tmp_path, monkeypatch, capsys):
    """As after resuming with a ModelCheckpoint, which restores the path of the best checkpoint."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lightning_vlm import VLMDataModule
    from lightning_vlm.outputs.saved_config import config_file
    from lightning_vlm.outputs.summary import FitSummary

    monkeypatch.chdir(tmp_path)
    keeper = ModelCheckpoint("checkpoints")
    trainer = Trainer(callbacks=[keeper], logger=False, accelerator="cpu", enable_progress_bar=False)
    summary = FitSummary(None, VLMDataModule(train="train.jsonl"))
    summary.show(trainer, tmp_path)
    assert "checkpoint  none was written" in capsys.readouterr().out
    Path("old.ckpt").touch()
    keeper.best_model_path = "old.ckpt"
    os.utime("old.ckpt", (1, 1))
    summary.show(trainer, tmp_path)
    assert "checkpoint  old.ckpt (of an earlier run)" in capsys.readouterr().out

    # What to type next names a checkpoint of this run, if it has one.
    Path("new.ckpt").touch()
    keeper.last_model_path = "new.ckpt"
    config = config_file(tmp_path, False, "fit")
    config.parent.mkdir(exist_ok=True)
    config.touch()
    summary.show(trainer, tmp_path)
    shown = capsys.readouterr().out
    assert shown.index("old.ckpt") < shown.index("new.ckpt")
    assert "lightning-vlm export --ckpt_path new.ckpt" in shown


def test_report(project, capsys):
    assert command("fit", "--report", "true") == 0
    shown = capsys.readouterr().out
    for word in (
        "before",
        "after",
        "most frequent answer",
        "tokens per second",
        "last.ckpt",
        "predictions.png",
    ):
        assert word in shown
    (picture,) = Path("runs").rglob("predictions.png")
    assert PIL.Image.open(picture).size[0] > 300
    assert re.search(
        r"^report +scoring 6 samples of data.test took \d+ s with loading; they", shown, re.MULTILINE
    )


def test_a_report_without_test_data_is_of_the_validation_data(project, capsys):
    config = yaml.safe_load(Path("config.yaml").read_text())
    del config["data"]["test"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert command("fit", "--report", "true", "--trainer.log_every_n_steps", "1") == 0
    found = capsys.readouterr()
    assert "scoring 6 samples of data.val (there is no data.test) took" in found.out
    before, after = re.findall(r"^│ (?:before|after) .*", found.out, re.MULTILINE)
    assert before.split("│")[-2] != after.split("│")[-2]  # the loss
    assert len(list(Path("runs").rglob("predictions.png"))) == 1
    assert (found.out + found.err).count("report.html") == 1
    assert command("fit", "--report", "true", "--trainer.limit_val_batches", "1") == 0
    limited = capsys.readouterr().out
    assert "scoring at most 1 batch of 6 samples of data.val" in limited
    assert "most frequent answer" in found.out
    assert "most frequent answer" not in limited  # of samples that weren't scored
    del config["data"]["val"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert command("fit", "--report", "true") == 2
    assert "a report needs data to score; set data.test, or data.val" in capsys.readouterr().err


def test_the_summary_has_the_throughput(project, capsys):
    assert command("fit", "--trainer.max_steps", "6", "--trainer.log_every_n_steps", "2") == 0
    shown = capsys.readouterr().out
    rates = r"^speed +[\d.,]+ samples, [\d.,]+ tokens, [\d.,]+ learned tokens per second; [\d.]+ s a step$"
    assert re.search(rates, shown, re.MULTILINE)
    assert "a device; no MFU: the peak of a cpu isn't known; give ThroughputMonitor peak_tflops" in shown
    assert "waiting for data" in shown
    (log,) = Path("runs").rglob("metrics.csv")
    assert "throughput/tokens_per_second" in log.read_text()


def test_what_is_older_than_the_end_of_a_run_is_said_to_be(project, capsys):
    """The fourth step is behind the only validation, and weights are saved at validations."""
    assert command("fit", "--trainer.max_steps", "4", "--trainer.val_check_interval", "3") == 0
    shown = capsys.readouterr().out
    assert "Last validation after step 3 of 4" in shown
    assert "(the last one was saved after step 3 of 4;" in shown


def test_the_bar_counts_batches(project, capsys):
    """Lightning's own shows epoch 0/-2, and so many batches as there are steps."""
    words = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "true"]
    assert command("fit", *words, "--trainer.accumulate_grad_batches", "2") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^Epoch 0 .* 3/3 ", shown, re.MULTILINE), shown
    given = ["--trainer.callbacks+", "RichProgressBar", "--trainer.callbacks.refresh_rate", "3"]
    assert command("fit", *words, *given) == 0
    assert "Epoch 0/-2" in capsys.readouterr().out


def test_a_monitor_of_the_user_is_the_only_one(project, caplog, capsys):
    """By its bare name, which Lightning has a callback of too; two would be refused, or say it twice."""
    Path("monitor.yaml").write_text("trainer: {callbacks+: [{class_path: ThroughputMonitor}]}")
    given = ["--trainer.callbacks+", "ThroughputMonitor", "--trainer.callbacks.warmup_steps", "1"]
    for words in (["--config", "monitor.yaml"], given):
        assert command("fit", *words, "--trainer.max_steps", "6") == 0
        assert "ThroughputMonitor:" not in caplog.text  # the end table says it
        assert capsys.readouterr().out.count("tokens per second") == 1


def test_what_would_make_it_faster(model_folder):
    from lightning_vlm_callbacks.throughput_monitor.summary import Summary
    from transformers import AutoModelForImageTextToText

    from lightning_vlm import VLMDataModule
    from lightning_vlm.outputs.throughput import advice_on_speed

    data = VLMDataModule(train="train.jsonl")
    waiting, padding = advice_on_speed(Summary({"waiting_share": 0.4, "padding_share": 0.5}, [], []), data)
    assert waiting.endswith("(40% of the time is spent waiting for it): set data.num_workers to 1 (now 0)")
    assert padding.startswith("50% of the tokens computed are padding: data.batching packed leaves them out ")
    assert padding.endswith("for at most 2 times the speed")
    assert not list(advice_on_speed(Summary({"waiting_share": 0.05, "padding_share": 0.02}, [], []), data))
    much_padding = Summary({"padding_share": 0.5}, [], [])
    gemma = AutoModelForImageTextToText.from_pretrained(model_folder("gemma3"))
    for mode, advised in (("padded", "tokens leaves most of them out"), ("tokens", None)):  # can't be packed
        limit = None if mode == "padded" else 512
        data = VLMDataModule(train="train.jsonl", batching=mode, max_tokens=limit)
        advice = list(advice_on_speed(much_padding, data, gemma))
        assert [advised in line for line in advice] == ([True] if advised else [])
    for packs in ({"batching": "packed", "max_tokens": 512}, {"sampling": "grouped"}):
        assert not list(advice_on_speed(much_padding, VLMDataModule(train="train.jsonl", **packs)))


def test_checkpoints_load_without_pickled_code(project):
    assert command("fit") == 0
    saved = torch.load("runs/last.ckpt", weights_only=True)
    assert os.path.getsize("runs/last.ckpt") < 3_000_000
    assert all("lora_" in name or "projector" in name for name in saved["state_dict"])
