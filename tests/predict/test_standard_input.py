"""Questions from a pipe are answered as they come, a line for a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_vlm.data.read.stream import Stream
from lightning_vlm.errors import DataError
from tests.predict.conftest import ASK

COMMAND = (
    *(sys.executable, "-m", "lightning_vlm", "predict", "--model.name_or_path", "drawn-vlm"),
    *("--trainer.accelerator", "cpu", "--trainer.logger", "false", "--data.predict", "-"),
)


@pytest.fixture
def start(photos):
    """Start the command with pipes at both ends."""
    started = []

    def begin(*words):
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        started.append(subprocess.Popen([*COMMAND, *words], **pipes))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def line(**row):
    return json.dumps({"question": ASK, **row}).encode() + b"\n"


def test_lines_are_answered_as_they_come(start, photos):
    command = start()
    command.stdin.write(line(image="photos/0.png", id="first"))
    command.stdin.flush()
    # The next question waits for this answer.
    first = json.loads(command.stdout.readline())
    assert (first["id"], first["source"], first["images"]) == ("first", "stdin:1", ["photos/0.png"])
    rest = [
        *(line(image="photos/sub/1.png"), b"{broken\n", b"\n", line(image="photos/no.png", id=7)),
        *(line(image="photos/broken.jpg"), line(image="photos/2.png", answer="moon", note="ignored")[:-1]),
    ]
    out, err = command.communicate(b"".join(rest), timeout=120)
    assert command.returncode == 0, err
    rows = [json.loads(text) for text in out.splitlines()]
    assert [row["source"] for row in rows] == [f"stdin:{number}" for number in range(2, 8)]
    assert [row["answer"] is None for row in rows] == [False, True, True, True, True, False]
    assert [row["id"] for row in rows][3:5] == [7, "stdin:6"]
    assert "column 2: found broken JSON" in rows[1]["error"]
    assert "an empty line" in rows[2]["error"]
    assert "'photos/no.png', which does not exist" in rows[3]["error"]
    assert "'photos/broken.jpg', which is not a picture" in rows[4]["error"]
    assert rows[5]["scores"].keys() == {"exact_match", "token_f1"}
    shown = err.decode()
    assert "answers     go to standard output as they come" in shown
    assert "3 on standard output; 4 skipped" in shown
    assert "stdin: ignored: 'note' (1 row)" in shown
    assert not list(Path().rglob("answers.jsonl"))


def test_paths_with_one_question(start, photos):
    command = start("--prompt", ASK, "--out", "a.jsonl")
    paths = ["photos/0.png", str(photos / "photos/2.png"), "photos/notes.txt", "../photos/0.png"]
    out, err = command.communicate("\n".join(paths).encode(), timeout=120)
    assert command.returncode == 0, err
    assert b"answers     go to a.jsonl" in out
    rows = [json.loads(text) for text in Path("a.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == paths
    assert [bool(row["answer"]) for row in rows] == [True, True, False, False]
    assert b"2 in a.jsonl; 2 skipped" in out


def test_what_is_there_is_taken_and_nothing_is_waited_for():
    reads, writes = os.pipe()
    stream = Stream(descriptor=reads)
    os.write(writes, b'{"question": "a"}\n{"question": "b"}\n{"question"')
    assert stream.take(8) == [1, 2]
    assert [stream[number].messages[0].parts[0].text for number in (1, 2)] == ["a", "b"]
    os.write(writes, b': "c"}\n' + b'{"question": "d"}\n' * 3)
    assert stream.take(2) == [3, 4]
    with pytest.raises(KeyError):
        stream[1]  # what was answered is forgotten
    assert stream.take(8) == [5, 6]
    os.write(writes, b'\xff\n{"question": "' + "ä".encode() * 20_000 + b'"}')
    os.close(writes)
    assert stream.take(1) == [7]
    with pytest.raises(DataError, match="stdin:7: byte 1: found the byte 0xff"):
        stream[7]
    assert stream.take(8) == [8]
    assert len(stream[8].messages[0].parts[0].text) == 20_000
    assert stream.take(8) == stream.take(8) == []
    os.close(reads)


def test_one_process_reads(photos, predict, capsys, monkeypatch):
    words = ("--trainer.devices", "2", "--trainer.strategy", "ddp_fork")
    command = subprocess.run([*COMMAND, *words], input=b"", capture_output=True, check=False, timeout=120)
    assert command.returncode == 2
    assert b"one process reads standard input; set trainer.devices to 1" in command.stderr
