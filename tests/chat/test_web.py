"""The page of `chat --web`, in a real browser."""

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_vlm.chat import web
from lightning_vlm.cli import main
from tests.support.chromium import CHROMIUM, Browser

needs_page = pytest.mark.skipif(
    find_spec("gradio") is None or CHROMIUM is None,
    reason="the page needs gradio (the extra web) and a chromium to be looked at",
)
FIELD = "#question textarea"


@pytest.fixture(scope="module")
def page(checkpoint, tmp_path_factory):
    """The address of the command's page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "lightning_vlm", "chat", str(checkpoint), "--base", "--web"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    line = process.stdout.readline()
    while line and "page " not in line:
        line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line
    yield f"http://127.0.0.1:{port}/", process, port
    process.kill()
    process.wait()


@needs_page
def test_a_person_asks_about_a_picture(page, asked, tmp_path):
    """The base answers beside, a new conversation is empty, and nothing is asked of other machines."""
    address, _, _ = page
    with Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.until(f"document.querySelector('{FIELD}')")
        browser.give("#question input[type=file]", asked.parent / "0.png")
        browser.until("document.querySelector('#question img, #question .thumbnail-item')")
        browser.type(FIELD, "Which colour was used?")
        browser.until("document.querySelector('#voice-base').innerText.includes('teal')")
        assert "Which colour was used?" in browser.run("document.querySelector('#voice-tuned').innerText")
        assert browser.run("document.querySelectorAll('#voice-tuned img').length") >= 1
        browser.picture(Path(os.environ.get("CHAT_PICTURES", tmp_path)) / "page.png")
        browser.run("document.querySelector('#new').click()")
        browser.until("!document.querySelector('#voice-base').innerText.includes('teal')")
        browser.give("#question input[type=file]", asked.parent / "1.png")
        browser.until("document.querySelector('#question img, #question .thumbnail-item')")
        browser.type(FIELD, "Draw a box around the orange moon.")
        browser.until("/box \\d/.test(document.querySelector('#voice-base').innerText)")
        browser.until("document.querySelectorAll('#voice-base .bot img').length")
        browser.picture(Path(os.environ.get("CHAT_PICTURES", tmp_path)) / "boxes.png")
        seen = "[...document.querySelectorAll('button')].filter(one => one.checkVisibility())"
        buttons = browser.run(
            f"{seen}.map(one => one.ariaLabel + ' ' + one.title + ' ' + one.innerText).join()"
        )
        assert "New conversation" in buttons
        assert "share" not in buttons.lower()
        assert "clear" not in buttons.lower()
        for name, scheme, wide in (("dark", "dark", 1000), ("narrow", "light", 400)):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.ask("Emulation.setEmulatedMedia", features=media)
            size = {"width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.ask("Emulation.setDeviceMetricsOverride", **size)
            browser.picture(Path(os.environ.get("CHAT_PICTURES", tmp_path)) / f"{name}.png")
        assert browser.run("document.documentElement.scrollWidth") <= 400
        elsewhere = [
            url for url in browser.requests if not url.startswith((address, "data:", "blob:", "about:"))
        ]
        assert elsewhere == []


@needs_page
def test_only_this_machine_may_ask(page):
    _, process, port = page
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    addresses = {row.split()[1] for row in listening if row.split()[3] == "0A"}
    assert f"0100007F:{port:04X}" in addresses
    assert f"00000000:{port:04X}" not in addresses
    process.send_signal(2)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() == 0


def test_without_gradio_the_fix_is_said(monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert main(["chat", "drawn-vlm", "--web"]) == 2
    assert "--web: found no gradio; pip install 'lightning-vlm[web]'" in capsys.readouterr().err
