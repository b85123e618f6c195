"""Coordinates made by hand: boxes written in digits or bins, as tokens of a small vocabulary."""

import torch

from lightning_vlm.data.batch.coordinates import Coordinates, NumberToken
from lightning_vlm.data.batch.number_targets import find_number_targets
from lightning_vlm.data.boxes.number_tokens import NumberTokens
from lightning_vlm.losses.coordinates import Candidates

DIGITS = {1: NumberTokens(torch.arange(10, 20), torch.arange(10.0))}
"""The digits 0 to 9 are tokens 10 to 19."""
THREES = {
    **DIGITS,
    2: NumberTokens(torch.arange(20, 120), torch.arange(100.0)),
    3: NumberTokens(torch.arange(120, 1120), torch.arange(1000.0)),
}
"""Tokens of up to three digits."""
BINS = {0: NumberTokens(torch.arange(1000, 2024), torch.arange(1024.0))}
"""The bins 0 to 1023 are tokens 1000 to 2023."""


def written(boxes, tokens, whole=1000, size=1, between=2):
    """Boxes as tokens, and where their numbers are.

    Args:
        boxes: Each as fractions of the picture.
        tokens: What numbers are made of.
        whole: What the right edge is; the number of bins if they are that.
        size: The digits of a token, as far as the number has so many.
        between: The token between numbers; two of them begin the text.
    """
    ids, numbers = [between, between], []
    for item, box in enumerate(boxes):
        for axis, value in enumerate(box):
            if 0 in tokens:
                number = min(int(value * whole), whole - 1)
                numbers.append(NumberToken(len(ids), item, axis, 1 / whole, 0))
                ids.append(int(tokens[0].ids[number]))
            else:
                text = str(round(value * whole))
                for start in range(0, len(text), size):
                    piece = text[start : start + size]
                    worth = 10 ** (len(text) - start - len(piece)) / whole
                    numbers.append(NumberToken(len(ids), item, axis, worth, len(piece)))
                    ids.append(int(tokens[len(piece)].ids[int(piece)]))
            ids.append(between)
    return torch.tensor(ids), Coordinates.of(numbers, boxes)


def targets_of(boxes, tokens, **options):
    """The number targets where every token of the text is learned, and the candidates."""
    ids, coordinates = written(boxes, tokens, **options)
    numbers = find_number_targets(coordinates, ids, torch.arange(len(ids) - 1), tokens)
    return numbers, Candidates.of(tokens, numbers.kinds)
