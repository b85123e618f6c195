"""Short questions about a drawn picture, of eight kinds, with the right answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeAlias

from lightning_vlm.data.drawn.scenes import DrawnThing
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES

Things: TypeAlias = Sequence[DrawnThing]
QuestionAndAnswer: TypeAlias = tuple[str, str]


def question_about(seen: Things, rng: Random, kinds: Sequence[str] = ()) -> QuestionAndAnswer:
    """One question and its answer.

    Args:
        seen: What is on the picture.
        rng: Chooses among questions.
        kinds: Keys of `QUESTIONS`, each as often as it is named. None of them is the usual ones. About a
            picture that allows none, it is asked whether something exists.
    """
    kinds = kinds or USUAL
    for kind in rng.sample(kinds, len(kinds)):
        found = QUESTIONS[kind](seen, rng)
        if found is not None:
            return found
    return _exists(seen, rng)


def _colour(seen: Things, rng: Random) -> QuestionAndAnswer | None:
    things = [drawn.thing for drawn in seen]
    counts = Counter(thing.shape for thing in things)
    with_own_shape = [thing for thing in things if counts[thing.shape] == 1]
    if not with_own_shape:
        return None
    thing = rng.choice(with_own_shape)
    question = _ask(seen, rng, alone=_COLOUR_ALONE, among_others=_COLOUR)
    return question.format(thing.shape), thing.colour


def _ask(seen: Things, rng: Random, alone: Sequence[str], among_others: Sequence[str]) -> str:
    """A wording; a thing that is alone needs no name."""
    if len(seen) == 1 and rng.random() < 0.5:
        return rng.choice(alone)
    return rng.choice(among_others)


_COLOUR = (
    "Which colour does the {} have?",
    "What colour is the {}?",
    "Name the colour of the {}.",
    "The {} was painted in which colour?",
    "In what colour is the {} drawn?",
)
_COLOUR_ALONE = ("Which colour was used?", "What is its colour?", "Name the colour of the figure.")


def _shape(seen: Things, rng: Random) -> QuestionAndAnswer | None:
    things = [drawn.thing for drawn in seen]
    counts = Counter(thing.colour for thing in things)
    with_own_colour = [thing for thing in things if counts[thing.colour] == 1]
    shapes = [thing for thing in with_own_colour if not thing.word]
    if not shapes:
        return None
    thing = rng.choice(shapes)
    question = _ask(seen, rng, alone=_SHAPE_ALONE, among_others=_SHAPE)
    return question.format(thing.colour), thing.shape


_SHAPE = (
    "Which shape is {}?",
    "What is the {} thing?",
    "What kind of figure is the {} one?",
    "Name the shape that is {}.",
    "What has been drawn in {}?",
)
_SHAPE_ALONE = ("Which shape was drawn?", "What figure is this?", "Name the shape.")


def _exists(seen: Things, rng: Random) -> QuestionAndAnswer:
    name, is_shown = _claim(seen, rng)
    question = rng.choice(_IS_THERE)
    return question.format(a(name)), _yes_or_no(is_shown)


def _absent(seen: Things, rng: Random) -> QuestionAndAnswer:
    name, is_shown = _claim(seen, rng)
    question = rng.choice(_IS_THERE_NO)
    return question.format(name, a(name)), _yes_or_no(not is_shown)


def _yes_or_no(is_true: bool) -> str:
    return "yes" if is_true else "no"


def _claim(seen: Things, rng: Random) -> tuple[str, bool]:
    """What might be on the picture, and whether it is.

    Half of these are true, and the false ones keep half of what is true of something in the picture.
    """
    thing = rng.choice(seen).thing
    is_true = rng.random() < 0.5
    by = rng.choice(("colour", "shape", "both"))
    colour, shape = thing.colour, thing.shape
    if not is_true:
        is_colour_false = by == "colour" or (by == "both" and rng.random() < 0.5)
        if is_colour_false:
            colour = rng.choice(tuple(SHADES))
        else:
            shape = rng.choice((*SHAPES, "word"))
    things = [drawn.thing for drawn in seen]
    if by == "colour":
        colours = [thing.colour for thing in things]
        return f"{colour} thing", colour in colours
    if by == "shape":
        shapes = [thing.shape for thing in things]
        return shape, shape in shapes
    both = [(thing.colour, thing.shape) for thing in things]
    return f"{colour} {shape}", (colour, shape) in both


_IS_THERE = (
    "Can you see {}?",
    "Do you see {} here?",
    "Is {} shown?",
    "Is there {} anywhere?",
    "Does this picture have {}?",
)
_IS_THERE_NO = (
    "Is it true that there is no {0}?",
    "Is the picture without {1}?",
    "Is the drawing free of any {0}?",
    "Did nobody draw {1}?",
)


def _count(seen: Things, rng: Random) -> QuestionAndAnswer | None:
    shapes = [drawn.thing for drawn in seen if not drawn.thing.word]
    if not shapes:
        return None
    if rng.random() < 0.6:
        counted = "shapes"
        number = len(shapes)
    elif rng.random() < 0.5:
        colours = [thing.colour for thing in shapes]
        colour = rng.choice((rng.choice(colours), rng.choice(tuple(SHADES))))
        counted = f"{colour} shapes"
        number = colours.count(colour)
    else:
        names = [thing.shape for thing in shapes]
        name = rng.choice((rng.choice(names), rng.choice(tuple(SHAPES))))
        counted = plural(name)
        number = names.count(name)
    question = rng.choice(_HOW_MANY)
    return question.format(counted), str(number)


_HOW_MANY = (
    "How many {} are there?",
    "Count the {}.",
    "What is the number of {}?",
    "How many {} do you see?",
)


def _place(seen: Things, rng: Random) -> QuestionAndAnswer | None:
    drawn = rng.choice(seen)
    question = rng.choice(_WHERE)
    return question.format(the(drawn, seen, rng)), drawn.place


_WHERE = ("Where is {}?", "In which part of the picture is {}?", "Whereabouts do you see {}?")


def _side(seen: Things, rng: Random) -> QuestionAndAnswer | None:
    """How two things lie to each other; asked only where one is clearly past the other."""
    if len(seen) < 2:
        return None
    first, second = rng.sample(list(seen), 2)
    axis = rng.randrange(2)
    start = axis
    end = axis + 2  # the same axis in a box (x1, y1, x2, y2)
    if first.box[start] < second.box[end] and second.box[start] < first.box[end]:
        return None
    before, after = _RELATIONS[axis]
    relation = rng.choice((before, after))
    right = before if first.centre[axis] < second.centre[axis] else after
    question = f"Is {the(first, seen, rng)} {relation} {the(second, seen, rng)}?"
    return question, _yes_or_no(relation == right)


_RELATIONS = (("to the left of", "to the right of"), ("above", "below"))
"""For each axis, across and down: what a thing is to another that lies after it, and before it."""


def _larger(seen: Things, rng: Random) -> QuestionAndAnswer | None:
    """Which of two shapes is larger; asked only where the difference is clear."""
    if len(seen) < 2:
        return None
    first, second = rng.sample(list(seen), 2)
    if first.thing.word or second.thing.word:
        return None
    smaller, larger = sorted((first, second), key=_area)
    if _area(larger) < 1.6 * _area(smaller):
        return None
    question = rng.choice(_WHICH_IS_LARGER)
    return question.format(first.thing.name, second.thing.name), larger.thing.name


_WHICH_IS_LARGER = ("Which is larger, the {} or the {}?", "Which one is bigger: the {} or the {}?")


def _area(drawn: DrawnThing) -> float:
    x1, y1, x2, y2 = drawn.box
    return (x2 - x1) * (y2 - y1)


def the(drawn: DrawnThing, seen: Things, rng: Random) -> str:
    """A name that fits this thing and no other on the picture; shorter where a shorter one is enough."""
    shape = drawn.thing.shape
    is_only_one = sum(other.thing.shape == shape for other in seen) == 1
    if is_only_one and rng.random() < 0.3:
        return f"the {shape}"
    return f"the {drawn.thing.name}"


def a(name: str) -> str:
    """A name with its article."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def plural(shape: str) -> str:
    """The name of several of a shape."""
    return "crosses" if shape == "cross" else f"{shape}s"


QUESTIONS: dict[str, Callable[[Things, Random], QuestionAndAnswer | None]] = {
    "colour": _colour,
    "shape": _shape,
    "exists": _exists,
    "absent": _absent,
    "count": _count,
    "place": _place,
    "side": _side,
    "larger": _larger,
}
"""The kinds of questions of the task vqa. A kind gives None about a picture that doesn't allow it."""
USUAL: tuple[str, ...] = (*QUESTIONS, "colour", "shape", "exists")
"""Each kind as often as it is asked."""
