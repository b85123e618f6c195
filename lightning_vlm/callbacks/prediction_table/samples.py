"""Which samples are shown, and what stays the same of each."""

import dataclasses
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL.Image
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader

from lightning_vlm.callbacks.prediction_table.marks import Mark, marks_in
from lightning_vlm.data.batch.sampler import ResumableBatchSampler
from lightning_vlm.data.conversation import Conversation, Conversations, Video
from lightning_vlm.data.images import load_image
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.data.video.load import load_video
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError

PICTURES = 3
"""How many pictures and videos of a sample are shown."""
FRAMES = 4
"""How many frames of a video are shown, side by side."""
SIDE = 384
"""The longer side of a picture that is shown; larger ones are made smaller."""


class Place(NamedTuple):
    """Where a sample is: which validation loader's, and which item of its source."""

    loader: int
    item: int


class Choice(NamedTuple):
    """The samples to show.

    Args:
        places: They, in the order in which they are shown.
        sources: The source of each loader; None of one that isn't ours.
        notes: What isn't shown, and why.
    """

    places: tuple[Place, ...]
    sources: tuple[Conversations | None, ...]
    notes: tuple[str, ...]


class Row(NamedTuple):
    """What stays the same of a sample.

    Args:
        place: Where it is.
        task: Its task.
        source: Its file and line.
        pictures: Its first pictures, small, and some frames of its first videos; None for one that can't be
            opened.
        more: How many pictures and videos it has beside those.
        right: What the right answer has in its pictures.
        asked: What its question has there.
    """

    place: Place
    task: str
    source: str
    pictures: tuple[PIL.Image.Image | None, ...]
    more: int
    right: list[Mark]
    asked: list[Mark]


def choose(trainer: Trainer, count: int) -> Choice:
    """Choose samples of all that a validation sees: as many of each task as possible, evenly spread.

    It depends on the data alone, so that it is the same at each validation, on all ranks and after a resume.

    Args:
        trainer: That validates.
        count: How many.
    """
    sources: list[Conversations | None] = []
    notes: list[str] = []
    groups: dict[tuple[int, str], array] = {}
    loaders = CombinedLoader(trainer.val_dataloaders, "sequential").flattened
    for number, loader in enumerate(loaders):
        dataset = getattr(loader, "dataset", None)
        if not isinstance(dataset, RenderedBatches):
            sources.append(None)
            notes.append(
                f"the samples of validation loader {number} aren't shown, because they aren't rendered by a "
                "VLMDataModule"
            )
            continue
        source = dataset.source
        sources.append(source)
        names, of = source.task_table()
        seen = _most_seen(loader, trainer.num_val_batches[number])
        for index, task in enumerate(of[:seen]):
            groups.setdefault((number, names[task]), array("q")).append(index)
    largest_first = sorted(groups.items(), key=lambda item: -len(item[1]))
    chosen = spread([len(group) for _, group in largest_first], count)
    left_out = sum(not places for places in chosen)
    if left_out:
        notes.append(f"{left_out} of {len(groups)} tasks have no room; raise samples to see them")
    places = [
        Place(number, group[at])
        for ((number, _), group), ats in zip(largest_first, chosen, strict=True)
        for at in ats
    ]
    return Choice(tuple(places), tuple(sources), tuple(notes))


def spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Choose items of groups, as many of each as possible, evenly spread over each.

    Args:
        sizes: How many items each group has.
        count: How many to choose in all.

    >>> spread([4, 4, 1], 5)
    [[0, 2], [0, 2], [0]]
    """
    numbers = [0] * len(sizes)
    left = min(count, sum(sizes))
    while left:
        for at, size in enumerate(sizes):
            if left and numbers[at] < size:
                numbers[at] += 1
                left -= 1
    return [
        [step * size // number for step in range(number)] for size, number in zip(sizes, numbers, strict=True)
    ]


def _most_seen(loader: Any, batches: int | float) -> int:
    """How many samples the first batches of all ranks have; `limit_val_batches` may leave the rest out."""
    sampler = loader.sampler
    if isinstance(sampler, ResumableBatchSampler) and not sampler.shuffle:
        return sampler.passed(int(batches))
    return len(loader.dataset.source)


def row_of(place: Place, conversation: Conversation) -> Row:
    """Open what is shown of a sample.

    Args:
        place: Where it is.
        conversation: It.
    """
    pictures: list[PIL.Image.Image | None] = []
    sizes: list[tuple[int, int] | None] = []
    for image in conversation.images[:PICTURES]:
        try:
            picture = load_image(image, conversation.source, "image")
        except DataError:  # it has been opened for the model; an address may fail the second time
            pictures.append(None)
            sizes.append(None)
            continue
        sizes.append(picture.size)
        picture.thumbnail((SIDE, SIDE))
        pictures.append(picture)
    for video in conversation.videos[: PICTURES - len(pictures)]:
        try:
            pictures.append(_film_strip(video, conversation.source))
        except DataError:  # likewise
            pictures.append(None)
    right, asked = marks_in(conversation, sizes)
    return Row(
        place=place,
        task=conversation.task,
        source=conversation.source,
        pictures=tuple(pictures),
        more=len(conversation.images) + len(conversation.videos) - len(pictures),
        right=right,
        asked=asked,
    )


def _film_strip(video: Video, source: str) -> PIL.Image.Image:
    """A few frames of a video, evenly spaced over it, side by side in one small picture."""
    every_frame = dataclasses.replace(video, sampling=None)
    clip = load_video(every_frame, source, "video", VideoSampling(num_frames=FRAMES))
    pixels = clip.frames.permute(2, 0, 3, 1).flatten(1, 2)  # rows, then the columns of all frames
    strip = PIL.Image.fromarray(pixels.contiguous().numpy())
    strip.thumbnail((2 * SIDE, SIDE))
    return strip
