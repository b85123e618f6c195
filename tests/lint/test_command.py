"""The command: exit statuses, files, `--fix`, `data.skip`; what it calls clean trains and skips nothing."""

import json
import re
import shlex
import shutil
from pathlib import Path

import PIL.Image
import pytest
import yaml

from lightning_vlm import VLMDataModule
from lightning_vlm.cli import main
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import UserError
from tests.lint.planted import chat, cut_off, draw_pictures, five_mistakes, write_csv, write_lines
from tests.lint.test_kinds import DOCS, found


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    config = {
        "model": {"name_or_path": "drawn-vlm", "adapt": {"projector": "full"}},
        "data": {"train": "train.jsonl", "val": "val.jsonl", "batch_size": 4},
        "trainer": {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "accelerator": "cpu"},
    }
    for name in ("config.yaml", "my.yaml"):  # the latter is that of the docs
        Path(name).write_text(yaml.safe_dump(config))
    return tmp_path


def lint(*words):
    return main(["lint", "--config", "config.yaml", "--workers", "0", *words])


def test_mistakes_are_named_and_left_out_and_the_rest_trains(project, capsys, caplog):
    planted = five_mistakes(project)
    before = {path: path.read_bytes() for path in project.iterdir()}
    assert lint("--json", "lint.json", "--fix", "clean") == 2
    shown = capsys.readouterr()
    assert "lightning-vlm: error: lint found 3 errors, 2 warnings" in shown.err
    assert max(map(len, shown.out.splitlines())) <= 80
    for kind, (at, _) in planted.items():
        assert kind in shown.out
        assert at in shown.out
    document = json.loads(Path("lint.json").read_text())
    assert document["counts"] == {"error": 3, "warning": 2, "note": 0}
    assert {one["kind"]: one["source"] for one in document["findings"]} == {
        k: at for k, (at, _) in planted.items()
    }
    assert "--fix" not in shown.err
    assert {path: path.read_bytes() for path in before} == before

    lines = before[project / "train.jsonl"].splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines, 1) if number not in (4, 8, 12, 16, 20)]
    assert Path("train.clean.jsonl").read_bytes() == b"".join(kept)
    assert lint("--fix", "clean") == 2
    assert "found train.clean.jsonl, which lint would write" in capsys.readouterr().err
    assert lint("--data.train", "train.clean.jsonl", "--strict", "true") == 0
    assert "lint: nothing found" in capsys.readouterr().out
    assert main(["fit", "--config", "config.yaml", "--data.train", "train.clean.jsonl"]) == 0
    assert "kipped" not in capsys.readouterr().out + caplog.text


def test_a_list_of_rows_to_leave_out(project, capsys, caplog):
    five_mistakes(project)
    assert lint("--fix", "skip") == 2
    listed = [json.loads(line) for line in Path("skip.jsonl").read_text().splitlines()]
    assert [line["row"] for line in listed[1:]] == [":4", ":8", ":12", ":16", ":20"]
    assert listed[1]["why"] == ["missing_file"]
    capsys.readouterr()
    assert lint("--data.skip", "skip.jsonl", "--strict", "true") == 0
    caplog.set_level("INFO")
    words = ["--data.skip", "skip.jsonl", "--data.num_workers", "1"]
    assert main(["fit", "--config", "config.yaml", *words]) == 0
    assert "train.jsonl: 5 rows are left out, which skip.jsonl lists (data.skip)" in caplog.text
    capsys.readouterr()

    Path("train.jsonl").write_bytes(Path("train.jsonl").read_bytes() + b"\n")
    assert main(["fit", "--config", "config.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert (
        "data.skip: skip.jsonl was made for train.jsonl with other contents than train.jsonl has now" in error
    )
    assert error.count("\n") <= 3
    shutil.copy("val.jsonl", "others.jsonl")
    assert main(["fit", "--config", "config.yaml", "--data.train", "others.jsonl", *words]) == 2
    assert "was made for train.jsonl, which isn't data.train here" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["json", "csv", "jsonl.gz", "coco", "parquet", "class"])
def test_every_format_leaves_rows_out(project, kind):
    names = draw_pictures(project, 8)
    cut_off(project / names[5])
    rows = [chat(name, f"It is {n}.", question=f"What is {n}?") for n, name in enumerate(names)]
    flat = [{"image": name, "question": f"What is {n}?", "answer": f"{n}!"} for n, name in enumerate(names)]
    train = f"train.{kind}"
    if kind == "json":
        Path(train).write_text(json.dumps(rows, indent=1))
    elif kind == "csv":
        write_csv(Path(train), flat)
    elif kind == "jsonl.gz":
        import gzip

        plain = write_lines(Path("plain.jsonl"), rows).read_bytes()
        Path(train).write_bytes(gzip.compress(plain))
    elif kind == "coco":
        images = [{"id": n, "file_name": name, "width": 96, "height": 72} for n, name in enumerate(names)]
        boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [8 + n, 9, 30, 20]} for n in range(8)]
        train = "instances.json"
        content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
        Path(train).write_text(json.dumps(content))
    elif kind == "parquet":
        pytest.importorskip("datasets").Dataset.from_list(flat).to_parquet(train)
    else:
        train = "train.jsonl"
        write_lines(Path(train), rows)

    def data(**options):
        if kind == "class":
            from lightning_vlm.data.read.readers import Messages

            return VLMDataModule(train=Messages(train), **options)
        return VLMDataModule(train=train, image_root=".", **options)

    (fault,) = found(data())
    assert fault[0] == "truncated_picture"
    if kind == "class":
        assert (
            lint(
                "--data.train",
                "{class_path: Messages, init_args: {path: train.jsonl}}",
                "--data.val",
                "null",
                "--fix",
                "skip",
            )
            == 2
        )
    else:
        assert (
            lint("--data.train", train, "--data.image_root", ".", "--data.val", "null", "--fix", "skip") == 2
        )
    assert found(data(skip="skip.jsonl")) == []
    assert len(data(skip="skip.jsonl").source("train")) == 7


def test_sources_by_class_collect_their_faults(project, capsys):
    five_mistakes(project)
    assert lint("--data.train", "{class_path: Messages, init_args: {path: train.jsonl}}") == 2
    assert "3 errors, 2 warnings" in capsys.readouterr().err


def test_exit_statuses(project, capsys):
    names = draw_pictures(project, 4)
    rows = [chat(name, f"{n}", question=f"{n}?") for n, name in enumerate(names)]
    write_lines(Path("train.jsonl"), rows)
    assert lint("--data.val", "null") == 0
    write_lines(Path("train.jsonl"), [*rows, chat(names[0], "", question="empty?")])
    assert lint("--data.val", "null") == 0
    assert lint("--data.val", "null", "--strict", "true") == 2
    write_lines(Path("train.jsonl"), [*rows, chat("none.jpg", "!")])
    assert lint("--data.val", "null") == 2


def test_bad_input(project, capsys):
    five_mistakes(project)
    Path("taken.jsonl").write_text("{}")
    for words, said in (
        (
            ["--fix", "skip", "--skip_list", "taken.jsonl"],
            "skip_list is 'taken.jsonl', which is another file",
        ),
        (["--json", "train.jsonl/x"], "json: train.jsonl/x can't be written (found a file where a folder"),
        (["--out", "train.jsonl/x"], "out: train.jsonl/x can't be written (found a file where a folder"),
        (["--workers", "-1"], "workers: found -1; expected 0 or more"),
        (["--data.skip", "none.jsonl"], "data.skip: found none.jsonl, which does not exist"),
        (["--data.skip", "train.jsonl"], "data.skip: found train.jsonl, which is no such list"),
        (["--data.train", "null", "--data.val", "null"], "data.train: found nothing to read"),
        (["--fix", "clen"], "clean"),
    ):
        assert lint(*words) == 2, words
        error = capsys.readouterr().err
        assert said in error, error
        assert len(error.strip().splitlines()) <= 4, error


def test_a_list_that_leaves_nothing(project):
    names = draw_pictures(project, 1)
    cut_off(project / names[0])
    write_lines(Path("train.jsonl"), [chat(names[0], "!")])
    assert lint("--data.val", "null", "--fix", "skip") == 2
    with pytest.raises(UserError, match="no sample is left"):
        read("train.jsonl", skip="skip.jsonl")


def test_a_page_that_needs_no_other_file(project):
    five_mistakes(project)
    PIL.Image.new("RGB", (64, 48), "white").save("white.png")
    evil = "<script>alert(1)</script>"
    rows = [json.loads(line) for line in Path("val.jsonl").read_text().splitlines()]
    write_lines(Path("val.jsonl"), [*rows, chat("white.png", evil, task=evil), chat(evil, "!")])
    assert lint("--out", "pages/lint.html") == 2
    page = Path("pages/lint.html").read_text()
    assert evil not in page
    assert page.count("<img ") == page.count('src="data:image/') == 1
    assert 'href="#missing_file"' in page
    for outside in ("<script", "<link", "url(", "@import", "http:", "https:"):
        assert outside not in page


def test_the_commands_of_the_docs(project):
    five_mistakes(project)
    text = DOCS.read_text("utf-8")
    commands = [shlex.split(block) for block in re.findall(r"```bash\n(.*?)\n```", text, re.DOTALL)]
    assert [words[:2] for words in commands] == [["lightning-vlm", "lint"], ["lightning-vlm", "fit"]]
    lint_words, fit_words = (words[1:] for words in commands)
    Path("config.yaml").rename("my.yaml")
    assert main([*lint_words, "--workers", "0", "--fix", "skip"]) == 2
    assert main(fit_words) == 0
    assert Path("lint.html").is_file()
