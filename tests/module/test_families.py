"""Each family: all of it learns or is named, and what is in a batch doesn't change one another."""

import pytest
import torch
from lightning_vlm_callbacks.modes import set_modes

from lightning_vlm import VLMDataModule
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from tests.support import tiny
from tests.support.dead import DEAD
from tests.support.pictures import NEEDS_PICTURES, with_its_pictures

FAMILIES = tuple(tiny.FAMILIES)
FULL = {"vision": "full", "projector": "full", "language": "full"}
ZERO = ("instructblip",)  # there it is no lack of a gradient but one of zeros


@pytest.fixture
def mixed(words):
    """Text alone, one picture, two pictures with a later one, of very different lengths."""

    def make(family):
        first, second, third = Drawn("val", size=3, tasks=["vqa"], rounds=1)
        more = Message("user", (*second.images, Text(" And there, in this other picture? Look well.")))
        late = Conversation(
            (*first.messages, more, Message("assistant", (Text("Two, I think, or so it seems to me."),))),
            source="late",
        )
        alone = () if family in NEEDS_PICTURES else (words("Hello, who is there?", "It is me."),)
        return [*alone, *(with_its_pictures(family, each, each.images[0]) for each in (third, late))]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_step_reaches_all_but_what_is_known(module, make_quiet, listed, mixed, family):
    source = listed(mixed(family)[:2])
    data = VLMDataModule(train=source, batch_size=1, shuffle=False)
    one = module(family, adapt=FULL, no_gradient_needed=DEAD.get(family))
    trained = {name: weight for name, weight in one.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    make_quiet(max_epochs=1, accumulate_grad_batches=2).fit(one, data)
    still = [name for name, weight in trained.items() if torch.equal(weight, before[name])]
    decays = family == "deepseek_ocr2"  # so that its dead weight moves all the same
    assert bool(still) == (family in DEAD and not decays)
    assert all("_tower." in name or ".qformer." in name for name in still)
    if family in DEAD and family not in ZERO:
        with pytest.raises(UserError, match=r"no gradient: model\.model\.\w+_tower"):
            make_quiet(max_epochs=1).fit(module(family, adapt=FULL), data)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_is_the_sum_of_its_samples(module, batch_of, listed, mixed, family):
    one = module(family, adapt=FULL)
    set_modes(one.model)
    samples = mixed(family)

    def sums(chosen):
        one.zero_grad()
        found = one.loss_sums(batch_of(one, listed(chosen)))
        found.loss_sum.backward()
        return found, {name: p.grad for name, p in one.named_parameters() if p.grad is not None}

    together, gradients = sums(samples)
    losses, expected = [], {}
    for sample in samples:
        found, parts = sums([sample])
        losses += found.token_losses.tolist()
        for name, gradient in parts.items():
            expected[name] = expected.get(name, 0) + gradient
    torch.testing.assert_close(together.token_losses, torch.tensor(losses), rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in gradients.items():
        # Not smaller than what rounding leaves of zeros, such as the gradients of the keys' biases.
        scale = expected[name].abs().max().clamp(min=1e-3 * largest)
        torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=0, atol=1e-3, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_answer_sees_what_it_is_to_say(module, batch_of, listed, mixed, family):
    """Other words in an answer change nothing before them."""
    one = module(family)
    one.model.eval()
    batch = batch_of(one, listed(mixed(family)[-1:]))
    answers = (batch.kinds[0] >= Kind.RESPONSE).nonzero()[:, 0].tolist()
    is_split = "#" in batch.sources[0]  # each answer in a sample of its own
    assert is_split or answers[-1] - answers[0] >= len(answers), "several answers"
    for place in (answers[0], answers[max(-3, -len(answers))]):
        ids = batch.inputs["input_ids"].clone()
        for later in answers:
            if later >= place:
                ids[0, later] = 1 if ids[0, later] != 1 else 2
        with torch.no_grad():
            before = one.model(**batch.inputs, use_cache=False).logits
            after = one.model(**{**batch.inputs, "input_ids": ids}, use_cache=False).logits
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
        assert not torch.allclose(after[:, place:], before[:, place:], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_a_mixed_batch_are_those_of_each_alone(module, batch_of, listed, mixed, family):
    one = module(family)
    tokenizer = one.processor.tokenizer
    silent = [i for i in range(len(tokenizer)) if not tokenizer.decode(i, skip_special_tokens=True).strip()]
    one.generation = {"min_new_tokens": 5, "max_new_tokens": 5, "suppress_tokens": silent}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # or all answers would be alike, by a hair
        for name, parameter in one.model.get_decoder().named_parameters():
            if "embed" not in name:  # a large embedding answers with the last word of the question
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    one.model.eval()
    samples = mixed(family)
    alone = [one.predict_step(batch_of(one, listed([sample]), predict=True), 0)[0].text for sample in samples]
    together = [answer.text for answer in one.predict_step(batch_of(one, listed(samples), predict=True), 0)]
    assert together == alone
    assert len(set(alone)) > 1
