"""How the model of a run writes boxes, for checkpoints."""

from lightning_vlm.data.conversation import Box, Point, Region
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import DataError

_SAMPLES = 32


def box_codec(data: VLMDataModule) -> str | None:
    """The name of the codec that a run trains with; None if its data has no boxes.

    Args:
        data: Of the run. Some samples of its training data are looked at unless it names a codec.
    """
    if data.boxes is None and not _has_boxes(data):
        return None
    return data.renderer.boxes.codec.name


def _has_boxes(data: VLMDataModule) -> bool:
    source = data.source("train")
    sampled = min(len(source), _SAMPLES)
    for number in range(sampled):
        try:
            conversation = source[number * len(source) // sampled]
        except DataError:
            continue
        for message in conversation.messages:
            if any(isinstance(part, Box | Point | Region) for part in message.parts):
                return True
    return False
