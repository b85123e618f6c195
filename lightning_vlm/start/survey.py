"""What is in the samples of a source: tasks, turns, pictures, answers."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_vlm.data.conversation import (
    Box,
    Conversation,
    Conversations,
    Image,
    Message,
    Nothing,
    Point,
    Region,
    Text,
    Video,
)

_LETTER = re.compile(r"\(?[A-H]\)?[.:]?(?:\s.*)?", re.DOTALL)
_CHOICE = re.compile(r"^[^\S\n]*\(?B[.:)]\s*\S", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(?:[\d,]*\d|[\d,]*\.\d+)\s*%?")


@dataclass
class TaskFacts:
    """What the answers of a task are.

    Args:
        words: How many words each has.
        kinds: How many are yes or no, letters of choices, numbers, boxes, points, outlines, nothing.
        references: How many samples have four right answers or more.
        samples: How many samples were looked at.
    """

    words: list[int] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    references: int = 0
    samples: int = 0

    def share(self, *kinds: str) -> float:
        """The share of the answers that are of one of some kinds."""
        return sum(self.kinds[kind] for kind in kinds) / max(1, len(self.words))

    @property
    def usual_words(self) -> float:
        """The words of an answer in the middle."""
        return statistics.median(self.words) if self.words else 0


@dataclass
class Survey:
    """What is in a source.

    Args:
        size: How many samples it has.
        tasks: How many of each task.
        looked_at: Which of them were looked at.
        facts: What these are, by task.
        rounds: How many answers each has.
        pictures: How many pictures each has.
        videos: How many of them have videos.
        systems: How many begin with a system turn.
        addresses: How many pictures and videos are fetched from addresses.
    """

    size: int
    tasks: dict[str, int]
    looked_at: Sequence[int]
    facts: dict[str, TaskFacts] = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    videos: int = 0
    systems: int = 0
    addresses: int = 0

    @property
    def has_boxes(self) -> bool:
        """Whether some answers have boxes, points or outlines."""
        return any(facts.share("box", "point", "region") for facts in self.facts.values())

    @property
    def answers(self) -> int:
        """How many answers were looked at."""
        return sum(self.rounds)


def survey(source: Conversations, most: int = 1000) -> Survey:
    """Look at some samples, evenly spread.

    Args:
        source: The samples.
        most: How many are looked at.
    """
    size = len(source)
    names, of = source.task_table()
    counts = Counter(of)
    tasks = {names[number]: count for number, count in counts.most_common()}
    step = max(1, size / most)
    looked_at = sorted({int(place * step) for place in range(min(most, size))})
    found = Survey(size, tasks, looked_at)
    facts: dict[str, TaskFacts] = defaultdict(TaskFacts)
    for index in looked_at:
        _look(source[index], found, facts)
    found.facts = dict(facts)
    return found


def _look(conversation: Conversation, found: Survey, facts: dict[str, TaskFacts]) -> None:
    media: list[Image | Video] = [*conversation.images, *conversation.videos]
    found.pictures.append(len(conversation.images))
    found.videos += bool(conversation.videos)
    found.addresses += any(medium.url is not None for medium in media)
    found.systems += conversation.messages[0].role == "system"
    of_task = facts[conversation.task]
    of_task.samples += 1
    of_task.references += len(conversation.references) >= 4
    rounds = 0
    asked = ""
    for turn in conversation.messages:
        text = _text(turn)
        if turn.role == "assistant":
            rounds += 1
            of_task.words.append(len(text.split()))
            of_task.kinds.update(_kinds(turn, text.strip(), asked))
        else:
            asked = text
    found.rounds.append(rounds)


def _text(turn: Message) -> str:
    return " ".join(part.text for part in turn.parts if isinstance(part, Text))


def _kinds(turn: Message, text: str, asked: str) -> set[str]:
    kinds = set()
    for kind, name in ((Box, "box"), (Point, "point"), (Region, "region"), (Nothing, "nothing")):
        if any(isinstance(part, kind) for part in turn.parts):
            kinds.add(name)
    if not kinds:
        if text.lower().rstrip(".") in ("yes", "no"):
            kinds.add("yes_no")
        elif _LETTER.fullmatch(text) and _CHOICE.search(asked):
            kinds.add("letter")
        elif _NUMBER.fullmatch(text):
            kinds.add("number")
    return kinds
