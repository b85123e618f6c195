"""The tokens of numbers are those that the tokenizer itself makes of numbers."""

import pytest

from lightning_vlm.data.boxes.number_tokens import BINS, number_tokens


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "shipped"])
def test_digits_are_the_tokens_that_it_makes_of_them(processor_of, family):
    tokenizer = processor_of(family).tokenizer
    found = number_tokens(tokenizer)
    assert BINS not in found
    assert found[1].values.tolist() == list(range(10))
    for digits, tokens in found.items():
        texts = [f"{int(value):0{digits}}" for value in tokens.values]
        # Behind a letter, so that none begins a word.
        made = [tokenizer.encode(f"({text}", add_special_tokens=False)[-1] for text in texts]
        assert tokens.ids.tolist() == made


def test_bins_are_in_the_order_of_their_numbers(processor_of):
    tokenizer = processor_of("paligemma").tokenizer
    found = number_tokens(tokenizer)[BINS]
    assert found.values.tolist() == list(range(1024))
    names = tokenizer.convert_ids_to_tokens(found.ids.tolist())
    assert names == [f"<loc{number:04}>" for number in range(1024)]


def test_of_several_kinds_of_bins_the_named_ones_count(processor_of):
    tokenizer = processor_of("paligemma").tokenizer
    own = [f"<loc_{number}>" for number in range(5)]
    tokenizer.add_tokens(own)
    found = number_tokens(tokenizer, own)[BINS]
    assert tokenizer.convert_ids_to_tokens(found.ids.tolist()) == own
