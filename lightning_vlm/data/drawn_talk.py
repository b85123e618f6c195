"""What people might ask about a drawn picture, with the right answers, for five tasks."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from lightning_vlm.data.conversation import Box, Image, Message, Part, Text
from lightning_vlm.data.drawn_scenes import Seen
from lightning_vlm.data.drawn_vocabulary import SHADES, SHAPES

Round = tuple[list[Part], list[Part]]
"""A question and its answer."""

SYSTEM = (
    "You answer questions about small pictures.",
    "You are a careful observer. Be brief.",
    "Look closely before you answer.",
    "You are a helpful assistant who can see.",
)
MORE_ROUNDS, SYSTEM_TURN = 0.15, 0.1


def talk(
    task: str,
    seen: Sequence[Seen],
    image: Image,
    rng: Random,
    number: int | None = None,
    questions: Sequence[str] = (),
) -> tuple[Message, ...]:
    """A conversation of one task about what is seen, at times with a system turn.

    It has up to `number` rounds, no question twice; mostly one when None. A caption is always one round.
    `questions` are kinds of vqa; without any, all.
    """
    ask = partial(_vqa, kinds=questions) if task == "vqa" and questions else ASK[task]
    if task == "caption":
        number = 1
    elif number is None:
        number = rng.choice((2, 3)) if rng.random() < MORE_ROUNDS else 1
    rounds: list[Round] = []
    for _ in range(number):
        question, answer = ask(seen, rng)
        if all(question != asked and (task == "vqa" or answer != given) for asked, given in rounds):
            rounds.append((question, answer))
    messages = [Message("system", (Text(rng.choice(SYSTEM)),))] if rng.random() < SYSTEM_TURN else []
    for index, (question, answer) in enumerate(rounds):
        picture = (image,) if index == 0 else ()
        messages += [Message("user", (*picture, *question)), Message("assistant", tuple(answer))]
    return tuple(messages)


def _caption(seen: Sequence[Seen], rng: Random) -> Round:
    brief = rng.random() < 0.4
    question = rng.choice(_BRIEFLY if brief else _DESCRIBE)
    ordered = sorted(seen, key=lambda one: one.centre)
    answer: list[Part] = []
    for index, one in enumerate(ordered):
        joint = "" if index == 0 else " and " if index == len(ordered) - 1 else ", "
        article = _article(one)
        answer.append(Text(joint + (article.capitalize() if index == 0 else article)))
        answer.append(Text(one.thing.name, entity=True))
        if not brief:
            ink = f" in {one.thing.colour}" if one.thing.word else ""
            answer.append(Text(f"{ink} {_at(one.place)}"))
    answer.append(Text("."))
    return [Text(question)], answer


_DESCRIBE = (
    "Describe the picture.",
    "What can be seen here, and where?",
    "Tell me what is drawn and where it is.",
    "Write a full caption.",
    "Please describe everything in this drawing.",
)
_BRIEFLY = (
    "Describe the picture briefly.",
    "Give a short caption.",
    "List what was drawn.",
    "Name what is here.",
)


def _ocr(seen: Sequence[Seen], rng: Random) -> Round:
    words = [one.thing for one in seen if one.thing.word]
    word = rng.choice(words)
    if len(words) == 1:
        question = rng.choice(_READ)
    elif len({one.colour for one in words}) == len(words):
        question = rng.choice(("What is written in {}?", "Read the {} word.", "What do the {} letters say?"))
        question = question.format(word.colour)
    else:
        upper = min((one for one in seen if one.thing.word), key=lambda one: one.centre[1])
        word, question = upper.thing, rng.choice(("Read the upper word.", "Which word is higher up?"))
    return [Text(question)], [Text(word.word)]


_READ = (
    "What does it say?",
    "Read the text.",
    "Which word is written here?",
    "What is written in the picture?",
    "Transcribe the letters.",
    "Please read the word aloud.",
)


def _grounding(seen: Sequence[Seen], rng: Random) -> Round:
    one = rng.choice(seen)
    question = rng.choice(_LOCATE).format(_the(one, seen, rng))
    return [Text(question)], [Box(one.box)]


_LOCATE = (
    "Give the box of {}.",
    "Locate {}.",
    "Find {} and return its box.",
    "Draw a box around {}.",
    "What are the coordinates of {}?",
    "Point at {}.",
)


def _referring(seen: Sequence[Seen], rng: Random) -> Round:
    one = rng.choice(seen)
    before, after = rng.choice(_REGION)
    answer: list[Part] = [Text(_article(one)), Text(one.thing.name, entity=True)]
    return [Text(before), Box(one.box), Text(after)], answer


_REGION = (
    ("What is in the region ", "?"),
    ("Name the thing inside ", "."),
    ("What does the box ", " show?"),
    ("Look at ", ". What is there?"),
    ("Which object lies at ", "?"),
)


def _vqa(seen: Sequence[Seen], rng: Random, kinds: Sequence[str] = ()) -> Round:
    """One question of a kind that this picture allows; of those asked for, where it allows any of them."""
    kinds = kinds or USUAL
    asked = (QUESTIONS[kind](seen, rng) for kind in rng.sample(kinds, len(kinds)))
    question, answer = next(filter(None, asked), None) or _exists(seen, rng)
    if rng.random() < 0.3:
        question = question.replace("colour", "color")
    return [Text(question)], [Text(answer)]


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
    return rng.choice(_IS_THERE).format(_a(name)), "yes" if true else "no"


def _absent(seen: Sequence[Seen], rng: Random) -> tuple[str, str]:
    name, true = _claim(seen, rng)
    return rng.choice(_IS_THERE_NO).format(name, _a(name)), "no" if true else "yes"


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
    return asked.format(_the(one, seen, rng)), one.place


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
    question = f"Is {_the(one, seen, rng)} {relation} {_the(other, seen, rng)}?"
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


def _the(one: Seen, seen: Sequence[Seen], rng: Random) -> str:
    """A name that fits this thing and no other on the picture; shorter where a shorter one is enough."""
    shape = one.thing.shape
    if sum(other.thing.shape == shape for other in seen) == 1 and rng.random() < 0.3:
        return f"the {shape}"
    return f"the {one.thing.name}"


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _article(one: Seen) -> str:
    return "the " if one.thing.word else _a(one.thing.name)[: -len(one.thing.name)]


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _at(place: str) -> str:
    return {"centre": "in the ", "left": "on the ", "right": "on the "}.get(place, "at the ") + place


ASK: dict[str, Callable[[Sequence[Seen], Random], Round]] = {
    "caption": _caption,
    "vqa": _vqa,
    "ocr": _ocr,
    "grounding": _grounding,
    "referring": _referring,
}
"""How to ask, for each task."""
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
