"""New tokens: rows that begin at the mean, and train alone, in each family."""

import dataclasses

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForImageTextToText

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.conversation import Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_model, load_processor
from lightning_vlm.models.parts import head_is_tied
from lightning_vlm.models.plan.new_tokens import add_rows, add_to_tokenizer, new_rows, new_token_ids
from tests.support import tiny
from tests.support.pictures import smallest_inputs

TOKENS = ["<loc_1>", "<loc_2>"]
LORA = {"language": {"lora": {"r": 2}}}


def ends(model):
    """Embeddings and head."""
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def located():
    """Questions about pictures that are answered with new tokens."""
    drawn = [
        one for one in Drawn("train", size=40, tasks=["vqa"], rounds=1) if one.messages[0].role == "user"
    ]
    answers = ("<loc_1> and <loc_2>", "<loc_2>, then <loc_1>.", "red")
    return [
        dataclasses.replace(one, messages=(one.messages[0], Message("assistant", (Text(answer),))))
        for one, answer in zip(drawn, answers, strict=False)
    ]


TABLES = ("gemma3n",)
"""Families in which all tokens from some id on stand for pictures or sound, so that none can be added."""


@pytest.mark.parametrize("family", TABLES)
def test_where_tokens_behind_text_stand_for_sound_there_are_no_new_ones(folder, family):
    said = "^new_tokens: Gemma3nForConditionalGeneration takes every token behind its own for one of sound"
    one = VLMModule(str(folder(family)), new_tokens=TOKENS, adapt=LORA)
    with pytest.raises(UserError, match=said):
        one.configure_model()
    with pytest.raises(UserError, match=said):  # before any weights are read
        one.source.skeleton()
    VLMModule(str(folder(family)), adapt=LORA).configure_model()


def test_a_range_is_all_of_its_tokens(processor_of):
    processor = processor_of("qwen2_vl")
    add_to_tokenizer(processor, ["<loc_0..99>", "<seg>"])
    ids = new_token_ids(processor, ["<loc_0..99>", "<seg>"])
    assert len(ids) == 101
    assert processor.tokenizer.convert_ids_to_tokens(ids[7]) == "<loc_7>"
    assert processor.tokenizer.encode("<loc_7><loc_42>", add_special_tokens=False) == [ids[7], ids[42]]
    with pytest.raises(UserError, match=r"^new_tokens: found '<loc_9..1>'; expected a range"):
        add_to_tokenizer(processor, ["<loc_9..1>"])


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family not in TABLES])
def test_rows_are_the_mean_and_all_else_is_as_before(folder, family, tmp_path):
    """In embeddings and head, saved and loaded by transformers alone."""
    model, processor = load_model(folder(family)).model, load_processor(folder(family))
    tied = head_is_tied(model)
    before = [one.weight.detach().clone() for one in ends(model)]
    inputs = smallest_inputs(family, folder(family))
    with torch.no_grad():
        logits = model(**inputs).logits
    old = len(processor.tokenizer)
    add_to_tokenizer(processor, TOKENS)
    rows = new_token_ids(processor, TOKENS)
    assert rows == range(old, old + 2)
    assert processor.tokenizer("a<loc_2><loc_1>b", add_special_tokens=False).input_ids[1:3] == [old + 1, old]
    add_rows(model, rows)
    assert new_rows(model) == rows
    assert head_is_tied(model) == tied
    for module, first in zip(ends(model), before, strict=True):
        mean = first[:old].mean(0).expand(2, -1)
        torch.testing.assert_close(module.weight[rows.start : rows.stop], mean, rtol=1e-5, atol=1e-7)
        assert torch.equal(module.weight[: min(old, len(first))], first[:old])
    with torch.no_grad():
        again = model(**inputs).logits
        assert torch.equal(again[..., : logits.shape[-1]], logits)
        new = {**inputs, "input_ids": inputs["input_ids"].clone()}
        new["input_ids"][0, -2:] = torch.tensor(rows)
        fresh = model(**new).logits
        model.save_pretrained(tmp_path)
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert torch.equal(loaded(**new).logits, fresh)
        assert torch.equal(loaded(**inputs).logits, again)
    average = again[0, -1, : logits.shape[-1]].mean()
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None) is None:
        torch.testing.assert_close(again[0, -1, rows.start], average, rtol=1e-3, atol=1e-5)


def test_rows_to_spare_are_used(folder):
    """As in most published models, whose matrices are wider than their vocabulary."""
    model, processor = load_model(folder("qwen2_5_vl")).model, load_processor(folder("qwen2_5_vl"))
    model.resize_token_embeddings(512, mean_resizing=False)
    add_to_tokenizer(processor, TOKENS)
    rows = new_token_ids(processor, TOKENS)
    weight = model.get_input_embeddings().weight
    add_rows(model, rows)
    assert model.get_input_embeddings().weight is weight
    torch.testing.assert_close(weight[rows.start], weight[: rows.start].mean(0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [([""], "'' empty"), (["<a>", "<a>"], "'<a>' twice"), (["</s>"], "'</s>' as a token that the model has")],
)
def test_what_is_no_new_token(folder, tokens, said):
    with pytest.raises(UserError, match=f"new_tokens: found {said}; expected words that aren't tokens yet"):
        VLMModule(str(folder("llava")), new_tokens=tokens).configure_model()


def fit(make_quiet, one, source, folder, ckpt_path=None):
    seed_everything(1)
    keep = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_quiet(max_epochs=4, enable_checkpointing=True, callbacks=[keep])
    trainer.fit(one, VLMDataModule(train=source, batch_size=2), ckpt_path=ckpt_path, weights_only=True)
    return {name: p.detach().clone() for name, p in one.named_parameters()}


OPTIMIZERS = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.5),
    "AdamW8bit": lambda groups: AdamW8bit(groups, lr=1e-2, weight_decay=0.5, min_8bit_size=64),
}


@pytest.mark.parametrize(
    ("family", "optimizer", "quantization"),
    [
        ("llava", "AdamW", None),
        ("llava", "AdamW8bit", "nf4"),
        ("qwen2_5_vl", "AdamW", "nf4"),
        ("mllama", "AdamW", None),
    ],
)
def test_only_the_new_rows_learn(module, make_quiet, listed, tmp_path, family, optimizer, quantization):
    """Under strong weight decay; tied or not; and a resumed run is the same bit for bit."""
    source = listed(located())
    options = {"adapt": LORA, "new_tokens": TOKENS, "optimizer": OPTIMIZERS[optimizer]}

    def fresh():
        return module(family, quantization=quantization, **options)

    one = fresh()
    start = {name: p.detach().clone() for name, p in one.named_parameters()}
    end = fit(make_quiet, one, source, tmp_path / "whole")
    rows = new_rows(one.model)
    names = {name for name, p in one.named_parameters() if any(p is each.weight for each in ends(one.model))}
    assert len(names) == (1 if family == "qwen2_5_vl" else 2)
    for name, weight in end.items():
        if name in names:
            moved = (weight != start[name]).any(1).nonzero().flatten().tolist()
            assert moved == list(rows), name
        else:
            assert torch.equal(weight, start[name]) is not ("lora_" in name), name
    again = fit(make_quiet, fresh(), source, tmp_path / "again", tmp_path / "whole/step=3.ckpt")
    for name, weight in end.items():
        assert torch.equal(again[name], weight), name
    loaded = VLMModule.load_from_checkpoint(tmp_path / "whole/step=8.ckpt")
    assert loaded.source.new_tokens == TOKENS
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, end[name]), name


def test_the_plan_may_train_all_rows(module, make_quiet, listed, tmp_path, capsys):
    one = module("llava", adapt={"language.embed_tokens": "full"}, new_tokens=TOKENS)
    start = one.model.get_input_embeddings().weight.detach().clone()
    fit(make_quiet, one, listed(located()), tmp_path)
    assert (one.model.get_input_embeddings().weight != start).any(1).sum() > 10
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "new tokens: off the mean" in line]
    assert "ok" in line
