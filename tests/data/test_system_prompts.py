"""What a model reads before conversations that bring no system turn."""

import pytest
import torch

from lightning_vlm import VLMDataModule
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.system_prompts import check_template, read_prompts, system_prompts_of, write_prompts
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from tests.support import tiny
from tests.support.packed import OfList

PROMPTS = {"ocr": "Read all text.", "default": "Be brief."}
TELLS_NOTHING = {"molmo2", "pixtral"}
"""Families whose templates take no system turn, or write it only before the last turn."""


def talk(*turns, task="vqa"):
    return Conversation(tuple(Message(role, (Text(text),)) for role, text in turns), task=task)


def test_each_task_has_its_own_and_a_system_turn_of_its_own_stays(processor_of):
    asked = ("user", "What is it?"), ("assistant", "A cat.")
    own = ("system", "Be long."), *asked
    source = OfList([talk(*asked), talk(*asked, task="ocr"), talk(*own, task="ocr")])
    given = VLMDataModule(train=source, predict=source, system_prompts=PROMPTS)
    given.processor = processor_of("qwen2_vl")
    for split in ("train", "predict"):
        read = [one.messages[0].parts[0].text for one in given.samples(split)]
        assert read == ["Be brief.", "Read all text.", "Be long."]
    by_hand = OfList([talk(("system", "Be brief."), *asked)])
    renderer = given.renderer
    example, expected = renderer.example(given.samples("train")[0]), renderer.example(by_hand[0])
    assert torch.equal(example.input_ids, expected.input_ids)
    assert torch.equal(example.kinds, expected.kinds)
    learned = example.input_ids[example.kinds >= Kind.RESPONSE]
    assert "brief" not in renderer.tokenizer.decode(learned)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_takes_it_or_says_so(processor_of, family):
    template = None if tiny.FAMILIES[family].template else "plain"
    renderer = Renderer(processor_of(family, template))
    if family in TELLS_NOTHING:
        with pytest.raises(UserError, match="chat template doesn't take it"):
            check_template(PROMPTS, renderer)
    else:
        check_template(PROMPTS, renderer)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"ocr": " "}, "data.system_prompts.ocr: found ' '; expected a text"),
        ({"captoin": "Say it."}, "found captoin; expected a task of data.train.*did you mean caption"),
    ],
)
def test_what_makes_no_sense_is_refused(processor_of, prompts, words):
    def setup():
        data = VLMDataModule(train=Drawn(size=4), system_prompts=prompts)
        data.processor = processor_of("qwen2_vl")
        data.setup("fit")

    with pytest.raises(UserError, match=words):
        setup()


def test_a_folder_keeps_them(tmp_path):
    write_prompts(PROMPTS, tmp_path)
    assert read_prompts(tmp_path) == PROMPTS
    assert read_prompts(tmp_path / "other") == {}
    assert system_prompts_of({"data.system_prompts": None}) == {}
