"""The table of every image-text class, and the trials behind it."""

from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tests.support import tiny
from tools import every_family

DOCS = Path(__file__).parent.parent / "docs/families.md"


def test_a_class_without_a_row_is_tried_by_rules():
    assert "hyperclovax_vision_v2" not in tiny.FAMILIES, "else take another"
    assert every_family.tried("hyperclovax_vision_v2") == "works"


def test_what_fails_is_named(monkeypatch):
    row = tiny.FAMILIES["llava"]
    broken = row.template.replace("message", "no_such_name", 1)
    monkeypatch.setitem(tiny.FAMILIES, "llava", row._replace(template=broken))
    assert every_family.tried("llava").startswith("masks: the chat template of LlavaProcessor can't render")


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
