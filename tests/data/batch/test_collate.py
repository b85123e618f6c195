"""A batch gives each sample what it would get alone, in the real models."""

import io
import pickle

import PIL.Image
import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_vlm import VLMModule
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.batch.image_groups import split_by_image_count
from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from tests.support.pictures import NEEDS_PICTURES, ONE_PICTURE, with_its_pictures
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")


def sample(question, answer, *sizes, weight=1.0):
    pictures = []
    for number, size in enumerate(sizes):
        file = io.BytesIO()
        PIL.Image.linear_gradient("L").rotate(90 * number).resize(size).convert("RGB").save(file, "PNG")
        pictures.append(Image(data=file.getvalue()))
    turns = (Message("user", (*pictures, Text(question))), Message("assistant", (Text(answer),)))
    return Conversation(turns, task=question, weight=weight, source=answer)


SAMPLES = [
    sample("What is this?", "It is grey.", (64, 64)),
    sample("Hello", "Hello, and a long text of many words for you."),
    sample("Which is wide?", "2", (32, 32), (96, 48), weight=0.5),
]


def samples_of(family):
    """Those that it takes."""
    if family in ONE_PICTURE:
        return [with_its_pictures(family, sample, SAMPLES[0].images[0]) for sample in SAMPLES]
    return [sample for sample in SAMPLES if sample.images or family not in NEEDS_PICTURES]


def items(renderer, samples=SAMPLES):
    return [Item(renderer.example(sample), *renderer.prompt(sample)) for sample in samples]


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0), (1,), (2, 1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_together_each_sample_gets_its_own_logits(tiny, family, order):
    model, renderer = tiny(family)
    sources = [SAMPLES[place].source for place in order]
    taken = {sample.source: sample for sample in samples_of(family)}
    chosen = items(renderer, [taken[source] for source in sources if source in taken])
    if not chosen:
        pytest.skip("nothing that this family takes")
    batch = collate(chosen, renderer.tokenizer.pad_token_id, [], [])
    with torch.no_grad():
        for inputs, side in ((batch.inputs, "right"), (batch.prompts, "left")):
            together = torch.cat(
                [model(**some, use_cache=False).logits for _, some in split_by_image_count(inputs)]
            )
            together = together[torch.cat([rows for rows, _ in split_by_image_count(inputs)]).argsort()]
            for row, item in enumerate(chosen):
                example = item.example if side == "right" else item.prompt
                alone = model(input_ids=example.input_ids[None], **example.inputs, use_cache=False).logits[0]
                length = len(alone)
                mine = together[row, :length] if side == "right" else together[row, -length:]
                torch.testing.assert_close(mine, alone, atol=2e-5, rtol=1e-4)
    assert batch.tokens == int(batch.inputs["attention_mask"].sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_lies_outside_of_samples_and_has_its_own_kind(tiny, family):
    _, renderer = tiny(family)
    samples = samples_of(family)
    chosen = items(renderer, samples)
    batch = collate(chosen, 7, [], [])
    for row, item in enumerate(chosen):
        length = len(item.example.input_ids)
        assert torch.equal(batch.inputs["input_ids"][row, :length], item.example.input_ids)
        assert torch.equal(batch.kinds[row, :length], item.example.kinds)
        assert (batch.inputs["input_ids"][row, length:] == 7).all()
        assert (batch.kinds[row, length:] == Kind.PAD).all()
        assert batch.inputs["attention_mask"][row].tolist() == [1] * length + [0] * (
            batch.kinds.shape[1] - length
        )
        assert torch.equal(
            batch.prompts["input_ids"][row, -len(item.prompt.input_ids) :], item.prompt.input_ids
        )
    assert batch.factors[:, 0].tolist() == [sample.weight for sample in samples]
    assert batch.tasks == [sample.task for sample in samples]
    assert batch.references == batch.sources == [sample.source for sample in samples]


def test_smolvlm_fills_up_pictures_with_empty_tiles(tiny):
    _, renderer = tiny("smolvlm")
    chosen = items(renderer)
    batch = collate(chosen, 0, [], [])
    first, second = (chosen[place].example.inputs["pixel_values"] for place in (0, 2))
    assert first.shape[1] != second.shape[1]
    few, most = sorted((first.shape[1], second.shape[1]))
    assert batch.inputs["pixel_values"].shape[:2] == (2, most)
    row = 0 if first.shape[1] == few else 1
    assert not batch.inputs["pixel_values"][row, few:].any()
    assert not batch.inputs["pixel_attention_mask"][row, few:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_module_runs_a_batch_without_samples(model_folder, family):
    module = VLMModule(str(model_folder(family)))
    module.configure_model()
    error = DataError("a:1", "", "nothing", "something")
    batch = collate([], 0, [error], [])
    sums = module.loss_sums(batch)
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == sums.weight_sum.item() == 0
    assert module.predict_step(batch, 0) == []
    assert (batch.skipped, batch.tokens) == ([error], 0)


def test_a_batch_can_be_pickled_and_moved_to_a_device(tiny):
    _, renderer = tiny("qwen2_5_vl")
    batch = collate(items(renderer), 0, [DataError("a:1", "k", "f", "e")], ["cut"])
    for other in (pickle.loads(pickle.dumps(batch)), move_data_to_device(batch, torch.device("cpu"))):
        assert type(other) is type(batch)
        assert all(torch.equal(other.inputs[name], value) for name, value in batch.inputs.items())
        assert (other.tasks, other.references, other.truncated) == (batch.tasks, batch.references, ["cut"])
        assert str(other.skipped[0]) == "a:1: k: found f; expected e"
    for value in (*batch.inputs.values(), *batch.prompts.values(), batch.kinds, batch.factor_bits):
        assert isinstance(value, torch.Tensor)  # what can be pinned
