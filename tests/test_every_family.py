"""The table of every image-text class, and the trials behind it."""

from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.support import tiny
from tools import every_family

DOCS = Path(__file__).parent.parent / "docs/families.md"


def test_a_class_without_a_row_is_tried_by_rules(monkeypatch, tmp_path):
    assert "hyperclovax_vision_v2" not in tiny.FAMILIES, "else take another"
    monkeypatch.setattr(tiny, "FAMILIES", {})
    every_family.try_here("hyperclovax_vision_v2", tmp_path)
    assert [*tiny.FAMILIES] == ["hyperclovax_vision_v2"]


def test_what_fails_is_named(monkeypatch, tmp_path):
    row = tiny.FAMILIES["llava"]
    broken = row.template.replace("message", "no_such_name", 1)
    monkeypatch.setitem(tiny.FAMILIES, "llava", row._replace(template=broken))
    said = "^masks: the chat template of LlavaProcessor can't render"
    with pytest.raises(every_family.Failed, match=said):
        every_family.try_here("llava", tmp_path)


def test_each_is_tried_in_a_process_of_its_own():
    """One that does no arithmetic, which may hang in a copy of a process with busy threads."""
    assert every_family.tried("pix2struct").startswith("refused: it reads questions with an encoder")


def test_versions_keep_their_columns():
    text = every_family.with_results("# About\n", {"b": "works", "a": "loss: found 1"}, "5.23.0")
    text = every_family.with_results(text, {"b": "works"}, "5.17.0")
    assert text.splitlines()[-4:] == [
        "| key | 5.23.0 | 5.17.0 |",
        "| --- | --- | --- |",
        "| a | loss: found 1 | not in this version |",
        "| b | works | works |",
    ]
    assert text.startswith("# About\n\n## Every image-text class")


def test_the_table_has_each_class():
    *_, table = DOCS.read_text("utf-8").partition(every_family.HEADING)
    keys = {line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")}
    assert keys >= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
