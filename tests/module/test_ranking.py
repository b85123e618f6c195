"""Several answers to each prompt, against transformers' beam scores and against probabilities in float64."""

import math

import pytest
import torch
from transformers.utils import logging

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.image_groups import split_by_image_count
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.ranking import length_score
from tests.support import tiny
from tests.support.pictures import with_its_pictures

FAMILIES = tuple(tiny.FAMILIES)
BEAMS = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 6, "length_penalty": 0.6}


@pytest.fixture(scope="module")
def awake(module):
    """A module whose answers differ from prompt to prompt, and which often ends one early."""

    def make(family, **options):
        one = module(family, **options)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in one.model.get_decoder().parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        one.model.eval()
        return one

    return make


def samples():
    """One picture, and two of them in two turns."""
    first, second, third = Drawn("val", size=3, tasks=["vqa"], rounds=1)
    more = Message("user", (*second.images, Text(" And there?")))
    turns = (*first.messages, more, Message("assistant", (Text("Two, I think."),)))
    return [third, Conversation(turns, source="late")]


def log_prob(one, prompt, tokens):
    """Of an answer, from the model's logits over prompt and answer at once, in float64."""
    answer, length = torch.tensor([tokens]), prompt["input_ids"].shape[1]
    more = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    inputs = dict(prompt)
    for name, value in prompt.items():
        if value.shape[:2] == (1, length):
            if name == "token_type_ids" and "labels" in one.processor.model_input_names:
                more[name] = torch.ones_like(answer)  # PaliGemma's tokens that see only those before
            last = value[:, -1:] if value.ndim > 2 else torch.zeros_like(value[:, -1:])
            shown = more.get(name, last.repeat_interleave(len(tokens), 1))  # Mllama's see what the prompt saw
            inputs[name] = torch.cat((value, shown), 1)
    with torch.no_grad():
        logits = one.model(**inputs, use_cache=False).logits[0, length - 1 : -1].double()
    return logits.log_softmax(1).gather(1, answer.T).sum().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_are_ranked_as_transformers_ranks_them(awake, batch_of, listed, make_quiet, family):
    one = awake(family, generation=BEAMS)
    source = listed(with_its_pictures(family, each, each.images[0]) for each in samples())
    (found,) = make_quiet().predict(one, VLMDataModule(predict=source, batch_size=2))
    for conversation, answer in zip(source.items, found, strict=True):
        ((_, prompt),) = split_by_image_count(batch_of(one, listed([conversation]), predict=True).prompts)
        theirs = one.model.generate(
            **prompt, **BEAMS, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        new = theirs.sequences[:, prompt["input_ids"].shape[1] :]
        scores = theirs.sequences_scores.tolist()
        assert [one.score for one in answer.candidates] == pytest.approx(scores, rel=1e-4)
        texts = one.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        assert [one.text for one in answer.candidates] == [text.strip() for text in texts]
        for tokens, candidate in zip(new.tolist(), answer.candidates, strict=True):
            expected = log_prob(one, prompt, tokens[: candidate.length])
            assert candidate.log_prob == pytest.approx(expected, rel=1e-4)
        assert answer.text == answer.candidates[0].text
        assert answer.reference is not None


@pytest.mark.parametrize("alpha", [None, 0.0, 0.7])
def test_drawn_answers_have_the_models_own_probabilities(awake, batch_of, words, listed, monkeypatch, alpha):
    """Whatever they were drawn with, and where one ends before others."""
    options = {"do_sample": True, "num_return_sequences": 8, "max_new_tokens": 12, "temperature": 0.5}
    options |= {} if alpha is None else {"length_penalty": alpha}
    one = awake("llava", generation=options)
    end = one.model.generation_config.eos_token_id[0]
    with torch.no_grad():
        one.model.lm_head.weight *= 0.05
    # About one token in eight ends the answer.
    one.generation = {**options, "suppress_tokens": [5, 6], "top_k": 300, "sequence_bias": [[[end], 2.0]]}
    texts, seen = [words("Which one?", source="a"), words("And who is that over there?", source="b")], []
    decode = one.processor.tokenizer.batch_decode
    monkeypatch.setattr(
        one.processor.tokenizer,
        "batch_decode",
        lambda ids, **more: (seen.extend(ids.tolist()), decode(ids, **more))[1],
    )
    torch.manual_seed(0)
    found = one.predict_step(batch_of(one, listed(texts), predict=True), 0)
    lengths = set()
    for place, answer in enumerate(found):
        prompt = batch_of(one, listed([texts[place]]), predict=True).prompts
        expected = []
        for tokens in seen[8 * place : 8 * place + 8]:
            tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            chance = log_prob(one, prompt, tokens)
            score = chance / len(tokens) ** (1.0 if alpha is None else alpha)
            expected.append((score, chance, len(tokens)))
            lengths.add(len(tokens))
        expected.sort(reverse=True)
        for one_of, (score, chance, length) in zip(answer.candidates, expected, strict=True):
            assert one_of.length == length
            assert (one_of.score, one_of.log_prob) == pytest.approx((score, chance), rel=1e-5)
            assert one_of.score == length_score(one_of.log_prob, length, 1.0 if alpha is None else alpha)
    assert len(lengths) > 3


def test_beams_own_option_is_not_passed_to_others(awake, batch_of, caplog):
    """transformers would warn that it ignores it."""
    one = awake("llava", generation={**BEAMS, "num_beams": 1, "do_sample": True})
    logging.enable_propagation()
    one.predict_step(batch_of(one, predict=True), 0)
    logging.disable_propagation()
    assert "length_penalty" not in caplog.text


def test_one_answer_has_no_candidates(awake, batch_of):
    one = awake("llava", generation={"max_new_tokens": 4})
    assert [answer.candidates for answer in one.predict_step(batch_of(one, predict=True), 0)] == [()] * 3


def test_validation_scores_the_best(awake, make_quiet):
    one = awake("llava", generation=BEAMS)
    data = VLMDataModule(val=Drawn("val", size=2, tasks=["vqa"]), batch_size=2)
    (scores,) = make_quiet().validate(one, data, verbose=False)
    assert math.isfinite(scores["val/token_f1"])
    assert [len(answer.candidates) for answer in one.predictions] == [3, 3]


@pytest.mark.parametrize(("beams", "words"), [(1, "1 beam"), (2, "2 beams")])
def test_several_that_would_be_one(beams, words):
    """`generate` would give fewer different answers than were asked for."""
    with pytest.raises(
        UserError, match=rf"num_return_sequences: found 4 with {words} .*set do_sample to true"
    ):
        VLMModule("never-read", generation={"num_return_sequences": 4, "num_beams": beams})
