"""Mistakes in configs and on the command line: one line with file, line, key, and the nearest right word."""

import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lightning_vlm.cli import main
from lightning_vlm.config.class_names import find_class
from lightning_vlm.errors import UserError

GOOD = """\
model:
  name_or_path: drawn-vlm
  adapt: {projector: full}
data:
  train: {class_path: Drawn, init_args: {split: train, size: 20}}
  batch_size: 2
trainer:
  max_steps: 1
  logger: false
"""


def refused(capsys, *words):
    """The message of a command that ends with 2."""
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "typing." not in err
    assert "<class" not in err
    (start,) = [
        index for index, line in enumerate(err.splitlines()) if line.startswith("lightning-vlm: error: ")
    ]
    lines = err.splitlines()[start:]
    assert len(lines) <= 3
    return "\n".join(lines).removeprefix("lightning-vlm: error: ")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bomb():
    names = "abcdefghij"
    lines = [f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in pairwise(names)]
    return "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *lines])


FILES = {
    "empty": ("", "config c.yaml: found nothing in it"),
    "only a comment": ("# later\n", "config c.yaml: found nothing in it"),
    "a list": ("- a\n- b\n", "config c.yaml: found a list; expected keys such as model"),
    "a scalar": ("model", "config c.yaml: found only the text 'model'"),
    "a tab": ("model:\n\tadapt: lora\n", "c.yaml:2:1: broken YAML: found a tab; indent with spaces"),
    "an open bracket": ("model: [\n", "c.yaml:2:1: broken YAML: "),
    "an open quote": ("model: {name_or_path: 'x}\n", "c.yaml:1:23: broken YAML: this quote is never closed"),
    "two colons": ("model: name_or_path: x\n", "c.yaml:1:20: broken YAML: found a second ':'"),
    "two documents": ("model: {}\n---\ndata: {}\n", "broken YAML: found a second document"),
    "not UTF-8": (b"# 1\nmodel: {} # \xe9\n", "c.yaml:2: found the byte 0xe9, which is not UTF-8"),
    "a key twice": (GOOD + "data: {}\n", "c.yaml:10: found the key data a second time (first on line 4)"),
    "a key twice, deep": (
        GOOD.replace("{split: train,", "{split: train, size: 3,"),
        "c.yaml:5: found the key size a second time (first on line 5)",
    ),
    "an alias of itself": ("model: &a\n  adapt: *a\n", "found an alias inside of what it stands for"),
    "aliases that multiply": (bomb(), "found aliases that expand to more than 100,000 values"),
    "an object of Python": (
        "model: !!python/object/apply:os.system [ls]\n",
        "c.yaml:1: found the tag !!python/",
    ),
    "a list as a key": ("model: {[a, b]: 1}\n", "c.yaml:1: found a list or mapping as a key"),
    "nested deeply": ("model: " + "[" * 900 + "]" * 900, "config c.yaml: found values nested too deeply"),
    "too long": ("a: 1\n" * 300_000, "config c.yaml: found 1.5 MB; expected a YAML file of at most 1 MB"),
}


@pytest.mark.parametrize(("text", "expected"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_config(folder, capsys, text, expected):
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    assert expected in refused(capsys, "fit", "--config", "c.yaml")
    assert time.process_time() - start < 20  # most of it is for the parser


def config(old="", new="", more=""):
    assert old in GOOD
    return GOOD.replace(old, new, 1) + more if old else GOOD + more


CALLBACKS = "  callbacks: [{class_path: %s, init_args: {%s}}]\n"
CONFIGS = {
    "an empty unknown section": (
        config(more="trainr: {}\n"),
        "c.yaml:10: there is no key trainr; did you mean trainer?",
    ),
    "an unknown section of nothing": (
        config(more="modle:\n"),
        "c.yaml:10: there is no key modle; did you mean model?",
    ),
    "a section that is a number": (
        config("trainer:\n  max_steps: 1\n  logger: false\n", "trainer: 3\n"),
        "c.yaml:7: trainer: found '3'; expected keys such as ",
    ),
    "a section whose keys are commented out": (
        config("trainer:\n  max_steps: 1\n  logger: false\n", "trainer:\n#  max_steps: 1\n"),
        "c.yaml:7: trainer: found nothing under it; expected keys such as ",
    ),
    "a command as a key": (
        config(more="fit:\n  model: {}\n"),
        "c.yaml:10: there is no key fit; the command is no key",
    ),
    "an empty unknown key": (
        config("  max_steps: 1", "  max_stps: {}"),
        "c.yaml:8: there is no key trainer.max_stps; did you mean trainer.max_steps?",
    ),
    "an empty unknown key of a class": (
        config("size: 20", "szie: {}"),
        "c.yaml:5: there is no key szie in Drawn; did you mean size?",
    ),
    "a key beside class_path": (
        config("init_args: {split", "initargs: {split"),
        "c.yaml:5: data.train: there is no key initargs beside class_path; did you mean init_args?",
    ),
    "the class's keys beside class_path": (
        config("init_args: {split: train, size: 20}", "size: 20"),
        "there is no key size beside class_path; keys of the class stand under init_args",
    ),
    "no class_path": (
        config("class_path: Drawn", "class_pth: Drawn").replace(
            "init_args: {split: train, size: 20}", "x: 1"
        ),
        "c.yaml:5: data.train: found the keys class_pth, x; expected class_path and init_args",
    ),
    "a callback": (
        config(more=CALLBACKS % ("GradientMonitr", "")),
        "c.yaml:10: trainer.callbacks: there is no class GradientMonitr; did you mean GradientMonitor?",
    ),
    "a callback in full": (
        config(more=CALLBACKS % ("lightning_vlm_callbacks.GradNrm", "")),
        "there is no class lightning_vlm_callbacks.GradNrm; did you mean lightning_vlm_callbacks.GradNorm?",
    ),
    "a package": (
        config(more=CALLBACKS % ("lightning_vlm_callback.GradNorm", "")),
        "did you mean lightning_vlm_callbacks.GradNorm?",
    ),
    "a module of the user's": (
        config(more=CALLBACKS % ("my_project.Callback", "")),
        "there is no class my_project.Callback: there is no module my_project; put its folder on PYTHONPATH",
    ),
    "a class of another kind": (
        config(more=CALLBACKS % ("torch.nn.Linear", "")),
        "trainer.callbacks: torch.nn.Linear is no Callback; expected a class of that kind",
    ),
    "a class of Lightning's other package": (
        config(more=CALLBACKS % ("pytorch_lightning.callbacks.EarlyStopping", "monitor: val/loss")),
        "c.yaml:10: trainer.callbacks: pytorch_lightning.callbacks.EarlyStopping doesn't go with lightning; "
        "did you mean lightning.pytorch.callbacks.EarlyStopping?",
    ),
    "what a callback refuses": (
        config(more=CALLBACKS % ("AdaptiveLoRARank", "budget: 0")),
        "c.yaml:10: AdaptiveLoRARank: budget: found 0; expected 1 or more, or None",
    ),
    "a callback's key": (
        config(more=CALLBACKS % ("GradientMonitor", "every_n: 3")),
        "c.yaml:10: there is no key every_n in GradientMonitor; did you mean every_n_steps?",
    ),
    "a callback's value": (
        config(more=CALLBACKS % ("GradientMonitor", "every_n_steps: often")),
        "c.yaml:10: trainer.callbacks: every_n_steps: found often; expected a whole number",
    ),
    "an optimizer": (
        config(more="").replace("  adapt", "  optimizer: {class_path: torch.optim.AdmW}\n  adapt"),
        "c.yaml:3: model.optimizer: there is no class torch.optim.AdmW; did you mean torch.optim.AdamW?",
    ),
    "an optimizer's key": (
        config(
            "  adapt", "  optimizer: {class_path: torch.optim.AdamW, init_args: {learning_rate: 1}}\n  adapt"
        ),
        "c.yaml:3: there is no key learning_rate in AdamW",
    ),
    "a schedule": (
        config("  adapt", "  schedule: {class_path: Cosin}\n  adapt"),
        "there is no class Cosin; did you mean Cosine?",
    ),
    "a class in a class": (
        config(
            "{class_path: Drawn, init_args: {split: train, size: 20}}",
            "{class_path: Slice, init_args: {of: {class_path: Drwan}}}",
        ),
        "c.yaml:5: Slice.of: there is no class Drwan; did you mean Drawn?",
    ),
    "a number in place of a class": (
        config(
            "{class_path: Drawn, init_args: {split: train, size: 20}}",
            "{class_path: Slice, init_args: {of: 3}}",
        ),
        "data.train: of: found 3; expected a class with class_path and init_args such as",
    ),
    "a key of settings": (
        config("  adapt", "  token_weights: {respones: 2}\n  adapt"),
        "c.yaml:3: there is no key model.token_weights.respones; did you mean response?",
    ),
    "a word of several": (
        config("  batch_size: 2", "  on_bad_sample: skp"),
        "c.yaml:6: data.on_bad_sample: found skp; expected 'raise' or 'skip'; did you mean skip?",
    ),
    "a precision": (config("  max_steps: 1", "  precision: bf16-mxied"), "did you mean bf16-mixed?"),
    "a split": (
        config("split: train", "split: tarin"),
        "data.train: split: found tarin; expected 'train', 'val' or 'test'; did you mean train?",
    ),
    "a number": (
        config("max_steps: 1", "max_steps: many"),
        "c.yaml:8: trainer.max_steps: found many; expected a whole number",
    ),
    "true or false": (
        config("  batch_size: 2", "  shuffle: 3"),
        "c.yaml:6: data.shuffle: found 3; expected true or false",
    ),
    "names with numbers": (
        config("  adapt", "  learning_rates: {vision: high}\n  adapt"),
        "c.yaml:3: model.learning_rates: found {'vision': 'high'}; expected names with a number each",
    ),
    "a list of texts": (
        config("  adapt", "  new_tokens: x\n  adapt"),
        "model.new_tokens: found x; expected a list, each item a text",
    ),
    "a plan's method": (
        config("projector: full", "projector: {lroa: {r: 2}}"),
        "c.yaml:3: plan['projector']: found method 'lroa'; did you mean 'lora'?",
    ),
    "a plan's setting": (config("projector: full", "projector: {lora: {rr: 2}}"), "did you mean 'r'?"),
    "a generation key": (
        config("  adapt", "  generation: {max_new_token: 3}\n  adapt"),
        "model.generation: there is no key max_new_token; did you mean max_new_tokens?",
    ),
    "a setting of videos": (
        config("  batch_size: 2", "  video: {maxframes: 3}"),
        "c.yaml:6: there is no key data.video.maxframes; did you mean max_frames?",
    ),
    "settings of videos that contradict": (
        config("  batch_size: 2", "  video: {fps: 1, num_frames: 2}"),
        "data.video: found both fps and num_frames; expected one of them",
    ),
    "another trainer's word": (
        config(more="learning_rate: 0.1\n"),
        "c.yaml:10: there is no key learning_rate; did you mean model.optimizer.init_args.lr?",
    ),
}


@pytest.mark.parametrize(("text", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_a_mistake_in_a_config(folder, capsys, text, expected):
    Path("c.yaml").write_text(text)
    assert expected in refused(capsys, "fit", "--config", "c.yaml")


LINES = {
    "a key of an optimizer without a class": (
        ["--model.optimizer.init_args.lr", "1e-4"],
        "model.optimizer: found lr and no class; name the class before it, such as --model.optimizer AdamW",
    ),
    "a short option": (["--ckpt", "x"], "there is no option --ckpt; did you mean --ckpt_path?"),
    "an option": (["--conifg", "c.yaml"], "there is no option --conifg; did you mean --config?"),
    "a key": (
        ["--trainer.max_step", "3"],
        "there is no key trainer.max_step; did you mean trainer.max_steps?",
    ),
    "a key below a value": (
        ["--data.batch_size.x", "3"],
        "there is no key data.batch_size.x; the value of data.batch_size has no keys",
    ),
    "an argument's value": (
        ["--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", "high"],
        "model.optimizer: lr: found high; expected a number",
    ),
    "another trainer's option": (["--gpus", "2"], "did you mean --trainer.devices?"),
    "a key without its section": (["--max_steps", "3"], "did you mean --trainer.max_steps?"),
    "a class": (
        ["--trainer.callbacks+", "GradientMonitr"],
        "there is no class GradientMonitr; did you mean GradientMonitor?",
    ),
    "a class with =": (
        ["--model.optimizer=AdmW"],
        "model.optimizer: there is no class AdmW; did you mean AdamW?",
    ),
    "a callback that Lightning has too": (
        ["--trainer.callbacks+", "ThroughputMonitor", "--trainer.callbacks.every", "3"],
        "there is no key every in ThroughputMonitor; did you mean every_n_steps?",
    ),
    "a class's key": (
        ["--trainer.callbacks+", "GradNorm", "--trainer.callbacks.alpa", "1"],
        "there is no key alpa in GradNorm; did you mean alpha?",
    ),
    "a class in braces": (
        ["--data.train", "{class_path: Slice, init_args: {of: {class_path: Drwan}}}"],
        "there is no class Drwan; did you mean Drawn?",
    ),
    "a class that lacks a key": (["--data.train", "{class_path: Slice}"], "data.train: Slice needs of"),
    "a value": (
        ["--model.quantization.method", "nf5"],
        "found nf5; expected 'nf4' or 'int8'; did you mean nf4?",
    ),
    "a value of a box loss": (
        ["--model.box_loss.kind", "iuo"],
        "found iuo; expected 'soft', 'wasserstein' or",
    ),
    "a key of a box loss": (
        ["--model.box_loss.kind", "soft", "--model.box_loss.sigm", "2"],
        "model.box_loss: there is no key sigm",
    ),
    "a strategy": (
        ["--trainer.strategy", "dpp"],
        "trainer.strategy: there is no strategy dpp; expected auto or ddp; did you mean ddp?",
    ),
    "an accelerator": (
        ["--trainer.accelerator", "gpuu"],
        "trainer.accelerator: there is no accelerator gpuu",
    ),
    "other machines of which nothing is known": (
        ["--trainer.num_nodes", "2", "--trainer.strategy", "ddp"],
        "trainer.num_nodes: found 2, but nothing says where the other machines are, so that",
    ),
    "devices": (["--trainer.devices", "many"], "trainer.devices: expected a number of at least 1, or auto"),
    "a file without --config": (["d.yaml"], "did you mean --config d.yaml?"),
    "no such config": (["--config", "cc.yaml"], "config cc.yaml: found no such file; did you mean c.yaml?"),
    "no config of that name": (
        ["--config", "calbacks"],
        "config calbacks: found no such file; did you mean recipes/callbacks? (looked here and in ",
    ),
    "no config of that name in its folder": (
        ["--config=examples/quickstart"],
        "config examples/quickstart: found no such file; did you mean quickstart",
    ),
    "a folder": (["--config", "."], "config .: found a folder; expected a YAML file such as c.yaml"),
    "a second config": (
        ["--config", "d.yaml"],
        "d.yaml:2: there is no key model.nmae; did you mean model.name_or_path?",
    ),
    "a config of a class": (
        ["--trainer.logger", "logger.yaml"],
        "logger.yaml:1: trainer.logger: there is no class CSVLoger; did you mean CSVLogger?",
    ),
}


@pytest.mark.parametrize(("words", "expected"), LINES.values(), ids=LINES)
def test_a_mistake_on_the_command_line(folder, capsys, words, expected):
    Path("c.yaml").write_text(GOOD)
    Path("d.yaml").write_text("model:\n  nmae: {}\n")
    Path("logger.yaml").write_text("class_path: CSVLoger\n")
    message = refused(capsys, "fit", "--config", "c.yaml", *words)
    assert expected in message
    if "d.yaml" not in words and "logger.yaml" not in words:
        assert not message.startswith("c.yaml:")  # what is wrong doesn't stand there


def test_a_key_of_the_command_line_has_no_place_in_a_file(folder, capsys):
    """Nor has a key that only another section has."""
    Path("one.yaml").write_text("model: {name_or_path: drawn-vlm}\ndata: {train: train.jsonl}\n")
    given = ["--data.batching", "packed", "--data.max_tokens", "-1"]
    message = "data.max_tokens: found -1; expected a whole number, at least 1\n"
    assert main(["fit", "--config", "one.yaml", *given]) == 2
    assert capsys.readouterr().err.endswith(f"lightning-vlm: error: {message}")
    Path("two.yaml").write_text("data:\n  batching: packed\n  max_tokens: -1\n")
    assert main(["fit", "--config", "one.yaml", "--config", "two.yaml"]) == 2
    assert capsys.readouterr().err.endswith(f"lightning-vlm: error: two.yaml:3: {message}")


def test_the_command_comes_first(capsys):
    assert "write lightning-vlm fit first" in refused(capsys, "--config", "c.yaml", "fit")


def test_a_missing_key(folder, capsys):
    expected = (
        "found no model.name_or_path; expected --model.name_or_path VALUE, or a config of a model, such as"
    )
    assert refused(capsys, "fit") == f"{expected} --config models/smolvlm-256m"


def test_a_name_of_two_classes():
    twins = [type("Twin", (torch.optim.SGD,), {"__module__": module}) for module in ("first", "second")]
    with pytest.raises(UserError, match=r"are several classes Twin; write first\.Twin or second\.Twin$"):
        find_class("Twin", [torch.optim.Optimizer])
    assert len(twins) == 2  # they are kept until here
