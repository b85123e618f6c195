"""What a way to write boxes is: from boxes to text and back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Located


class Coordinate(NamedTuple):
    """Where one number of a box stands in a text, so that a loss knows what its tokens mean.

    Args:
        start: The first character of the number.
        stop: Behind the last one.
        item: Which of the boxes that were written it belongs to.
        axis: Its place in `numbers` of that box: 0 is x1, 1 is y1, 2 is x2, ...
        whole: What the number would be at the right or lower edge of what the model sees, such as 1000.
    """

    start: int
    stop: int
    item: int
    axis: int
    whole: float


class Written(NamedTuple):
    """Boxes as a text, and where each of their numbers stands in it."""

    text: str
    coordinates: tuple[Coordinate, ...] = ()


class Found(NamedTuple):
    """What stands in a text that a model wrote.

    Args:
        items: In fractions of the pictures as they came, each with the number of its picture (`image`).
        faults: What could not be read, each in a few words, such as "a box of three numbers".
    """

    items: tuple[Located, ...]
    faults: tuple[str, ...] = ()


class BoxCodec(ABC):
    """A way to write boxes, points and regions.

    Reading a text never raises: what can't be read is a fault.
    """

    name: str
    """What `data.boxes` calls it."""
    tokens: tuple[str, ...] = ()
    """Its own tags and bins. They stay in a text that a model wrote, and no label may spell one."""
    bins: tuple[str, ...] = ()
    """Those of them that stand for numbers: the tokenizer must have them."""
    nothing: str = "[]"
    """How it writes that nothing is there; `read` finds no boxes in it, and no fault."""

    @abstractmethod
    def write(self, items: Sequence[Located], views: Sequence[View]) -> Written:
        """Write what stands next to each other in a turn.

        Args:
            items: In fractions of their pictures, each with the number of its picture. Without any, what is
                written says that nothing is there.
            views: Of all pictures of the conversation.

        Raises:
            ValueError: It has no way to write one of them; the message says what it can write.
        """

    @abstractmethod
    def read(self, text: str, views: Sequence[View]) -> Found:
        """Read what a model wrote.

        Args:
            text: Anything.
            views: Of all pictures of the conversation.
        """
