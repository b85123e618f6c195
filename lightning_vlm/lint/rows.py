"""What is wrong with the rows of a stretch of data, and what is known of them, as a worker finds it."""

import copy
import itertools
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.batch.lengths import Ruler
from lightning_vlm.data.conversation import Box, Conversation, Conversations, Image, Region, Text
from lightning_vlm.data.render.example import Example, TooLong
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.tools import texts_of
from lightning_vlm.errors import DataError
from lightning_vlm.lint.finding import Finding
from lightning_vlm.lint.hashes import hash_of
from lightning_vlm.module import VLMModule
from lightning_vlm.nearest import shorten

CHUNK = 64
"""How many neighbouring samples a worker reads at a time."""
FATES = ("kept", "cut", "skipped")
"""What becomes of a sample."""
_HAIR = 0.002
"""The least width and height of a box, in fractions of its picture."""
_PIXELS = 2
"""The same in pixels, where it has these."""
_SHARE = re.compile(r"#\d+$")


class PictureUse(NamedTuple):
    """A picture of a sample."""

    sample: int
    place: int
    """Which picture of the sample it is, from 0."""
    key: int
    """Tells its file or bytes from those of others."""


class PictureUses:
    """The pictures of all samples of a split, in 24 bytes each.

    >>> uses = PictureUses()
    >>> uses.add([PictureUse(0, 0, 7), PictureUse(2, 1, 9)])
    >>> [use.key for use in uses]
    [7, 9]
    """

    def __init__(self) -> None:
        self._numbers = array("Q")

    def add(self, uses: Iterable[PictureUse]) -> None:
        """Add some, in the order of samples."""
        for use in uses:
            self._numbers.extend(use)

    def __iter__(self) -> Iterator[PictureUse]:
        numbers = iter(self._numbers)
        return itertools.starmap(PictureUse, zip(numbers, numbers, numbers, strict=True))


class Rows(NamedTuple):
    """What is known of a stretch of samples.

    Args:
        words: Of each sample, 64 bits that tell its turns from others; 0 for one that can't be read.
        lengths: Its tokens before any cutting; 0 where that isn't known.
        fates: Its place in `FATES`.
        pictures: All their pictures.
        findings: What is wrong with them.
    """

    words: np.ndarray
    lengths: np.ndarray
    fates: np.ndarray
    pictures: list[PictureUse]
    findings: list[Finding]


class RowReader(Dataset):
    """The samples of a split in stretches of `CHUNK`, read and rendered without the pixels of pictures.

    Args:
        split: Which split it is.
        samples: Its samples.
        renderer: What renders them in training.
        module: Knows what tokens weigh.
    """

    def __init__(self, split: str, samples: Conversations, renderer: Renderer, module: VLMModule) -> None:
        self._split = split
        self._samples = samples
        self._module = module
        self._ruler = Ruler(renderer)
        self._untruncated = self._ruler
        if renderer.max_length is not None:
            unlimited = copy.copy(renderer)
            unlimited.max_length = None
            self._untruncated = Ruler(unlimited)
        self._special = renderer.special.pattern

    def __len__(self) -> int:
        return -(-len(self._samples) // CHUNK)

    def __getitem__(self, chunk: int) -> Rows:
        samples = range(len(self._samples))[chunk * CHUNK :][:CHUNK]
        words = np.zeros(len(samples), np.uint64)
        lengths = np.zeros(len(samples), np.int32)
        fates = np.zeros(len(samples), np.int8)
        pictures: list[PictureUse] = []
        findings: list[Finding] = []
        for place, sample in enumerate(samples):
            try:
                conversation = self._samples[sample]
            except DataError as error:  # what can only be seen once a picture is opened
                findings.append(Finding.of_error(_of_row(error), self._split, "bad_row"))
                fates[place] = FATES.index("skipped")
                continue
            for number, image in enumerate(conversation.images):
                pictures.append(PictureUse(sample, number, key_of(image)))
            words[place] = words_of(conversation)
            findings += self._of_words(conversation)
            lengths[place], fate, found = self._rendered(conversation)
            fates[place] = FATES.index(fate)
            findings += found
        return Rows(words, lengths, fates, pictures, findings)

    def _rendered(self, conversation: Conversation) -> tuple[int, str, list[Finding]]:
        """The length of a sample before any cutting, what becomes of it, and what is wrong with it then."""
        try:
            example = self._ruler.example(conversation)
        except TooLong as error:
            length = self._whole_length(conversation) or error.length
            return length, "skipped", [Finding.of_error(_of_row(error), self._split, "too_long")]
        except DataError as error:
            return 0, "skipped", [Finding.of_error(_of_row(error), self._split, "not_rendered")]
        length = len(example.input_ids)
        findings = []
        if not self._learned(example):
            found = f"{length:,} tokens, none of them with weight"
            findings.append(self._finding("nothing_learned", conversation, "", found))
        if not example.truncated:
            return length, "kept", findings
        length = self._whole_length(conversation) or length
        all_turns = example.truncated + len(example.conversation.messages)
        found = f"{length:,} tokens; {example.truncated} of {all_turns} messages don't fit"
        return length, "cut", [*findings, self._finding("cut", conversation, "", found)]

    def _whole_length(self, conversation: Conversation) -> int:
        try:
            return len(self._untruncated.example(conversation).input_ids)
        except DataError:
            return 0

    def _learned(self, example: Example) -> int:
        """How many tokens have weight in training."""
        batch = collate([Item(replace(example, inputs={}), None, None)], 0, [], [])
        return len(self._module.targets(batch).positions)

    def _of_words(self, conversation: Conversation) -> Iterator[Finding]:
        """What is wrong with turns and boxes, and doesn't stop training."""
        order = _odd_order([message.role for message in conversation.messages])
        if order:
            yield self._finding("role_order", conversation, "messages", order)
        for index, message in enumerate(conversation.messages):
            key = f"messages[{index}]"
            says_nothing = all(isinstance(part, Text) and not part.text.strip() for part in message.parts)
            if message.role == "assistant" and says_nothing and not message.calls and message.weight:
                yield self._finding("empty_answer", conversation, key, "an answer without a word")
            for place, part in enumerate(message.parts):
                key_of_part = f"{key}.content[{place}]"
                if isinstance(part, Text):
                    spelled = self._special.search(part.text)
                    if spelled:
                        found = f"{spelled[0]!r} in {shorten(part.text, 40)}"
                        yield self._finding("special_text", conversation, key_of_part, found)
                elif isinstance(part, Box | Region):
                    tiny = _tiny(part)
                    if tiny:
                        yield self._finding("tiny_box", conversation, key_of_part, tiny)

    def _finding(self, kind: str, conversation: Conversation, key: str, found: str) -> Finding:
        source = row_of(conversation.source)
        finding = Finding(kind, self._split, source, key, found)
        return finding._replace(drops=(source,)) if finding.about.drops else finding


def row_of(source: str) -> str:
    """The row that a sample is of; one conversation may make several samples.

    >>> row_of("chats.jsonl:7#2"), row_of("chats.jsonl:7")
    ('chats.jsonl:7', 'chats.jsonl:7')
    """
    return _SHARE.sub("", source)


def _of_row(error: DataError) -> DataError:
    return DataError(row_of(error.source), error.key, error.found, error.expected, error.kind)


def key_of(image: Image) -> int:
    """Tells the file or the bytes of a picture from those of others."""
    if image.data is not None:
        return hash_of(b"data", image.data)
    return hash_of(str(image.root).encode(), str(image.path or image.url).encode("utf-8", "surrogateescape"))


def words_of(conversation: Conversation) -> int:
    """Tells the turns of a conversation from those of others, but for what is on its pictures."""
    contents: list[bytes] = []
    for message in conversation.messages:
        contents.append(f"{message.role} {bool(message.weight)}".encode())
        for part in message.parts:
            said = "image" if isinstance(part, Image) else part.text if isinstance(part, Text) else repr(part)
            contents.append(said.encode("utf-8", "surrogatepass"))
        contents += [repr(call).encode("utf-8", "surrogatepass") for call in message.calls]
        contents.append((message.reasoning or "").encode("utf-8", "surrogatepass"))
    contents += [
        text.encode("utf-8", "surrogatepass") for tool in conversation.tools for text in texts_of(tool)
    ]
    return hash_of(*contents)


def _odd_order(roles: list[str]) -> str:
    """What is odd about the order of turns; nothing where it is usual.

    >>> _odd_order(["system", "user", "assistant", "user", "assistant"])
    ''
    >>> _odd_order(["user", "user", "assistant"])
    'user, user, assistant: two turns of the user in a row'
    """
    said = ", ".join(roles[:8]) + ", ..." * (len(roles) > 8)
    talk = [role for role in roles if role != "system"]
    if "system" in roles[1:]:
        return f"{said}: the system speaks later than first"
    if talk and talk[0] != "user":
        return f"{said}: the {talk[0]} begins"
    for one, other in itertools.pairwise(talk):
        if one == other and one != "tool":
            return f"{said}: two turns of the {one} in a row"
    if talk and talk[-1] != "assistant":
        return f"{said}: what comes after the last answer isn't learned"
    return ""


def _tiny(part: Box | Region) -> str:
    """What is said of a box that is hardly there; nothing of others.

    >>> _tiny(Box((0.5, 0.5, 0.501, 0.9)))
    'the box [0.5, 0.5, 0.501, 0.9], which is 0.001 wide and 0.4 high'
    """
    xs, ys = part.numbers[::2], part.numbers[1::2]
    width, height = max(xs) - min(xs), max(ys) - min(ys)
    if min(width, height) >= (_PIXELS if part.pixels else _HAIR):
        return ""
    name = type(part).__name__.lower()
    numbers = [round(number, 4) for number in part.numbers[:8]]
    return f"the {name} {numbers}, which is {width:.3g} wide and {height:.3g} high"
