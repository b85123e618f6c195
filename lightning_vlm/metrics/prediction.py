"""One answer of a model, and what it is compared with."""

from typing import NamedTuple

from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Located
from lightning_vlm.metrics.ranking import Candidate


class Prediction(NamedTuple):
    """One answer of the model.

    Args:
        source: Where the question came from.
        task: Its task.
        text: What the model answered; of several answers the best.
        reference: What is right; None if unknown.
        candidates: All answers, the best first, if `generation` asks for several (`num_return_sequences`).
        prompt: What was asked, in words; see `Question`.
        images: The files of its pictures; None for a picture that came as bytes.
        videos: The same of its videos.
        reasoning: What the model wrote before its answer, where the chat template marks that.
        references: All right answers, where the sample has several.
        level: What the answer is about, such as `object` or `relation`, where the sample says so.
        found: The boxes, points and regions of the answer, in fractions of the pictures as they came; None
            where it isn't read for any.
        right: Those of the right answer, likewise.
        views: How the model saw each picture.
        id: What the data calls the sample; None where it says nothing.
    """

    source: str
    task: str
    text: str
    reference: str | None
    candidates: tuple[Candidate, ...] = ()
    prompt: str = ""
    images: tuple[str | None, ...] = ()
    videos: tuple[str | None, ...] = ()
    reasoning: str | None = None
    references: tuple[str, ...] = ()
    level: str | None = None
    found: Found | None = None
    right: tuple[Located, ...] = ()
    views: tuple[View, ...] = ()
    id: str | int | None = None

    def to(self, device: object) -> "Prediction":
        """Itself. Lightning asks for it before it would look for tensors, and stop at frozen dataclasses."""
        return self

    @property
    def right_answers(self) -> tuple[str, ...]:
        """All right answers; none where none is known."""
        if self.references or self.reference is None:
            return self.references
        return (self.reference,)
