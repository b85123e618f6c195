"""What an export says of how its model writes boxes."""

from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from lightning_vlm.data.boxes.of_model import KEY, codec_for
from lightning_vlm.data.boxes.segments import Segments

GUIDE = "boxes.md"
"""The file of an exported folder that says it."""
_TEXT = """# Boxes

This model writes boxes as `{form}` ({scale}). In lightning-vlm this format is called `{name}`; `{key}` in
`tokenizer_config.json` says so too, and training goes on with it.

What the model wrote, as boxes in pixels of the pictures as they came:

```python
from PIL import Image, ImageOps
from transformers import AutoProcessor
from lightning_vlm.data.boxes.serve import boxes_in_pixels

processor = AutoProcessor.from_pretrained(".")
picture = ImageOps.exif_transpose(Image.open("picture.jpg"))
text = "..."  # the new tokens alone: processor.decode(new_tokens, skip_special_tokens=False)
print(boxes_in_pixels(text, processor, [picture]))
```
"""


def keep_codec(processor: ProcessorMixin, name: str | None) -> None:
    """Let a processor say how its model writes boxes.

    Args:
        processor: Of the trained model; its tokenizer is changed.
        name: Of the codec; None where the model has seen no boxes.
    """
    if name is not None:
        tokenizer: Any = processor.tokenizer
        tokenizer.init_kwargs[KEY] = name


def write_guide(processor: ProcessorMixin, name: str | None, folder: Path) -> str | None:
    """Write into an exported folder how boxes are read.

    Args:
        processor: Of the trained model.
        name: As of `keep_codec`.
        folder: The folder.

    Returns:
        What to print about it; None where the model has seen no boxes.
    """
    if name is None:
        return None
    codec = codec_for(processor, name).codec
    if isinstance(codec, Segments):  # the way back is that of masks
        return None
    text = _TEXT.format(form=codec.form, scale=codec.scale, name=codec.name, key=KEY)
    (folder / GUIDE).write_text(text, "utf-8")
    return f"written as {codec.name}; {GUIDE} has the way back to pixels"
