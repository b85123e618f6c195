"""What people type who know another trainer, or are in a hurry: each is named, with its fix."""

import logging
import re
from pathlib import Path

import pytest
import wandb
from lightning.pytorch import Trainer

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.config.yaml_file import read_config
from lightning_vlm.errors import UserError
from lightning_vlm.failures.rules import known_failure
from lightning_vlm.metrics.answers import check_generation, without_effect
from tests.test_config_errors import GOOD, refused

COMMANDS = {
    "a command of another trainer": (["train", "--config", "c.yaml"], "did you mean fit?"),
    "a config alone": (["c.yaml"], "did you mean lightning-vlm fit --config c.yaml?"),
    "an option alone": (
        ["--config", "c.yaml"],
        "found --config before the command; write lightning-vlm fit first",
    ),
    "two words": (["families", "qwen", "smolvlm"], "found smolvlm behind what lightning-vlm families takes"),
    "an option of families": (["families", "--jsn"], "there is no option --jsn; did you mean --json?"),
    "a family": (["families", "qwne"], "families: none of"),
    "a size of shards": (
        ["export", "--ckpt_path", "x.ckpt", "--out", "new", "--max_shard_size", "five"],
        "max_shard_size: found five; expected a size such as 5GB or 500MB",
    ),
}


@pytest.mark.parametrize(("words", "expected"), COMMANDS.values(), ids=COMMANDS)
def test_a_command(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(GOOD)
    Path("x.ckpt").write_bytes(b"")
    assert expected in refused(capsys, *words)


OPTIONS = {
    "of another command": (["--prompt", "hello"], "there is no option --prompt here, only behind predict"),
    "one dash": (["-trainer.max_epochs", "3"], "did you mean --trainer.max_epochs?"),
    "a data file alone": (["train.jsonl"], "did you mean --data.train train.jsonl?"),
    "a checkpoint as a config": (["--config", "last.ckpt"], "did you mean --ckpt_path last.ckpt?"),
    "data as a config": (["--config", "train.jsonl"], "did you mean --data.train train.jsonl?"),
    "an address as a config": (
        ["--config", "https://example.com/c.yaml"],
        "found an address; expected a file",
    ),
    "bytes as a config": (["--config", "photo.yaml"], "found a file that holds no text"),
    "the config of a model": (
        ["--config", "config.json"],
        "the config of a model, which --model.name_or_path",
    ),
    "a config as data": (
        ["--data.train", "c.yaml"],
        "c.yaml: found a file of the type .yaml; expected one of",
    ),
    "several files": (
        ["--data.train", "[a.jsonl, b.jsonl]"],
        "data.train: found the list [a.jsonl, b.jsonl]; expected one file",
    ),
    "no folder": (
        ["--data.train", "c.jsonl", "--data.image_root", "no"],
        "data.image_root: found no, which is no",
    ),
    "no samples of a batch": (
        ["--data.batch_size", "0"],
        "data.batch_size: found 0; expected a whole number",
    ),
    "no length": (
        ["--data.max_length", "0"],
        "data.max_length: found 0; expected a whole number, at least 1",
    ),
    "a precision": (["--trainer.precision", "fp16"], "found fp16; expected 32-true, bf16-mixed"),
    "a precision's blank": (["--trainer.precision", "bf16-mixed "], "leave the blank out"),
    "a dtype": (["--model.dtype", "fp16"], "did you mean float16?"),
    "a quantization": (["--model.quantization", "nf5"], "quantization: found nf5; expected nf4, int8"),
    "an address as a model": (
        ["--model.name_or_path", "https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct"],
        "found an address; expected a folder, or the name alone, such as Qwen/Qwen2.5-VL-3B-Instruct",
    ),
    "a key of AdamW": (
        ["--model.optimizer", "AdamW", "--model.optimizer.learnrate", "1"],
        "there is no key learnrate in AdamW; it has lr, betas, eps",
    ),
    "no rate": (
        ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0"],
        "model.optimizer.lr: found 0.0; expected a number above 0",
    ),
    "a negative rate": (
        ["--model.optimizer", "AdamW", "--model.optimizer.lr", "-1"],
        "model.optimizer: Invalid learning rate: -1.0",
    ),
    "a word for null": (["--trainer.logger", "None"], "there is no class None; did you mean null?"),
    "no such class": (
        ["--model.schedule", "linear_with_warmup"],
        "expected one such as Constant, Cosine, Linear",
    ),
    "a negative limit": (
        ["--model.clip", "-1"],
        "clip: found -1.0; expected a number > 0 (null clips nothing)",
    ),
    "no accumulation": (
        ["--trainer.accumulate_grad_batches", "0"],
        "trainer.accumulate_grad_batches: found 0; expected at least 1",
    ),
    "steps": (["--trainer.max_steps", "-5"], "trainer.max_steps: found -5; expected a whole number, or -1"),
    "machines": (
        ["--trainer.num_nodes", "0"],
        "trainer.num_nodes: found 0; expected a whole number, at least 1",
    ),
    "a sharding": (["--trainer.strategy", "zero3"], "a model is sharded by --config scale/fsdp"),
    "forked processes": (
        ["--trainer.strategy", "ddp_fork", "--trainer.devices", "1", "--trainer.accelerator", "cpu"],
        "ddp_fork, ddp_spawn and ddp_notebook don't bring back what was trained",
    ),
    "a GPU by its number": (["--trainer.accelerator", "cuda:1"], "expected gpu, and trainer.devices: [1]"),
    "a callback that saves": (
        ["--trainer.enable_checkpointing", "false", "--trainer.callbacks+", "EarlyStopCheckpoint"],
        "trainer.enable_checkpointing: found false, but a callback of trainer.callbacks saves",
    ),
}


@pytest.mark.parametrize(("words", "expected"), OPTIONS.values(), ids=OPTIONS)
def test_an_option(words, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(GOOD)
    Path("config.json").write_text('{"architectures": ["Qwen"], "model_type": "qwen"}')
    Path("photo.yaml").write_bytes(b"\x89PNG\0\0")
    Path("c.jsonl").write_text("{}\n")
    for name in ("last.ckpt", "train.jsonl"):
        Path(name).write_text("")
    assert expected in refused(capsys, "fit", "--config", "c.yaml", *words)


CHECKPOINTS = {
    "adapters/": ("adapter_config.json", "a folder of adapters that were exported; expected the checkpoint"),
    "exported/": (
        "config.json",
        "an exported model; give it as --model.name_or_path exported, without --ckpt_path",
    ),
    "empty/": (".nothing", "a folder without checkpoints; expected a file that fit wrote"),
    "m/model.safetensors": (
        "model.safetensors",
        "weights alone; give their folder as --model.name_or_path m",
    ),
}


@pytest.mark.parametrize(("path", "file", "expected"), [(path, *rest) for path, rest in CHECKPOINTS.items()])
def test_no_checkpoint(path, file, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(GOOD)
    folder = Path(path) if path.endswith("/") else Path(path).parent
    folder.mkdir()
    (folder / file).write_text("{}")
    assert expected in refused(capsys, "test", "--config", "c.yaml", "--ckpt_path", path)


def test_a_checkpoint_as_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(GOOD)
    Path("last.ckpt").write_text("")
    message = refused(capsys, "fit", "--config", "c.yaml", "--model.name_or_path", "last.ckpt")
    assert (
        "found a checkpoint; give it as --ckpt_path last.ckpt, and here the model that it began with"
        in message
    )


def test_a_metric_of_another_name(tmp_path, monkeypatch, capsys):
    """The check before the fit names the metric that was meant; so does the error, later."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(GOOD)
    stop = ["--trainer.callbacks+", "lightning.pytorch.callbacks.EarlyStopping"]
    words = [
        *stop,
        "--trainer.callbacks.monitor",
        "val_loss",
        "--data.val",
        "10%",
        "--trainer.accelerator",
        "cpu",
    ]
    assert main(["fit", "--config", "c.yaml", *words]) == 2
    shown = capsys.readouterr()
    assert "EarlyStopping waits for val_loss; VLMModule logs val/loss" in " ".join(shown.out.split())
    assert "trainer.callbacks: EarlyStopping waits for val_loss, which isn't logged; there are" in shown.err


def test_a_setting_of_wandb():
    with pytest.raises(ValueError, match="offlin") as refused_by_wandb:
        wandb.Settings(mode="offlin")
    message = str(known_failure([refused_by_wandb.value]))
    assert message.startswith("Weights & Biases: WANDB_MODE, or its setting mode: found offlin")
    assert message.endswith("did you mean offline?")


def test_a_device_of_a_chat(capsys):
    message = refused(capsys, "chat", "drawn-vlm", "--device", "cuda:99")
    assert message.startswith(
        "device: found cuda:99, which torch can't use here; expected auto, cpu, or cuda"
    )


def test_answers_of_an_untrained_model_are_said_to_be(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(GOOD)
    ask = [
        "--data.predict",
        "{class_path: Drawn, init_args: {split: val, size: 2}}",
        "--trainer.accelerator",
        "cpu",
    ]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        assert main(["predict", "--config", "c.yaml", *ask, "--model.generation.max_new_tokens", "2"]) == 0
    assert "no --ckpt_path: this is drawn-vlm as it is, without what a fit has trained" in caplog.text


BROKEN = {
    "data:\n  train: a\n    val: b\n": "c.yaml:3:8: broken YAML: the line is indented further",
    "data:\n  train: a\n  val:b\n  test: c\n": "c.yaml:3:3: broken YAML: expected 'key: value'",
    "model: {adapt: lora\ndata: {}\n": "c.yaml:1:8: broken YAML: this { is never closed",
    "model: [a, b\ndata: {}\n": "c.yaml:1:8: broken YAML: this [ is never closed",
    'path: "C:\\data"\n': r"broken YAML: found \ in double quotes; use single quotes",
    "path: *.jsonl\n": "broken YAML: a value that begins with * must be in quotes",
    "path: @here\n": "broken YAML: a value can't begin with this character",
    "model: {lr:}\n": "broken YAML: expected a value, or null, with a blank behind the ':'",
    "- a\nb: c\n": "broken YAML: the line fits neither the keys nor the list above",
}


@pytest.mark.parametrize(("text", "expected"), BROKEN.items())
def test_yaml(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(expected)):
        read_config("c.yaml")


GENERATION = {
    "no keys": (64, "found 64; expected keys, such as {max_new_tokens: 64}"),
    "no token": ({"max_new_tokens": 0}, "max_new_tokens: found 0; expected a whole number, at least 1"),
    "half a beam": ({"num_beams": 1.5}, "num_beams: found 1.5; expected a whole number, at least 1"),
    "a word": ({"do_sample": True, "temperature": "hot"}, "temperature: found hot; expected a number"),
    "no temperature": ({"do_sample": True, "temperature": 0}, "temperature: found 0 with do_sample"),
    "more answers than beams": (
        {"do_sample": True, "num_beams": 2, "num_return_sequences": 4},
        "`num_return_sequences` (4) has to be smaller or equal to `num_beams` (2)",
    ),
}


@pytest.mark.parametrize(("given", "expected"), GENERATION.values(), ids=GENERATION)
def test_generation(given, expected):
    with pytest.raises(UserError, match=rf"^model\.generation.*{re.escape(expected)}"):
        check_generation(given)


@pytest.mark.parametrize(
    ("given", "ignored"),
    [
        ({"temperature": 0.7, "top_k": 20}, ["temperature", "top_k"]),
        ({"temperature": 0.7, "do_sample": True}, []),
        ({"temperature": 0.0, "top_p": 1.0}, []),  # which says the same
        ({"length_penalty": 0.5}, ["length_penalty"]),
        ({"length_penalty": 0.5, "num_return_sequences": 3, "do_sample": True}, []),  # ranks them
        ({"early_stopping": True, "num_beams": 1}, ["early_stopping"]),
        ({"early_stopping": True, "num_beams": 3}, []),
        ({"max_new_tokens": 8, "synced_gpus": True}, []),  # of generate alone
    ],
)
def test_generation_without_effect(given, ignored, caplog):
    assert without_effect(check_generation(given)) == ignored
    assert not caplog.text


MADE = {
    "an optimizer's name": (
        lambda: VLMModule("x", optimizer="adamw"),
        "optimizer: found adamw; expected what",
    ),
    "a schedule's name": (
        lambda: VLMModule("x", schedule="cosine"),
        "schedule: found cosine; expected a Schedule",
    ),
    "a plan": (lambda: VLMModule("x", adapt=["language"]), "plan: found a list; expected"),
    "a dtype": (lambda: VLMModule("x", dtype="half"), "dtype: found half; expected auto, float32"),
    "prompts": (
        lambda: VLMDataModule(system_prompts="Be short."),
        "found 'Be short.'; expected a text for each",
    ),
    "no batch size": (lambda: VLMDataModule(batch_size=None), "data.batch_size: found null; expected"),
}


@pytest.mark.parametrize(("make", "expected"), MADE.values(), ids=MADE)
def test_in_python(make, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        make()


def test_rows_in_python_need_a_source():
    with pytest.raises(
        UserError, match=r"^data\.train: found a list; expected the path of a file or a folder"
    ):
        Trainer(max_steps=1, accelerator="cpu", logger=False).fit(
            VLMModule("drawn-vlm"), VLMDataModule(train=[{"messages": []}])
        )


OF_PACKAGES = {
    "CUDA error: device-side assert triggered": "CUDA_LAUNCH_BLOCKING=1 and --debug in front",
    "Found more than one stateful callback of type `Timer`. ": "found Timer twice, whose states would be one",
    "Early stopping conditioned on metric `val_los` which is not available. Pass in or modify your "
    "`EarlyStopping` callback to use any of: `train/loss`, `val_loss`": "did you mean val_loss?",
}


@pytest.mark.parametrize(("said", "expected"), OF_PACKAGES.items())
def test_what_packages_say(said, expected):
    assert expected in str(known_failure([RuntimeError(said)]))
