"""Pictures that have a size and no content, and an image processor that is asked about each size once."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import PIL.Image
import torch
from transformers import BatchFeature

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.images import image_size

MOST_REMEMBERED = 20_000
"""How many answers an image processor keeps, some hundred bytes each."""


class BlankPicture(PIL.Image.Image):
    """A black picture that has no pixels before someone looks at them.

    >>> picture = BlankPicture((3, 2))
    >>> picture.size, picture.convert("L").tobytes()
    ((3, 2), b'\\x00\\x00\\x00\\x00\\x00\\x00')
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self._mode = "RGB"
        self._size = size

    def load(self) -> Any:
        """Make the pixels; Pillow calls it where it needs them."""
        if self._im is None:
            self.im = PIL.Image.core.fill(self.mode, self.size, 0)
        return super().load()


def blank_picture(image: Image, source: str, key: str) -> PIL.Image.Image:
    """Stands in for `load_image`: reads only the head of the file.

    Raises:
        DataError: As `image_size`.
    """
    return BlankPicture(image_size(image, source, key))


def blank_instead_of(
    open_picture: Callable[[Image, str, str], PIL.Image.Image], image: Image, source: str, key: str
) -> PIL.Image.Image:
    """A blank picture of the size of one whose contents decide on its size, which is opened for that."""
    opened = open_picture(image, source, key)
    blank = BlankPicture(opened.size)
    blank.info.update(opened.info)
    return blank


class RememberingImageProcessor:
    """Answers for blank pictures as an image processor would, without its work.

    Sizes go through the real image processor on torch's `meta` device, where tensors have shapes and no
    values. One that can't do that gets black pictures. Answers are kept by the sizes of the pictures.

    Values of pixels in an answer are zeros of no memory. Other values are as they are, or of a kind that
    can't be read, so that nothing can be counted from a wrong one.

    Args:
        processor: The image processor of a family.
        on_meta: Whether to try the `meta` device.
    """

    def __init__(self, processor: Any, on_meta: bool = True) -> None:
        self._processor = processor
        self._on_meta = on_meta
        self._answers: OrderedDict[tuple, dict[str, Any]] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for such names before there is a processor
            raise AttributeError(name)
        return getattr(self._processor, name)

    def __call__(self, images: Any, **options: Any) -> BatchFeature:
        key = (self._key(images), repr(sorted(options.items(), key=lambda option: option[0])))
        if key in self._answers:
            self._answers.move_to_end(key)
        else:
            answer = self._ask(images, options)
            self._answers[key] = {name: _without_pixels(value) for name, value in answer.items()}
            if len(self._answers) > MOST_REMEMBERED:
                self._answers.popitem(last=False)
        return BatchFeature(dict(self._answers[key]))  # callers take things out of it

    def _key(self, images: Any) -> Any:
        """The sizes of all pictures."""
        if isinstance(images, list | tuple):
            return tuple(map(self._key, images))
        return images.size

    def _without_values(self, images: Any) -> Any:
        """The pictures on the `meta` device."""
        if isinstance(images, list | tuple):
            return [self._without_values(image) for image in images]
        width, height = images.size
        return torch.empty(3, height, width, dtype=torch.uint8, device="meta")

    def _ask(self, images: Any, options: dict[str, Any]) -> BatchFeature:
        if self._on_meta:
            try:
                return self._processor(
                    self._without_values(images), **{**options, "input_data_format": "channels_first"}
                )
            except Exception:  # whatever an operation without values raises; what is wrong comes again below
                pass
        return self._processor(images, **options)


def _without_pixels(value: Any) -> Any:
    """A value with its floating point tensors, which are pixels, as zeros of the same shape."""
    if isinstance(value, list):
        return [_without_pixels(each) for each in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return torch.zeros((), dtype=value.dtype).expand(value.shape)
    return value
