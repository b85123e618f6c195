"""Lengths found without pixels are those of real renderings, in all families."""

import copy
import io
import pickle

import numpy as np
import PIL.Image
import pytest
import torch

from lightning_vlm.data.batch import lengths as module
from lightning_vlm.data.batch.blank_pictures import BlankPicture, RememberingImageProcessor
from lightning_vlm.data.batch.lengths import Ruler, SampleLength, measure, patch_of, patches_of
from lightning_vlm.data.conversation import (
    Box,
    Conversation,
    Conversations,
    Image,
    Message,
    Point,
    Text,
)
from lightning_vlm.data.render.example import TooLong
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from tests.support.pictures import ONE_PICTURE, with_its_pictures
from tests.support.ranks import call_on_ranks
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
SIZES = [(64, 64), (33, 91), (200, 40), (31, 250), (640, 480), (9, 9), (97, 96)]


def picture(size, kind="PNG", orientation=1):
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    gradient = PIL.Image.linear_gradient("L").resize(size)
    gradient.save(file, kind, exif=exif)
    return Image(data=file.getvalue())


def conversation(*sizes, rounds=1, words=3):
    """Each round asks about one picture, as long as there are some."""
    pictures = [
        picture(size, ("PNG", "JPEG")[place % 2], 6 if place % 3 == 1 else 1)
        for place, size in enumerate(sizes)
    ]
    turns = []
    for number in range(rounds):
        last = number + 1 == rounds
        shown = pictures if last else pictures[:1]
        pictures = pictures[len(shown) :]
        turns.append(Message("user", (*shown, Text(f"What is it? {number}"))))
        turns.append(Message("assistant", (Text(f"It is grey. {'word ' * words}"),)))
    return Conversation(tuple(turns), source=f"{sizes}")


def located(size, *items):
    """What lies in one picture, which is turned upright."""
    turns = Message("user", (picture(size, "JPEG", 6), Text("Where? "))), Message("assistant", items)
    return Conversation(turns, source=f"{items}")


def located_samples():
    """Their pictures are 97, 91 and 40 pixels wide when upright; numbers of a box have one digit to four."""
    return [
        located((96, 97), Box((9.5, 0, 97, 96), "cat", pixels=True), Box((0.007, 0.25, 0.031, 0.7))),
        located((33, 91), Point((0.012, 0.5), "nose"), Text(" and "), Point((91, 33), pixels=True)),
        located((200, 40), Box((10, 2, 40, 199), pixels=True)),
    ]


class Some(Conversations):
    """Samples in memory. An error among them is raised."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        if isinstance(self.samples[index], Exception):
            raise self.samples[index]
        return self.samples[index]


def samples():
    return [
        *(conversation(size) for size in SIZES),
        conversation((64, 64), (200, 40)),
        conversation((33, 91), (64, 64), (97, 96), rounds=2),
        conversation((64, 64), rounds=4, words=20),
        conversation(rounds=3, words=10),
        conversation((64, 64), words=400),
        *located_samples(),
        located((33, 91), Box((0, 0, 33, 91), pixels=True)),
        DataError("a:1", "weight", "-1", "a number"),
        Conversation((Message("user", (Image(data=b"none"), Text("?"))), Message("assistant", (Text("a"),)))),
    ]


def samples_for(family):
    """With one picture each where a family takes no other number."""
    if family not in ONE_PICTURE:
        return samples()
    *good, bad, broken = samples()
    fit = []
    for sample in good:
        shown = sample.images[0] if sample.images else picture((9, 9))
        fit.append(with_its_pictures(family, sample, shown))
    return [*fit, bad, broken]


def rendered(renderer, patch, sample):
    """The length of a real rendering."""
    if isinstance(sample, Exception):
        return SampleLength(0, 0)
    try:
        example = renderer.example(sample)
    except DataError:
        return SampleLength(0, 0)
    return SampleLength(len(example.input_ids), patches_of(example.inputs, patch))


@pytest.fixture
def renderer_for(processor_of):
    def load(family, max_length=None):
        template = "plain" if family in FAMILIES and FAMILIES[family].template is None else None
        return Renderer(processor_of(family, template), max_length)

    return load


LONGER = {"deepseek_vl": 100, "deepseek_ocr2": 300, "got_ocr2": 300}
"""Tokens of a system prompt, or of pictures, beside those that others have."""


@pytest.mark.parametrize("max_length", [None, 150])
@pytest.mark.parametrize("family", [*FAMILIES, "shipped"])
def test_lengths_are_those_of_real_renderings(renderer_for, family, max_length):
    if max_length:
        max_length += LONGER.get(family, 0)
    renderer = renderer_for(family, max_length)
    processor, images = renderer.processor, renderer.processor.image_processor
    source = Some(samples_for(family))
    patch = patch_of(processor)
    expected = [rendered(renderer, patch, sample) for sample in source.samples]
    found = measure(source, renderer)
    assert [found[index] for index in range(len(source))] == expected
    assert found.unusable >= 3
    assert any(length.patches for length in expected)
    if max_length:
        assert max(length.tokens for length in expected) <= max_length
    assert processor.image_processor is images  # the run's own processor stays as it was
    assert processor.tokenizer is renderer.tokenizer


NEEDS_PIXELS = ("video_llava", "idefics2", "molmo2", "llama4")
"""Families whose image processor works on arrays of NumPy, or looks for numbers among those that it made, or
chooses tiles on the device of the pixels, or whose processor turns pictures upright."""


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NEEDS_PIXELS])
def test_no_family_needs_pixels(renderer_for, family, monkeypatch):
    """Image processors on torch work without values, so measuring takes no time for pixels."""
    ruler = Ruler(renderer_for(family))
    monkeypatch.setattr(BlankPicture, "load", lambda self: pytest.fail("pixels were made"))
    for sample in samples_for(family)[: len(SIZES) + 1]:
        ruler.length(sample)


class _Stubborn:
    """An image processor that looks at pixels."""

    def __init__(self, processor):
        self.processor = processor

    def __getattr__(self, name):
        return getattr(self.__dict__["processor"], name)

    def __call__(self, images, **options):
        options.pop("input_data_format", None)
        [[image]] = images
        assert float(np.asarray(image).sum()) == 0.0
        return self.processor(images, **options)


class _Confused(_Stubborn):
    """An image processor that makes something else of tensors than of pictures."""

    def __call__(self, images, **options):
        if isinstance(images[0][0], torch.Tensor):
            images = [[torch.empty(3, 28, 28, dtype=torch.uint8) for _ in images[0]]]
        return self.processor(images, **options)


@pytest.mark.parametrize("kind", [_Stubborn, _Confused])
def test_an_image_processor_that_needs_pixels_gets_black_ones(renderer_for, kind):
    renderer = renderer_for("qwen2_5_vl")
    expected = [rendered(renderer, 14, sample) for sample in samples()[: len(SIZES)]]
    renderer.processor = copy.copy(renderer.processor)
    renderer.processor.image_processor = kind(renderer.processor.image_processor)
    ruler = Ruler(renderer)
    assert [ruler.length(sample) for sample in samples()[: len(SIZES)]] == expected


def test_an_image_processor_is_asked_once_about_each_size(renderer_for, monkeypatch):
    images = renderer_for("qwen2_5_vl").processor.image_processor
    asked = []

    def counted(pictures, **options):
        asked.append(pictures)
        return images(pictures, **options)

    monkeypatch.setattr("lightning_vlm.data.batch.blank_pictures.MOST_REMEMBERED", 2)
    remembering = RememberingImageProcessor(counted)
    for width in (64, 80, 64, 80, 96, 64):
        answer = remembering([[BlankPicture((width, 64))]], return_tensors="pt")
        pixels = answer.pop("pixel_values")
        assert pixels.untyped_storage().nbytes() == 4  # all zeros share their memory
        assert len(pixels) == answer["image_grid_thw"].prod()
    assert len(asked) == 4  # 64 had been forgotten for 96
    assert images.merge_size == RememberingImageProcessor(images).merge_size


def test_workers_measure_the_same_and_say_how_long_it_took(renderer_for, caplog, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(module, "WORTH_A_WORD", 10)
    renderer = renderer_for("qwen2_5_vl", 150)
    source = Some(samples())
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        alone = measure(source, renderer)
        together = measure(source, renderer, workers=2)
    assert np.array_equal(alone.tokens, together.tokens)
    assert np.array_equal(alone.patches, together.patches)
    assert alone.checksum == together.checksum
    lines = [record.getMessage() for record in caplog.records if "easur" in record.getMessage()]
    ahead, said = lines[:2]
    assert ahead == f"Measuring the lengths of {len(source)} samples, without opening pictures ..."
    assert said.startswith(f"Measured {len(source)} samples in ")
    usable = alone.tokens[alone.tokens > 0]
    average = f"{usable.mean():,.0f} on average"
    assert said.endswith(f"tokens, {average}; 4 can't be used, as training will report")


def test_urls_are_fetched_once_and_read_from_the_cache(renderer_for, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched = []

    def download(url, largest, private):
        fetched.append(url)
        return picture((64, 64)).data

    monkeypatch.setattr("lightning_vlm.data.fetching._download", download)
    asked = (Message("user", (Image(url="http://a/b.png"),)), Message("assistant", (Text("A cat."),)))
    renderer = renderer_for("qwen2_5_vl")
    found = measure(Some([Conversation(asked)] * 3), renderer)
    assert fetched == ["http://a/b.png"]
    assert found[0] == rendered(renderer, 14, Conversation(asked))
    assert len(fetched) == 1


def test_a_ruler_and_its_lengths_can_be_pickled(renderer_for):
    ruler = pickle.loads(pickle.dumps(Ruler(renderer_for("qwen2_5_vl"))))
    assert ruler.length(samples()[0]).patches == 16


def test_each_rank_measures_its_share_and_knows_all(renderer_for, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    renderer = renderer_for("qwen2_5_vl", 150)

    def on_a_rank():
        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        found = measure(Some(samples()), renderer, rank=rank, world=2)
        try:
            measure(Some([*samples(), ZeroDivisionError("a bug")]), renderer, rank=rank, world=2)
        except (ZeroDivisionError, RuntimeError) as error:
            return found.checksum, f"{type(error).__name__}: {error}"

    (first, said), (second, also_said) = call_on_ranks(on_a_rank)
    assert first == second == measure(Some(samples()), renderer).checksum
    assert sorted([said, also_said]) == [
        "RuntimeError: another process could not measure lengths: ZeroDivisionError('a bug')",
        "ZeroDivisionError: a bug",
    ]


def test_too_long_samples_are_those_that_training_skips(renderer_for):
    renderer = renderer_for("qwen2_5_vl", 150)
    with pytest.raises(TooLong):
        Ruler(renderer).length(conversation((64, 64), words=400))
