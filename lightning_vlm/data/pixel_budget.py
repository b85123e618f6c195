"""How large a model sees its pictures: the processor's own setting, in pixels."""

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from lightning_vlm.data.images import load_image
from lightning_vlm.data.picture_detail import open_shrunk
from lightning_vlm.data.render.media import OpenPicture
from lightning_vlm.errors import UserError


class PixelBudget(NamedTuple):
    """How many pixels a picture has once the processor has resized it.

    Args:
        least: A smaller picture is enlarged; None leaves the processor's own number.
        most: A larger one is made smaller; None leaves the processor's own number.
        by_detail: Give each picture as many as it needs, between the two; see `picture_detail`.
    """

    least: int | None = None
    most: int | None = None
    by_detail: bool = False

    def check(self) -> None:
        """Raise a `UserError` unless the numbers make sense."""
        for name, value in (("data.min_pixels", self.least), ("data.max_pixels", self.most)):
            if value is not None and value < 1:
                raise UserError(f"{name}: found {value}; expected 1 or more pixels of a picture")
        if self.least is not None and self.most is not None and self.least > self.most:
            found = f"data.min_pixels: found {self.least:,}"
            raise UserError(f"{found}; expected at most data.max_pixels, {self.most:,}")

        if self.by_detail and (self.least is None or self.most is None):
            missing = "it chooses between data.min_pixels and data.max_pixels; set them"
            raise UserError(f"data.pixels_by_detail: {missing}")

    @property
    def open_picture(self) -> OpenPicture:
        """How pictures are opened."""
        if not self.by_detail or self.least is None or self.most is None:
            return load_image
        return partial(open_shrunk, least=self.least, most=self.most)

    def apply(self, processor: ProcessorMixin) -> None:
        """Set it in a processor, which then resizes, counts and is saved with it.

        Families differ in what they set:

        - where a picture has as many patches as fit (the Qwen, GLM, PaddleOCR and HunYuan families), the
          least and the most pixels themselves;
        - where it is cut into tiles of one size (InternVL, Aya Vision, Cohere), how many whole tiles the
          pixels are enough for, but at least one; the small copy of the whole picture isn't counted;
        - where its longer side has a limit (Pixtral, Mistral 3), the side of a square of so many pixels.

        Args:
            processor: A processor of transformers; its image processor is changed.

        Raises:
            UserError: It has no such setting, or too few pixels for one patch.
        """
        if self == PixelBudget():
            return
        images: Any = getattr(processor, "image_processor", None)
        size = _size(images)
        if hasattr(images, "merge_size") and size.keys() >= {"shortest_edge", "longest_edge"}:
            self._apply_area(images, size)
        elif self.by_detail:
            name = type(images).__name__
            raise UserError(
                f"data.pixels_by_detail: {name} makes small pictures as large as others; leave it out"
            )
        elif size.keys() >= {"height", "width"} and _cuts_tiles(processor):
            self._apply_tiles(images, size)
        elif size.keys() == {"longest_edge"} and not hasattr(images, "max_image_size"):
            self._apply_edge(images, size)
        else:
            raise UserError(_no_setting(images, size))

    def _apply_area(self, images: Any, size: Mapping[str, int]) -> None:
        side = images.patch_size * images.merge_size
        if self.most is not None and self.most < side**2:
            raise UserError(_too_few(self.most, images, f"one patch of {side}×{side}"))
        # A picture is repeated to fill a patch in time, and GLM's processors count all of it.
        times = images.temporal_patch_size if type(images).__name__.startswith("Glm4") else 1
        most = size["longest_edge"] if self.most is None else self.most * times
        least = size["shortest_edge"] if self.least is None else self.least * times
        images.size = _as_size(images, shortest_edge=min(least, most), longest_edge=max(least, most))

    def _apply_tiles(self, images: Any, size: Mapping[str, int]) -> None:
        pixels = size["height"] * size["width"]
        if self.most is not None:
            images.max_patches = max(1, self.most // pixels)
            images.min_patches = min(images.min_patches, images.max_patches)
        if self.least is not None:
            if type(images).__name__ == "Cohere2VisionImageProcessor":
                raise UserError(_never_enlarges(images))
            images.min_patches = math.ceil(self.least / pixels)
            images.max_patches = max(images.min_patches, images.max_patches)

    def _apply_edge(self, images: Any, size: Mapping[str, int]) -> None:
        if self.least is not None:
            raise UserError(_never_enlarges(images))
        assert self.most is not None
        patch = images.patch_size if isinstance(images.patch_size, int) else images.patch_size["height"]
        side = math.isqrt(self.most) // patch * patch
        if not side:
            raise UserError(_too_few(self.most, images, f"one patch of {patch}×{patch}"))
        images.size = _as_size(images, longest_edge=side)

    def __str__(self) -> str:
        """As a config has it.

        >>> str(PixelBudget(most=3136)), str(PixelBudget())
        ('max_pixels 3136', "the processor's own")
        """
        numbers = {"min_pixels": self.least, "max_pixels": self.most}
        given = [f"{name} {number}" for name, number in numbers.items() if number is not None]
        if self.by_detail:
            given.append("by detail")
        return ", ".join(given) or "the processor's own"

    @classmethod
    def read(cls, text: str) -> "PixelBudget":
        """From what `str` gave.

        >>> PixelBudget.read("min_pixels 784, max_pixels 3136")
        PixelBudget(least=784, most=3136, by_detail=False)
        """
        words = text.replace(",", "").split()
        numbers = {name: int(value) for name, value in pairwise(words) if value.isdigit()}
        return cls(numbers.get("min_pixels"), numbers.get("max_pixels"), "detail" in words)


def _size(images: Any) -> dict[str, int]:
    """What an image processor says of sizes, without what it leaves open."""
    size = getattr(images, "size", None) or {}
    return {name: value for name, value in dict(size).items() if value is not None}


def _cuts_tiles(processor: Any) -> bool:
    """Whether it cuts pictures into `max_patches` tiles of its `size`."""
    images = processor.image_processor
    if not hasattr(images, "min_patches") or not hasattr(images, "max_patches"):
        return False
    # GOT-OCR 2 shares its image processor with InternVL, and cuts only where it is asked to.
    return images.crop_to_patches or type(processor).__name__ != "GotOcr2Processor"


def _as_size(images: Any, **edges: int) -> Any:
    """Sizes in the form that an image processor keeps them in."""
    kept = images.size
    return edges if isinstance(kept, dict) else type(kept)(**edges)


def _never_enlarges(images: Any) -> str:
    return f"data.min_pixels: {type(images).__name__} never enlarges a picture; leave it out"


def _too_few(pixels: int, images: Any, least: str) -> str:
    return f"data.max_pixels: found {pixels:,}; expected enough for {least} pixels ({type(images).__name__})"


def _no_setting(images: Any, size: Mapping[str, int]) -> str:
    name = type(images).__name__
    said = ", ".join(f"{edge} {value}" for edge, value in size.items()) or "settings of its own"
    return (
        f"data.max_pixels: {name} resizes pictures by {said}, which no number of pixels sets; set "
        "data.min_pixels and data.max_pixels to null, or change the model's preprocessor_config.json"
    )
