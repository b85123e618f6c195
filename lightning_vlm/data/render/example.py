"""A rendered sample, and the error of one that is too long."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from transformers.video_utils import VideoMetadata

from lightning_vlm.data.batch.coordinates import Coordinates
from lightning_vlm.data.batch.masks import Masks, PictureGrid
from lightning_vlm.data.boxes.reader import BoxReader
from lightning_vlm.data.conversation import Conversation
from lightning_vlm.errors import DataError


class ClipSpan(NamedTuple):
    """Where the tokens of a video are.

    Args:
        start: The first one.
        stop: Behind the last one.
        metadata: Which frames were looked at, and how many there are each second.
    """

    start: int
    stop: int
    metadata: VideoMetadata


@dataclass(slots=True)
class Example:
    """One rendered sample.

    Args:
        input_ids: Tensor of shape [length], int64.
        kinds: Tensor of shape [length], int8, a `Kind` for each token.
        inputs: What else the model's forward takes, as the processor gives it for one sample.
        conversation: What was rendered, without what comes after the last answer and the rounds that did not
            fit.
        turn_weights: Tensor of shape [length], float32: the weight of the turn of each token of an answer, 1
            for all others; None where each turn weighs 1.
        truncated: How many messages did not fit.
        changes: What else was done to its turns, each in a sentence of `turns`.
        answer_ends: Up to which token each answer goes, without what ends its turn.
        clips: Where the tokens of each video are, and when its frames are shown.
        coordinates: Which tokens are numbers of boxes and points in answers; None where there are none.
        masks: The masks of its answers; None where there are none.
        grids: The tokens of each picture, where masks are made.
        reader: Reads boxes in the answer to a prompt; None where none are to be read.
    """

    input_ids: Tensor
    kinds: Tensor
    inputs: dict[str, Tensor]
    conversation: Conversation
    turn_weights: Tensor | None = None
    truncated: int = 0
    changes: tuple[str, ...] = ()
    answer_ends: tuple[int, ...] = ()
    clips: tuple[ClipSpan, ...] = ()
    coordinates: Coordinates | None = None
    masks: Masks | None = None
    grids: tuple[PictureGrid, ...] = ()
    reader: BoxReader | None = None


class TooLong(DataError):  # noqa: N818
    """A sample that does not fit, not even its first round.

    Args:
        source: Where the sample came from.
        found: How long it is.
        expected: How long it may be.
        length: How many tokens it has; of a text so long that they were not all counted, how many were.
    """

    def __init__(self, source: str, found: str, expected: str, length: int) -> None:
        super().__init__(source, "", found, expected, "too_long")
        self.length = length

    def __reduce__(self) -> tuple:
        return type(self), (self.source, self.found, self.expected, self.length)
