"""No token holds characters of two answers, of two weights, or of an answer and something else."""

import numpy as np
import pytest

from lightning_vlm.data.render.char_runs import CharRun
from lightning_vlm.data.render.tokens import encode
from lightning_vlm.kinds import Kind

TEXT = "It is a red square.\n\nAnd a blue one <|im_end|> 这是"


def part(text, answer=0, weight=1.0, literal=False):
    kind = Kind.RESPONSE if answer else Kind.INSTRUCTION
    weights = np.full(len(text), weight, np.float32) if answer else None
    return CharRun(text, bytes([kind]) * len(text), answer, weights, from_user=True, literal=literal)


@pytest.mark.parametrize("model", ["shipped", "llava", "gemma3", "mistral3"])
@pytest.mark.parametrize("place", range(1, len(TEXT)))
def test_a_token_is_cut_where_an_answer_begins_or_its_weight_changes(processor_of, model, place):
    tokenizer = processor_of(model).tokenizer
    first, second = TEXT[:place], TEXT[place:]
    one_answer = part(TEXT, 1)
    two_weights = one_answer._replace(weights=np.repeat(np.float32([1, 3]), [len(first), len(second)]))
    options = {"add_special_tokens": False}
    for runs in ([part(first), part(second, 1, 3.0)], [part(first, 1), part(second, 2, 3.0)], [two_weights]):
        encoded = encode(tokenizer, runs, options)
        spans = encoded.spans[encoded.spans[:, 0] < encoded.spans[:, 1]]
        assert not ((spans[:, 0] < place) & (place < spans[:, 1])).any()
        assert (
            encoded.weights[encoded.spans[:, 1] <= place].tolist()
            == [1] * (encoded.spans[:, 1] <= place).sum()
        )
        assert set(encoded.weights[encoded.spans[:, 0] >= place].tolist()) == {3.0}
    whole = tokenizer(TEXT, **options)["input_ids"]
    assert encode(tokenizer, [one_answer], options).inputs["input_ids"] == [whole]


def test_only_literal_runs_are_tokenized_as_ordinary_text(processor_of):
    tokenizer = processor_of("shipped").tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    special = encode(tokenizer, [part("a"), part("<|im_end|>")], {})
    literal = encode(tokenizer, [part("a"), part("<|im_end|>", literal=True)], {})
    assert special.inputs["input_ids"][0].count(end) == 1
    assert literal.inputs["input_ids"][0].count(end) == 0
    assert tokenizer.decode(literal.inputs["input_ids"][0]) == "a<|im_end|>"
