"""Small batches written out by hand: every value of them is known."""

import pytest
import torch

from lightning_vlm.data.batch.collate import Item, collate, exact_again, kept_exact
from lightning_vlm.data.batch.image_groups import image_counts, split_by_image_count
from lightning_vlm.data.batch.masks import Masks, PictureGrid
from lightning_vlm.data.batch.picture_sizes import PictureSizes, picture_sizes
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.render.example import Example
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind


def example(ids, weight=1.0, turns=None, changes=(), level=None, **inputs):
    """A sample whose first token is a question and whose others are the answer; its name is its tokens."""
    chat = Conversation(
        (Message("user", (Text("Why?"),)), Message("assistant", (Text("So."),))),
        task=f"task {ids[0]}",
        weight=weight,
        source=str(ids),
        level=level,
    )
    kinds = torch.tensor([Kind.INSTRUCTION] + [Kind.RESPONSE] * (len(ids) - 1), dtype=torch.int8)
    mask = torch.ones(1, len(ids), dtype=torch.int64)
    return Example(
        torch.tensor(ids),
        kinds,
        {"attention_mask": mask, **inputs},
        chat,
        None if turns is None else torch.tensor(turns),
        changes=changes,
    )


def masks(position, *tokens):
    return Masks.on(torch.tensor([position]), [PictureGrid(torch.tensor(tokens), 1, len(tokens))])


def of_three():
    """Samples of 2, 4 and 3 tokens: the second weighs half and its turns differ, the last has a mask."""
    second = example([21, 22, 23, 24], 0.5, [1.0, 0.25, 0.25, 2.0], ("merged",), "object")
    third = example([31, 32, 33])
    third.masks = masks(2, 0, 1)
    return [example([11, 12]), second, third]


def test_padded():
    batch = collate([Item(one, None, None) for one in of_three()], 9, [], ["cut"])
    response, question, pad = Kind.RESPONSE, Kind.INSTRUCTION, Kind.PAD
    assert batch.inputs["input_ids"].tolist() == [[11, 12, 9, 9], [21, 22, 23, 24], [31, 32, 33, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.kinds.tolist() == [
        [question, response, pad, pad], [question, *[response] * 3], [question, response, response, pad],
    ]  # fmt: skip
    assert batch.samples.tolist() == [[0] * 4, [1] * 4, [2] * 4]
    assert batch.factors.tolist() == [[1, 1, 0, 0], [0.5, 0.125, 0.125, 1], [1, 1, 1, 0]]
    assert (batch.tasks, batch.levels) == (["task 11", "task 21", "task 31"], [None, "object", None])
    assert batch.sources == ["[11, 12]", "[21, 22, 23, 24]", "[31, 32, 33]"]
    assert (batch.prompts, batch.references, batch.questions, batch.readers) == ({}, [], [], ())
    assert (batch.tokens, batch.lengths, batch.truncated) == (9, (2, 4, 3), ["cut"])
    assert batch.sequences.cu_seq_lens.tolist() == [0, 2, 4, 8, 11, 12]
    assert batch.sequences.max_length == 4
    assert batch.changes == (("[21, 22, 23, 24]", "merged"),)
    assert batch.masks.positions.tolist() == [10]
    assert batch.masks.tokens.tolist() == [8, 9]
    assert (batch.is_packed, batch.packed_lengths) == (False, None)


def test_packed():
    batch = collate([Item(one, None, None) for one in of_three()], 9, [], [], pack=True)
    response, question = Kind.RESPONSE, Kind.INSTRUCTION
    assert batch.inputs["input_ids"].tolist() == [[11, 12, 21, 22, 23, 24, 31, 32, 33]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 2]]
    assert set(batch.inputs) == {"input_ids", "position_ids"}
    assert batch.kinds.tolist() == [
        [question, response, question, *[response] * 3, question, response, response]
    ]
    assert batch.samples.tolist() == [[0, 0, 1, 1, 1, 1, 2, 2, 2]]
    assert batch.factors.tolist() == [[1, 1, 0.5, 0.125, 0.125, 1, 1, 1, 1]]
    assert (batch.tokens, batch.lengths) == (9, (2, 4, 3))
    assert batch.sequences.cu_seq_lens.tolist() == [0, 2, 6, 9]
    assert batch.sequences.max_length == 4
    assert batch.masks.positions.tolist() == [8]
    assert batch.masks.tokens.tolist() == [6, 7]
    assert (batch.is_packed, batch.packed_lengths) == (True, (2, 4, 3))


@pytest.mark.parametrize("pack", [False, True])
def test_positions_of_several_axes_stay_with_their_tokens(pack):
    axes = [torch.tensor([[0, 1], [0, 2], [0, 3]]), torch.tensor([[0, 1, 2], [0, 4, 5], [0, 6, 7]])]
    items = [
        Item(example([11, 12]), None, None, axes[0]),
        Item(example([21, 22, 23]), None, None, axes[1]),
    ]
    found = collate(items, 9, [], [], pack=pack).inputs["position_ids"]
    if pack:
        assert found.shape == (4, 1, 5)
        assert found[0].tolist() == [[0, 1, 0, 1, 2]]  # by which a mask is made
        assert torch.equal(found[1:, 0], torch.cat(axes, 1))
    else:
        assert found.shape == (3, 2, 3)
        assert torch.equal(found[:, 0], torch.nn.functional.pad(axes[0], (0, 1)))
        assert torch.equal(found[:, 1], axes[1])


def test_what_is_only_asked_is_padded_on_the_left():
    first, second = example([11], changes=("merged",)), example([21, 22])
    batch = collate([Item(None, first, "So."), Item(None, second, None)], 9, [], [], pack=True)
    assert batch.prompts["input_ids"].tolist() == [[9, 11], [21, 22]]
    assert batch.prompts["attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert batch.references == ["So.", None]
    assert (batch.inputs, batch.tokens, batch.sequences, batch.lengths) == ({}, 0, None, ())
    assert batch.tasks == ["task 11", "task 21"]
    assert len(batch.questions) == len(batch.readers) == 2
    assert batch.samples.numel() == batch.kinds.numel() == 0
    assert batch.changes == (("[11]", "merged"),)


def test_a_sample_and_its_prompt_are_changed_once():
    one = example([11, 12], changes=("merged",))
    batch = collate([Item(one, one, "So.")], 9, [], [])
    assert batch.changes == (("[11, 12]", "merged"),)


def test_without_samples_there_is_one_token_of_padding():
    error = DataError("a:1", "", "nothing", "something")
    batch = collate([], 9, [error], ["cut"], pack=True)
    assert {name: value.tolist() for name, value in batch.inputs.items()} == {
        "input_ids": [[9]], "attention_mask": [[1]],
    }  # fmt: skip
    assert (batch.kinds.tolist(), batch.samples.tolist()) == ([[Kind.PAD]], [[0]])
    assert (batch.factors.tolist(), batch.tokens, batch.lengths) == ([[0.0]], 0, ())
    assert (batch.sequences.cu_seq_lens.tolist(), batch.sequences.max_length) == ([0, 1], 1)
    assert (batch.skipped, batch.truncated, batch.is_packed) == ([error], ["cut"], False)


def test_seconds_of_videos_stay_exact_in_bfloat16():
    seconds = torch.tensor([1 / 3, 0.1])
    kept = kept_exact({"second_per_grid_ts": seconds, "pixel_values": torch.ones(1)})
    rounded = {name: value.bfloat16() if value.is_floating_point() else value for name, value in kept.items()}
    again = exact_again(rounded)
    assert torch.equal(again["second_per_grid_ts"], seconds)
    assert again["pixel_values"].dtype == torch.bfloat16
    assert exact_again({"second_per_grid_ts": seconds})["second_per_grid_ts"] is seconds
    assert kept_exact({"a": seconds}) == exact_again({"a": seconds}) == {"a": seconds}


def test_rows_that_see_as_many_pictures_go_together():
    mask = torch.zeros(4, 3, 2, 2, dtype=torch.int64)
    mask[0, 1:, 0, 0] = 1  # one picture of one tile
    mask[2, 2, 0, 1] = mask[2, 2, 1, 0] = 1  # two pictures, seen by the last token
    mask[3, 0, 0] = 1  # one picture of two tiles
    pixels = torch.arange(16.0).view(4, 2, 2)
    inputs = {
        "input_ids": torch.arange(12).view(4, 3),
        "attention_mask": torch.ones(4, 3),
        "cross_attention_mask": mask,
        "pixel_values": pixels,
    }
    assert image_counts(inputs).tolist() == [1, 0, 2, 1]
    none, one, two = split_by_image_count(inputs)
    assert (none[0].tolist(), one[0].tolist(), two[0].tolist()) == ([1], [0, 3], [2])
    assert set(none[1]) == {"input_ids", "attention_mask"}
    assert torch.equal(none[1]["input_ids"], inputs["input_ids"][[1]])
    assert torch.equal(one[1]["attention_mask"], inputs["attention_mask"][[0, 3]])
    assert torch.equal(one[1]["cross_attention_mask"], mask[[0, 3], :, :1])
    assert torch.equal(one[1]["pixel_values"], pixels[[0, 3], :1])
    assert torch.equal(two[1]["cross_attention_mask"], mask[[2]])
    assert torch.equal(two[1]["pixel_values"], pixels[[2]])


def test_other_rows_go_together_whatever_they_see():
    inputs = {"input_ids": torch.zeros(3, 2), "attention_mask": torch.ones(3, 2), "pixels": torch.ones(5, 4)}
    assert image_counts(inputs) is None
    ((rows, given),) = split_by_image_count(inputs)
    assert rows.tolist() == [0, 1, 2]
    assert given == inputs


def test_sizes_of_pictures():
    tiles = torch.ones(2, 3, 3, 4, 4)
    tiles[1, 2] = 0  # the second picture has two tiles
    assert picture_sizes({"pixel_values": tiles}) == PictureSizes(tiles=5)
    assert picture_sizes({"pixel_values_images": tiles}) == PictureSizes(tiles=5)
    assert picture_sizes({"pixel_values": torch.ones(2, 3, 4, 4)}) == PictureSizes(tiles=2)
    patches = {"pixel_values": torch.ones(8, 6), "image_grid_thw": torch.tensor([[1, 2, 4]])}
    assert picture_sizes(patches) == PictureSizes(grids=((1, 2, 4),))
    row = {"pixel_values": torch.ones(1, 3, 2, 12), "target_sizes": torch.tensor([[1, 2], [2, 2]])}
    assert picture_sizes(row) == PictureSizes(grids=((1, 1, 2), (1, 2, 2)))
    sized = {"pixel_values": torch.ones(1, 3, 4, 4), "image_sizes": torch.tensor([[30, 40]])}
    assert picture_sizes(sized) == PictureSizes(tiles=1, pixels=((30, 40),))
    video = torch.ones(2, 3, 3, 4, 4)
    video[0, 1:] = 0
    assert picture_sizes({"pixel_values_videos": video}) == PictureSizes(video_frames=[1, 3])
    flat = {"pixel_values_videos": torch.ones(8, 6), "video_grid_thw": torch.tensor([[2, 2, 2]])}
    assert picture_sizes(flat) == PictureSizes(video_grids=((2, 2, 2),))
    assert picture_sizes({}) == PictureSizes()
