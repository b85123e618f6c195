"""How large pictures and videos are seen."""

import re
from typing import Any

from lightning_vlm.migrate.ours import Ours

_ONE_SIZE = re.compile(
    r"llava|vicuna|paligemma|gemma|smolvlm|idefics|blip|kosmos|florence|drawn-vlm|janus|phi-|deepseek-vl|llama-?[34]",
    re.IGNORECASE,
)
"""Names of models whose processors make all pictures one size, or have no limit that can be set."""


def put_pixels(ours: Ours, name: Any, most: Any, source: str, said: str) -> None:
    """The most pixels of a picture, where the model's processor has such a limit.

    Args:
        ours: Our config.
        name: The model.
        most: The most pixels; None sets nothing.
        source: Which key of theirs says so, for a comment.
        said: That key itself.
    """
    if most is None:
        return
    if _ONE_SIZE.search(str(name)):
        ours.leave(said, most, f"the processor of {name} makes pictures its own size, so it changed no token")
        return
    differs = "the processor itself resizes, to whole patches"
    ours.put("data.max_pixels", int(most), source, differs)
