"""Pages show what strangers write, and act on none of it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest
from lightning_vlm_callbacks.run_report.draw import draw_report

from lightning_vlm.callbacks.answer_page import save_page, shown_answer
from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.terminal import visible

EVIL = (
    "<script>alert(1)</script>\"onerror='x'--><img src=x onerror=y></title></style></svg>javascript:alert(2)"
    "[bold red]EVIL[/bold red]\x1b]0;EVIL\x07\x1b[31mEVIL\u202e{{7*7}}"
)
FILE = "<img src=x onerror=y>[bold]\"'.png"


class Page(HTMLParser):
    """What a browser would act on."""

    def __init__(self, text):
        super().__init__()
        self.faults = []
        self.words = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "iframe", "object", "embed", "link", "form", "base", "b", "bold"):
            known = tag == "b" and {name for name, _ in attributes} <= {"class"}
            self.faults += [] if known else [(tag, attributes)]
        for name, value in attributes:
            address = name in ("src", "href") and not re.match(r"#|data:image/", value or "#")
            if name.startswith("on") or address or ("javascript:" in (value or "") and name != "alt"):
                self.faults.append((tag, name, value))

    def handle_data(self, data):
        self.words.append(data)


def check(file):
    """That a page has no element and no attribute that came with the data, and forbids scripts besides."""
    text = Path(file).read_text("utf-8")
    page = Page(text)
    assert page.faults == []
    assert "Content-Security-Policy" in text
    assert "default-src 'none'" in text
    return "".join(page.words)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data file whose texts, tasks, labels and file names try to be more than text."""
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("RGB", (32, 32), "red").save("a.png")
    Path("a.png").rename(FILE)
    user = [{"type": "image", "path": FILE}, {"type": "text", "text": EVIL}]
    answer = [{"type": "text", "text": EVIL}, {"type": "box", "box": [0.1, 0.1, 0.5, 0.5], "label": EVIL}]
    turns = [
        {"role": "system", "content": EVIL},
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
    ]
    good = {"messages": turns, "task": EVIL[:60]}
    bad = {"question": "a", "answer": "b", "weight": EVIL}
    name = "d[bold]<i>.jsonl"
    Path(name).write_text("\n".join(json.dumps(row) for row in (good, good)))
    Path("bad.jsonl").write_text("\n".join(json.dumps(row) for row in (good, bad, {EVIL: 1})))
    return name


def test_preview_and_lint(data, capfd):
    model = ["--model.name_or_path", "drawn-vlm"]
    assert main(["preview", *model, "--data.train", data]) == 0
    assert main(["lint", *model, "--data.train", "bad.jsonl"]) == 2
    assert "<script>alert(1)</script>" in check("preview.html")
    check("lint.html")
    shown = "".join(capfd.readouterr())
    assert "[/bold" in shown  # as text, not as the end of a style
    assert not re.search(r"\x1b\](?!8)|\x07|\x1b\[31mEVIL|\u202e", shown)


def test_answers(tmp_path):
    asked = Conversation((Message("user", (Text(EVIL),)),), source=EVIL, task=EVIL)
    line = {
        "source": EVIL,
        "prompt": EVIL,
        "answer": EVIL,
        "reasoning": EVIL,
        "reference": EVIL,
        "boxes": [],
        "unread": [EVIL],
        "scores": {"exact_match": 1.0, EVIL: 0.5},
        "candidates": [],
    }
    page = save_page(tmp_path / "a<b>.jsonl", [shown_answer(0, line, asked)], 1)
    assert "<script>alert(1)</script>" in check(page)


def test_a_comparison_of_answers(tmp_path, monkeypatch):
    """Two files of answers, as strangers may send them."""
    monkeypatch.chdir(tmp_path)
    for name, answer in (("one", EVIL), ("two", "Red")):
        lines = [
            {"source": f"{EVIL}:{number}", "task": EVIL[:60], "prompt": EVIL, "answer": answer}
            | {"reference": EVIL, "scores": {"exact_match": float(name == "one")}, "images": [FILE]}
            | {"reasoning": None, "boxes": None, "unread": None, "candidates": None, "videos": []}
            for number in range(8)
        ]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert main(["compare", "one.jsonl", "two.jsonl", "--out", "page.html"]) == 0
    assert "<script>alert(1)</script>" in check("page.html")


def test_the_report_of_a_run(tmp_path):
    """Names of metrics have those of tasks in them."""
    record = tmp_path / "<script>alert(3)</script>" / "report.jsonl"
    record.parent.mkdir(parents=True)
    events = []
    for step in range(3):
        events.append({"time": 1.0, "step": step, "metrics": {f"val/{EVIL}": 1.0 * step, "train/loss": 2.0}})
        events.append({"time": 1.0, "step": step, "event": EVIL, "text": EVIL, EVIL: EVIL})
    record.write_text("\n".join(map(json.dumps, events)))
    draw_report(record, announce=False)
    assert "<script>alert(1)</script>" in check(record.with_name("report.html"))


@pytest.mark.parametrize(
    "text", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\rb", "\u202eabc", "\u2028", "\x00"]
)
def test_no_text_commands_a_terminal(text):
    shown = visible(text)
    assert shown.isprintable()
    assert "⟨U+" in shown
