"""Whether samples, with the tokens of their pictures, fit into `data.max_length` and the model's context."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from lightning.pytorch.utilities.seed import isolate_rng

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from lightning_vlm.training.start_checks.found import Found

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

SAMPLES = 8
SECONDS = 0.4
"""No more samples are rendered after so long."""


class SampleSize(NamedTuple):
    """The tokens of a sample."""

    tokens: int
    of_pictures: int


def sizes_of(module: "VLMModule", data: VLMDataModule) -> list[SampleSize]:
    """The sizes of some training samples, spread over all of them, before anything is cut.

    What can't be rendered is left out here; training reports it.
    """
    processor = data.processor or module.processor
    data.pixels.apply(processor)
    whole = Renderer(processor, video=data.video, boxes=data.boxes)
    whole.open_picture = data.pixels.open_picture
    source = data.samples("train")
    end = time.monotonic() + SECONDS
    sizes = []
    with isolate_rng():
        for sample in range(0, len(source), -(-len(source) // SAMPLES)):
            try:
                example = whole.example(source[sample])
            except DataError:
                continue
            kinds = example.kinds
            sizes.append(SampleSize(len(kinds), int((kinds == Kind.IMAGE).sum())))
            if time.monotonic() > end:
                break
    return sizes


def check_context(
    sizes: Sequence[SampleSize], max_length: int | None, context: int | None
) -> Iterator[Found]:
    """Compare samples with the two limits.

    Args:
        sizes: Of some samples.
        max_length: `data.max_length`.
        context: The positions that the model was made for, if it says so.

    >>> [found] = check_context([SampleSize(700, 600)], 512, 4096)
    >>> found.is_fine
    False
    >>> [found] = check_context([SampleSize(700, 300)], None, 4096)
    >>> found.is_fine, found.text
    (True, 'up to 700 of 4,096 tokens, 300 of pictures, in 1 sample')
    """
    if not sizes:
        return
    longest = max(sizes)
    pictures = max(size.of_pictures for size in sizes)
    limit = max_length or context
    if max_length and pictures >= max_length:
        yield Found(
            "context",
            f"pictures take {pictures:,} tokens, data.max_length is {max_length:,}: such samples are "
            "skipped; raise it, or lower data.max_pixels",
            is_fine=False,
        )
    elif context and max_length and max_length > context:
        text = f"data.max_length is {max_length:,}, the model was made for {context:,} tokens; lower it"
        yield Found("context", text, is_fine=False)
    elif context and longest.tokens > context and not max_length:
        yield Found(
            "context",
            f"samples have up to {longest.tokens:,} tokens ({longest.of_pictures:,} of pictures), the model "
            f"was made for {context:,}; set data.max_length, or lower data.max_pixels",
            is_fine=False,
        )
    else:
        of = f" of {limit:,}" if limit else ""
        some = f"{len(sizes)} sample{'s' if len(sizes) > 1 else ''}"
        cut = sum(size.tokens > max_length for size in sizes) if max_length else 0
        shown = f"up to {longest.tokens:,}{of} tokens, {longest.of_pictures:,} of pictures, in {some}"
        if cut:
            shown = f"data.max_length {max_length:,} cuts {cut} of {some}, of up to {longest.tokens:,} tokens"
        yield Found("context", shown, is_fine=2 * cut <= len(sizes))
