"""Boxes come through the whole path: data, training, export, reloading, prediction, the file of answers.

The model is an oracle: it is really trained, exported and loaded again, but writes the right answer.
"""

import io
import json
import re

import PIL.Image
import pytest
import torch
from PIL import ExifTags, ImageOps
from transformers import AutoProcessor

from lightning_vlm import AnswerWriter, VLMDataModule, VLMModule
from lightning_vlm.data.boxes.of_model import codec_for
from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Point, Text
from lightning_vlm.export.boxes import GUIDE
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.export.write import write
from tests.support.packed import OfList
from tests.support.pictures import ONE_PICTURE
from tests.support.tiny import FAMILIES

pytestmark = [
    pytest.mark.filterwarnings("ignore:the chat template of"),
    pytest.mark.filterwarnings("ignore:.*the model writes boxes otherwise"),
]
SIZES = [(61, 40, False), (37, 91, True), (203, 77, False), (48, 129, True)]
"""Upright widths and heights, and whether EXIF data turns the picture."""
OWN = {
    "qwen2_vl": "qwen2_vl",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "glm4v": "glm",
    "internvl": "internvl",
    "paligemma": "paligemma",
    "kosmos-2": "kosmos2",
    "gemma3": "gemma",
    "deepseek_ocr2": "deepseek",
    "molmo2": "molmo2",
    "llava": "decimals",
    "smolvlm": "thousandths",
}
"""Families and the codec that each has by itself."""
POINTS = ("molmo", "molmo2")
NAMED = {
    "florence2": ["<poly>", "</poly>", "<sep>", "<loc_0..999>"],
    "loc": ["<loc_0..999>"],
    "molmo": None,
    "decimals": None,
}
"""Codecs that any family may be given, and the tokens that they need."""
STEP = {"paligemma": 1 / 1023, "loc": 1 / 999, "florence2": 1 / 1000, "deepseek": 1 / 999}
"""How far apart two neighbouring numbers are; 1/1000 in the others."""


def picture(width, height, turned):
    exif = PIL.Image.Exif()
    if turned:
        width, height = height, width
        exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    image = PIL.Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.save(file, "JPEG", exif=exif)
    return Image(data=file.getvalue())


def opened(image):
    return ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(image.data)))


def marks(size, points, image):
    """In pixels: one in the middle, the whole picture (or beside the middle), and one in fractions."""
    width, height, _ = size
    if points:
        return [
            Point((width / 3, height / 2), "dog", image, pixels=True),
            Point((width - 1, height - 1), "cat", image, pixels=True),
            Point((0.123, 0.877), "dog", image),
        ]
    return [
        Box((width // 2 - 9, height // 2 - 7, width // 2 + 4, height // 2 + 8), "dog", image, pixels=True),
        Box((0, 0, width, height), "cat", image, pixels=True),
        Box((0.123, 0.25, 0.877, 0.75), "dog", image),
    ]


def samples(points, most_pictures):
    """Each picture alone, and two together with boxes in both."""
    shown = [picture(*size) for size in SIZES]
    found = []
    for place, (size, image) in enumerate(zip(SIZES, shown, strict=True)):
        question = Message("user", (image, Text("Find them.")))
        turns = (question, Message("assistant", tuple(marks(size, points, None))))
        found.append(Conversation(turns, task="grounding", source=f"alone:{place}"))
    if most_pictures > 1:
        question = Message("user", (shown[0], shown[1], Text("Find them in both.")))
        answer = (*marks(SIZES[0], points, 0), *marks(SIZES[1], points, 1))
        found.append(Conversation((question, Message("assistant", answer)), task="grounding", source="both"))
    return found


def expected_rows(conversation):
    """What the file of answers must say, from the data alone."""
    sizes = [opened(image).size for image in conversation.images]
    rows = []
    for part in conversation.messages[1].parts:
        image = part.image or 0
        sides = sizes[image]
        numbers = part.numbers
        if not part.pixels:
            numbers = [value * sides[place % 2] for place, value in enumerate(numbers)]
        rows.append((type(part).__name__.lower(), image, sides, list(numbers)))
    return rows


@pytest.fixture
def through(module, make_quiet, tmp_path, monkeypatch):
    """Train on samples, export, load the folder, predict as an oracle: rows of the file, answers, folder."""

    def run(family, conversations, **options):
        boxes = options.pop("boxes", None)
        trained = module(family, adapt={"language": {"lora": {"r": 2}}}, **options)
        data = VLMDataModule(train=OfList(conversations), batch_size=2, boxes=boxes)
        trainer = make_quiet(max_steps=1)
        trainer.fit(trained, data)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        request = ExportRequest(tmp_path / "last.ckpt", samples=1)
        folder = tmp_path / "out"
        folder.mkdir()
        said = dict(write(load_trained(request), folder, request).rows)
        assert GUIDE in said["boxes"]
        again = VLMModule(str(folder))
        again.configure_model()
        tokenizer = again.processor.tokenizer
        data = VLMDataModule(
            predict=OfList(conversations), batch_size=1
        )  # no data.boxes: the folder knows it
        right = iter(conversations)

        def oracle(input_ids, **_):
            _, reference = data.renderer.prompt(next(right))
            answer = tokenizer(reference, add_special_tokens=False, return_tensors="pt")["input_ids"]
            end = torch.tensor([[tokenizer.eos_token_id]])
            return torch.cat([input_ids, answer, end], dim=1)

        monkeypatch.setattr(again.model, "generate", oracle)
        out = tmp_path / "answers.jsonl"
        predictions = make_quiet(callbacks=[AnswerWriter(str(out), show=0)]).predict(again, data)
        rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
        return rows, [one for batch in predictions for one in batch], folder

    return run


def check(rows, predictions, conversations, codec):
    for row, prediction, conversation in zip(rows, predictions, conversations, strict=True):
        assert row["unread"] == []
        assert row["scores"]["exact_match"] == 1.0
        expected = expected_rows(conversation)
        assert len(row["boxes"]) == len(expected)
        for found, (kind, image, sides, numbers) in zip(row["boxes"], expected, strict=True):
            assert (found["type"], found["image"], found["pixels"]) == (kind, image, True)
            view = prediction.views[image]
            step = STEP.get(codec, 1 / 1000)
            if codec == "qwen2_5_vl":  # whole pixels of what the model sees
                step = 1 / min(view.seen)
            off = 0.501 * step
            if codec == "kosmos2":  # a cell of its tiny tokenizer's grid
                off = 1 / 8
            for place, (a, b) in enumerate(zip(found[kind], numbers, strict=True)):
                side, start, stop = sides[place % 2], view.crop[place % 2], view.crop[place % 2 + 2]
                seen = min(max(b, start * side), stop * side)  # what is cut off can't be seen
                assert abs(a - seen) <= side * (stop - start) * off + 0.01
        assert [item.image for item in prediction.right] == [image for _, image, _, _ in expected]


@pytest.mark.parametrize("family", OWN)
def test_boxes_of_each_family_are_the_same_in_the_end(through, family):
    codec = OWN[family]
    conversations = samples(codec in POINTS, 1 if family in ONE_PICTURE else 2)
    rows, predictions, folder = through(family, conversations)
    assert codec_for(AutoProcessor.from_pretrained(folder)).codec.name == codec
    check(rows, predictions, conversations, codec)


@pytest.mark.parametrize("codec", NAMED)
def test_a_named_codec_goes_with_the_model(through, codec):
    conversations = samples(codec in POINTS, 1 if codec == "molmo" else 2)  # Molmo points into one
    rows, predictions, folder = through("qwen2_vl", conversations, boxes=codec, new_tokens=NAMED[codec])
    assert codec_for(AutoProcessor.from_pretrained(folder)).codec.name == codec
    check(rows, predictions, conversations, codec)


def test_special_tokens_of_boxes_stay_in_answers_that_have_some(module, batch_of, monkeypatch):
    """Words alone lose them, as ever."""
    one = module("qwen2_vl")
    tokenizer = one.processor.tokenizer
    special = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    boxes, words = samples(False, 1)[:2]
    words = Conversation((words.messages[0], Message("assistant", (Text("Red."),))), source="words")
    batch = batch_of(one, OfList([boxes, words]), predict=True)
    written = tokenizer(batch.references[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert set(tokenizer.convert_tokens_to_ids(special)) <= set(written[0].tolist())
    monkeypatch.setattr(
        one.model, "generate", lambda input_ids, **_: torch.cat([input_ids, written.repeat(2, 1)], dim=1)
    )
    with_boxes, without = one.predict_step(batch, 0)
    assert with_boxes.text == batch.references[0]
    assert len(with_boxes.found.items) == 3
    assert without.found is None
    assert not any(token in without.text for token in special)


def test_the_guide_of_an_export_runs_as_it_stands(through, monkeypatch, capsys):
    conversations = samples(False, 1)[:2]
    rows, predictions, folder = through("qwen2_vl", conversations)
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / GUIDE).read_text("utf-8"), re.DOTALL)
    (folder / "picture.jpg").write_bytes(conversations[1].images[0].data)
    monkeypatch.chdir(folder)
    exec(snippet.replace('"..."', repr(predictions[1].text + "<|im_end|>")), {})
    assert eval(capsys.readouterr().out.splitlines()[-1]) == rows[1]["boxes"]


def test_all_families_with_a_format_are_here():
    from lightning_vlm.data.boxes.codecs import CODECS

    assert set(OWN) <= set(FAMILIES)
    assert set(CODECS) == {*OWN.values(), *NAMED}
