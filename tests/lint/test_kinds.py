"""Planted faults, one of every kind and in several formats: each is found exactly once, at its line."""

import json
import re
from pathlib import Path

import PIL.Image
import pytest

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.lint.kinds import KINDS, markdown_table
from lightning_vlm.lint.run import lint
from tests.lint.planted import chat, cut_off, draw_pictures, five_mistakes, picture, write_csv, write_lines

DOCS = Path(__file__).parents[2] / "docs" / "lint.md"


def drawn_vlm(**options):
    return VLMModule("drawn-vlm", adapt="full", **options)


def found(data, **options):
    """The kind and the place of each finding."""
    report = lint(drawn_vlm(**options), data, workers=0)
    return sorted((one.kind, one.source) for one in report.findings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_five_mistakes_are_found_in_one_run(folder):
    planted = five_mistakes(folder)
    report = lint(drawn_vlm(), VLMDataModule(train="train.jsonl", val="val.jsonl"), workers=0)
    assert {one.kind: one.source for one in report.findings} == {
        kind: at for kind, (at, _) in planted.items()
    }
    assert len(report.findings) == len(planted)
    for one in report.findings:
        assert planted[one.kind][1] in one.found
        assert one.fix


def test_every_kind_of_row_in_our_own_format(folder):
    names = draw_pictures(folder, 16)
    PIL.Image.new("RGB", (64, 48), "black").save("black.png")
    picture(50, (400, 30)).save("long.jpg")
    picture(51, (60, 8)).save("tiny.png")
    picture(52, (5000, 3300)).save("huge.jpg", quality=30)
    Path("words.jpg").write_text("no picture")
    picture(53).save("half.png")
    cut_off(Path("half.png"))
    PIL.Image.open(names[0]).save("again.png")
    rows = [chat(name, f"It is {place}.", question=f"Question {place}?") for place, name in enumerate(names)]
    expected = []

    def plant(kind, row):
        rows.append(row)
        expected.append((kind, f"train.jsonl:{len(rows)}"))

    plant("bad_row", {"messages": [{"role": "usr", "content": "?"}]})
    plant("missing_file", chat("none.jpg", "!"))
    plant("unreadable_picture", chat("words.jpg", "!"))
    plant("truncated_picture", chat("half.png", "!"))
    only_asked = chat(names[1], "!", question="Only asked?")
    only_asked["messages"].pop()
    plant("no_answer", only_asked)
    expected.append(("role_order", expected[-1][1]))
    plant("box_outside", chat(names[2], "at", box=[0.1, 0.1, 1.2, 0.5], question="a"))
    plant("box_inverted", chat(names[2], "at", box=[0.6, 0.1, 0.2, 0.5], question="b"))
    plant("box_without_area", chat(names[2], "at", box=[0.2, 0.1, 0.2, 0.5], question="c"))
    in_none = chat(names[2], "at", box=[0.1, 0.1, 0.2, 0.5], question="d")
    in_none["messages"][1]["content"][1]["image"] = 3
    plant("box_without_picture", in_none)
    plant("tiny_box", chat(names[2], "at", box=[0.1, 0.1, 0.101, 0.5], question="e"))
    labelled = chat(names[2], "at", box=[0.1, 0.1, 0.3, 0.5], question="f")
    labelled["messages"][1]["content"][1]["label"] = "a <|im_end|> label"
    plant("special_token", labelled)
    plant("special_text", chat(names[2], "It ends<|im_end|> here", question="g"))
    plant("empty_answer", chat(names[2], " ", question="h"))
    weightless = chat(names[2], "!", question="i")
    weightless["messages"][1]["weight"] = 0
    plant("nothing_learned", weightless)
    plant("too_long", chat(names[2], "much " * 200, question="j"))
    turns = chat(names[2], "short", question="k")["messages"]
    plant(
        "cut",
        {
            "messages": [
                *turns,
                {"role": "user", "content": "?"},
                {"role": "assistant", "content": "much " * 200},
            ]
        },
    )
    rows[-1]["task"] = "vqa"
    twice = chat(names[3], "!", question="l")
    twice["messages"].insert(0, {"role": "user", "content": "First"})
    plant("role_order", twice)
    plant("blank_picture", chat("black.png", "!", question="m"))
    plant("extreme_ratio", chat("long.jpg", "!", question="n"))
    plant("tiny_picture", chat("tiny.png", "!", question="o"))
    plant("huge_picture", chat("huge.jpg", "!", question="p"))
    plant("duplicate_sample", rows[5])
    plant("duplicate_picture", chat("again.png", "!", question="q"))
    rows += [chat(names[4], f"{n}", task="grounding", question=f"r {n}") for n in range(3)]
    plant("similar_tasks", chat(names[4], "s", task="grouding", question="s"))
    expected[-1] = ("similar_tasks", "tasks")
    expected += [("unbalanced_tasks", "tasks")]
    expected += [("unknown_task", "config"), ("unused_task", "config")]
    val = [chat(names[6], "new words", question="t"), rows[7], {"messages": []}]
    expected += [
        ("leaked_picture", "val.jsonl:1"),
        ("leaked_sample", "val.jsonl:2"),
        ("bad_row", "val.jsonl:3"),
    ]
    write_lines(Path("train.jsonl"), rows)
    write_lines(Path("val.jsonl"), val)
    data = VLMDataModule(train="train.jsonl", val="val.jsonl", max_length=64)
    given = found(data, task_weights={"vqe": 2.0}, scores={"captions": ["rougeL"]})
    assert given == sorted(expected)
    of_other_formats = {"broken_file", "no_samples", "picture_count", "picture_too_large", "not_rendered"}
    assert {kind for kind, _ in expected} == KINDS.keys() - of_other_formats


def test_llava(folder):
    names = draw_pictures(folder, 8)
    rows = []
    for place, name in enumerate(names):
        turns = [
            {"from": "human", "value": f"<image>\nWhat is {place}?"},
            {"from": "gpt", "value": f"It is {place}."},
        ]
        rows.append({"image": name, "conversations": turns})
    rows[1]["conversations"][0]["value"] = "What?"  # the picture has no place, and comes first
    rows[2]["conversations"][0]["value"] = "<image><image>"
    rows[3]["image"] = "none.jpg"
    rows[4]["conversations"][1]["value"] = ""
    rows[6]["conversations"].reverse()
    cut_off(folder / names[5])
    Path("train.json").write_text(json.dumps(rows, indent=1))
    lines = [
        number for number, line in enumerate(Path("train.json").read_text().splitlines(), 1) if line == " {"
    ]
    at = [f"train.json:{line}[{place}]" for place, line in enumerate(lines)]
    report = found(VLMDataModule(train="train.json"))
    wanted = {
        ("picture_count", at[1]),
        ("picture_count", at[2]),
        ("missing_file", at[3]),
        ("empty_answer", at[4]),
    }
    wanted |= {("truncated_picture", at[5]), ("role_order", at[6])}
    assert wanted <= set(report)
    assert {place for _, place in report} == {place for _, place in wanted}


def test_csv(folder):
    names = draw_pictures(folder, 8)
    rows = [
        {"image": name, "question": f"What is {place}?", "answer": f"{place}!"}
        for place, name in enumerate(names)
    ]
    rows[2]["image"] = "none.jpg"
    rows[3]["answer"] = " "
    rows[5] = rows[6]
    cut_off(folder / names[7])
    write_csv(Path("train.csv"), rows)
    assert found(VLMDataModule(train="train.csv")) == [
        ("duplicate_sample", "train.csv:8"),
        ("empty_answer", "train.csv:5"),
        ("missing_file", "train.csv:4"),
        ("truncated_picture", "train.csv:9"),
    ]


def test_coco(folder):
    names = draw_pictures(folder, 6)
    images = [{"id": n, "file_name": name, "width": 96, "height": 72} for n, name in enumerate(names)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [8 + n, 9, 30, 20]} for n in range(6)]
    boxes[1]["bbox"] = [80, 9, 30, 20]
    boxes[2]["bbox"] = [8, 9, 0, 20]
    images[3]["file_name"] = "none.jpg"
    boxes[4]["bbox"] = [8, 9, 1, 20]
    cut_off(folder / names[5])
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    Path("instances.json").write_text(json.dumps(content))
    assert found(VLMDataModule(train="instances.json")) == [
        ("box_outside", "instances.json:images[1]"),
        ("box_without_area", "instances.json:images[2]"),
        ("missing_file", "instances.json:images[3]"),
        ("tiny_box", "instances.json:images[4]"),
        ("truncated_picture", "instances.json:images[5]"),
    ]


def test_files_that_break_off_or_are_empty(folder):
    names = draw_pictures(folder, 2)
    whole = json.dumps([chat(names[0], "!"), chat(names[1], "!")])
    Path("broken.json").write_text(whole[:-20])
    Path("empty.jsonl").write_text("\n")
    report = found(VLMDataModule(train="broken.json", val="empty.jsonl", test="none.jsonl"))
    assert report == [
        ("broken_file", "broken.json:1"),
        ("broken_file", "none.jsonl"),
        ("no_samples", "empty.jsonl"),
    ]


def test_a_picture_that_many_rows_have_is_one_finding(folder):
    names = draw_pictures(folder, 3)
    rows = [chat(names[place % 3], f"{place}", question=f"{place}?") for place in range(9)]
    cut_off(folder / names[1])
    write_lines(Path("train.jsonl"), rows)
    report = lint(drawn_vlm(), VLMDataModule(train="train.jsonl"), workers=0)
    (one,) = report.findings
    assert (one.kind, one.source, one.also) == (
        "truncated_picture",
        "train.jsonl:2",
        ("train.jsonl:5", "train.jsonl:8"),
    )
    assert one.drops == ("train.jsonl:2", "train.jsonl:5", "train.jsonl:8")


def test_nothing_is_found_in_clean_data():
    data = VLMDataModule(train=Drawn(size=600), val=Drawn("val", size=100), test=Drawn("test", size=100))
    assert found(data) == []


def test_processes_find_the_same(folder):
    names = draw_pictures(folder, 20)
    rows = [chat(names[place % 20], f"{place}", question=f"{place}?") for place in range(400)]
    for place in range(0, 400, 7):
        rows[place]["messages"][1]["content"] = ""
    cut_off(folder / names[3])
    write_lines(Path("train.jsonl"), rows)
    reports = [lint(drawn_vlm(), VLMDataModule(train="train.jsonl"), workers=workers) for workers in (0, 2)]
    assert reports[0].findings == reports[1].findings
    assert len(reports[0].findings) == 58 + 1
    assert reports[0].lengths == reports[1].lengths


def test_the_docs_have_the_table():
    text = DOCS.read_text("utf-8")
    assert markdown_table() in text
    assert all(re.fullmatch(r"[a-z_]+", kind) for kind in KINDS)
