"""Samples that are packed, and what packed and alone give, for tests of both."""

import io

import numpy as np
import PIL.Image
import torch

from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.models.picture_inputs import PictureInputsFinder
from lightning_vlm.models.positions import token_positions
from tests.support.pictures import with_its_pictures
from tests.support.tiny import FAMILIES

NEVER = (
    "gemma3",
    "paligemma",
    "mllama",
    "qwen3_5",
    "qwen3_5_moe",
    "minicpmv4_6",
    "lfm2_vl",
    "lfm3_vl",
    "kosmos-2",
    "molmo2",
    "blip-2",
    "instructblip",
    "gemma4",
    "gemma4_31b",
    "hunyuan_vl",
    "llama4",
)
"""Families that can't be packed; `tests/models/test_packing.py` has the reasons."""
WITHOUT_SDPA = ("got_ocr2",)
"""Families whose classes in transformers have no `sdpa`."""
PACKED = tuple(family for family in FAMILIES if family not in NEVER)


def picture(width, height, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return Image(data=file.getvalue())


def talk(question, answer, *pictures, then=(), task="other", weight=1.0):
    turns = [Message("user", (*pictures, Text(question))), Message("assistant", (Text(answer),))]
    for more, reply, turn_weight in then:
        turns += [Message("user", (Text(more),)), Message("assistant", (Text(reply),), weight=turn_weight)]
    return Conversation(tuple(turns), task=task, weight=weight, source=question)


SAMPLES = [
    talk("What is this?", "It is grey.", picture(64, 64, 0), task="vqa"),
    talk("Hello", "Hello, and a long text of words.", task="chat", weight=0.5),
    talk(
        "Which is wide?",
        "The second of them.",
        picture(32, 32, 1),
        picture(96, 48, 2),
        then=[("Sure?", "Not at all.", 0.0), ("And now?", "Yes, I am.", 3.0)],
        weight=2.0,
    ),
    talk("Who?", "I.", task="chat"),
    talk("Describe it, please.", "A picture of nothing but noise.", picture(48, 96, 3), task="vqa"),
]


class OfList(Conversations):
    """Some conversations."""

    def __init__(self, items):
        self.items = list(items)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def with_masks(family):
    """The attention of a family that keeps samples apart by masks."""
    return "eager" if family in WITHOUT_SDPA else "sdpa"


def batch_of(one, samples, pack, dtype=torch.float64):
    """Samples in one batch; those without a picture get one where the family needs it."""
    family = one.model.config.model_type
    samples = [with_its_pictures(family, sample, picture(32, 32, 9)) for sample in samples]
    renderer = Renderer(one.processor)
    positions = token_positions(one.model)
    pictures = PictureInputsFinder(one.model)
    data = RenderedBatches(
        OfList(samples),
        renderer,
        learn=True,
        prompts=False,
        pack=pack,
        positions=positions,
        pictures=pictures,
    )
    batch = data[list(range(len(samples)))]
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.inputs.items()
    }
    return batch._replace(inputs=inputs, targets=one.targets(batch))


def step(one, batch):
    """The loss of a training step and the gradients that aren't 0, by name."""
    one.zero_grad()
    loss = one.training_step(batch, 0)
    loss.backward()
    return loss.detach(), gradients_of(one)


def gradients_of(one):
    found = {name: weight.grad for name, weight in one.named_parameters() if weight.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def alone(one, samples, dtype=torch.float64):
    """The same with each sample in a batch of its own: losses and gradients are summed."""
    return summed([step(one, batch_of(one, [sample], pack=False, dtype=dtype)) for sample in samples])


def summed(steps):
    """Losses and gradients of several steps in one."""
    total, gradients = 0, {}
    for loss, parts in steps:
        total = total + loss
        for name, gradient in parts.items():
            gradients[name] = gradients.get(name, 0) + gradient
    return total, gradients


IN_FLOAT32 = ("visual.embeddings.position_embedding.weight",)
"""Weights whose gradients transformers sums up over all patches in float32, in float64 models too: GLM's."""


def distance(found, expected):
    """How far losses and gradients are from what is expected, as a share of the largest of each.

    Of those that are summed up in float32 a thousandth counts.
    """
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    assert gradients.keys() == expected_gradients.keys()
    far = [((loss - expected_loss) / expected_loss).abs()]
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        # Not smaller than what rounding leaves of zeros, such as the gradients of the keys' biases.
        scale = expected_gradients[name].abs().max().clamp(min=1e-3 * largest)
        share = 1e-3 if name.endswith(IN_FLOAT32) else 1
        far.append(share * (gradient - expected_gradients[name]).abs().max() / scale)
    return max(far).item()
