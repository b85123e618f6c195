"""The embedded data set: pictures drawn from a seed, with conversations for six tasks.

It needs no file and never ends, every box is exact, and what each split may show is fixed for all seeds. It
stands in for real data in tests and demos, and the shipped model was pretrained on it.
"""

import io
from random import Random

from lightning_vlm.data.conversation import Box, Conversation, Image
from lightning_vlm.data.drawn.items import DrawnItems, Split
from lightning_vlm.data.drawn.questions import QUESTIONS
from lightning_vlm.data.drawn.scenes import HOW_MANY, DrawnThing, draw, layout
from lightning_vlm.data.drawn.talk import ASK, talk
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES, WORDS
from lightning_vlm.errors import UserError

TASKS: tuple[str, ...] = ("caption", "vqa", "ocr", "grounding", "referring")
"""The tasks that are drawn where none are chosen. Beside them there are `detection` and `segmentation`."""
WORD_CHANCE = 0.2
"""How often there is a word on a picture, where the task isn't about words."""
_WORDS_OF_TASK = {"ocr": 1.0, "segmentation": 0.0}


class Drawn(DrawnItems):
    """Drawn pictures with conversations: caption, vqa, ocr, grounding, referring, detection,
    segmentation.

    A picture has one to four things on it (ten shapes, twelve colours, drawn words) that don't touch. Item
    `i` is the same in every process; it depends on `split`, `seed`, `i`, and on which of the wanted tasks
    falls to it. No picture of one split shows the same things at the same places as a picture of another
    split, for any seeds.

    Args:
        split: `train`, `val` or `test`.
        size: How many items it has.
        seed: Another seed, other pictures.
        tasks: Which tasks, each as often as the others. None is all but the last two.
        image_size: Side of the square pictures in pixels.
        max_things: The most things on a picture, 1 to 4.
        rounds: The most questions about a picture. None is mostly one, at times up to three.
        questions: Which kinds of vqa questions, each as often as the others, where the picture allows them:
            colour, shape, exists, absent, count, place, side, larger. None is all.

    Raises:
        UserError: An unknown split or task, no items, or pictures too small to see anything on.

    >>> data = Drawn("train", size=100, seed=7, tasks=["grounding"])
    >>> question, answer = data[3].messages[-2:]
    >>> question.parts[-1].text
    'What are the coordinates of the blue diamond?'
    >>> str(answer.parts[0])
    '[594, 609, 766, 875]'
    """

    def __init__(
        self,
        split: Split = "train",
        size: int = 10_000,
        seed: int = 0,
        tasks: list[str] | None = None,
        image_size: int = 64,
        max_things: int = 4,
        rounds: int | None = None,
        questions: list[str] | None = None,
    ) -> None:
        super().__init__(split, size, seed, list(TASKS) if tasks is None else tasks, image_size, tuple(ASK))
        self._check_names("questions", questions or (), QUESTIONS)
        if not 1 <= max_things <= max(HOW_MANY):
            raise UserError(f"Drawn: max_things is {max_things}; choose 1 to {max(HOW_MANY)}")
        if rounds is not None and rounds < 1:
            raise UserError(f"Drawn: rounds is {rounds}; ask at least 1 question")
        self.max_things = max_things
        self.rounds = rounds
        self.questions = tuple(questions or ())

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        item = self._item(index)
        task = self._task(item)
        rng = Random(f"{item}/{task}")
        word_chance = _WORDS_OF_TASK.get(task, WORD_CHANCE)
        things = layout(rng, self.split, word_chance, self.max_things)
        picture, seen = draw(rng, things, self.image_size)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=0)  # noise does not compress, and this is twice as fast
        messages = talk(task, seen, Image(data=file.getvalue()), rng, self.rounds, self.questions)
        shown = tuple(Box(drawn.box, label=_label(drawn)) for drawn in seen)
        return Conversation(messages, task=task, source=f"drawn:{item}", shown=shown)

    def names(self) -> list[str]:
        """All names that a drawn thing may have."""
        of_both = [f"{colour} {shape}" for colour in SHADES for shape in SHAPES]
        of_colour = [f"{colour} thing" for colour in SHADES]
        return [*of_both, *SHAPES, *of_colour, *(f'word "{word}"' for word in WORDS)]


def _label(drawn: DrawnThing) -> str:
    """All that names it: colour, shape and word."""
    thing = drawn.thing
    return f"{thing.colour} {thing.name}" if thing.word else thing.name
