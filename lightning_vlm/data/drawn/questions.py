"""Short questions about a drawn picture, of eight kinds, with the right answers."""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

from lightning_vlm.data.drawn.scenes import Seen
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES


def question_about(seen: Sequence[Seen], rng: Random, kinds: Sequence[str] = ()) -> tuple[str, str]:
    """One question and its answer.

    Args:
        seen: What is on the picture.
        rng: Chooses among questions.
        kinds: Keys of `QUESTIONS`, each as often as it is named. None of them is the usual ones. About a
            picture that allows none, it is asked whether something exists.
    """
    kinds = kinds or USUAL
    asked = (QUESTIONS[kind](seen, rng) for kind in rng.sample(kinds, len(kinds)))
    return next(filter(None, asked), None) or _exists(seen, rng)


def _colour(seen: Sequence[Seen], rng: Random) -> tuple[str, str] | None:
    counts = Counter(one.thing.shape for one in seen)
    able = [one.thing for one in seen if counts[one.thing.shape] == 1]
    if not able:
        return None
    thing = rng.choice(able)
    question = rng.choice(_COLOUR_ALONE if len(seen) == 1 and rng.random() < 0.5 else _COLOUR)
    return question.format(thing.shape), thing.colour


_COLOUR = (
    "Which colour does the {} have?",
    "What colour is the {}?",
    "Name the colour of the {}.",
    "The {} was painted in which colour?",
    "In what colour is the {} drawn?",
)
_COLOUR_ALONE = ("Which colour was used?", "What is its colour?", "Name the colour of the figure.")


def _shape(seen: Sequence[Seen], rng: Random) -> tuple[str, str] | None:
    counts = Counter(one.thing.colour for one in seen)
    able = [one.thing for one in seen if counts[one.thing.colour] == 1 and not one.thing.word]
    if not able:
        return None
    thing = rng.choice(able)
    question = rng.choice(_SHAPE_ALONE if len(seen) == 1 and rng.random() < 0.5 else _SHAPE)
    return question.format(thing.colour), thing.shape


_SHAPE = (
    "Which shape is {}?",
    "What is the {} thing?",
    "What kind of figure is the {} one?",
    "Name the shape that is {}.",
    "What has been drawn in {}?",
)
_SHAPE_ALONE = ("Which shape was drawn?", "What figure is this?", "Name the shape.")


def _exists(seen: Sequence[Seen], rng: Random) -> tuple[str, str]:
    name, true = _claim(seen, rng)
    return rng.choice(_IS_THERE).format(a(name)), "yes" if true else "no"


def _absent(seen: Sequence[Seen], rng: Random) -> tuple[str, str]:
    name, true = _claim(seen, rng)
    return rng.choice(_IS_THERE_NO).format(name, a(name)), "no" if true else "yes"


def _claim(seen: Sequence[Seen], rng: Random) -> tuple[str, bool]:
    """What might be on the picture, and whether it is.

    Half of these are true, and the false ones keep half of what is true of something in the picture."""
    thing, true = rng.choice(seen).thing, rng.random() < 0.5
    by = rng.choice(("colour", "shape", "both"))
    colour, shape = thing.colour, thing.shape
    if not true and by != "shape" and (by == "colour" or rng.random() < 0.5):
        colour = rng.choice(tuple(SHADES))
    elif not true:
        shape = rng.choice((*SHAPES, "word"))
    name = {"colour": f"{colour} thing", "shape": shape, "both": f"{colour} {shape}"}[by]
    fits = [other for other in seen if by == "shape" or other.thing.colour == colour]
    return name, any(by == "colour" or other.thing.shape == shape for other in fits)


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


def _count(seen: Sequence[Seen], rng: Random) -> tuple[str, str] | None:
    shapes = [one.thing for one in seen if not one.thing.word]
    if not shapes:
        return None
    if rng.random() < 0.6:
        question, answer = "shapes", len(shapes)
    elif rng.random() < 0.5:
        colour = rng.choice((rng.choice(shapes).colour, rng.choice(tuple(SHADES))))
        question, answer = f"{colour} shapes", sum(one.colour == colour for one in shapes)
    else:
        shape = rng.choice((rng.choice(shapes).shape, rng.choice(tuple(SHAPES))))
        question, answer = _plural(shape), sum(one.shape == shape for one in shapes)
    return rng.choice(_HOW_MANY).format(question), str(answer)


_HOW_MANY = (
    "How many {} are there?",
    "Count the {}.",
    "What is the number of {}?",
    "How many {} do you see?",
)


def _place(seen: Sequence[Seen], rng: Random) -> tuple[str, str] | None:
    one = rng.choice(seen)
    asked = rng.choice(("Where is {}?", "In which part of the picture is {}?", "Whereabouts do you see {}?"))
    return asked.format(the(one, seen, rng)), one.place


def _side(seen: Sequence[Seen], rng: Random) -> tuple[str, str] | None:
    """How two things lie to each other; asked only where one is clearly past the other."""
    if len(seen) < 2:
        return None
    one, other = rng.sample(list(seen), 2)
    axis = rng.randrange(2)
    if one.box[axis] < other.box[axis + 2] and other.box[axis] < one.box[axis + 2]:
        return None
    before = one.centre[axis] < other.centre[axis]
    first, second = ("to the left of", "to the right of") if axis == 0 else ("above", "below")
    relation = rng.choice((first, second))
    question = f"Is {the(one, seen, rng)} {relation} {the(other, seen, rng)}?"
    return question, "yes" if (relation == first) == before else "no"


def _larger(seen: Sequence[Seen], rng: Random) -> tuple[str, str] | None:
    if len(seen) < 2:
        return None
    one, other = rng.sample(list(seen), 2)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one.box, other.box)]
    if max(areas) < 1.6 * min(areas) or one.thing.word or other.thing.word:
        return None
    asked = rng.choice(("Which is larger, the {} or the {}?", "Which one is bigger: the {} or the {}?"))
    question = asked.format(one.thing.name, other.thing.name)
    return question, (one if areas[0] > areas[1] else other).thing.name


def the(one: Seen, seen: Sequence[Seen], rng: Random) -> str:
    """A name that fits this thing and no other on the picture; shorter where a shorter one is enough."""
    shape = one.thing.shape
    if sum(other.thing.shape == shape for other in seen) == 1 and rng.random() < 0.3:
        return f"the {shape}"
    return f"the {one.thing.name}"


def a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


QUESTIONS: dict[str, Callable[[Sequence[Seen], Random], tuple[str, str] | None]] = {
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
