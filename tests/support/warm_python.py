"""An interpreter that begins at once, forked from one that has imported plain libraries alone.

Exports are proved by processes that have transformers and PEFT, but nothing of ours. Importing those takes
longer than the proof of a tiny model. `WarmPython.executable` is called as `python -c CODE ARGUMENTS` is.
What it runs is a process of its own, with the working directory, environment and streams of its caller.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightning_vlm.export.snippet import Loading, loading_lines

START = 300.0
"""Seconds within which the imports must have ended."""

_SERVER = """
import gc, json, os, signal, socket, sys, traceback

exec(sys.argv[2])
assert "lightning_vlm" not in sys.modules
gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the callers' processes here
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen()


def run(connection):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if not text:
        os._exit(0)  # somebody asked whether this listens
    asked = json.loads(text)
    pid = os.fork()
    if pid:
        connection.sendall(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
        os._exit(0)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    option, code, *arguments = asked["words"]
    assert option == "-c", option
    sys.argv = [option, *arguments]
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without the end of Python, which takes all modules apart


while True:
    connection, _ = listening.accept()
    if not os.fork():
        run(connection)
    connection.close()
"""

_CLIENT = """#!{python} -IS
import json, os, socket, sys

connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
asked = dict(words=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ))
socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
sys.exit(int(connection.recv(16) or 1))
"""


class WarmPython:
    """Starts the interpreter that is forked.

    Args:
        folder: Short enough for the address of a socket; `executable` is in it.
    """

    def __init__(self, folder: Path) -> None:
        address = folder / "socket"
        self.executable = folder / "python"
        self.executable.write_text(_CLIENT.format(python=sys.executable, address=str(address)))
        self.executable.chmod(0o755)
        lines = loading_lines(folder, Loading(has_peft=True))
        imports = "\n".join(line for line in lines if line.startswith(("import", "from")))
        command = [sys.executable, "-c", _SERVER, str(address), imports]
        self._process = subprocess.Popen(command, cwd=folder)
        self._wait_for(address)

    def _wait_for(self, address: Path) -> None:
        deadline = time.monotonic() + START
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(address))
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    raise
                time.sleep(0.2)

    @contextmanager
    def used(self) -> Iterator[None]:
        """What starts `sys.executable` starts a fork of this interpreter."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "executable", str(self.executable))
            yield

    def end(self) -> None:
        """End the interpreter."""
        self._process.kill()
        self._process.wait()
