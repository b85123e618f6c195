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
def test_a_token_is_cut_where_an_answer_begins_or_its_weight_changes(processor_of, model):
    tokenizer = processor_of(model).tokenizer
    options = {"add_special_tokens": False}
    answer = part(TEXT, 1)
    whole = tokenizer(TEXT, **options)["input_ids"]
    assert encode(tokenizer, [answer], options).inputs["input_ids"] == [whole]
    for place in range(1, len(TEXT)):
        first, second = TEXT[:place], TEXT[place:]
        two_weights = answer._replace(weights=np.repeat(np.float32([1, 3]), [len(first), len(second)]))
        begins = [part(first), part(second, 1, 3.0)]
        neighbours = [part(first, 1), part(second, 2, 3.0)]
        for runs in (begins, neighbours, [two_weights]):
            encoded = encode(tokenizer, runs, options)
            starts, stops = encoded.spans.T
            assert not ((starts < place) & (place < stops)).any()
            assert (encoded.weights[stops <= place] == 1).all()
            assert (encoded.weights[starts >= place] == 3).all()


def test_only_literal_runs_are_tokenized_as_ordinary_text(processor_of):
    tokenizer = processor_of("shipped").tokenizer
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    special = encode(tokenizer, [part("a"), part("<|im_end|>")], {})
    literal = encode(tokenizer, [part("a"), part("<|im_end|>", literal=True)], {})
    assert special.inputs["input_ids"][0].count(end) == 1
    assert literal.inputs["input_ids"][0].count(end) == 0
    assert tokenizer.decode(literal.inputs["input_ids"][0]) == "a<|im_end|>"
