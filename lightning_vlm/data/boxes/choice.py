"""Which codec a model gets."""

import itertools
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lightning_vlm.data.boxes.bins import Kosmos2, Locations
from lightning_vlm.data.boxes.codecs import NO_FORMAT, codec_of
from lightning_vlm.data.boxes.segments import SEG, Segments
from lightning_vlm.data.boxes.text_codec import TextCodec
from lightning_vlm.errors import UserError
from lightning_vlm.published import families


class Choice(NamedTuple):
    """A codec, and why.

    Args:
        codec: How boxes are written.
        why: A sentence for people.
    """

    codec: TextCodec
    why: str


def choose_codec(name: str | None, model_type: str, tokenizer: PreTrainedTokenizerBase) -> Choice:
    """The codec that is asked for, or else that of the model's published checkpoints.

    Args:
        name: `data.boxes`; None for the model's own.
        model_type: `config.model_type` of the model.
        tokenizer: Of the model.

    Raises:
        UserError: There is no such codec, or the tokenizer lacks its tokens.
    """
    known = families().get(model_type)
    own = known.codec if known else ""
    codec = codec_of(name or own or NO_FORMAT)
    if isinstance(codec, Kosmos2):
        codec = Kosmos2(_grid(tokenizer) or codec.grid)
    if isinstance(codec, Locations):
        codec = Locations(_locations(tokenizer) or codec.count)
    missing = missing_bins(codec, tokenizer)
    if missing:
        message = (
            f"data.boxes: {codec.name} needs the tokens {missing[0]} to {missing[-1]}, of which the tokenizer"
        )
        fix = "another codec writes boxes without them"
        if isinstance(codec, Locations):
            fix = "set model.new_tokens to [<loc_0..999>]"
        if isinstance(codec, Segments):
            raise UserError(
                f"data.boxes: seg needs the token {SEG}, which the tokenizer lacks; set model.new_tokens to "
                f"[{SEG}], and model.mask_head"
            )
        raise UserError(f"{message} lacks {len(missing):,}; {fix}")
    form = f"{codec.form}, {codec.scale} (data.boxes: {codec.name})"
    if name:
        return Choice(codec, f"boxes are written as {form}")
    if own:
        return Choice(codec, f"boxes are written as {form}, as the published checkpoints of {model_type} do")
    return Choice(codec, f"no format of boxes is known for {model_type}; they are written as {form}")


def missing_bins(codec: TextCodec, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The tokens for numbers that a codec needs and a tokenizer lacks."""
    vocabulary = tokenizer.get_vocab()
    return tuple(token for token in codec.bins if token not in vocabulary)


def _locations(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens `<loc_0>`, `<loc_1>`, ... a tokenizer has; 0 for less than two."""
    vocabulary = tokenizer.get_vocab()
    count = next(number for number in itertools.count() if f"<loc_{number}>" not in vocabulary)
    return count if count > 1 else 0


def _grid(tokenizer: PreTrainedTokenizerBase) -> int:
    """The cells to a side of the grid that a tokenizer has tokens for."""
    count = sum(token.startswith("<patch_index_") for token in tokenizer.get_vocab())
    return round(count**0.5)
