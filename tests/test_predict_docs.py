"""The commands of docs/predict.md run as they stand there, and its tables are right."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vlm.callbacks.answer_rows import KEYS
from lightning_vlm.cli import main
from tests.predict.conftest import photos, questions  # noqa: F401  # fixtures

TEXT = (Path(__file__).parent.parent / "docs" / "predict.md").read_text("utf-8")
PHOTOS, CHECKPOINT, PIPE, KEEP = re.findall(r"^```bash\n(.*?)\n```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path):
    """Run a snippet in a shell that finds our command."""
    command = tmp_path / "bin" / "lightning-vlm"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m lightning_vlm "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"

    def shell(snippet):
        return subprocess.run(
            snippet, shell=True, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )

    return shell


def test_the_snippets(questions, run):  # noqa: F811
    words = "--model.name_or_path drawn-vlm --data.train questions.jsonl --trainer.max_steps 1"
    assert main(["fit", *words.split(), "--trainer.accelerator", "cpu"]) == 0
    (checkpoint,) = Path("lightning_logs").rglob("*.ckpt")
    shutil.copy(checkpoint, "best.ckpt")
    for snippet in (PHOTOS, CHECKPOINT, KEEP):
        assert main(shlex.split(snippet)[1:]) == 0
    done = run(PIPE)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert len(Path("answers.jsonl").read_text().splitlines()) == 5
    assert len(Path("shapes.jsonl").read_text().splitlines()) == 5
    row = json.loads(Path("run/answers.jsonl").read_text().splitlines()[0])
    assert len(row["candidates"]) == 8
    assert Path("run/kept.jsonl").exists()
    assert Path("answers.html").exists()


def test_all_keys_are_named():
    table = TEXT.partition("## A line")[2].partition("##")[0]
    for key in KEYS:
        assert f"`{key}`" in table
