"""Each row of docs/formats.md is read as the page says, and no dialect is missing."""

import json
import re
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import yaml

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Part, Text, Video
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.read.dialects import COMMON, DIALECTS
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.errors import DataError
from tests.support.page_words import samples_of

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text("utf-8")
BLOCK = re.compile(r"(?:^`data\.box_format: ([\w -]+)`\n\n)?^```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)
MISTAKE = re.compile(r"^```text\n([^\n]*)\n```\n\n```text\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
CAT, DOG = (Image(Path(f"{name}.jpg"), root=Path(".")) for name in ("cat", "dog"))
ASK, CAT_IS = Text("What is this?"), Text("A cat.")
BALL = Box((80, 120, 160, 240), "ball", pixels=True)
WORDS = "A cat sits in the grass."


def section(title: str) -> str:
    """What stands below a title, up to the next one of its rank."""
    rank = title.split()[0]
    return re.split(rf"^{rank} ", TEXT.split(f"\n{title}\n")[1], flags=re.MULTILINE)[0]


def rows(text: str) -> list[tuple[str, str | None]]:
    """Each row of a text, with the `data.box_format` that stands above it."""
    found = []
    for format, block in BLOCK.findall(text):
        found += [(json.dumps(row), format or None) for row in samples_of(block)]
    return found


def talk(*contents: list[Part], task: str = "default", **more: object) -> Conversation:
    """A conversation of a user and an assistant in turns."""
    turns = [Message(("user", "assistant")[n % 2], tuple(parts)) for n, parts in enumerate(contents)]
    return Conversation(tuple(turns), task, **more)


VQA = talk([CAT, ASK], [CAT_IS])
WRONG = replace(VQA.messages[1], parts=(Text("A dog."),), weight=0.0)
OWN = [
    talk([CAT], [Text(WORDS)], task="caption"),
    replace(VQA, task="vqa", references=("A cat.", "cat"), id="q17"),
    Conversation((VQA.messages[0], WRONG, *talk([Text("Look again.")], [CAT_IS]).messages)),
    talk(
        [Text("Before: "), CAT, Text(" After: "), DOG, Text(" What has changed?")], [Text("The cat is gone.")]
    ),
    talk(
        [Video(frames=(CAT, DOG), fps=2.0), Text("What happens?")], [Text("A dog takes the place of a cat.")]
    ),
    talk([CAT, Text("Find the ball.")], [BALL], task="grounding"),
    talk([Text("Which animal says miaow?")], [CAT_IS]),
    Conversation(
        (Message("system", (Text("Answer in one word."),)), *talk([CAT, ASK], [Text("Cat")]).messages)
    ),
    talk([CAT, ASK], [Text("It is a "), Text("cat", entity=True), Text(".")], weight=2.0),
    talk([CAT, ASK]),
]
"""What the rows of our own format say, in their order."""
OTHERS = {
    "RefCOCO": talk([CAT, Text("Where is the ball?")], [replace(BALL, label="the ball")]),
    "picture and caption": talk([CAT], [Text(WORDS)]),
    "question alone": talk([CAT, ASK]),
    "objects of a picture": talk([CAT, Text("Find all objects in the picture.")], [BALL]),
}
"""What the rows of a dialect say, if it isn't `VQA`."""
SECTIONS = re.findall(r"^### (.*)$", section("## Rows of others"), re.MULTILINE)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        PIL.Image.new("RGB", (640, 480)).save(f"{name}.jpg")


def opened(row: str, format: str | None = None, reader: object = read) -> Conversation:
    """The conversation of a row, without where it came from."""
    Path("train.jsonl").write_text(row + "\n")
    options = {} if format is None else {"box_format": format}
    return replace(reader("train.jsonl", **options)[0], source="?")


def coco(content: str) -> Conversation:
    """The conversation of a file of COCO."""
    Path("instances.json").write_text(content)
    return read("instances.json")[0]


def test_the_recommended_format() -> None:
    written = rows(section("## The one we recommend"))
    assert [opened(row, format, Messages) for row, format in written] == OWN
    assert [opened(row, format) for row, format in written] == OWN  # found by looking at it, too


@pytest.mark.parametrize("title", SECTIONS)
def test_rows_of_others(title: str) -> None:
    written = rows(section("## Rows of others").split(f"### {title}\n")[1].split("\n### ")[0])
    assert written
    for row, format in written:
        assert replace(opened(row, format), references=()) == OTHERS.get(title, VQA), row


def test_all_right_answers_are_references() -> None:
    ((row, _),) = rows(
        section("## Rows of others").split("### question and answers of VQA\n")[1].split("###")[0]
    )
    assert opened(row).references == ("A cat.", "cat", "A cat.")


def test_no_dialect_is_missing() -> None:
    """Each has a section, in the order in which they are tried, and its section names its keys."""
    seen = []
    for dialect in DIALECTS:
        name = dialect.name.split(" (")[0]  # RefCOCO (sentences)
        if dialect.needs_picture and name.startswith("picture and "):
            name = "picture and caption"
        elif name.endswith(" alone"):
            name = "question alone"
        elif name == " and ".join(dialect.needs) and name not in SECTIONS:
            name = "Other pairs"
        words = section("## Rows of others").split(f"### {name}\n")[1].split("```")[0]
        assert all(f"`{key}`" in words for key in dialect.needs), dialect.name
        if name not in seen:
            seen.append(name)
    assert seen == SECTIONS


def test_keys_of_all_dialects_are_named() -> None:
    beginning = section("## Rows of others").split("###")[0]
    assert {"task", "weight", "system", "objects", "tools", "images", "img", "videos"} <= {*COMMON}
    named = set(re.findall(r"`(\w+)`", beginning))
    assert named <= {*COMMON, "references", "level", "id"}


def test_boxes_of_others() -> None:
    for row, format in rows(section("## Boxes of others")):
        asked, answer = (coco(row) if "annotations" in row else opened(row, format)).messages
        question = "Find all objects of these kinds: ball." if "annotations" in row else "Find the ball."
        assert asked.parts == (CAT, Text(question))
        (box,) = answer.parts
        assert isinstance(box, Box)
        assert box.label == "ball"
        whole = (640, 480, 640, 480) if box.pixels else (1, 1, 1, 1)
        of_bins = re.search("loc|patch|det", row)  # a place is a bin of 1024, 1000, 32 or 999
        fractions = [value / edge for value, edge in zip(box.xyxy, whole, strict=True)]
        assert fractions == pytest.approx((0.125, 0.25, 0.25, 0.5), abs=0.016 if of_bins else 1e-9), row


def test_the_settings() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", section("## Settings"), re.DOTALL | re.MULTILINE)
    Path("pictures").mkdir()
    Path("cat.jpg").rename("pictures/cat.jpg")
    Path("train.jsonl").write_text(
        '{"q": "What is this?", "answer": "A cat.", "img": "cat.jpg"}\n{"messages": 3}\n'
    )
    data = VLMDataModule(**yaml.safe_load(block)["data"])
    (sample,) = data.source("train")
    assert sample.messages[0].parts == (replace(CAT, root=Path("pictures")), ASK)


def test_mistakes() -> None:
    found = MISTAKE.findall(section("## Common mistakes"))
    assert len(found) > 10
    for row, error in found:
        with pytest.raises(DataError) as raised:
            opened(row)
        assert str(raised.value).replace(str(Path.cwd()), "/my/data") == error
