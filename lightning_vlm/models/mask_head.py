"""A head that makes masks: of the hidden state of a token, and those of the tokens of its picture."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.data.batch.masks import SIDE, Masks
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

WEIGHTS = "mask_head.safetensors"
"""The file of a head beside its model."""


@dataclass(frozen=True)
class MaskOptions:
    """The mask head of a model, and its loss.

    Args:
        channels: The width in which the token of a mask is compared with those of its picture.
        cells: Each token of a picture says of so many cells by so many cells whether they are in the mask.
        bce: The weight of the binary cross-entropy of pixels, as in LISA (https://arxiv.org/abs/2308.00692).
        dice: The weight of the dice loss, as there.
        consistency: The weight of how far the mask's shadows on both axes are from those of its box, as in
            BoxInst (https://arxiv.org/abs/2012.02310). It is all that a box says, where no region is known.

    Raises:
        UserError: A number out of its range, or no loss at all.

    >>> MaskOptions(dice=-1)
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: mask_head.dice: found -1; expected a finite number >= 0
    """

    channels: int = 64
    cells: int = 4
    bce: float = 2.0
    dice: float = 0.5
    consistency: float = 0.1

    def __post_init__(self) -> None:
        for name in ("channels", "cells"):
            found = getattr(self, name)
            if not isinstance(found, int) or isinstance(found, bool) or found < 1:
                raise UserError(f"mask_head.{name}: found {found!r}; expected a whole number >= 1")
        if self.cells > SIDE:
            raise UserError(f"mask_head.cells: found {self.cells}; expected at most {SIDE}")
        weights = {name: getattr(self, name) for name in ("bce", "dice", "consistency")}
        for name, found in weights.items():
            is_number = isinstance(found, int | float) and not isinstance(found, bool)
            if not is_number or not math.isfinite(found) or found < 0:
                raise UserError(f"mask_head.{name}: found {found!r}; expected a finite number >= 0")
        if not any(weights.values()):
            raise UserError("mask_head: found no loss; expected one of bce, dice, consistency above 0")

    @classmethod
    def read(cls, given: "MaskOptions | Mapping[str, object] | bool | None") -> "MaskOptions | None":
        """From what a config or a checkpoint says: an object, its keys, true, or nothing.

        Raises:
            UserError: A key that there isn't.

        >>> MaskOptions.read({"channels": 32}).channels, MaskOptions.read(True).channels
        (32, 64)
        """
        if given is None or given is False:
            return None
        if given is True:
            return cls()
        if isinstance(given, MaskOptions):
            return given
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise UserError(f"mask_head: there is no {name}{did_you_mean(str(name), names)}")
        return cls(**given)  # type: ignore[arg-type]


class MaskHead(nn.Module):
    """Makes a mask of the hidden state of its token `<seg>`.

    Two layers make a query of it. A linear map makes of each token of the picture one vector for each of its
    cells. Their products are the mask, which is stretched to `SIDE` pixels.

    Args:
        hidden: The width of the hidden states, as the model's head gets them.
        channels: As of `MaskOptions`.
        cells: Likewise.
    """

    def __init__(self, hidden: int, channels: int, cells: int) -> None:
        super().__init__()
        self.cells = cells
        self.query = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.pixels = nn.Linear(hidden, channels * cells * cells)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, masks: Masks) -> Tensor:
        """The logits of masks.

        Args:
            hidden: Tensor of shape [rows, length, hidden].
            masks: Where their tokens and those of their pictures are.

        Returns:
            Tensor of shape [masks, side, side], float32 (float64 of float64).
        """
        flat = hidden.flatten(0, 1)
        dtype = self.pixels.weight.dtype
        queries = self.query(flat.index_select(0, masks.positions).to(dtype))
        keys = self.pixels(flat.index_select(0, masks.tokens).to(dtype))
        keys = keys.view(len(masks.tokens), self.cells**2, -1)
        wide = torch.promote_types(keys.dtype, torch.float32)
        products = (keys.to(wide) * queries.to(wide).index_select(0, masks.of)[:, None]).sum(-1)
        logits = products / math.sqrt(keys.shape[-1]) + self.bias.to(wide)
        return _stretched(logits.flatten(), masks, self.cells)


def make_mask_head(model: PreTrainedModel, options: MaskOptions) -> MaskHead:
    """A head for the hidden states of a model, on its device, in float32.

    Args:
        model: As loaded.
        options: Of the head.
    """
    head: Any = model.get_output_embeddings()
    width = getattr(head, "in_features", None) or head.weight.shape[1]
    return MaskHead(int(width), options.channels, options.cells).to(model.device)


def save_mask_head(head: MaskHead, folder: Path) -> None:
    """Write a head into a folder; `load_mask_head` reads it."""
    weights = {name: weight.detach().contiguous().cpu() for name, weight in head.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt", "cells": str(head.cells)})


def load_mask_head(folder: str | Path) -> MaskHead:
    """The head of an exported folder, on the CPU.

    Args:
        folder: It has a file `WEIGHTS`.
    """
    with safe_open(Path(folder) / WEIGHTS, "pt") as file:
        cells = int(file.metadata()["cells"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    width = weights["query.0.weight"].shape[1]
    head = MaskHead(width, len(weights["query.2.weight"]), cells)
    head.load_state_dict(weights)
    return head.eval()


def _stretched(logits: Tensor, masks: Masks, cells: int) -> Tensor:
    """The cells of tokens as pixels, between whose middles values are interpolated linearly.

    As `interpolate(mode="bilinear")` does it, for grids of different sizes at once.

    Args:
        logits: Tensor of shape [tokens * cells * cells].
        masks: Whose tokens they are.
        cells: To a side of a token.
    """
    rows, columns = masks.grids.unbind(1)
    top, bottom, down = _between(rows * cells, logits)
    left, right, across = _between(columns * cells, logits)

    def at(y: Tensor, x: Tensor) -> Tensor:
        token = (
            masks.starts[:, None, None] + (y // cells * columns[:, None])[:, :, None] + (x // cells)[:, None]
        )
        cell = (y % cells * cells)[:, :, None] + (x % cells)[:, None]
        return logits[token * cells**2 + cell]

    across, down = across[:, None], down[:, :, None]
    upper = at(top, left) * (1 - across) + at(top, right) * across
    lower = at(bottom, left) * (1 - across) + at(bottom, right) * across
    return upper * (1 - down) + lower * down


def _between(sizes: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which two cells of an axis each pixel lies between, and how far it is from the first one."""
    middles = torch.arange(SIDE, device=like.device, dtype=like.dtype) + 0.5
    last = sizes[:, None] - 1
    places = (middles * sizes[:, None].to(like.dtype) / SIDE - 0.5).clamp(min=0)
    first = places.long().minimum(last)
    return first, (first + 1).minimum(last), places - first
