"""Masks from the data to the loss, the checkpoint and the answer."""

import io

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.cli import main
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.boxes.areas import rasterize
from lightning_vlm.data.conversation import Box, Conversation, Message, Region, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import task_sums
from lightning_vlm.losses.mask_terms import mask_losses
from lightning_vlm.metrics.answer_masks import found_by_masks

OPTIONS = {"new_tokens": ["<seg>"], "adapt": {"language": "lora", "projector": "full"}, "mask_head": True}
DRAWN = Drawn("train", size=6, tasks=["segmentation"], rounds=2)


def made(name, **more):
    torch.manual_seed(0)
    module = VLMModule(name, **{**OPTIONS, **more})
    module.configure_model()
    module.model.eval()
    return module


@pytest.fixture(scope="module")
def module(model_folder):
    return made(str(model_folder("qwen2_vl")))


@pytest.fixture(scope="module")
def examples(module):
    renderer = Renderer(module.processor, boxes="seg")
    return [renderer.example(conversation) for conversation in DRAWN]


def batch_of(module, examples, pack=False):
    batch = collate([Item(example, None, None) for example in examples], 0, [], [], pack=pack)
    return batch._replace(targets=module.targets(batch))


def loss_of(module, examples, pack=False):
    batch = batch_of(module, examples, pack)
    with torch.no_grad():
        return task_sums(module.model, batch, batch.targets, None, None, module.callbacks.masks.of)


def test_targets_are_the_outlines(examples, module):
    batch = batch_of(module, examples)
    masks = batch.masks
    seg = module.processor.tokenizer.convert_tokens_to_ids("<seg>")
    assert (batch.inputs["input_ids"].flatten()[masks.positions] == seg).all()
    assert len(masks.positions) == (batch.inputs["input_ids"] == seg).sum() >= len(examples)
    assert all(tensor.dtype in (torch.int64, torch.uint8) for tensor in masks)
    answers = [one for drawn in DRAWN for one in drawn.messages if one.role == "assistant"]
    regions = [part for answer in answers for part in answer.parts]
    for region, target in zip(regions, masks.targets, strict=True):
        np.testing.assert_array_equal(rasterize(region, (64, 64)), target.bool().numpy())


def test_the_loss_stands_at_the_token_by_its_weight(module, examples):
    batch = batch_of(module, examples)
    found = loss_of(module, examples)
    with torch.no_grad():
        hidden = module.hidden_states(batch)
        plain = module.loss_sums(batch)
        logits = module.mask_head(hidden, batch.masks)
    losses = mask_losses(logits, batch.masks.targets, batch.masks.is_box, 2.0, 0.5, 0.1)
    weight_of = dict(zip(batch.targets.positions.tolist(), batch.targets.weights.tolist(), strict=True))
    weights = torch.tensor([weight_of[place - 1] for place in batch.masks.positions.tolist()])
    torch.testing.assert_close(found.loss_sum, plain.loss_sum + (weights * losses).sum())
    torch.testing.assert_close(found.sums.sum(), found.loss_sum)
    torch.testing.assert_close(found.counts.sum(), plain.weight_sum)


def test_packed_padded_and_alone_are_the_same(module, examples):
    padded = loss_of(module, examples).loss_sum
    alone = sum(loss_of(module, [example]).loss_sum for example in examples)
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss_of(module, examples, pack=True).loss_sum, alone, rtol=1e-4, atol=1e-4)


def test_a_batch_without_masks_gives_the_head_zeros(module):
    renderer = Renderer(module.processor, boxes="seg")
    batch = batch_of(module, [renderer.example(Drawn("train", size=1, tasks=["vqa"])[0])])
    assert batch.masks is None
    sums = task_sums(module.model, batch, batch.targets, None, None, module.callbacks.masks.of)
    sums.loss_sum.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in module.mask_head.parameters())
    module.zero_grad()


def test_answers_have_the_masks_of_their_tokens(module, examples):
    """What is made after generation, against what is made of the same text in training."""
    renderer = Renderer(module.processor, boxes="seg")
    drawn = Drawn("train", size=12, tasks=["segmentation"], rounds=1)
    data = [one for one in drawn if len(one.messages) == 2]  # without system turns
    prompts, rows = [], []
    for conversation in data[:3]:
        prompt, _ = renderer.prompt(conversation)
        example = renderer.example(conversation)
        prompts.append(Item(None, prompt, ""))
        rows.append((len(prompt.input_ids), example))
    batch = collate(prompts, 0, [], [])
    longest = max(len(example.input_ids) - length for length, example in rows)
    ids = torch.zeros(len(rows), batch.prompts["input_ids"].shape[1] + longest, dtype=torch.int64)
    ids[:, :-longest] = batch.prompts["input_ids"]
    answers = []
    for row, (length, example) in zip(ids, rows, strict=True):
        new = example.input_ids[length:]
        row[row.numel() - longest : row.numel() - longest + len(new)] = new
        answers.append(module.processor.tokenizer.decode(new, skip_special_tokens=True))
    with torch.no_grad():
        found = found_by_masks(
            module.model, module.processor, module.mask_head, batch.prompts, ids, answers, batch.readers
        )
    for one, (_, example), conversation in zip(found, rows, data, strict=False):
        alone = batch_of(module, [example])
        with torch.no_grad():
            mask = module.mask_head(module.hidden_states(alone), alone.masks)[0] > 0
        if not mask.any():
            assert one.faults == ("an empty mask",)
            continue
        (region,) = one.items
        assert region.label == conversation.messages[-1].parts[0].label
        differs = rasterize(region, (64, 64)) != mask.numpy()
        assert differs.sum() <= 2  # a logit of nearly 0 may round to either side


def test_a_run_trains_keeps_and_resumes_the_head(tmp_path):
    data = VLMDataModule(train=Drawn("train", size=8, tasks=["segmentation"]), boxes="seg", batch_size=4)
    module = VLMModule("drawn-vlm", **OPTIONS, learning_rates={"mask_head": 1e-2})
    trainer = Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.fit(module, data)
    batch = batch_of(module, [Renderer(module.processor, boxes="seg").example(named_red_circle())])
    with torch.no_grad():  # so that masks are neither empty nor whole
        module.mask_head.bias -= module.mask_head(module.hidden_states(batch), batch.masks).median()
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    groups = {group["name"] for group in trainer.optimizers[0].param_groups}
    assert {"mask_head", "mask_head, no decay"} <= groups
    again = VLMModule.load_from_checkpoint(path)
    for name, weight in module.mask_head.state_dict().items():
        torch.testing.assert_close(again.mask_head.state_dict()[name], weight, rtol=0, atol=0)
    assert (module.mask_head.pixels.weight - made("drawn-vlm").mask_head.pixels.weight).abs().max() > 0
    main(["export", "--ckpt_path", str(path), "--out", str(tmp_path / "exported")])
    assert_exported_makes_the_same_masks(module, tmp_path / "exported")


def named_red_circle():
    """A drawn picture, where something is called a red circle."""
    question, answer = Drawn("val", size=1, seed=3, tasks=["segmentation"], rounds=1)[0].messages[-2:]
    turns = (
        Message("user", (question.parts[0], Text("Segment the red circle."))),
        Message("assistant", (Region(answer.parts[0].outline, "red circle"),)),
    )
    return Conversation(turns)


def assert_exported_makes_the_same_masks(module, folder):
    """By the guide's own lines; a text with the token stands in for an answer."""
    picture = Image.open(io.BytesIO(named_red_circle().messages[0].parts[0].data))
    picture.save(folder / "picture.png")
    lines = (folder / "masks.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    lines = lines.replace('"."', repr(str(folder))).replace(
        '"picture.jpg"', repr(str(folder / "picture.png"))
    )
    before, _, last = lines.rpartition("print(")
    names = {}
    exec(before, names)
    assert names["ids"].shape[0] == 1
    seg = names["processor"].tokenizer("red circle<seg>", add_special_tokens=False)["input_ids"]
    names["ids"] = torch.cat((names["inputs"]["input_ids"], torch.tensor([seg])), 1)
    found = eval(last.rpartition(")")[0], names)
    batch = batch_of(module, [Renderer(module.processor, boxes="seg").example(named_red_circle())])
    with torch.no_grad():
        mask = module.mask_head(module.hidden_states(batch), batch.masks)[0] > 0
    assert 100 < mask.sum() < 4000
    ((label, outline),) = found
    assert label == "red circle"
    made = rasterize(Region(tuple(number / 64 for number in outline)), (64, 64))
    assert (made != mask.numpy()).sum() <= 4


@pytest.mark.parametrize(
    ("boxes", "more", "message"),
    [
        ("seg", {"mask_head": None}, "^data.boxes: seg writes <seg> where a mask should be made"),
        (None, {}, "^model.mask_head: found data.boxes thousandths, which has no masks"),
        ("seg", {"new_tokens": None}, "^data.boxes: seg needs the token <seg>, which the tokenizer lacks"),
        ("seg", {"generation": {"num_return_sequences": 2, "num_beams": 2}}, "masks are of one answer"),
    ],
)
def test_what_does_not_fit_is_refused(boxes, more, message):
    data = VLMDataModule(train=Drawn("train", size=8, tasks=["segmentation"]), boxes=boxes, batch_size=4)
    module = VLMModule("drawn-vlm", **{**OPTIONS, **more})
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        trainer.fit(module, data)


def test_a_box_is_learned_by_its_shadows(module):
    renderer = Renderer(module.processor, boxes="seg")
    conversation = Drawn("train", size=3, tasks=["grounding"])[1]
    assert isinstance(conversation.messages[-1].parts[0], Box)
    assert renderer.example(conversation).masks.is_box.tolist() == [1] * (len(conversation.messages) // 2)
