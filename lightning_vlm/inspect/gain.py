"""Which words need the picture: the visual information gain of the samples of a preview."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.inspect.preview import Sample
from lightning_vlm.inspect.tokens import Piece
from lightning_vlm.losses.visual_gain import visual_gain
from lightning_vlm.models.loading.checkpoint import check_file, load_file
from lightning_vlm.module import VLMModule

LEAST = 0.1
"""Of a piece that is said to need the picture, in nats."""
WORDS = 6
"""How many pieces of a sample are named."""
LEVELS = (LEAST, 0.5, 1.0, 2.0)
"""From how many nats on a piece has which colour on the page."""


def load(module: VLMModule, checkpoint: str | None) -> None:
    """Load the model of a module, and the weights of a checkpoint into it.

    Raises:
        UserError: The checkpoint isn't there, or doesn't fit.
    """
    module.configure_model()
    if checkpoint is not None:
        check_file(Path(checkpoint))
        saved = load_file(Path(checkpoint))
        module.on_load_checkpoint(saved)
        module.load_state_dict(saved["state_dict"])
    module.eval()


@torch.no_grad()
def token_gains(module: VLMModule, example: Example) -> Tensor:
    """The visual information gain of each token of a sample: Tensor of shape [length], float32.

    NaN where a token isn't learned or the sample has no picture.
    """
    batch = collate([Item(example, None, None)], 0, [], [])
    targets = module.targets(batch)
    gains = torch.full((len(example.input_ids),), math.nan)
    found = visual_gain(module.model, batch, targets)
    gains[targets.positions + 1] = torch.where(found.seen, found.nats, math.nan)
    return gains


def with_gains(
    module: VLMModule,
    renderer: Renderer,
    samples: Iterable[tuple[Conversation, Mapping[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Rows of answers with their `visual_gain`, by which `worth_labelling` ranks: what a model has answered
    without looking. It takes two forward passes for each.

    Args:
        module: With its model loaded, as by `load`.
        renderer: Of a `VLMDataModule` of the same model.
        samples: Each conversation and the row of its answer. A last turn of the assistant isn't looked at.

    Returns:
        The rows, with the mean gain over the tokens of the answer; None where that is empty, or nothing can
        be seen.
    """
    for conversation, row in samples:
        turns = conversation.messages
        asked = turns[:-1] if turns[-1].role == "assistant" else turns
        earlier = tuple(replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in asked)
        answer = Message("assistant", (Text(row["answer"]),))
        mean = math.nan
        if row["answer"]:
            mean = float(
                token_gains(
                    module, renderer.example(conversation.with_messages((*earlier, answer)))
                ).nanmean()
            )
        yield {**row, "visual_gain": mean if math.isfinite(mean) else None}


def level(piece: Piece) -> int:
    """How much a piece needs the picture, 0 to 4, as the page colours it."""
    return 0 if piece.gain is None else sum(piece.gain >= least for least in LEVELS)


def describe(pieces: Sequence[Piece]) -> str | None:
    """The gain of a sample in a line; None where none was found."""
    known = [piece for piece in pieces if piece.gain is not None]
    if not known:
        return None
    total = sum(piece.gain or 0.0 for piece in known)
    tokens = sum(len(piece.ids) for piece in known)
    mean = f"picture gain {total / tokens:+.2f} nats a token"
    needy = sorted(known, key=lambda piece: -(piece.gain or 0.0))[:WORDS]
    words = [f"{piece.text.strip()!r} {piece.gain:+.1f}" for piece in needy if (piece.gain or 0.0) >= LEAST]
    return f"{mean}; most: {', '.join(words)}" if words else f"{mean}; no word needs the picture"


def describe_all(samples: Sequence[Sample]) -> str:
    """What the pictures do for all samples that are shown, in a sentence."""
    pieces = [piece for sample in samples for piece in sample.pieces if piece.gain is not None]
    if not pieces:
        return "no sample that is shown has both a picture and an answer, so that none has a picture gain"
    tokens = sum(len(piece.ids) for piece in pieces)
    total = sum(piece.gain or 0.0 for piece in pieces)
    needy = sum(len(piece.ids) for piece in pieces if (piece.gain or 0.0) >= LEAST)
    return (
        f"the pictures lower the loss by {total / tokens:.2f} nats a token in the samples that are shown; "
        f"{needy / tokens:.0%} of the tokens need them ({LEAST} nats or more)"
    )
