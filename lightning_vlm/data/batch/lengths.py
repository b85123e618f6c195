"""How long each sample is, found without decoding a picture."""

import copy
import math
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch.distributed
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.counted import counted
from lightning_vlm.data.batch.blank_pictures import (
    BlankPicture,
    RememberingImageProcessor,
    blank_instead_of,
    blank_picture,
)
from lightning_vlm.data.batch.blank_videos import RememberingVideoProcessor, length_needs_pixels
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError

CHUNK = 64
"""How many neighbouring samples a worker measures at a time."""
WORTH_A_WORD = 5_000
"""From so many samples a process on, a line says beforehand that they are measured."""
_SIZES_TO_TRY = [[(640, 480)], [(97, 301), (224, 224)]]
"""Of pictures on which two ways of measuring are compared."""
_USUAL_PATCH = 14
"""Pixels along a patch's side, where nothing says how many."""


class SampleLength(NamedTuple):
    """What a sample takes up in a batch.

    Args:
        tokens: In the language model, those of pictures included.
        patches: In the vision tower; where a tower sees whole pictures or tiles, as many as they divide into.
    """

    tokens: int
    patches: int


@dataclass(frozen=True)
class Lengths:
    """The lengths of all samples of a source.

    Args:
        tokens: Array of shape [samples], int32; 0 for a sample that can't be used, because it is bad or too
            long. Training reports it when it comes to it.
        patches: Array of shape [samples], int32.
    """

    tokens: np.ndarray
    patches: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> SampleLength:
        return SampleLength(int(self.tokens[index]), int(self.patches[index]))

    @property
    def unusable(self) -> int:
        """How many samples can't be used."""
        return int((self.tokens == 0).sum())

    @property
    def checksum(self) -> str:
        """Differs where lengths differ.

        >>> Lengths(np.array([3, 4], np.int32), np.array([0, 9], np.int32)).checksum
        'bb7d8b52'
        """
        return f"{zlib.crc32(self.tokens.tobytes() + self.patches.tobytes()):08x}"


class Ruler:
    """Measures conversations as a `Renderer` renders them, with blank pictures of the right sizes.

    Args:
        renderer: Its `max_length` cuts here as well.
        model: Is asked how large a patch is, if the processor doesn't know.
    """

    def __init__(self, renderer: Renderer, model: PreTrainedModel | None = None) -> None:
        self._patch = patch_of(renderer.processor, model)
        self._renderer = _with_blanks(renderer, on_meta=True)
        if not _agree(self._renderer, _with_blanks(renderer, on_meta=False)):
            self._renderer = _with_blanks(renderer, on_meta=False)
        if renderer.videos.are_taken:
            self._renderer = _with_blank_videos(self._renderer, renderer)

    def length(self, conversation: Conversation) -> SampleLength:
        """The length of a sample to learn from.

        Raises:
            DataError: As `Renderer.example`, but for what is wrong with pixels.
        """
        example = self.example(conversation)
        return SampleLength(len(example.input_ids), patches_of(example.inputs, self._patch))

    def example(self, conversation: Conversation) -> Example:
        """A sample to learn from as it is rendered, but with blank pictures.

        Raises:
            DataError: As `length`.
        """
        return self._renderer.example(conversation)

    def lengths(self, source: Conversations, samples: Iterable[int]) -> np.ndarray:
        """The lengths of some samples of a source, an array of shape [samples, 2]; 0 for one that can't be
        used."""
        return np.array([self._length_or_none(source, sample) for sample in samples], np.int32)

    def _length_or_none(self, source: Conversations, sample: int) -> SampleLength:
        try:
            return self.length(source[sample])
        except DataError:  # training comes to it, and says what is wrong
            return SampleLength(0, 0)


def patches_of(inputs: dict[str, Tensor], patch: int) -> int:
    """How many patches the pictures of some samples have.

    Args:
        inputs: What a model's forward takes.
        patch: Pixels along a patch's side, for pictures and tiles that aren't cut yet.

    >>> patches_of({"pixel_values": torch.zeros(2, 3, 28, 42)}, patch=14)
    12
    >>> patches_of({"pixel_values": torch.zeros(64, 1176)}, patch=14)
    64
    """
    count = 0
    for name, value in inputs.items():
        if not name.startswith("pixel_values"):
            continue
        *first, height, width = value.shape
        is_cut = len(first) < 2 or first[-1] not in (1, 3)
        if is_cut:
            count += math.prod(first) * height
        else:
            count += math.prod(first[:-1]) * (height // patch) * (width // patch)
    return count


def patch_of(processor: ProcessorMixin, model: PreTrainedModel | None = None) -> int:
    """Pixels along a patch's side: as a processor, its image processor or a model say, or else 14."""
    vision = getattr(getattr(model, "config", None), "vision_config", None)
    for part in (processor, getattr(processor, "image_processor", None), vision):
        size: Any = getattr(part, "patch_size", None)
        if isinstance(size, dict):
            size = size.get("height")
        size = getattr(size, "height", size)
        if isinstance(size, int) and size > 0:
            return size
    return _USUAL_PATCH


def measure(
    source: Conversations,
    renderer: Renderer,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    model: PreTrainedModel | None = None,
) -> Lengths:
    """The lengths of all samples of a source. Every rank must call it; each measures its share.

    Args:
        source: The samples.
        renderer: What renders them.
        workers: Processes that measure at once; with 0 this one does.
        rank: This process.
        world: Number of processes.
        model: As of `Ruler`.
    """
    start = time.monotonic()
    size = len(source)
    if size // world >= WORTH_A_WORD:
        rank_zero_info(f"Measuring the lengths of {counted(size, 'sample')}, without opening pictures ...")
    found: _Found = {}
    problem: Exception | None = None
    try:
        chunks = range(rank, -(-size // CHUNK), world)
        dataset = _Chunks(source, Ruler(renderer, model))
        loader = DataLoader(
            dataset, batch_size=None, sampler=chunks, num_workers=workers, collate_fn=_as_it_is
        )
        found = dict(zip(chunks, loader, strict=True))
    except Exception as error:  # the other ranks wait below
        problem = error
    lengths = np.zeros((size, 2), np.int32)
    for share in _of_all_ranks(found, problem, world):
        for chunk, values in share.items():
            lengths[chunk * CHUNK :][:CHUNK] = values
    measured = Lengths(np.ascontiguousarray(lengths[:, 0]), np.ascontiguousarray(lengths[:, 1]))
    rank_zero_info(_said(measured, time.monotonic() - start))
    return measured


_Found = dict[int, np.ndarray]
"""The lengths of the samples of each chunk."""


class _Chunks(Dataset):
    """Stretches of a source as their lengths, measured in the process of a worker."""

    def __init__(self, source: Conversations, ruler: Ruler) -> None:
        self._source = source
        self._ruler = ruler

    def __getitem__(self, chunk: int) -> np.ndarray:
        return self._ruler.lengths(self._source, range(len(self._source))[chunk * CHUNK :][:CHUNK])


def _as_it_is(value: Any) -> Any:
    return value


def _of_all_ranks(found: _Found, problem: Exception | None, world: int) -> Sequence[_Found]:
    """What all ranks found. Where one of them failed, all fail."""
    shares: list[Any] = [(found, problem and repr(problem))] * world
    if world > 1:
        torch.distributed.all_gather_object(shares, shares[0])
    if problem is not None:
        raise problem
    for _, said in shares:
        if said:
            raise RuntimeError(f"another process could not measure lengths: {said}")
    return [share for share, _ in shares]


def _said(lengths: Lengths, seconds: float) -> str:
    usable = lengths.tokens[lengths.tokens > 0]
    said = f"Measured {counted(len(lengths), 'sample')} in {seconds:.1f} s"
    if len(usable):
        said += f": {usable.min():,} to {usable.max():,} tokens, {usable.mean():,.0f} on average"
    if lengths.unusable:
        said += f"; {lengths.unusable:,} can't be used, as training will report"
    return said


def _with_blanks(renderer: Renderer, on_meta: bool) -> Renderer:
    """A renderer like another that doesn't see what is on pictures."""
    blind = copy.copy(renderer)
    blind.processor = copy.copy(renderer.processor)
    images = getattr(renderer.processor, "image_processor", None)
    if images is not None:
        blind.processor.image_processor = RememberingImageProcessor(images, on_meta)
    if renderer.open_picture is load_image:
        blind.open_picture = blank_picture
    else:
        blind.open_picture = partial(blank_instead_of, renderer.open_picture)
    return blind


def _with_blank_videos(blind: Renderer, renderer: Renderer) -> Renderer:
    """A renderer that doesn't see what is in videos either, unless lengths depend on it."""
    videos = RememberingVideoProcessor(renderer.processor.video_processor)
    without = blind.opening(renderer.videos.open_blank)
    without.processor = copy.copy(blind.processor)
    without.processor.video_processor = videos
    if length_needs_pixels(without, renderer):
        return blind
    return without


def _agree(one: Renderer, other: Renderer) -> bool:
    """Whether two renderers find the same in two samples: with a picture, and with two."""
    return all(_tried(one, sizes) == _tried(other, sizes) for sizes in _SIZES_TO_TRY)


def _tried(renderer: Renderer, sizes: Sequence[tuple[int, int]]) -> Any:
    """The shapes of all inputs of a sample with pictures, or what its rendering raises."""
    unlimited = copy.copy(renderer)
    unlimited.max_length = None
    unlimited.open_picture = lambda image, source, key: BlankPicture(sizes[int(image.url or 0)])
    pictures = [Image(url=str(number)) for number in range(len(sizes))]
    turns = (Message("user", (*pictures, Text("What is it?"))), Message("assistant", (Text("A cat."),)))
    try:
        example = unlimited.example(Conversation(turns))
    except DataError as error:
        return error.found
    shapes = {name: value.shape for name, value in example.inputs.items()}
    return example.input_ids.tolist(), shapes
