"""What people might ask about a drawn picture, with the right answers, for five tasks."""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from lightning_vlm.data.conversation import Box, Image, Message, Part, Region, Text
from lightning_vlm.data.drawn.questions import Things, a, plural, question_about, the
from lightning_vlm.data.drawn.scenes import DrawnThing

Round = tuple[list[Part], list[Part]]
"""A question and its answer."""

SYSTEM = (
    "You answer questions about small pictures.",
    "You are a careful observer. Be brief.",
    "Look closely before you answer.",
    "You are a helpful assistant who can see.",
)
MORE_ROUNDS = 0.15
"""How often there are several rounds."""
SYSTEM_TURN = 0.1
"""How often there is a system turn."""


def talk(
    task: str,
    seen: Things,
    image: Image,
    rng: Random,
    most: int | None = None,
    questions: Sequence[str] = (),
) -> tuple[Message, ...]:
    """A conversation about a picture, at times with a system turn. No question comes twice.

    Args:
        task: One of `ASK`.
        seen: What is on the picture.
        image: The picture.
        rng: Chooses among questions.
        most: The most rounds; None is mostly one, at times up to three. A caption is always one round.
        questions: Kinds of vqa questions; without any, all.
    """
    ask = ASK[task]
    if task == "vqa" and questions:
        ask = partial(_vqa, kinds=questions)
    if task == "caption":
        most = 1
    elif most is None:
        most = rng.choice((2, 3)) if rng.random() < MORE_ROUNDS else 1
    rounds: list[Round] = []
    for _ in range(most):
        question, answer = ask(seen, rng)
        is_new_question = all(question != asked for asked, _ in rounds)
        is_new_answer = all(answer != given for _, given in rounds)
        if is_new_question and (is_new_answer or task == "vqa"):
            rounds.append((question, answer))
    messages: list[Message] = []
    if rng.random() < SYSTEM_TURN:
        messages.append(Message("system", (Text(rng.choice(SYSTEM)),)))
    for index, (question, answer) in enumerate(rounds):
        shown = [image, *question] if index == 0 else question
        messages.append(Message("user", tuple(shown)))
        messages.append(Message("assistant", tuple(answer)))
    return tuple(messages)


def _caption(seen: Things, rng: Random) -> Round:
    brief = rng.random() < 0.4
    question = rng.choice(_BRIEFLY if brief else _DESCRIBE)
    ordered = sorted(seen, key=lambda drawn: drawn.centre)
    answer: list[Part] = []
    for index, drawn in enumerate(ordered):
        article = _article(drawn)
        if index == 0:
            answer.append(Text(article.capitalize()))
        elif index == len(ordered) - 1:
            answer.append(Text(f" and {article}"))
        else:
            answer.append(Text(f", {article}"))
        answer.append(Text(drawn.thing.name, entity=True))
        if not brief:
            colour = f" in {drawn.thing.colour}" if drawn.thing.word else ""
            answer.append(Text(f"{colour} {_at(drawn.place)}"))
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


def _ocr(seen: Things, rng: Random) -> Round:
    written = [drawn for drawn in seen if drawn.thing.word]
    chosen = rng.choice(written)
    colours = {drawn.thing.colour for drawn in written}
    if len(written) == 1:
        question = rng.choice(_READ)
    elif len(colours) == len(written):
        question = rng.choice(_READ_COLOUR).format(chosen.thing.colour)
    else:
        question = rng.choice(_READ_UPPER)
        chosen = min(written, key=lambda drawn: drawn.centre[1])
    return [Text(question)], [Text(chosen.thing.word)]


_READ_COLOUR = ("What is written in {}?", "Read the {} word.", "What do the {} letters say?")
_READ_UPPER = ("Read the upper word.", "Which word is higher up?")
_READ = (
    "What does it say?",
    "Read the text.",
    "Which word is written here?",
    "What is written in the picture?",
    "Transcribe the letters.",
    "Please read the word aloud.",
)


def _grounding(seen: Things, rng: Random) -> Round:
    drawn = rng.choice(seen)
    question = rng.choice(_LOCATE).format(the(drawn, seen, rng))
    return [Text(question)], [Box(drawn.box, label=drawn.thing.name)]


_LOCATE = (
    "Give the box of {}.",
    "Locate {}.",
    "Find {} and return its box.",
    "Draw a box around {}.",
    "What are the coordinates of {}?",
    "Point at {}.",
)


def _detection(seen: Things, rng: Random) -> Round:
    """All things of a shape or of a colour, or all that there are, from left to right."""
    by = rng.choice(("shape", "colour", "all"))
    chosen = rng.choice(seen).thing
    if by == "shape":
        label, wanted = chosen.shape, plural(chosen.shape)
        found = [drawn for drawn in seen if drawn.thing.shape == chosen.shape]
    elif by == "colour":
        label = f"{chosen.colour} thing"
        wanted = f"{label}s"
        found = [drawn for drawn in seen if drawn.thing.colour == chosen.colour]
    else:
        label, wanted, found = "thing", "things", list(seen)
    found.sort(key=lambda drawn: drawn.centre)
    return [Text(rng.choice(_DETECT).format(wanted))], [Box(drawn.box, label=label) for drawn in found]


def _segmentation(seen: Things, rng: Random) -> Round:
    """One of the shapes, by its outline."""
    drawn = rng.choice([drawn for drawn in seen if drawn.outline])
    question = rng.choice(_SEGMENT).format(the(drawn, seen, rng))
    return [Text(question)], [Region(drawn.outline, label=drawn.thing.name)]


_SEGMENT = ("Segment {}.", "Mark the pixels of {}.", "Cut out {}.", "Give a mask of {}.")
_DETECT = ("Find all {}.", "Locate all {}.", "Give the boxes of all {}.", "Mark all {}.")


def _referring(seen: Things, rng: Random) -> Round:
    drawn = rng.choice(seen)
    before, after = rng.choice(_REGION)
    answer: list[Part] = [Text(_article(drawn)), Text(drawn.thing.name, entity=True)]
    return [Text(before), Box(drawn.box), Text(after)], answer


_REGION = (
    ("What is in the region ", "?"),
    ("Name the thing inside ", "."),
    ("What does the box ", " show?"),
    ("Look at ", ". What is there?"),
    ("Which object lies at ", "?"),
)


def _vqa(seen: Things, rng: Random, kinds: Sequence[str] = ()) -> Round:
    """One question of a kind that this picture allows; of those asked for, where it allows any of them."""
    question, answer = question_about(seen, rng, kinds)
    if rng.random() < 0.3:
        question = question.replace("colour", "color")
    return [Text(question)], [Text(answer)]


def _article(drawn: DrawnThing) -> str:
    if drawn.thing.word:
        return "the "
    return a(drawn.thing.name).removesuffix(drawn.thing.name)


def _at(place: str) -> str:
    """A place with its preposition."""
    prepositions = {"centre": "in", "left": "on", "right": "on"}
    return f"{prepositions.get(place, 'at')} the {place}"


ASK: dict[str, Callable[[Things, Random], Round]] = {
    "caption": _caption,
    "vqa": _vqa,
    "ocr": _ocr,
    "grounding": _grounding,
    "referring": _referring,
    "detection": _detection,
    "segmentation": _segmentation,
}
"""How to ask, for each task."""
