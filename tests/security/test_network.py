"""Nothing goes to the network unless it was asked for: a process without sockets runs the usual commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import PIL.Image

ROOT = Path(__file__).parents[2]
HOOK = """
import os, sys, traceback

def refuse(event, arguments):
    local = event == "socket.connect" and isinstance(arguments[1], (str, bytes))
    asks = event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    if asks and not local:
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, arguments[1:] if event == "socket.connect" else arguments[:2], file=file)
            traceback.print_stack(limit=-12, file=file)
        raise OSError(101, "the test has no network")

sys.addaudithook(refuse)
"""
"""Python runs it as `sitecustomize` at the start of each process, also of those that commands start."""
COMMANDS = """
import sys
from lightning_vlm.cli import main

def run(*words):
    if main(list(words)):
        sys.exit(f"failed: {words}")

model, data = ["--model.name_or_path", "drawn-vlm"], ["--data.train", "d.jsonl", "--data.val", "d.jsonl"]
fit = [*model, *data, "--data.batch_size", "2", "--trainer.max_steps", "1", "--model.adapt", "lora"]
fit += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", "out"]
run("init", "d.jsonl", "--model", "drawn-vlm", "--out", "my.yaml")
run("lint", *model, *data)
run("preview", *model, *data)
run("fit", *fit)
from pathlib import Path
checkpoint = str(next(Path("out").rglob("*.ckpt")))
run("predict", "--ckpt_path", checkpoint, "--data.predict", "d.jsonl", "--out", "a.jsonl")
run("export", "--ckpt_path", checkpoint, "--out", "exported")
run("plan", *fit, "--compare", "false")
run("compare", checkpoint, "exported", "--data", "d.jsonl", "--samples", "2")
run("chat", "exported", "--device", "cpu", "--max_new_tokens", "4")
print("all ran")
"""


def test_no_command_asks_the_network(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    row = {"question": "What colour?", "answer": "Red", "image": "a.png"}
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    asked = (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "WANDB_MODE",
        "HF_HUB_DISABLE_TELEMETRY",
        "DO_NOT_TRACK",
    )
    environment = {name: value for name, value in os.environ.items() if name not in asked}
    paths = [str(tmp_path), str(ROOT), str(ROOT / "callbacks")]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "ATTEMPTS": str(tmp_path / "attempts")}
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env=environment,
        input="a.png What colour?\n",
        capture_output=True,
        text=True,
    )
    attempts = tmp_path / "attempts"
    assert not attempts.exists(), attempts.read_text()
    assert done.stdout.endswith("all ran\n"), done.stdout[-2000:] + done.stderr[-2000:]


def test_the_test_would_notice(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "ATTEMPTS": str(tmp_path / "attempts")}
    program = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9/')"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "the test has no network" in done.stderr
    assert "socket." in (tmp_path / "attempts").read_text()
