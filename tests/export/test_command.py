"""`lightning-vlm export` from the command line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from lightning_vlm.cli import main
from lightning_vlm.errors import UserError
from lightning_vlm.export import command
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.export.write import write
from tests.support.exports import ADAPTER, LORA, change_one_bit

pytestmark = pytest.mark.usefixtures("warm_python")


def command_line(*words):
    return main(["export", *map(str, words)])


def run_as_printed(*outputs):
    """Run the lines that exports end with, as printed, in one new process."""
    programs = [output[re.search("^(import|from) ", output, re.MULTILINE).start() :] for output in outputs]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_command(checkpoint_of, tmp_path, capsys, monkeypatch, model_folder):
    """From a checkpoint to a table, and the lines that it prints do load the folder."""
    checkpoint = checkpoint_of("smolvlm", LORA)
    monkeypatch.chdir(tmp_path)
    out = Path("new", "out")
    assert command_line("--ckpt_path", checkpoint, "--out", out, "--samples", 2) == 0
    shown = capsys.readouterr().out
    assert "proved in a fresh process" in shown
    assert "logits off by" in shown
    assert f'AutoModelForImageTextToText.from_pretrained("{out}")' in shown
    assert AutoModelForImageTextToText.from_pretrained(out).config.use_cache
    assert [one.name for one in out.parent.iterdir()] == ["out"]
    adapters = Path("adapters")
    adapters.mkdir()  # an empty one may be there
    assert command_line("--ckpt_path", checkpoint, "--out", adapters, "--adapter-only", "--samples", 1) == 0
    with_peft = capsys.readouterr().out
    assert f'PeftModel.from_pretrained(model, "{adapters}")' in with_peft
    run_as_printed(shown, with_peft)
    base = AutoModelForImageTextToText.from_pretrained(model_folder("smolvlm"))
    merged = PeftModel.from_pretrained(base, adapters).merge_and_unload()
    other = AutoModelForImageTextToText.from_pretrained(out)
    for (name, one), same in zip(merged.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6, msg=name)


def test_a_run_is_proved_on_its_own_data_and_scored_quantised(tmp_path, capsys, monkeypatch):
    """A real fit of the shipped model; what quantising loses is what `test` says of the quantised folder."""
    monkeypatch.chdir(tmp_path)
    words = {
        "model.name_or_path": "drawn-vlm",
        "model.adapt": "{language: {lora: {r: 2}}}",
        "data.train": "{class_path: Drawn, init_args: {split: train, size: 16}}",
        "data.batch_size": 8,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in words.items())]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    lines = [
        {"messages": [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "red"}]}
        for n in range(3)
    ]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ["--ckpt_path", checkpoint, "--data", "own.jsonl", "--samples", 2, "--check-quantized", "nf4"]
    assert command_line(*words, "--out", "out") == 0
    shown = capsys.readouterr().out
    assert "2 samples: logits off by" in shown
    assert "Quantised: 3 samples" in shown
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:-1]
        for line in shown.split("\n")
        if line.count("│") == 6
    }
    plain, quantised, lost = (float(rows[name][0]) for name in ("as exported", "nf4", "lost"))
    assert plain != quantised
    assert lost == pytest.approx(quantised - plain, abs=2e-4)


@pytest.fixture
def bad(checkpoint_of, tmp_path, model_folder):
    """Words of commands that can't work."""
    out = ["--out", tmp_path / "out"]
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, foreign)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")

    def words(name):
        fine = ["--ckpt_path", checkpoint_of("llava", LORA)]
        ours = ["--ckpt_path", checkpoint_of("llava", ADAPTER)]
        return {
            "no checkpoint": ["--ckpt_path", tmp_path / "none.ckpt", *out],
            "foreign": ["--ckpt_path", foreign, *out],
            "out has files": [*fine, "--out", full],
            "out is a file": [*fine, "--out", tmp_path / "file"],
            "other base": [*fine, *out, "--name_or_path", model_folder("llava_next")],
            "base gone": [*fine, *out, "--name_or_path", tmp_path / "gone"],
            "adapters merged": [*ours, *out],
            "nothing to adapt": [
                "--ckpt_path", checkpoint_of("llava", "projector-only"), *out, "--adapter-only"
            ],
            "bare parameter": [
                "--ckpt_path", checkpoint_of("llava_next", LORA), *out, "--adapter-only"
            ],
            "no method": [*fine, *out, "--check-quantized", "nf5"],
            "adapters quantised": [*fine, *out, "--check-quantized", "nf4", "--adapter-only"],
            "both": [*fine, *out, "--adapter-only", "--merged"],
            "no data": [*fine, *out, "--data", tmp_path / "none.jsonl"],
            "no dtype": [*fine, *out, "--dtype", "int4"],
            "unknown key": [*fine, *out, "--adapters", "true"],
            "nothing": [],
        }[name]  # fmt: skip

    return words


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no checkpoint", "none.ckpt: found no such file"),
        ("foreign", "none of a VLMModule"),
        ("out has files", "found a folder with files"),
        ("out is a file", "found a file"),
        ("other base", "other weights"),
        ("base gone", "no such folder"),
        ("adapters merged", "use --adapter-only"),
        ("nothing to adapt", "leave --adapter-only out"),
        ("bare parameter", "image_newline"),
        ("no method", "expected one of: nf4, int8"),
        ("adapters quantised", "leave --adapter-only out"),
        ("both", "choose one"),
        ("no data", "none.jsonl"),
        ("no dtype", "dtype"),
        ("unknown key", "adapters"),
        ("nothing", "ckpt_path"),
    ],
)
def test_what_is_refused(bad, tmp_path, capsys, name, message):
    words = bad(name)
    capsys.readouterr()  # what loading the models of the checkpoints said
    before = sorted(tmp_path.rglob("*"))
    assert command_line(*words) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert printed.count("\n") == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_proof_leaves_nothing(checkpoint_of, tmp_path, capsys, monkeypatch):
    """The folder is harmed between writing and proving."""

    def harmed(*arguments):
        written = write(*arguments)
        change_one_bit(written.export.folder)
        return written

    monkeypatch.setattr(command, "write", harmed)
    assert command_line("--ckpt_path", checkpoint_of("llava", LORA), "--out", tmp_path / "out") == 2
    assert "is not what was trained: the checksum of model.vision_tower" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_new_tokens_have_no_adapter_folder(checkpoint_of):
    checkpoint = checkpoint_of("qwen2_vl", LORA, new_tokens=["<loc_1>"])
    with pytest.raises(UserError, match="new_tokens give the base model more rows"):
        load_trained(ExportRequest(checkpoint, adapter_only=True))
