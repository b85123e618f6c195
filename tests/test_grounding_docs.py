"""What docs/grounding-data.md shows is read as it stands there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_vlm.data.conversation import Box, Conversations, Nothing, Point, Region
from lightning_vlm.data.read.coco import COCO
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError

TEXT = (Path(__file__).parent.parent / "docs" / "grounding-data.md").read_text("utf-8")
BLOCK = re.compile(r"(?:^`data\.box_format: ([\w -]+)`\n\n)?^```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROWS = [
    (row, format or None, number)
    for number, (format, rows) in enumerate(BLOCK.findall(TEXT))
    for row in rows.splitlines()
]
PLACE = (0.125, 0.235, 0.2, 0.31)
"""Where the ball on the left lies in every row, in fractions."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("street.jpg", "garden.jpg"):
        PIL.Image.new("RGB", (640, 480)).save(name)


@pytest.mark.parametrize(("row", "format", "number"), ROWS)
def test_rows_are_read(row: str, format: str | None, number: int) -> None:
    Path("train.jsonl").write_text(row + "\n")
    source = Messages("train.jsonl") if number == 0 else read("train.jsonl", box_format=format)
    parts = [part for message in source[0].messages for part in message.parts]
    located = [part for part in parts if isinstance(part, Box | Point | Region | Nothing)]
    assert located or "garden.jpg" in row
    words = " ".join(getattr(part, "text", "") for part in parts)
    assert not re.search(r"<(?!grounding|OD)|\d{2}|\[", words)  # no markup is left
    for part in located:
        if isinstance(part, Box) and "ball" in row:
            whole = (640, 480, 640, 480) if part.pixels else (1, 1, 1, 1)
            numbers = [value / edge for value, edge in zip(part.xyxy, whole, strict=True)]
            assert numbers == pytest.approx(PLACE, abs=0.02) or numbers[0] > 0.4


@pytest.mark.parametrize("row", [row for row, format, _ in ROWS if format and format != "fractions"])
def test_a_unit_that_nothing_says_is_refused(row: str) -> None:
    Path("train.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match=r"data\.box_format"):
        read("train.jsonl")


@pytest.mark.parametrize("model", ["qwen2_5_vl", "qwen3_vl"])
def test_the_model_reads_and_writes_what_the_rows_say(model: str, processor_of: Callable) -> None:
    """From a row to the text that is learned, and back as an answer is read: in pixels of the picture."""
    renderer = Renderer(processor_of(model))
    for row, format, number in ROWS:
        if "ball" not in row or "garden" in row or "<region>" in row:  # no box of the ball in the answer
            continue
        Path("train.jsonl").write_text(row + "\n")
        source = Messages("train.jsonl") if number == 0 else read("train.jsonl", box_format=format)
        prompt, reference = renderer.prompt(source[0])
        assert reference is not None
        found = prompt.reader.read(reference)
        assert not found.faults
        assert len(found.items) == len(prompt.reader.right)
        first = found.items[0]
        if isinstance(first, Box):
            assert first.xyxy == pytest.approx(PLACE, abs=0.02), row


def test_there_are_rows_of_each_format() -> None:
    assert len(ROWS) > 18
    assert {format for _, format, _ in ROWS} == {None, "0-1000", "pixels", "fractions", "pixels xywh"}


def test_coco() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    data = {
        "images": [{"id": 1, "file_name": "street.jpg", "width": 640, "height": 480}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [80, 112, 48, 36]}],
        "categories": [{"id": 1, "name": "ball"}],
    }
    Path("instances.json").write_text(json.dumps(data))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=Conversations)
    config = parser.parse_object({"train": yaml.safe_load(text)["data"]["train"]})
    source = parser.instantiate_classes(config).train
    assert isinstance(source, COCO)
    assert source[0].messages[1].parts == (Box((80.0, 112.0, 128.0, 148.0), "ball", pixels=True),)
