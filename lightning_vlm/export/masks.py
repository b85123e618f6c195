"""The mask head of an exported model, beside it."""

from pathlib import Path

from lightning_vlm.models.mask_head import WEIGHTS, MaskHead, save_mask_head

GUIDE = "masks.md"
"""The file of an exported folder that says how masks are made."""
_TEXT = f"""# Masks

Where this model writes `<seg>`, `{WEIGHTS}` makes a mask of what it thinks there: a query of the hidden
state of that token, against the hidden states of the picture's own tokens, in one more forward pass over what
was generated:

```python
from PIL import Image, ImageOps
from transformers import AutoModelForImageTextToText, AutoProcessor
from lightning_vlm.metrics.answer_masks import outlines_in_pixels
from lightning_vlm.models.mask_head import load_mask_head

model = AutoModelForImageTextToText.from_pretrained(".")
processor = AutoProcessor.from_pretrained(".")
picture = ImageOps.exif_transpose(Image.open("picture.jpg"))
content = [{{"type": "image"}}, {{"type": "text", "text": "Segment the red circle."}}]
text = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(outlines_in_pixels(model, processor, load_mask_head("."), inputs, ids, [picture]))
```
"""


def write_mask_head(head: MaskHead | None, folder: Path) -> str | None:
    """Write the mask head of a model into its exported folder.

    Args:
        head: None where it has none.
        folder: The folder.

    Returns:
        What to print about it; None where there is none.
    """
    if head is None:
        return None
    save_mask_head(head, folder)
    (folder / GUIDE).write_text(_TEXT, "utf-8")
    return f"{WEIGHTS} makes them; {GUIDE} says how"
