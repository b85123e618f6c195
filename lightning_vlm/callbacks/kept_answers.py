"""Rejection sampling: of the answers to each prompt, those with good scores become training data."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm.data.boxes.reader import BoxReader
from lightning_vlm.data.conversation import Conversations, Message, Text
from lightning_vlm.data.parts import Part
from lightning_vlm.data.read.own_rows import own_row
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.answers import divided, reasoning_marks
from lightning_vlm.metrics.keep_rule import KeepRule
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.terminal import short_path

NAME = "kept.jsonl"
"""The file, beside that of the answers."""
FEW = 4
"""Prompts with so many kept answers or more are counted together."""


class Kept(NamedTuple):
    """What is kept of the answers to one prompt.

    Args:
        rows: Rows of training data.
        candidates: What the line of the answer says of each of its candidates besides.
        counts: How many answers were drawn, kept, and so on.
    """

    rows: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    counts: Counter[str]

    def marked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The line of the answer, where each candidate has its scores and whether it is kept."""
        pairs = zip(row["candidates"], self.candidates, strict=False)
        return {**row, "candidates": [{**one, **more} for one, more in pairs]}


class KeptAnswers:
    """Chooses answers by a rule, drops those that are there already, and makes training data of the rest.

    Args:
        rule: Which are kept.
        choice: The scores of each task.
        processor: Of the model that answers.
        source: The questions.
    """

    def __init__(self, rule: KeepRule, choice: ScoreChoice, processor: Any, source: Conversations) -> None:
        self._rule, self._choice, self._processor, self.source = rule, choice, processor, source
        images = source[0].images
        root = images[0].root if images and images[0].path is not None else None
        self.root = Path(root or ".").absolute()
        """Where paths of pictures in the rows begin."""

    def of(self, answer: Prediction, place: int, reader: BoxReader | None) -> Kept:
        """What is kept of the answers to a prompt.

        Args:
            answer: The best of them, with the others as its candidates, if there are any.
            place: Which item of the source was asked.
            reader: What reads boxes in them.
        """
        kept = Kept([], [], Counter(prompts=1))
        texts: set[tuple[str | None, str]] = set()
        for one in self._all(answer, reader):
            kept.counts["drawn"] += 1
            verdict = self._rule.keeps(one, self._choice)
            kept.candidates.append({"scores": self._choice.values(one), "kept": bool(verdict)})
            if not verdict:
                kept.counts["unknown"] += verdict is None
                continue
            parts = _parts(one, reader)
            if (one.reasoning, one.text) in texts:
                kept.counts["duplicates"] += 1
            elif parts is None:
                kept.counts["unwritable"] += 1
            else:
                kept.rows.append(self._row(place, Message("assistant", parts, reasoning=one.reasoning)))
                kept.counts["kept"] += 1
            texts.add((one.reasoning, one.text))
        kept.counts[f"with {min(len(kept.rows), FEW)}"] += 1
        return kept

    def lines(self, counts: Mapping[str, int], file: Path) -> list[str]:
        """What came of it, in words; see `lines_about`."""
        return lines_about(counts, short_path(file), self.root)

    def _all(self, answer: Prediction, reader: BoxReader | None) -> list[Prediction]:
        if not answer.candidates:
            return [answer]
        found = []
        for candidate in answer.candidates:
            reasoning, text = divided(reasoning_marks(self._processor), candidate.text)
            boxes = None if reader is None else reader.read(text)
            found.append(answer._replace(text=text, reasoning=reasoning, found=boxes, candidates=()))
        return found

    def _row(self, place: int, answer: Message) -> dict[str, Any]:
        asked = self.source[place]
        messages = asked.messages
        if messages[-1].role == "assistant":
            messages = messages[:-1]
        return own_row(asked.with_messages((*messages, answer)), self.root)


def _parts(answer: Prediction, reader: BoxReader | None) -> tuple[Part, ...] | None:
    """An answer as it is learned; None where it has boxes among words, whose tokens no text can spell."""
    if reader is not None and answer.found is not None and answer.found.items:
        try:
            written = reader.codec.write(answer.found.items, answer.views).text
        except ValueError:
            written = None
        if written == answer.text:
            return tuple(answer.found.items)
    if reader is not None and any(token in answer.text for token in reader.codec.tokens):
        return None
    return (Text(answer.text),)


def lines_about(counts: Mapping[str, int], file: str, root: Path) -> list[str]:
    """What came of it, in words.

    >>> counts = {"prompts": 3, "drawn": 24, "kept": 5, "duplicates": 9}
    >>> counts |= {"with 0": 1, "with 1": 1, "with 4": 1}
    >>> for line in lines_about(counts, "runs/kept.jsonl", Path("/photos")):
    ...     print(line)
    5 of 24 answers, to 2 of 3 prompts; 9 duplicates dropped
    prompts with none: 1, with 1: 1, with 4 or more: 1
    in runs/kept.jsonl; fit reads it with --data.train runs/kept.jsonl \
--data.image_root /photos
    """
    number = dict(counts)
    none = number.get("with 0", 0)
    first = f"{number.get('kept', 0):,} of {number.get('drawn', 0):,} answers, "
    first += f"to {number.get('prompts', 0) - none:,} of {number.get('prompts', 0):,} prompts"
    first += f"; {number.get('duplicates', 0):,} duplicates dropped"
    if number.get("unknown"):
        first += f"; {number['unknown']:,} could not be scored (no right answer, or not of that kind)"
    if number.get("unwritable"):
        first += f"; {number['unwritable']:,} left out, whose boxes stand among words"
    names = {0: "none", FEW: f"{FEW} or more"}
    each = [
        f"with {names.get(many, many)}: {number[f'with {many}']:,}"
        for many in range(FEW + 1)
        if number.get(f"with {many}")
    ]
    where = f"in {file}; fit reads it with --data.train {file} --data.image_root {root}"
    return [first, f"prompts {', '.join(each)}", where] if number.get("kept") else [first]


def holds_conversations(path: Path) -> bool:
    """Whether a file is one of kept answers, or empty, so that it may be renamed."""
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        row = json.loads(line) if line else {"messages": []}
    except ValueError:
        return False
    return isinstance(row, dict) and "messages" in row


def sampled(generation: Mapping[str, Any] | None, number: int) -> dict[str, Any]:
    """The options of `generate` for several answers to each prompt, drawn from what the model finds likely.

    Args:
        generation: Those that are given; what they don't set of temperature, top_k and top_p leaves the
            model's probabilities as they are.
        number: How many answers.

    Raises:
        UserError: No answer, no temperature, or beams.

    >>> sampled({"max_new_tokens": 8}, 4)["temperature"]
    1.0
    """
    given = dict(generation or {"max_new_tokens": 64})
    if number < 1:
        raise UserError(f"num: found {number}; expected at least 1")
    if given.get("num_beams", 1) > 1:
        raise UserError("num: found model.generation with beams; answers are drawn, leave num_beams out")
    temperature = given.get("temperature", 1.0)
    if not temperature > 0:
        raise UserError(
            f"num: found a temperature of {temperature}, with which all answers are alike; expected one "
            "above 0"
        )
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return {**plain, **given, "do_sample": True, "num_return_sequences": number}


def total(counts: Sequence[Mapping[str, int]]) -> Counter[str]:
    """Counts of several batches together."""
    together: Counter[str] = Counter()
    for one in counts:
        together.update(one)
    return together
