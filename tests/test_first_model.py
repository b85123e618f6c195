"""Everything in docs/first-model.md, in its order and as printed, on the model inside the package."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest

from lightning_vlm.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "first-model.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def commands(text):
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("lightning-vlm")]


def plain(line):
    """A line without its width: numbers of scores and steps differ between machines."""
    return " ".join(NUMBER.sub("0", line).split())


@pytest.mark.filterwarnings("ignore")
def test_the_path_of_a_newcomer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    shown, ran = "", []
    for place, (language, text) in enumerate(BLOCKS):
        if language == "python":
            exec(compile(text, f"{PAGE.name}:{place}", "exec"), {})
            shown = capsys.readouterr().out
        elif language == "bash":
            typed = BLOCKS[place + 1][1] if BLOCKS[place + 1][0] == "text" else ""
            asked = [line.removeprefix("> ") for line in typed.splitlines() if line.startswith("> ")]
            monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(asked) + "\n"))
            shown = ""
            for words in commands(text):
                code = main(words)
                printed = capsys.readouterr()
                finds = words[0] == "lint" and "shapes/shapes.clean.jsonl" not in words
                assert code == (2 if finds else 0), (words, printed.err)
                assert "Traceback" not in printed.err
                shown += printed.out
                ran.append(words[0])
        elif not text.startswith("> "):
            lines = {plain(line) for line in shown.splitlines()}
            for line in text.splitlines():
                wanted = plain(line)
                assert any(wanted in line for line in lines), f"not printed: {line!r}\n{shown}"
    assert re.fullmatch(r"\w+( \w+)?\n", shown), shown  # the answer of plain transformers
    assert list(dict.fromkeys(ran)) == [
        "init",
        "lint",
        "preview",
        "plan",
        "fit",
        "predict",
        "compare",
        "export",
        "chat",
    ]
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 29
    for page in ("lint.html", "preview.html", "compare.html", "runs/shapes/version_0/report.html"):
        assert Path(page).stat().st_size > 1000
