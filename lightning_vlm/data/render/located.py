"""Boxes, points and regions of turns, as the texts that a model reads and writes."""

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import PIL.Image

from lightning_vlm.data.batch.coordinates import Coordinates
from lightning_vlm.data.batch.masks import PictureGrid
from lightning_vlm.data.boxes.codec import BoxCodec
from lightning_vlm.data.boxes.reader import BoxReader
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Box, Image, Located, Message, Nothing, Point, Region
from lightning_vlm.data.picture_detail import size_as_it_came
from lightning_vlm.data.render.coordinate_tokens import FoundNumbers
from lightning_vlm.data.render.special_tokens import any_of
from lightning_vlm.data.render.text_span import WrittenRun
from lightning_vlm.data.render.turns import Turn
from lightning_vlm.errors import DataError

_WRITTEN = (Box, Point, Region, Nothing)
ViewOf: TypeAlias = Callable[[tuple[int, int]], View]
"""How a model sees a picture of some width and height."""


class WrittenTurns(NamedTuple):
    """Turns with texts in place of what lies in pictures.

    Args:
        turns: The turns.
        views: How the model sees their pictures; empty where nothing lies in any.
        items: All boxes, points and regions of theirs in order, in fractions of their pictures, each with the
            number of its picture.
        answers: Of each, which turn has it, if that is an answer.
        without: The turns that say that nothing is there.
    """

    turns: Sequence[Turn]
    views: tuple[View, ...] = ()
    items: Sequence[Located] = ()
    answers: Sequence[int | None] = ()
    without: Collection[int] = ()


class LocatedWriter:
    """Writes what lies in pictures.

    Args:
        codec: How.
        view_of: How the model sees pictures.
        special: Finds special tokens, which no label may spell.
    """

    def __init__(self, codec: BoxCodec, view_of: ViewOf, special: re.Pattern[str]) -> None:
        self.codec = codec
        self._view_of = view_of
        self._not_in_labels = (special, any_of(codec.tokens))

    def write(self, turns: Sequence[Turn], pictures: Sequence[PIL.Image.Image], source: str) -> WrittenTurns:
        """Write all located parts of some turns.

        Args:
            turns: With all pictures of the conversation.
            pictures: These, in reading order.
            source: Of the sample.

        Raises:
            DataError: A box that isn't in its picture, or that the codec has no way to write.
        """
        if not any(isinstance(part, _WRITTEN) for turn in turns for part in turn.parts):
            return WrittenTurns(turns)
        writing = _Writing(self.codec, self._views(pictures), self._not_in_labels, source)
        written = [writing.turn(turn, place) for place, turn in enumerate(turns)]
        return WrittenTurns(written, writing.views, writing.items, writing.answers, writing.without)

    def reader(
        self,
        written: WrittenTurns,
        pictures: Sequence[PIL.Image.Image],
        has_answer: bool,
        grids: Sequence[PictureGrid] = (),
    ) -> BoxReader | None:
        """What reads the answer to a prompt; None where nothing is to be read.

        Args:
            written: The turns of the prompt, and the right answer behind them.
            pictures: As of `write`.
            has_answer: Whether the right answer is there. One without boxes has none to be read.
            grids: The tokens of the pictures, where masks are made.
        """
        if not has_answer:
            return BoxReader(self.codec, self._views(pictures), None, grids) if pictures else None
        last = len(written.turns) - 1
        right = [item for item, turn in zip(written.items, written.answers, strict=True) if turn == last]
        is_asked = right or last in written.without
        return BoxReader(self.codec, written.views, right, grids) if is_asked else None

    def without_special(self, text: str, special: re.Pattern[str]) -> str:
        """A text without special tokens, but for those of boxes."""
        return special.sub(lambda found: found[0] if found[0] in self.codec.tokens else "", text)

    def _views(self, pictures: Sequence[PIL.Image.Image]) -> tuple[View, ...]:
        views = []
        for picture in pictures:
            views.append(replace(self._view_of(picture.size), size=size_as_it_came(picture)))
        return tuple(views)


def coordinates_of(written: WrittenTurns, found: FoundNumbers) -> Coordinates | None:
    """The coordinates of a sample; None where no answer has a box or a point.

    Args:
        written: Its turns.
        found: Which tokens are numbers.
    """
    in_answers = []
    for place, item in enumerate(written.items):
        if written.answers[place] is not None and not isinstance(item, Region):
            in_answers.append(place)
    if not in_answers:
        return None
    kept = [place for place in in_answers if place in found.whole]
    numbers = {place: number for number, place in enumerate(kept)}
    tokens = [token._replace(item=numbers[token.item]) for token in found.tokens if token.item in numbers]
    targets = []
    for place in kept:
        item = written.items[place]
        seen = written.views[item.image or 0].to_seen(item.numbers)
        targets.append(tuple(min(max(value, 0.0), 1.0) for value in seen))
    return Coordinates.of(tokens, targets, left_out=len(in_answers) - len(kept))


def with_numbers(item: Located, numbers: tuple[float, ...], image: int | None) -> Located:
    """A located part with other numbers, in fractions of a picture.

    >>> with_numbers(Point((30, 40), pixels=True), (0.3, 0.5), 0)
    Point(xy=(0.3, 0.5), label=None, image=0, pixels=False)
    """
    changed: dict[str, Any] = {_NUMBERS[type(item)]: numbers, "image": image, "pixels": False}
    return replace(item, **changed)


_NUMBERS = {Box: "xyxy", Point: "xy", Region: "outline"}


class _Writing:
    """Writes messages in reading order, as `LocatedWriter` says."""

    def __init__(
        self,
        codec: BoxCodec,
        views: tuple[View, ...],
        not_in_labels: Sequence[re.Pattern[str]],
        source: str,
    ) -> None:
        self._codec = codec
        self._not_in_labels = not_in_labels
        self._source = source
        self._seen = 0
        """How many pictures came so far."""
        self.views = views
        self._shown: tuple[View, ...] = ()
        """Those that the model has seen by this turn. What is written depends on no others."""
        self.items: list[Located] = []
        self.answers: list[int | None] = []
        self.without: set[int] = set()

    def turn(self, turn: Turn, number: int) -> Turn:
        """A turn with its runs written."""
        of_answer = number if turn.role == "assistant" else None
        in_turn = sum(isinstance(part, Image) for part in turn.parts)
        self._shown = self.views[: max(self._seen + in_turn, 1)]
        messages = []
        for index, message in enumerate(turn.messages, turn.first):
            messages.append(self._message(message, f"messages[{index}].content", of_answer))
        return turn._replace(messages=tuple(messages))

    def _message(self, message: Message, key: str, of_answer: int | None) -> Message:
        parts: list[Any] = []
        places = enumerate(message.parts)
        for is_run, group in itertools.groupby(places, lambda at: isinstance(at[1], _WRITTEN)):
            run: list[tuple[int, Any]] = list(group)
            if is_run:
                parts.append(self._run(run, key, of_answer))
            else:
                parts += [part for _, part in run]
                self._seen += sum(isinstance(part, Image) for _, part in run)
        return replace(message, parts=tuple(parts))

    def _run(
        self, run: Sequence[tuple[int, Located | Nothing]], key: str, of_answer: int | None
    ) -> WrittenRun:
        items = []
        for place, item in run:
            if not isinstance(item, Nothing):
                items.append(self._in_fractions(item, f"{key}[{place}]"))
        if not items and of_answer is not None:
            self.without.add(of_answer)
        try:
            written = self._codec.write(items, self._shown)
        except ValueError as error:
            names = dict.fromkeys(type(item).__name__.lower() for item in items)
            found = f"a {' and a '.join(names)}"
            expected = f"{error} (data.boxes: {self._codec.name})"
            raise DataError(self._source, f"{key}[{run[0][0]}]", found, expected) from error
        before = len(self.items)
        self.items += items
        self.answers += [of_answer] * len(items)
        moved = tuple(one._replace(item=one.item + before) for one in written.coordinates)
        return WrittenRun(written.text, moved)

    def _in_fractions(self, item: Located, key: str) -> Located:
        """An item with the number of its picture, and its numbers in fractions of that."""
        self._check_label(item, key)
        name = type(item).__name__.lower()
        if not self.views:
            found = f"a {name} in a conversation without pictures"
            raise DataError(self._source, key, found, "a picture that it lies in", "box_without_picture")
        image = max(self._seen - 1, 0) if item.image is None else item.image
        if image >= len(self._shown):
            found = f"a {name} in picture {image}, of {len(self._shown)} so far"
            expected = "the number of a picture, from 0"
            raise DataError(self._source, f"{key}.image", found, expected, "box_without_picture")
        numbers = item.numbers
        if item.pixels:
            sides = self.views[image].size
            limits = [sides[place % 2] for place in range(len(numbers))]
            if any(value > limit for value, limit in zip(numbers, limits, strict=True)):
                found = f"the {name} {list(numbers)}"
                expected = f"pixels of picture {image}, which is {sides[0]}x{sides[1]} when upright"
                raise DataError(self._source, key, found, expected, "box_outside")
            numbers = tuple(value / limit for value, limit in zip(numbers, limits, strict=True))
        return with_numbers(item, numbers, image)

    def _check_label(self, item: Located, key: str) -> None:
        for pattern in self._not_in_labels:
            forged = pattern.search(item.label or "")
            if forged:
                found = f"a label that spells {forged[0]!r}"
                raise DataError(self._source, f"{key}.label", found, "other words", "special_token")
