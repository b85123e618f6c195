"""Reads boxes in the answer to one prompt."""

from collections.abc import Sequence

from lightning_vlm.data.batch.masks import PictureGrid
from lightning_vlm.data.boxes.codec import BoxCodec, Found
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.parts import Located


class BoxReader:
    """Reads boxes in the answer to one prompt.

    It is no dataclass, since Lightning looks into these for tensors and refuses frozen ones.

    Args:
        codec: How they are written.
        views: Of all pictures of the conversation.
        right: What the right answer has, in fractions of the pictures; None where no answer is known.
        grids: The tokens of each picture in the prompt, where masks are made.
    """

    def __init__(
        self,
        codec: BoxCodec,
        views: Sequence[View],
        right: Sequence[Located] | None,
        grids: Sequence[PictureGrid] = (),
    ) -> None:
        self.codec = codec
        self.views = tuple(views)
        self.right = None if right is None else tuple(right)
        self.grids = tuple(grids)

    def read(self, text: str) -> Found | None:
        """What a text has.

        Args:
            text: What a model wrote, with the tokens of the codec.

        Returns:
            None where no answer is known and nothing could be read: the text may be words alone.
        """
        found = self.codec.read(text, self.views)
        return found if self.right is not None or found.items else None
