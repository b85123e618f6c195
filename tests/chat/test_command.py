"""`lightning-vlm chat`: from a pipe, and in a real terminal."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from lightning_vlm.chat.opened import Where, open_model
from lightning_vlm.chat.session import Session, Voice
from lightning_vlm.chat.terminal import Terminal as Screen
from lightning_vlm.cli import main
from lightning_vlm.errors import UserError


def chat(monkeypatch, text, *words):
    """The exit status of the command with some lines from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return main(["chat", *map(str, words), "--device", "cpu"])


def test_lines_of_a_pipe_are_answered(asked, monkeypatch, capsys):
    """Answers go to standard output, notes elsewhere, and boxes are in pixels and can be drawn."""
    monkeypatch.chdir(asked.parent)
    lines = ["0.png Which colour was used?", "/new", "/image 1.png", "Draw a box around the orange moon."]
    lines += ["/save drawn.png", "/boxes", "Draw a box around the orange moon.", ""]
    assert chat(monkeypatch, "\n".join(lines), "drawn-vlm") == 0
    printed = capsys.readouterr()
    first, second, box, third = printed.out.splitlines()
    assert first == "teal"
    assert re.fullmatch(r"\[\d+, \d+, \d+, \d+\]", second)
    assert re.fullmatch(r"  box [\d., ]+", box)
    assert not third.startswith("  box")
    assert "(a new conversation)" in printed.err
    assert "(written: drawn.png)" in printed.err
    assert (asked.parent / "drawn.png").exists()


def test_the_base_answers_beside(checkpoint, asked, monkeypatch, capsys):
    monkeypatch.chdir(asked.parent)
    assert chat(monkeypatch, "0.png Which colour was used?\n", checkpoint, "--base") == 0
    lines = capsys.readouterr().out.splitlines()
    tuned, base = lines.index("tuned"), lines.index("base")
    assert tuned == 0
    assert lines[base + 1] == "teal"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drawn-vlmm"], "did you mean drawn-vlm"),
        ([], "found no MODEL"),
        (["drawn-vlm", "--bas"], "bas"),
        (["drawn-vlm", "--max_new_tokens", "0"], "expected 1 or more"),
        (["drawn-vlm", "--temperature", "-1"], "expected 0, or more"),
        (["drawn-vlm", "--task", "vqa"], "no task with a system prompt"),
        (["drawn-vlm", "--base"], "write --base MODEL"),
    ],
)
def test_what_is_refused(words, message, monkeypatch, capsys):
    assert chat(monkeypatch, "", *words) == 2
    error = capsys.readouterr().err.split("lightning-vlm: error: ")[1]
    assert message in error
    assert error.strip().count("\n") < 3


@pytest.fixture(scope="module")
def session():
    """With the shipped model."""
    return Session([Voice("it", open_model("drawn-vlm", Where("cpu")))], {"max_new_tokens": 8}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/imag a.png\n", "did you mean /image?"),
        ("/image gone.png\n", "gone.png: there is no such file"),
        ("/image 11.png\n", "did you mean 1.png?"),
        ("/image\n", "found no path"),
        ("/save a.png\n", "there is no answer yet"),
        ("hello\n/save a.png\n", "no boxes"),
        ("/image questions.jsonl\n", "not a picture"),
    ],
)
def test_a_line_that_is_refused(session, text, message, asked, monkeypatch):
    """It ends a pipe with an error; a person is shown it and goes on."""
    monkeypatch.chdir(asked.parent)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(UserError, match=re.escape(message)):
        Screen(session.again(), Console(file=io.StringIO()), is_live=False).run()


def _own_terminal():
    """Ctrl-C is a signal to the process, as in any terminal, also where tests run in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """The command in a terminal of its own, 80 columns wide."""

    def __init__(self, folder, *words):
        self.main, other = pty.openpty()
        environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
        command = [sys.executable, "-m", "lightning_vlm", "chat", *words]
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(other)
        self.seen = ""
        self.read = 0

    def until(self, text, seconds=90):
        """Read until a text has come; what came since the last one."""
        start, deadline = self.read, time.monotonic() + seconds
        while text not in self.seen[start:]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[start:]!r}"
            self._wait(1)
        self.read = self.seen.index(text, start) + len(text)
        return self.seen[start : self.read]

    def _wait(self, seconds):
        ready, _, _ = select.select([self.main], [], [], seconds)
        if ready:
            self.seen += os.read(self.main, 4096).decode(errors="replace")

    def type(self, text):
        os.write(self.main, text.encode())


def test_in_a_terminal(asked):
    """Ctrl-C ends a line or an answer, not the program; the arrow key brings a line back; Ctrl-D ends."""
    terminal = Terminal(
        asked.parent, "drawn-vlm", "--device", "cpu", "--max_new_tokens", "480", "--temperature", "90"
    )
    terminal.until("Ctrl-D ends.")
    terminal.until("> ")
    terminal.type("/nonsense\n")
    assert "there is no such command" in terminal.until("lists all")
    terminal.until("> ")
    terminal.type("half a line")
    terminal.until("half a line")
    time.sleep(0.5)  # a signal before readline waits would be seen at the next key only
    terminal.type("\x03")
    terminal.until("(Ctrl-D ends the conversation)")
    terminal.until("> ")
    for attempt in range(20):  # an answer of random words may end before it is stopped
        terminal.type("0.png Which colour was used?\n")
        terminal.until("used?\r\n")
        time.sleep(0.02 * attempt)
        terminal.type("\x03")
        if "(stopped)" in terminal.until(")\x1b[0m\r\n> "):
            break
    else:
        pytest.fail("no answer was stopped")
    terminal.type("\x1b[A")
    terminal.until("Which colour was used?")
    terminal.type("\x15\x04")
    assert terminal.process.wait(20) == 0
    os.close(terminal.main)
