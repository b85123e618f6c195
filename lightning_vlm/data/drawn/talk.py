"""What people might ask about a drawn picture, with the right answers, for five tasks."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from lightning_vlm.data.conversation import Box, Image, Message, Part, Text
from lightning_vlm.data.drawn.questions import a, question_about, the
from lightning_vlm.data.drawn.scenes import Seen

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
    question = rng.choice(_LOCATE).format(the(one, seen, rng))
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
    question, answer = question_about(seen, rng, kinds)
    if rng.random() < 0.3:
        question = question.replace("colour", "color")
    return [Text(question)], [Text(answer)]


def _article(one: Seen) -> str:
    return "the " if one.thing.word else a(one.thing.name)[: -len(one.thing.name)]


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
