"""`export --push`: against a server of ours that speaks the protocol of the hub, in an online process."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lightning_vlm.cli import main

CODE = """
import sys
from pathlib import Path
from lightning_vlm.errors import UserError
from lightning_vlm.export.push import Target, check_target, push
target = Target(sys.argv[1], public=sys.argv[3] == "public")
try:
    check_target(target)
    print(push(Path(sys.argv[2]), target))
except UserError as error:
    sys.exit(str(error))
"""


class Hub(BaseHTTPRequestHandler):
    """Knows one token, has one repository, and takes small files in the commit itself."""

    def do_GET(self):
        if self.path.startswith("/api/whoami"):
            self.answer({"name": "me", "type": "user", "auth": {}} if self.is_known else {}, self.status)
        elif self.path.startswith("/api/models/me/taken"):
            self.answer({"id": "me/taken", "siblings": []})
        elif self.path.startswith("/api/models/me/new") and self.server.made:
            self.answer({"id": "me/new", "siblings": [], "sha": "0" * 40})
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.answer({"url": f"http://{self.headers['Host']}/me/new", "name": "me/new", "id": "1"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.server.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/new/commit/1",
                    "commitOid": "1",
                    "success": True,
                }
            )
        else:
            self.answer({"shouldIgnore": False, "valid": True, "success": True, "errors": [], "warnings": []})

    @property
    def is_known(self):
        return self.headers.get("Authorization") == "Bearer hf_right"

    @property
    def status(self):
        return 200 if self.is_known else 401

    def answer(self, value, status=200, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.made, server.files = None, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(folder, name="me/new", port=1, token="hf_right", public="private", offline="0"):
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_OFFLINE": offline}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1"}
    environment.pop("HF_TOKEN", None)
    if token:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-c", CODE, name, str(folder / "model"), public]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n# Hello\n")
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("public", ["private", "public"])
def test_a_folder_arrives_whole(hub, folder, public):
    done = run(folder, port=hub.server_port, public=public)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/new")
    expected = {file.name: file.read_bytes() for file in (folder / "model").iterdir()}
    assert hub.files == expected
    is_private = hub.made.get("private", hub.made.get("visibility") == "private")
    assert is_private == (public == "private")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": None}, "found no token of the hub"),
        ({"token": "hf_wrong"}, "doesn't know this token"),
        ({"name": "me/taken"}, "is on the hub already"),
        ({"name": "no-slash"}, "expected user/name"),
        ({"offline": "1"}, "found HF_HUB_OFFLINE"),
    ],
)
def test_what_is_refused_before_the_work(hub, folder, options, message):
    done = run(folder, port=hub.server_port, **options)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.strip().count("\n") < 3
    assert hub.made is None


def test_no_network_is_said(folder):
    done = run(folder)
    assert "push: the hub can't be reached" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push", "me/new"], "found HF_HUB_OFFLINE"),
        (["--push", "new"], "expected user/name"),
        (["--public"], "add --push user/name"),
    ],
)
def test_the_command_refuses_before_it_loads_anything(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    out = tmp_path / "out"
    assert main(["export", "--ckpt_path", "none.ckpt", "--out", str(out), *words]) == 2
    assert message in capsys.readouterr().err
