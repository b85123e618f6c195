"""The command `preview`."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.inspect.gain import describe, load, token_gains, with_gains
from lightning_vlm.inspect.scan import scan_data
from lightning_vlm.losses.visual_gain import visual_gain
from lightning_vlm.models.loading.load import SHIPPED
from tests.inspect.samples import END, Reader


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a data file and a model that has no weights at all."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED["drawn-vlm"], "model", ignore=shutil.ignore_patterns("*.safetensors"))
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    Path("data.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 3))
    config = {
        "model": {"name_or_path": "model", "token_weights": {"response": 3.0}},
        "data": {"train": "data.jsonl", "max_length": 64},
        "trainer": {
            # Nothing of this is here, and a preview asks for none of it.
            "accelerator": "gpu",
            "devices": 8,
            "strategy": "fsdp",
            "logger": {"class_path": "WandbLogger", "init_args": {"project": "x"}},
        },
        "ckpt_path": None,  # as in the saved config of a run
        "weights_only": None,
        "report": True,
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def command(*words):
    return main(["preview", "--config", "config.yaml", *words])


def test_the_command_needs_no_weights_no_gpu_and_no_logger(project, capsys):
    assert command("--samples", "2", "--scan", "2", "--out", "pages/one.html") == 0
    shown = capsys.readouterr()
    assert f"⟦That.{END}⟧×3" in shown.out
    assert "2 of 3 samples" in shown.out
    assert "pages/one.html" in shown.out
    assert "Traceback" not in shown.err
    read = Reader(Path("pages/one.html").read_text("utf-8"))
    assert len(read.texts) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["config.yaml", "data.jsonl", "model", "pages"]


@pytest.mark.parametrize("progress", ["0", "0.5", "1"])
@pytest.mark.parametrize("several", [True, False])
def test_the_command_shows_weights_at_any_progress(project, capsys, progress, several):
    """Of all callbacks only the schedule is made: the other one could not be."""
    schedule = {"class_path": "TokenWeightSchedule", "init_args": {"between": "linear"}}
    schedule["init_args"]["points"] = [{"at": 0, "instruction": 1.0}, {"at": 1, "instruction": 0.0}]
    other = {"class_path": "ModelCheckpoint", "init_args": {"mode": "no such mode"}}
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["trainer"]["callbacks"] = [other, schedule] if several else schedule
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert command("--progress", progress) == 0
    shown = capsys.readouterr().out
    assert f"⟦That.{END}⟧×3" in shown
    assert re.findall(r"⟦What\?⟧(×[\d.]+)?", shown) == {"0": [""], "0.5": ["×0.5"], "1": []}[progress] * 3
    assert "instruction goes linearly: 1 at 0%, 0 at 100%" in shown


def test_the_quickstart_can_be_previewed(project, capsys):
    config = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    assert main(["preview", "--config", str(config), "--scan", "10", "--model.name_or_path", "model"]) == 0
    assert "10 of 37,575 samples" in capsys.readouterr().out
    assert len(Reader(Path("preview.html").read_text("utf-8")).pictures) == 8


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.train", "null"], "data.train is not set"),
        (["--samples", "-1"], "samples -1"),
        (["--progress", "50"], "progress: found 50"),
        (["--out", "data.jsonl/page.html"], "data.jsonl/page.html"),
    ],
)
def test_mistakes_are_reported_in_one_line(project, capsys, words, expected):
    try:
        code = command(*words)
    except SystemExit as stop:  # the parser's own errors
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert expected in err
    assert "Traceback" not in err


def test_a_bad_line_is_named_or_counted(project, capsys):
    with Path("data.jsonl").open("a") as file:
        file.write('\n{"mesages": []}')
    assert command() == 2
    assert "data.jsonl:4" in capsys.readouterr().err
    assert command("--data.on_bad_sample", "skip") == 0
    assert "Left out when the data was opened: 1 of all" in capsys.readouterr().out


def test_which_words_need_the_picture(tmp_path, monkeypatch, capsys):
    """The gain of each learned token is that of the model with a checkpoint's weights, and nothing else has
    one; without `gain` nobody hears of it."""
    monkeypatch.chdir(tmp_path)
    module = VLMModule("drawn-vlm")
    module.configure_model()
    data = VLMDataModule(train=Drawn("train", size=3), batch_size=1)
    trainer = Trainer(max_steps=2, logger=False, accelerator="cpu", use_distributed_sampler=False)
    trainer.fit(module, data)
    trainer.save_checkpoint("trained.ckpt")
    again = VLMModule("drawn-vlm")
    load(again, "trained.ckpt")
    preview = scan_data(again, VLMDataModule(train=Drawn("train", size=3)), samples=3, gain=True)
    for sample in preview.samples:
        example = Renderer(module.processor).example(sample.conversation)
        batch = collate([Item(example, None, None)], 0, [], [])
        module.eval()
        with torch.no_grad():
            found = visual_gain(module.model, batch, module.targets(batch)).nats
        shown = [piece.gain for piece in sample.pieces if piece.weight]
        assert sum(shown) == pytest.approx(float(found.sum()), abs=1e-3)
        assert all(piece.gain is None for piece in sample.pieces if not piece.weight)
        most = max((piece for piece in sample.pieces if piece.weight), key=lambda piece: piece.gain)
        assert f"most: {most.text.strip()!r} {most.gain:+.1f}" in describe(sample.pieces)
    source = "{class_path: Drawn, init_args: {size: 3}}"
    words = ["preview", "--model.name_or_path", "drawn-vlm", "--data.train", source]
    assert main([*words, "--gain", "true", "--ckpt_path", "trained.ckpt"]) == 0
    assert describe(preview.samples[0].pieces) in " ".join(capsys.readouterr().out.split())
    assert "the picture lowers its loss by" in Path("preview.html").read_text("utf-8")
    assert main(words) == 0
    assert "picture gain" not in capsys.readouterr().out
    assert "the picture lowers its loss by" not in Path("preview.html").read_text("utf-8")
    assert main([*words, "--gain", "true", "--ckpt_path", "none.ckpt"]) != 0
    assert "none.ckpt" in capsys.readouterr().err


def test_the_gain_of_answers_is_that_of_their_own_words():
    """Neither an earlier answer nor the right one has a part in it."""
    module = VLMModule("drawn-vlm")
    load(module, None)
    renderer = Renderer(module.processor)
    picture = Drawn("train", size=3)[0].images[0]
    ask = Message("user", (picture, Text("What colour is it?")))
    first = Message("assistant", (Text("It is bright."),))
    asked = Conversation((ask, first, Message("user", (Text("And?"),))), source="a:1")
    with_reference = asked.with_messages((*asked.messages, Message("assistant", (Text("Nobody knows."),))))
    words = Conversation((Message("user", (Text("Hello?"),)),), source="a:2")
    row, empty = {"answer": "red"}, {"answer": ""}
    given = [(asked, row), (with_reference, row), (asked, empty), (words, row)]
    one, other, nothing, unseen = (found["visual_gain"] for found in with_gains(module, renderer, given))
    assert one == other
    assert nothing is unseen is None
    answered = Message("assistant", (Text("red"),))
    example = renderer.example(asked.with_messages((*asked.messages, answered)))
    gains = token_gains(module, example)
    known = gains[~gains.isnan()]
    count = len(module.processor.tokenizer("red").input_ids) + 1  # and the end of the turn
    assert one == pytest.approx(float(known[-count:].mean()), abs=1e-5)


def test_system_prompts_are_shown(project, capsys):
    assert command("--data.system_prompts", "{default: Be brief.}") == 0
    assert "brief." in capsys.readouterr().out.replace("\n", "")
