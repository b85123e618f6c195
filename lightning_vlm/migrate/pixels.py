"""How large pictures and videos are seen."""

import re
from typing import Any

from lightning_vlm.migrate.ours import Ours

_ONE_SIZE = re.compile(
    r"llava|vicuna|paligemma|gemma|smolvlm|idefics|blip|kosmos|florence|drawn-vlm|janus|phi-|deepseek-vl|llama-?[34]",
    re.IGNORECASE,
)
"""Names of models whose processors make all pictures one size, or have no limit that can be set."""


def put_pixels(ours: Ours, key: str, name: Any, pixels: Any, source: str, said: str) -> None:
    """The least or the most pixels of a picture, where the model's processor has such a limit.

    Args:
        ours: Our config.
        key: `data.min_pixels` or `data.max_pixels`.
        name: The model.
        pixels: How many; None sets nothing.
        source: Which key of theirs says so, for a comment.
        said: That key itself.
    """
    if pixels is None:
        return
    if _ONE_SIZE.search(str(name)):
        why = f"the processor of {name} makes pictures its own size, so it changed no token"
        ours.leave(said, pixels, why)
        return
    ours.put(key, int(pixels), source, "the processor itself resizes, to whole patches")
