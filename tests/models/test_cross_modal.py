"""Cross-modal adapters: each position sees the pictures before it in its own row, and nothing else."""

import copy
import dataclasses

import pytest
import torch
from lightning_vlm_callbacks.modes import set_modes
from PIL import Image
from torch import nn
from transformers import DynamicCache, StaticCache

from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.models.adapters.cross_modal import CrossModal, ImageHooks, gather_images
from lightning_vlm.models.adapters.layers import adapters_of
from lightning_vlm.models.loading.load import load_model
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt, trainable_names
from lightning_vlm.models.plan.methods import CrossModalAdapter
from lightning_vlm.models.positions import token_positions
from tests.data.batch.test_collate import SAMPLES
from tests.support import tiny
from tests.support.packed import NEVER
from tests.support.pictures import NEEDS_PICTURES, ONE_PICTURE
from tests.support.rendering import in_lists

FAMILIES = [
    family for family in tiny.FAMILIES if family not in ("mllama", "granite4_vision", "gemma3n", *ONE_PICTURE)
]


def moved(folder, **options):
    """A model whose adapters do something."""
    model = load_model(folder, **options).model
    torch.manual_seed(0)
    adapt(model, {"language": {"cross_modal_adapter": {"heads": 2}}}, find_parts(model))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in sorted(trainable_names(model)):
            model.get_parameter(name).add_(torch.randn(model.get_parameter(name).shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def inputs_of(processor_of):
    """Inputs of chats, each a list of turns; a turn is a text and perhaps a seed that draws a picture."""

    def make(family, *chats, prompt=False):
        template = None if tiny.FAMILIES[family].template else "plain"
        processor = processor_of(family, template)
        texts, images = [], []
        for chat in chats:
            turns, pictures = [], []
            for at, (text, seed) in enumerate(chat):
                parts = [{"type": "text", "text": text}]
                if seed is not None:
                    generator = torch.Generator().manual_seed(seed)
                    noise = torch.randint(0, 255, (32, 32, 3), generator=generator, dtype=torch.uint8)
                    pictures.append(Image.fromarray(noise.numpy()))
                    parts.insert(0, {"type": "image"})
                turns.append({"role": "assistant" if at % 2 else "user", "content": parts})
            images.append(pictures)
            texts.append(processor.apply_chat_template(turns, add_generation_prompt=prompt))
        if not any(images):
            images = None
        processor.tokenizer.padding_side = "left" if prompt else "right"
        images = images and in_lists(processor, images)
        return processor(images=images, text=texts, padding=True, return_tensors="pt")

    return make


def pixels_of(batch):
    """The input that has the pixels."""
    return "pixel_values_images" if "pixel_values_images" in batch else "pixel_values"


def logits(model, batch):
    model.eval()
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def test_attention_is_that_of_torch():
    """Against nn.MultiheadAttention with the same weights, row by row and position by position."""
    torch.manual_seed(0)
    adapter = CrossModal(16, CrossModalAdapter(reduction=2, heads=2))
    for weight in adapter.parameters():
        nn.init.normal_(weight)
    oracle = nn.MultiheadAttention(8, 2, bias=False, batch_first=True, kdim=8, vdim=8)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.eye(8).repeat(3, 1))
        oracle.out_proj.weight.copy_(torch.eye(8))
    embeddings = torch.randn(3, 6, 16)
    places = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    hidden = torch.randn(3, 6, 16)
    found = adapter(hidden, gather_images(embeddings, places))
    for row in range(3):
        for at in range(6):
            earlier = [i for i in range(at) if places[row, i]]
            expected = torch.zeros(16)
            if earlier and not places[row, at]:
                pictures = adapter.picture_norm(embeddings[row, earlier])
                q = adapter.q(adapter.norm(hidden[row, at]))
                mixed, _ = oracle(q[None, None], adapter.k(pictures)[None], adapter.v(pictures)[None])
                expected = adapter.out(mixed[0, 0])
                assert expected.abs().max() > 0.1
            torch.testing.assert_close(found[row, at], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_projector_puts_out(family, tiny_folder, inputs_of):
    """They are found among the embeddings: all of them, in their order."""
    model = moved(tiny_folder(family))
    batch = inputs_of(family, [("What?", 1), ("This.", None)])
    met = []
    adapter = next(iter(adapters_of(model).values()))
    adapter.picture_norm.register_forward_pre_hook(lambda module, args: met.append(args[0]))
    logits(model, batch)
    with torch.no_grad():
        more = (
            "image_sizes",
            "image_grid_thw",
            "pixel_attention_mask",
            "spatial_shapes",
            "target_sizes",
            "image_position_ids",
            "image_merge_sizes",
            "image_token_pooling",
            "image_grids",
            "pixel_values_local",
            "num_local_patches",
        )
        names = (pixels_of(batch), *more)
        given = {name: batch[name] for name in names if name in batch}
        if family == "llava_onevision":
            given["batch_num_images"] = batch["batch_num_images"]
        if family == "llama4":  # which projects them elsewhere
            tiles = model.get_image_features(**given, return_dict=True).last_hidden_state
            features = model.multi_modal_projector(tiles.flatten(0, 1))
        else:
            features = model.model.get_image_features(**given, return_dict=True).pooler_output
    features = torch.cat(list(features)) if not isinstance(features, torch.Tensor) else features
    if family == "molmo2":  # which adds them to the embedding of their token
        features = features + model.get_input_embeddings().weight[model.config.image_token_id].detach()
    assert torch.equal(met[0][0], features.flatten(0, -2))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sample_sees_another(family, tiny_folder, inputs_of):
    """Another picture in one sample changes that sample, and of the others not a bit."""
    model = moved(tiny_folder(family))
    text = [("What is here?", None if family not in NEEDS_PICTURES else 7), ("Nothing.", None)]
    asked = [("What is this?", 1), ("A cat.", None)]
    one, two = (inputs_of(family, asked, [("And this thing?", seed), ("No.", None)], text) for seed in (2, 3))
    assert torch.equal(one["input_ids"], two["input_ids"])
    first, second = logits(model, one), logits(model, two)
    for row in (0, 2):
        assert torch.equal(first[row], second[row])
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NEVER])
def test_samples_that_share_a_row_see_their_own_pictures(family, tiny_folder, processor_of):
    """Packed as alone, of text alone too; another picture in one changes not a bit of the others."""
    model = moved(tiny_folder(family)).eval()
    renderer = Renderer(processor_of(family, None if tiny.FAMILIES[family].template else "plain"))
    positions = token_positions(model)
    text_alone = 0 if family in NEEDS_PICTURES else 1
    chosen = [renderer.example(SAMPLES[at]) for at in (2, 0, text_alone, 0)]
    found = [logits_of_packed(model, chosen, positions)]
    for example, together in zip(chosen, found[0], strict=True):
        alone = logits(model, {"input_ids": example.input_ids[None], **example.inputs})[0]
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    changed = dict(chosen[1].inputs)
    changed[pixels_of(changed)] = -changed[pixels_of(changed)]
    chosen[1] = dataclasses.replace(chosen[1], inputs=changed)
    found.append(logits_of_packed(model, chosen, positions))
    are_equal = [torch.equal(one, other) for one, other in zip(*found, strict=True)]
    assert are_equal == [True, False, True, True]


def logits_of_packed(model, examples, positions):
    """Those of each example."""
    found = [None if positions is None else positions(example) for example in examples]
    items = [Item(example, None, None, of_one) for example, of_one in zip(examples, found, strict=True)]
    batch = collate(items, 0, [], [], pack=True)
    return logits(model, batch.inputs)[0].split(batch.lengths)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_text_alone_is_as_without_adapters(family, tiny_folder, inputs_of):
    batch = inputs_of(family, [("Hello, you there?", None), ("Yes.", None)])
    plain = logits(load_model(tiny_folder(family)).model, batch)
    assert torch.equal(logits(moved(tiny_folder(family)), batch), plain)


def test_a_row_of_text_beside_pictures_is_as_without_adapters(tiny_folder, inputs_of):
    batch = inputs_of(
        "llava", [("What?", 1), ("A cat.", None)], [("Hello, you there?", None), ("Yes.", None)]
    )
    plain = logits(load_model(tiny_folder("llava")).model, batch)
    found = logits(moved(tiny_folder("llava")), batch)
    assert torch.equal(found[1], plain[1])
    assert not torch.equal(found[0], plain[0])


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_an_answer_does_not_see_a_later_picture(family, tiny_folder, inputs_of):
    model = moved(tiny_folder(family))
    one, two = (
        inputs_of(family, [("What?", 1), ("A cat.", None), ("And here?", seed), ("A dog.", None)])
        for seed in (2, 3)
    )
    places = (one["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    later = places[len(places) // 2]
    first, second = logits(model, one)[0], logits(model, two)[0]
    assert torch.equal(first[:later], second[:later])
    assert not torch.equal(first[later:], second[later:])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_that_without(family, beams, tiny_folder, inputs_of):
    model = moved(tiny_folder(family))
    text = [("What is here?", None if family not in NEEDS_PICTURES else 7)]
    batch = inputs_of(family, [("What is this, do you think?", 1)], [("And?", 2)], text, prompt=True)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    # Random weights might write a picture, or what stands around it (Ovis), which is seen without a cache.
    of_pictures = getattr(model.config, "visual_indicator_token_ids", ())
    options["suppress_tokens"] = [model.config.image_token_id, *of_pictures]
    if family == "ernie4_5_vl_moe":
        pytest.skip("transformers doesn't lengthen its moe_mm_token_type_ids where there is no cache")
    answers = [model.generate(**batch, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(*answers)
    if beams == 1:  # or it would say nothing
        new = slice(batch["input_ids"].shape[1], None)
        rows = torch.equal(
            answers[0][:, new], load_model(tiny_folder(family)).model.generate(**batch, **options)[:, new]
        )
        assert not rows


def piece_by_piece(model, batch, cache, cuts):
    """The last logits of a chat given in pieces; a picture goes in with its placeholders."""
    places = batch["input_ids"][0] == model.config.image_token_id
    given = 0
    for begin, end in zip([0, *cuts], [*cuts, len(places)], strict=True):
        name = pixels_of(batch)
        pictures = int(places[begin:end].sum()) * len(batch[name]) // int(places.sum())
        pixels = {name: batch[name][given : given + pictures]} if pictures else {}
        given += pictures
        ids = batch["input_ids"][:, begin:end]
        with torch.no_grad():
            out = model(input_ids=ids, **pixels, past_key_values=cache, use_cache=True)
    return out.logits


def test_more_pictures_on_top_of_a_cache(tiny_folder, inputs_of):
    """A second turn with a picture of its own, given after the first: as if all had been given at once."""
    model = moved(tiny_folder("llava")).eval()
    whole = inputs_of("llava", [("What?", 1), ("A cat.", None), ("And here?", 2), ("A dog.", None)])
    places = (whole["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0].tolist()
    cuts = [places[len(places) // 2], places[-1] + 3]
    cache = DynamicCache(config=model.config.get_text_config())
    found = piece_by_piece(model, whole, cache, cuts)
    torch.testing.assert_close(found, logits(model, whole)[:, cuts[-1] :], rtol=1e-5, atol=1e-5)


def test_a_cache_that_was_emptied_begins_again(tiny_folder, inputs_of):
    model = moved(tiny_folder("llava")).eval()
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    for seed in (1, 2):
        batch = inputs_of("llava", [("What?", seed), ("A cat.", None)])
        cut = batch["input_ids"].shape[1] - 3
        found = piece_by_piece(model, batch, cache, [cut])
        torch.testing.assert_close(found, logits(model, batch)[:, cut:], rtol=1e-5, atol=1e-5)
        cache.reset()


def test_nothing_to_look_at_is_no_softmax_over_nothing(monkeypatch):
    """Which is NaN in some kernels, and so would the gradient be of all that shares a weight with it."""

    def plain(q, k, v, attn_mask):
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~attn_mask, -torch.inf)
        return scores.softmax(-1) @ v

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", plain)
    adapter = CrossModal(16, CrossModalAdapter(reduction=2, heads=2))
    nn.init.normal_(adapter.out.weight)
    places = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()
    found = adapter(torch.randn(2, 5, 16), gather_images(torch.randn(2, 5, 16), places))
    assert [row.any(-1).tolist() for row in found] == [[False, False, True, False, True], [False] * 5]
    found.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in adapter.parameters())


def test_caches_that_are_refused(tiny_folder, inputs_of):
    model = moved(tiny_folder("llava")).eval()
    batch = inputs_of("llava", [("What?", 1)], prompt=True)
    strange = load_model(tiny_folder("llava")).model(**batch, use_cache=True).past_key_values
    more = torch.tensor([[5]])
    with pytest.raises(UserError, match="holds text whose images this model has not seen"):
        model(input_ids=more, past_key_values=strange)
    known = model(**batch, use_cache=True).past_key_values
    known.batch_repeat_interleave(2)
    with pytest.raises(UserError, match="had 1 rows and has 2; this kind of generation isn't supported"):
        model(input_ids=more.repeat(2, 1), past_key_values=known)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_with_and_without_checkpointing(checkpointing, tiny_folder, inputs_of):
    """All learn; and what the graph is made of is let go after the forward."""
    batch = inputs_of("llava", [("What?", 1), ("A cat.", None)])
    model, plain = (moved(tiny_folder("llava"), gradient_checkpointing=on) for on in (checkpointing, False))
    for one in (model, plain):
        set_modes(one)
        one(**batch, labels=batch["input_ids"]).loss.backward()
    for name in trainable_names(model):
        assert plain.get_parameter(name).grad.any(), name
        assert torch.equal(model.get_parameter(name).grad, plain.get_parameter(name).grad), name
    other = copy.deepcopy(model)  # of tensors in a graph there is no copy
    assert torch.equal(logits(other, batch), logits(model, batch))


def test_a_failed_forward_leaves_nothing_behind(tiny_folder, inputs_of):
    model = moved(tiny_folder("llava"))
    batch = inputs_of("llava", [("What?", 1)])
    model.model.language_model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    assert next(iter(adapters_of(model).values())).hooks.images is None


def test_refusals(tiny_folder):
    with pytest.raises(UserError, match="gets no pictures among its words"):
        moved(tiny_folder("mllama"))
    model = moved(tiny_folder("llava"))
    embeddings = torch.zeros(1, 3, 64)
    with pytest.raises(UserError, match="found no input_ids"):
        model(inputs_embeds=embeddings)
    with pytest.raises(UserError, match="the language model was called without"):
        model.model.language_model.layers[0](embeddings, position_embeddings=(embeddings[..., :16],) * 2)


def test_frames_of_videos_are_seen_as_pictures_are():
    hooks = ImageHooks(7, 8)
    hooks.find(torch.nn.Identity(), (), {"input_ids": torch.tensor([[1, 7, 2, 8, 8, 3]])})
    embeddings = torch.arange(6.0).view(1, 6, 1)
    hooks.read(torch.nn.Identity(), (), {"inputs_embeds": embeddings})
    assert hooks.images.features.flatten().tolist() == [1, 3, 4]
