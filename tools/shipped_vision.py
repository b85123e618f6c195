"""Teach the tower of the shipped model's base to see, before the whole learns to talk about what it sees.

`python -m tools.shipped_vision DIR` trains the vision tower in `DIR` (made by
`python -m tools.shipped DIR`) to tell shape, colour and box of single drawn things, as
published models begin with a tower that was trained before. Through the language model alone, the tiny tower
learned colours in 2,700 steps of 32 conversations, but shapes not at all (10% right among ten).
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from lightning_vlm.data.drawn.scenes import draw, layout
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Cosine, lr_lambda
from tools.shipped import IMAGE_SIZE

PICTURES, BATCH, LEARNING_RATE = 400_000, 64, 1.5e-3
_SHAPES, _COLOURS = list(SHAPES), list(SHADES)


class Pictures:
    """Drawn pictures of one shape each, all in memory.

    Args:
        count: How many.
        split: Which pictures may come; those of other splits are never among them.
        seed: Another seed, other pictures.
    """

    def __init__(self, count: int, split: str, seed: int = 0) -> None:
        chunks = [(split, seed, start, min(start + 1000, count)) for start in range(0, count, 1000)]
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            parts = list(track(pool.map(_draw, chunks), "drawing", total=len(chunks)))
        pixels, shapes, colours, boxes = (np.concatenate(one) for one in zip(*parts, strict=True))
        self.pixels = torch.from_numpy(pixels)
        """Tensor of shape [count, side, side, 3], uint8."""
        self.shapes, self.colours = torch.from_numpy(shapes), torch.from_numpy(colours)
        """Tensors of shape [count], int64."""
        self.boxes = torch.from_numpy(boxes)
        """Tensor of shape [count, 4], float32: x1, y1, x2, y2 as fractions."""

    def batch(self, rows: Tensor) -> Tensor:
        """Pixels as the image processor gives them: [batch, 3, side, side], -1..1."""
        return self.pixels[rows].permute(0, 3, 1, 2).float() / 127.5 - 1


def _draw(chunk: tuple[str, int, int, int]) -> tuple[np.ndarray, ...]:
    split, seed, start, stop = chunk
    pixels, shapes, colours, boxes = [], [], [], []
    for index in range(start, stop):
        rng = Random(f"see/{seed}/{split}/{index}")
        picture, (seen,) = draw(rng, layout(rng, split, word_chance=0, most=1), IMAGE_SIZE)
        pixels.append(np.asarray(picture))
        shapes.append(_SHAPES.index(seen.thing.shape))
        colours.append(_COLOURS.index(seen.thing.colour))
        boxes.append(seen.box)
    return np.stack(pixels), np.array(shapes), np.array(colours), np.array(boxes, np.float32)


class Seer(nn.Module):
    """A tower with a head that tells shape, colour and box from the mean of the patches.

    Args:
        tower: Gives `last_hidden_state` of shape [batch, patches, width].
        width: Of its output.
    """

    def __init__(self, tower: nn.Module, width: int) -> None:
        super().__init__()
        self.tower, self.norm = tower, nn.LayerNorm(width)
        self.head = nn.Linear(width, len(_SHAPES) + len(_COLOURS) + 4)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Logits of shapes and colours, and boxes."""
        states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        features = self.head(self.norm(states.mean(1)))
        return features.split([len(_SHAPES), len(_COLOURS), 4], dim=1)


def teach(directory: Path, pictures: int = PICTURES) -> dict[str, float]:
    """Train the tower of the model in a folder, and save the model there again.

    Args:
        directory: As `lightning_vlm.models.shipped.create` made it.
        pictures: How many to draw. Each is seen once.
    Returns:
        On 2,000 pictures of the split `test`: shares of right shapes and colours, mean error of box edges.
    """
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(directory)
    seer = Seer(model.model.vision_tower, model.config.vision_config.hidden_size).train()
    data = Pictures(pictures, "train")
    steps = pictures // BATCH
    optimizer = torch.optim.AdamW(seer.parameters(), lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda(Cosine(warmup=0.05), steps))
    for rows in track(torch.randperm(pictures)[: steps * BATCH].split(BATCH), "learning to see"):
        shapes, colours, boxes = seer(data.batch(rows))
        by_shape, by_colour = data.shapes[rows], data.colours[rows]
        loss = 2 * F.cross_entropy(shapes, by_shape) + F.cross_entropy(colours, by_colour)
        loss = loss + 5 * F.l1_loss(boxes, data.boxes[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(seer.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    model.eval().save_pretrained(directory)
    return _scores(seer.eval())


@torch.no_grad()
def _scores(seer: Seer) -> dict[str, float]:
    data = Pictures(2000, "test")
    shapes, colours, boxes = seer(data.batch(torch.arange(2000)))
    return {
        "shape": (shapes.argmax(1) == data.shapes).float().mean().item(),
        "colour": (colours.argmax(1) == data.colours).float().mean().item(),
        "box error": (boxes - data.boxes).abs().mean().item(),
    }


def main(arguments: list[str]) -> None:
    """Teach the tower in the one directory named.

    Raises:
        UserError: Not exactly one argument.
    """
    if len(arguments) != 1:
        raise UserError("usage: python -m tools.shipped_vision DIR")
    for name, value in teach(Path(arguments[0])).items():
        print(f"{name} {value:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
