"""What is joined is what the samples hold: each sample finds its own values again in the batch."""

import pytest
import torch

from lightning_vlm.data.batch.join import join_packed, join_padded, pad
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.render.example import Example
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind

JOINS = [
    pytest.param(lambda samples: join_padded(samples, 0, "right"), id="padded"),
    pytest.param(join_packed, id="packed"),
]


def example(length, **inputs):
    """A sample of so many tokens, numbered from 1."""
    chat = Conversation((Message("user", (Text("Why?"),)), Message("assistant", (Text("So."),))))
    kinds = torch.full((length,), int(Kind.RESPONSE), dtype=torch.int8)
    return Example(torch.arange(1, length + 1), kinds, inputs, chat)


def patches(crops, first):
    """Crops of 3 patches of 2 values, no two of which are alike."""
    return torch.arange(first, first + crops * 6.0).view(crops, 3, 2)


def looked_up(numbers, pixels):
    """The patches that numbers stand for, as Molmo 2 takes them; zeros where there is none."""
    return pixels.flatten(0, 1)[numbers.clamp(min=0)] * (numbers >= 0)[..., None]


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize(
    ("name", "of"), [("image_token_pooling", "pixel_values"), ("video_token_pooling", "pixel_values_videos")]
)
def test_numbers_of_patches_find_the_patches_of_their_own_sample(join, name, of):
    given = [
        {name: torch.tensor([[0, 1], [5, -1]]), of: patches(2, 100)},
        {},
        {name: torch.tensor([[0, 2]]), of: patches(1, 200)},
        {},
        {name: torch.tensor([[-1, 0], [8, 3]]), of: patches(3, 300)},
    ]
    alone = [looked_up(inputs[name], inputs[of]) for inputs in given if inputs]
    joined = join([example(4 + at, **inputs) for at, inputs in enumerate(given)])
    torch.testing.assert_close(looked_up(joined[name], joined[of]), torch.cat(alone))
    assert joined[name].lt(0).sum() == 2


@pytest.mark.parametrize("join", JOINS)
def test_patches_of_one_long_row_lie_side_by_side(join):
    rows = [torch.rand(1, 3, 2, pixels) for pixels in (4, 6)]
    sizes = [torch.tensor([[1, 2]]), torch.tensor([[1, 3]])]
    given = [example(4, target_sizes=sizes[0], pixel_values=rows[0]), example(3)]
    joined = join([*given, example(5, target_sizes=sizes[1], pixel_values=rows[1])])
    for found, row in zip(joined["pixel_values"].split([4, 6], dim=-1), rows, strict=True):
        assert torch.equal(found, row)
    assert torch.equal(joined["target_sizes"], torch.cat(sizes))


def test_values_of_tokens_stay_with_their_tokens_and_a_sample_without_them_has_zeros():
    axes = torch.arange(1.0, 9).view(1, 4, 2)
    samples = [example(2), example(4, axes=axes), example(3, axes=axes[:, :3, :1])]
    expected = torch.zeros(3, 4, 2)
    expected[1] = axes[0]
    expected[2, :3, :1] = axes[0, :3, :1]
    assert torch.equal(join_padded(samples, 0, "right")["axes"], expected)
    left = torch.stack([expected[0], expected[1], expected[2].roll(1, 0)])
    assert torch.equal(join_padded(samples, 0, "left")["axes"], left)


@pytest.mark.parametrize("shape", [(2, 4, 2), (1, 3, 2)])
def test_values_of_another_shape_than_the_tokens_are_of_pictures(shape):
    first, second = torch.rand(shape), torch.rand(1, 4, 2)
    joined = join_padded([example(4, values=first), example(4, values=second)], 0, "right")["values"]
    assert joined.shape == (shape[0] + 1, 4, 2)
    assert torch.equal(joined[: shape[0], : shape[1]], first)
    assert torch.equal(joined[shape[0] :], second)


@pytest.mark.parametrize("pictures", [(2, 1), (2,)])
def test_rows_that_see_pictures_by_a_mask_have_a_picture_each_and_are_not_packed(pictures):
    mask = torch.ones(1, 4, *pictures)
    samples = [example(4, cross_attention_mask=mask, pixel_values=torch.ones(1, 2, 3)), example(3)]
    joined = join_padded(samples, 0, "right")
    assert joined["pixel_values"].tolist() == [[[1, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]
    assert joined["cross_attention_mask"].flatten(1).sum(1).tolist() == [8, 0]
    with pytest.raises(UserError, match="cross_attention_mask of this model says which pictures each row"):
        join_packed(samples)
    plain = [example(4, token_type_ids=torch.ones(1, 4), pixel_values=torch.ones(1, 2, 3)), example(3)]
    assert join_padded(plain, 0, "right")["pixel_values"].shape == (1, 2, 3)
    assert join_packed(plain)["token_type_ids"].tolist() == [[1, 1, 1, 1, 0, 0, 0]]


def test_a_row_without_padding_needs_no_mask():
    samples = [example(length, attention_mask=torch.ones(1, length)) for length in (2, 3)]
    joined = join_packed(samples)
    assert list(joined) == ["input_ids"]
    assert joined["input_ids"].tolist() == [[1, 2, 1, 2, 3]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_to_one_side(side):
    ids = join_padded([example(1), example(3)], 9, side)["input_ids"]
    assert ids.tolist() == [[1, 9, 9] if side == "right" else [9, 9, 1], [1, 2, 3]]


def test_nothing_is_joined_to_nothing():
    assert join_padded([], 0, "right") == {}
    assert pad([], 0, "right").shape == (0, 0)
