"""Towers that attend to all pictures at once give what `sdpa` gives for one after another."""

import pytest
import torch

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models import attention, blocks
from lightning_vlm.models.attention import choice, varlen
from lightning_vlm.models.loading.load import load_model
from tests.models.test_attention_families import FAMILIES
from tests.support import tiny


def make_module(folder, family):
    torch.manual_seed(0)
    template = None if tiny.FAMILIES[family].template else "plain"
    module = VLMModule(str(folder), adapt="full", chat_template=template)
    module.configure_model()
    return module.train()


def drawn_batch(module, size=3):
    source = Drawn("train", size=size)
    data = VLMDataModule(train=source, batch_size=size, shuffle=False, processor=module.processor)
    return next(iter(data.train_dataloader()))


def loss_and_gradients(module, batch):
    loss = module.loss_sums(batch).loss_sum
    loss.backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    return loss.detach(), gradients


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_loss_and_gradients_are_those_of_sdpa(family, tiny_folder, monkeypatch):
    calls = []
    in_turn = varlen.attend_in_turn
    monkeypatch.setattr(varlen, "attend_in_turn", lambda *given: calls.append(given) or in_turn(*given))
    module = make_module(tiny_folder(family), family)
    monkeypatch.setattr(choice, "use_varlen_attention", lambda _: None)
    plain = make_module(tiny_folder(family), family)
    batch = drawn_batch(plain)
    expected_loss, expected = loss_and_gradients(plain, batch)
    assert not calls
    loss, found = loss_and_gradients(module, batch)
    assert bool(calls) == (not FAMILIES[family].tower)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_picture_changes_nothing_in_its_neighbours(tiny_folder):
    module = make_module(tiny_folder("qwen2_5_vl"), "qwen2_5_vl")
    batch = drawn_batch(module)
    first = int(batch.inputs["image_grid_thw"][0].prod())
    with torch.no_grad():
        before = module.hidden_states(batch)
        batch.inputs["pixel_values"][:first] += 1
        after = module.hidden_states(batch)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])


def test_what_a_model_saves_names_no_attention_of_ours(tiny_folder, tmp_path):
    load_model(tiny_folder("qwen2_vl")).model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


def test_compiled_blocks_give_the_same(tiny_folder):
    plain = make_module(tiny_folder("qwen2_5_vl"), "qwen2_5_vl")
    compiled = make_module(tiny_folder("qwen2_5_vl"), "qwen2_5_vl")
    # This backend traces as the default one does, without the minutes that a C++ compiler takes.
    assert blocks.compile_blocks(compiled.model, backend="eager") == 4
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for size in (2, 3):
        batch = drawn_batch(plain, size)
        expected_loss, expected = loss_and_gradients(plain, batch)
        loss, found = loss_and_gradients(compiled, batch)
        torch.testing.assert_close(loss, expected_loss)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)
        plain.zero_grad()
        compiled.zero_grad()
