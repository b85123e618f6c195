"""All codecs, by name."""

from lightning_vlm.data.boxes.bins import Florence2, Kosmos2, Locations, PaliGemma
from lightning_vlm.data.boxes.lists import Gemma, Glm, Qwen3VL, Qwen25VL
from lightning_vlm.data.boxes.molmo import Molmo, Molmo2
from lightning_vlm.data.boxes.segments import Segments
from lightning_vlm.data.boxes.tagged import Decimals, DeepSeek, InternVL, Qwen2VL, Thousandths
from lightning_vlm.data.boxes.text_codec import TextCodec
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

_ALL: tuple[TextCodec, ...] = (
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Glm(),
    InternVL(),
    PaliGemma(),
    Florence2(),
    Kosmos2(),
    Gemma(),
    DeepSeek(),
    Molmo(),
    Molmo2(),
    Locations(),
    Decimals(),
    Thousandths(),
)
CODECS: dict[str, TextCodec] = {codec.name: codec for codec in _ALL}
"""The codecs that `data.boxes` can name, and `seg`, whose texts say nothing of places."""
_NAMED: dict[str, TextCodec] = {**CODECS, Segments.name: Segments()}

NO_FORMAT = "thousandths"
"""The codec of models whose published checkpoints have no format for boxes."""


def codec_of(name: str) -> TextCodec:
    """The codec of a name.

    Raises:
        UserError: There is none.

    >>> codec_of("qwen3_vl").form
    '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]'
    """
    if name not in _NAMED:
        hint = did_you_mean(name, _NAMED)
        raise UserError(f"data.boxes: found {name!r}; expected one of {', '.join(_NAMED)}{hint}")
    return _NAMED[name]
