"""Validation, test and prediction against generation and losses by hand, sample by sample."""

import io
import math
from dataclasses import replace

import PIL.Image
import pytest
import torch
import torch.nn.functional as F

from lightning_vlm import VLMDataModule
from lightning_vlm.data.boxes.of_model import codec_for
from lightning_vlm.data.boxes.views import view_of
from lightning_vlm.data.conversation import Box, Image, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.media import FLAT
from lightning_vlm.kinds import Kind
from lightning_vlm.metrics.text import exact_match, token_f1
from tests.support import tiny

FAMILIES = tuple(tiny.FAMILIES)
LENGTH = 6


def words_of(one, part, image):
    """A text, or a box in the family's own format, which other tests prove."""
    if isinstance(part, Text):
        return part.text
    view = view_of(one.processor, PIL.Image.open(io.BytesIO(image.data)).size)
    return codec_for(one.processor).codec.write([replace(part, image=0)], [view]).text


def by_hand(one, conversation):
    """The answer to one prompt through the processor's own chat template, without padding."""
    messages = []
    for turn in conversation.messages[:-1]:
        content = []
        for part in turn.parts:
            if isinstance(part, Image):
                content.append({"type": "image", "image": PIL.Image.open(io.BytesIO(part.data))})
            elif content and content[-1]["type"] == "text":  # words and boxes are one text
                content[-1]["text"] += words_of(one, part, conversation.images[0])
            else:
                content.append({"type": "text", "text": words_of(one, part, conversation.images[0])})
        messages.append({"role": turn.role, "content": content})
    if type(one.processor).__name__ in FLAT:  # which its own apply_chat_template doesn't heed
        pictures = [part["image"] for turn in messages for part in turn["content"] if part["type"] == "image"]
        text = one.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = one.processor(images=pictures, text=[text], return_tensors="pt")
    else:
        inputs = one.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    ids = one.model.eval().generate(**inputs, do_sample=False, max_new_tokens=LENGTH)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return one.processor.tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_each_prompt_alone(module, batch_of, make_quiet, family):
    one = module(family, generation={"max_new_tokens": LENGTH})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # or all answers would be alike, by a hair
        for parameter in one.model.get_decoder().parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    source = Drawn("val", size=5)
    expected = [by_hand(one, conversation) for conversation in source]
    assert len(set(expected)) > 1
    prompts = batch_of(one, source, predict=True).prompts["attention_mask"]
    assert (prompts[:, 0] == 0).any(), "else nothing is padded"
    data = VLMDataModule(predict=source, batch_size=5)
    (found,) = make_quiet().predict(one, data)
    assert [answer.text for answer in found] == expected
    assert [answer.task for answer in found] == [conversation.task for conversation in source]
    assert all(answer.reference for answer in found)


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_by_hand(module, batch_of, make_quiet, listed, family, stage):
    one = module(family, generation={"max_new_tokens": LENGTH})
    source = list(Drawn("val", size=7))
    trainer, data = make_quiet(), VLMDataModule(val=listed(source), test=listed(source), batch_size=3)
    run = trainer.validate if stage == "val" else trainer.test
    (found,) = run(one, data, verbose=False)

    rows = []
    weights_of = torch.tensor([0, 0, 0, 0, 1.0, 2.0, 1.5])
    for conversation in source:
        batch = batch_of(one, listed([conversation]))
        with torch.no_grad():
            logits = one.model.eval()(**batch.inputs).logits[0, :-1].double()
        ids = batch.inputs["input_ids"][0, 1:]
        ids = ids.where(ids < logits.shape[-1], -100)  # Mllama's head doesn't know the picture's token
        losses = F.cross_entropy(logits, ids, reduction="none")
        weights = weights_of[batch.kinds[0, 1:].long()].double()
        counts = batch.kinds[0, 1:] >= Kind.RESPONSE
        answer = by_hand(one, conversation)
        (image,) = conversation.images
        reference = "".join(words_of(one, part, image) for part in conversation.messages[-1].parts)
        rows.append(
            {
                "task": conversation.task,
                "loss": (losses * weights).sum().item(),
                "weight": weights.sum().item(),
                "nll": losses[counts].sum().item(),
                "count": counts.sum().item(),
                "tokens": batch.inputs["attention_mask"].sum().item(),
                "right": exact_match(answer, reference),
                "f1": token_f1(answer, reference),
            }
        )
    expected = {}
    for task in ["", *{row["task"] for row in rows}]:
        of = {
            key: sum(row[key] for row in rows if task in ("", row["task"]))
            for key in ("loss", "weight", "nll", "count", "tokens", "right", "f1")
        }
        size = sum(task in ("", row["task"]) for row in rows)
        for name, value in {
            "loss": of["loss"] / of["weight"],
            "perplexity": math.exp(of["nll"] / of["count"]),
            "supervised": of["count"] / of["tokens"],
            "exact_match": of["right"] / size,
            "token_f1": of["f1"] / size,
        }.items():
            expected[f"{stage}/{name}" + (f"/{task}" if task else "")] = value
    of_boxes = {f"{stage}/{name}" for name in ("acc@0.5", "miou", "parse_failures")}
    with_boxes = {c.task for c in source if any(isinstance(p, Box) for p in c.messages[-1].parts)}
    of_boxes |= {f"{name}/{task}" for name in of_boxes for task in with_boxes}
    assert {name for name in found if name not in expected} == of_boxes, "tests/metrics has their values"
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert [answer.source for answer in one.predictions] == [item.source for item in source]


@pytest.mark.parametrize(
    ("limit", "title"),
    [
        (1, "Validation: at most 1 batch of 4 samples"),
        (0.5, "Validation: 50% of the batches of 4 samples"),
        (1.0, "Validation: 4 samples"),
    ],
)
def test_the_table_says_what_a_limit_leaves_out(limit, title, module, make_quiet, capsys):
    data = VLMDataModule(val=Drawn("val", size=4, tasks=["vqa"]), batch_size=2)
    make_quiet(limit_val_batches=limit).validate(module("llava"), data)
    assert title in " ".join(capsys.readouterr().out.split())


def test_without_generation_there_are_losses_only(module, make_quiet, capsys):
    one = module("llava")
    (found,) = make_quiet().validate(one, VLMDataModule(val=Drawn("val", size=2, tasks=["vqa"])))
    # They are printed as a table of ours, not as Lightning's with all decimals.
    shown = capsys.readouterr().out
    assert "Validation: 2 samples" in shown
    (row,) = [line for line in shown.splitlines() if "│ all" in line]
    assert [cell.strip() for cell in row.split("│")[2:4]] == [
        f"{found['val/loss']:.3f}",
        f"{found['val/perplexity']:.3f}",
    ]
    assert "Validate metric" not in shown
    assert found.keys() == {"val/loss", "val/perplexity", "val/supervised"}
    assert one.predictions == []
