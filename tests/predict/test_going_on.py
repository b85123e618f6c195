"""A run that was stopped goes on, and its answers are those of one that wasn't."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vlm import AnswerWriter, VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn

SAMPLED = {"max_new_tokens": 3, "do_sample": True, "temperature": 2.0, "num_return_sequences": 2}


class Killed(Callback):
    """Ends the process in a batch, as SIGKILL does, with half a line written."""

    def __init__(self, batch, writer):
        self.batch, self.writer = batch, writer

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.batch:
            file = self.writer._store.answers
            file._file.write(b'{"id": "a line that is bro')
            file._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def run(make_quiet, folder, killed_at=None, generation=SAMPLED, batch_size=2, **options):
    torch.manual_seed(0)
    writer = AnswerWriter(str(folder / "answers.jsonl"), show=0, resume=True, keep="anls >= 0")
    more = [] if killed_at is None else [Killed(killed_at, writer)]
    trainer = make_quiet(callbacks=[writer, *more], **options)
    module = VLMModule("drawn-vlm", generation=generation, adapt={}, scores=["exact_match", "anls", "map"])
    trainer.predict(module, VLMDataModule(predict=Drawn("test", size=11), batch_size=batch_size))


def files_of(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("kept"))


def in_a_child(function):
    """Call a function in a process of its own; its exit code."""
    child = os.fork()
    if not child:
        function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_in_the_middle_of_a_line(make_quiet, tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(make_quiet, whole)
    scores = [line for line in capsys.readouterr().out.splitlines() if line.startswith("scores")]
    for batch in (2, 1):  # the second time it has gone on once
        assert in_a_child(lambda batch=batch: run(make_quiet, killed, batch)) == -signal.SIGKILL
    assert files_of(killed) == [".answers.jsonl.progress", "answers.jsonl"]
    assert (killed / "answers.jsonl").read_text().endswith("bro")
    capsys.readouterr()
    run(make_quiet, killed)
    shown = capsys.readouterr().out
    assert "behind the 6 that an earlier run left" in shown
    assert [line for line in shown.splitlines() if line.startswith("scores")] == scores
    for name in ("answers.jsonl", "kept.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert files_of(killed) == ["answers.jsonl"]

    # A run that ended is not gone on with.
    run(make_quiet, killed)
    assert files_of(killed) == ["answers.jsonl", "answers.previous-1.jsonl"]
    both = (killed / name for name in files_of(killed))
    assert len({file.read_bytes() for file in both}) == 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"generation": {"max_new_tokens": 2}}, "model.generation"),
        ({"batch_size": 3}, "data.eval_batch_size"),
    ],
)
def test_another_run_is_not_gone_on_with(make_quiet, tmp_path, capsys, change, name):
    assert in_a_child(lambda: run(make_quiet, tmp_path, 2)) == -signal.SIGKILL
    run(make_quiet, tmp_path, **change)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "gone on with" in line]
    assert name in line
    assert files_of(tmp_path) == ["answers.jsonl", "answers.previous-1.jsonl"]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 11


def test_two_ranks_that_were_killed_at_different_places(make_quiet, tmp_path, on_two_ranks):
    ranks = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, "batch_size": 1}

    def stopped(folder):
        rank = int(os.environ["RANK"])
        return in_a_child(lambda: run_alone(folder, rank))

    def run_alone(folder, rank):
        run(make_quiet, folder, 2 + 2 * rank, **ranks)

    codes = on_two_ranks(lambda: stopped(tmp_path / "killed"))
    assert codes == [-signal.SIGKILL] * 2
    parts = [tmp_path / "killed" / f"answers.rank-{rank}.jsonl" for rank in (0, 1)]
    assert [part.read_text().count("\n") for part in parts] == [2, 4]

    def both():
        run(make_quiet, tmp_path / "whole", **ranks)
        run(make_quiet, tmp_path / "killed", **ranks)

    on_two_ranks(both)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole") == ["answers.jsonl"]
    for name in ("kept.jsonl", "answers.jsonl"):
        texts = [(tmp_path / folder / name).read_bytes() for folder in ("killed", "whole")]
        assert texts[0] == texts[1]
    assert texts[0].count(b"\n") == 11


def test_the_same_command_goes_on_in_another_folder(questions, predict, rows_of, capsys):
    code = (
        "import os, signal, sys\n"
        "from lightning_vlm.cli import main\n"
        "from lightning_vlm.callbacks.answer_store import AnswerStore\n"
        "write = AnswerStore.write\n"
        "def dies(self, rows, step):\n"
        "    write(self, rows, step)\n"
        "    len(self.steps) < 3 or os.kill(os.getpid(), signal.SIGKILL)\n"
        "AnswerStore.write = dies\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ("--data.predict", "questions.jsonl", "--data.batch_size", "1")
    command = ["predict", "--model.name_or_path", "drawn-vlm", "--trainer.accelerator", "cpu", *words]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert predict(*words) == 0
    file = Path("lightning_logs/version_0/answers.jsonl")
    assert f"5 in {file}" in capsys.readouterr().out
    assert [row["id"] for row in rows_of(file)] == [f"q{number}" for number in range(5)]
    assert predict(*words, "--resume", "false") == 0
    assert len(rows_of("lightning_logs/version_2/answers.jsonl")) == 5


def test_progress_that_is_broken_is_no_progress(make_quiet, tmp_path):
    assert in_a_child(lambda: run(make_quiet, tmp_path, 2)) == -signal.SIGKILL
    progress = tmp_path / ".answers.jsonl.progress"
    first, *steps = progress.read_text().splitlines()
    assert len(steps) == 2
    assert json.loads(steps[0])[0][0] == 2  # lines of answers; behind it are those that are kept
    progress.write_text(f"{first}\n{steps[0]}\n{steps[1][:20]}")
    run(make_quiet, tmp_path)
    assert files_of(tmp_path) == ["answers.jsonl"]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 11
