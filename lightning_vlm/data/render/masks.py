"""The masks that the answers of a sample should have."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.batch.masks import SIDE, Masks, PictureGrid
from lightning_vlm.data.boxes.areas import filled
from lightning_vlm.data.boxes.codec import BoxCodec
from lightning_vlm.data.boxes.segments import SEG, Segments
from lightning_vlm.data.parts import Box, Located
from lightning_vlm.data.render.located import WrittenTurns
from lightning_vlm.data.render.picture_grids import picture_grids, refuse_without_grid
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind


class MaskFinder:
    """Finds the tokens of masks in samples, and what the masks should be.

    Args:
        processor: Of the model.
        codec: How boxes and regions are written. Only `seg` has masks.

    Raises:
        UserError: It has masks, but the tokens of this model's pictures are no grid.
    """

    def __init__(self, processor: ProcessorMixin, codec: BoxCodec) -> None:
        self._processor = processor
        self.is_used = isinstance(codec, Segments)
        """Whether samples have masks."""
        if self.is_used:
            refuse_without_grid(processor)
            self._seg = processor.tokenizer.convert_tokens_to_ids(SEG)

    def found(
        self,
        written: WrittenTurns,
        input_ids: Tensor,
        kinds: Tensor,
        inputs: Mapping[str, Tensor],
        pictures: int,
    ) -> dict[str, Any]:
        """What an `Example` has of masks, by name.

        Args:
            written: The turns of a sample.
            input_ids: Tensor of shape [length], int64.
            kinds: Tensor of shape [length], int8, a `Kind` for each token.
            inputs: What else the processor gives for it.
            pictures: How many it has.
        """
        if not self.is_used:
            return {}
        grids = picture_grids(self._processor, input_ids, inputs, pictures)
        return {"grids": grids, "masks": self._masks(written, input_ids, kinds, grids)}

    def _masks(
        self, written: WrittenTurns, input_ids: Tensor, kinds: Tensor, grids: tuple[PictureGrid, ...]
    ) -> Masks | None:
        """The masks of a sample; None where no answer has any."""
        items = [item for item, turn in zip(written.items, written.answers, strict=True) if turn is not None]
        (positions,) = ((input_ids == self._seg) & (kinds == Kind.BOX)).nonzero(as_tuple=True)
        if len(positions) != len(items):
            raise UserError(f"data.boxes: found {len(positions)} tokens {SEG} of {len(items)} masks")
        if not items:
            return None
        pictures = [item.image or 0 for item in items]
        targets = np.stack([_target(item, written) for item in items])
        return Masks.on(
            positions,
            [grids[picture] for picture in pictures],
            torch.from_numpy(targets.astype(np.uint8)),
            torch.tensor([isinstance(item, Box) for item in items], dtype=torch.uint8),
        )


def _target(item: Located, written: WrittenTurns) -> np.ndarray:
    """Where a mask should be in what the model sees; what lies beyond that is cut off."""
    numbers = item.numbers
    if isinstance(item, Box):
        x1, y1, x2, y2 = item.xyxy
        numbers = (x1, y1, x2, y1, x2, y2, x1, y2)
    return filled(written.views[item.image or 0].to_seen(numbers), (SIDE, SIDE))
