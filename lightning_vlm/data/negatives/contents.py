"""What the pictures of a data set show, as far as its boxes say."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

from lightning_vlm.data.conversation import Box, Conversation, Conversations, Image, Located, Point, Region
from lightning_vlm.data.negatives.names import Names
from lightning_vlm.errors import DataError


class Contents:
    """The names of all that the pictures of a source show, and where it is.

    A source whose samples say what their pictures show (`Conversation.shown`) and that knows all names isn't
    read for it. Of others all samples are read once: what a picture shows is what all samples with this very
    picture locate in it.

    Args:
        source: The samples.
    """

    def __init__(self, source: Conversations) -> None:
        names = source.names()
        self._of_picture: dict[str, dict[Located, None]] = {}
        if names is None:
            self._read(source)
            names = []
        labels = [self._labels(shown) for shown in self._of_picture.values()]
        together: Counter[tuple[int, int]] = Counter()
        place = {
            name: number for number, name in enumerate(dict.fromkeys((*names, *itertools.chain(*labels))))
        }
        for some in labels:
            together.update(itertools.permutations([place[label] for label in some], 2))
        self.names = Names(list(place), together)
        """All names."""

    def shown(self, conversation: Conversation) -> Sequence[Located]:
        """What all pictures of a conversation show, as far as it is known."""
        if conversation.shown is not None:
            return conversation.shown
        found: dict[Located, None] = {}
        for key in _keys(conversation):
            found |= self._of_picture.get(key, {})
        return list(found)

    def _read(self, source: Conversations) -> None:
        for index in range(len(source)):
            try:
                conversation = source[index]
            except DataError:  # training comes to it, and says what is wrong
                continue
            keys = _keys(conversation)
            for part, image in located(conversation):
                if image < len(keys):
                    self._of_picture.setdefault(keys[image], {})[part] = None
            for part in conversation.shown or ():
                if keys:
                    self._of_picture.setdefault(keys[0], {})[part] = None

    @staticmethod
    def _labels(shown: dict[Located, None]) -> list[str]:
        return list(dict.fromkeys(part.label for part in shown if part.label))


def located(conversation: Conversation) -> Iterator[tuple[Located, int]]:
    """All boxes, points and regions, each with the number of its picture."""
    seen = 0
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Image):
                seen += 1
            elif isinstance(part, Box | Point | Region):
                yield part, max(seen - 1, 0) if part.image is None else part.image


def _keys(conversation: Conversation) -> list[str]:
    """What tells each picture from all others."""
    return [_key(image) for image in conversation.images]


def _key(image: Image) -> str:
    if image.data is not None:
        return hashlib.blake2b(image.data, digest_size=16).hexdigest()
    return f"{image.root}|{image.path}|{image.url}"
