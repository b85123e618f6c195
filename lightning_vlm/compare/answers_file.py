"""Answers that `predict` wrote, as those of a model."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_vlm.compare.answered import Answered, AnswerSet, Key, with_keys
from lightning_vlm.compare.entrants import Entrant, read_rows
from lightning_vlm.compare.sets import SampleSet
from lightning_vlm.data.conversation import Conversation, Located
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.prediction import Prediction

LOSSES = "losses"
"""Where a file that `compare` wrote keeps the losses of the right answer."""


def answers_in(entrant: Entrant) -> dict[Key, Answered]:
    """All answers of a file, by their samples.

    Raises:
        UserError: A line that isn't an answer.
    """
    return with_keys(map(_answered, read_rows(Path(entrant.path))))


def _answered(row: Mapping[str, Any]) -> Answered:
    prediction = Prediction(
        source=row["source"],
        task=row.get("task", "default"),
        text=row["answer"],
        reference=row.get("reference"),
        prompt=row.get("prompt", ""),
        images=tuple(row.get("images") or ()),
        videos=tuple(row.get("videos") or ()),
        reasoning=row.get("reasoning"),
    )
    losses = row.get(LOSSES)
    scores = {name: value for name, value in row["scores"].items() if value is not None}
    return Answered(prediction, None if losses is None else tuple(losses), scores)


def answers_to(
    entrant: Entrant, answers: Mapping[Key, Answered], one: SampleSet, only_common: bool
) -> AnswerSet:
    """The answers of a file to the samples of a set.

    Args:
        entrant: The file.
        answers: As from `answers_in`.
        one: The set.
        only_common: Whether samples may have no answer.

    Raises:
        UserError: Answers to other samples, or to not all of these.
    """
    wanted = _samples(one)
    by_name = {Key(os.path.basename(key.source), key.number): answer for key, answer in answers.items()}
    found: dict[Key, Answered] = {}
    missing = []
    for key, (place, conversation) in wanted.items():
        answer = answers.get(key) or by_name.get(Key(os.path.basename(key.source), key.number))
        if answer is None:
            missing.append(key.source)
            continue
        _check_same(entrant, answer.prediction, conversation)
        prediction = answer.prediction._replace(
            source=key.source, references=conversation.references, level=conversation.level
        )
        found[key] = answer._replace(prediction=prediction, place=place)
    if not found:
        first = next(iter(answers), Key("none"))
        raise UserError(
            f"{entrant.path}: found answers to other samples ({first.source}, ...); expected those of "
            f"the set {one.name} ({next(iter(wanted)).source}, ...)"
        )
    if missing and not only_common:
        raise UserError(
            f"{entrant.path}: found no answer to {len(missing):,} of the {len(wanted):,} samples of "
            f"{one.name} ({missing[0]}, ...); answer them, or compare with --common what all have answered"
        )
    return AnswerSet(found)


def _samples(one: SampleSet) -> dict[Key, tuple[int, Conversation]]:
    count: dict[str, int] = {}
    samples = {}
    for place, conversation in enumerate(one.source or ()):
        number = count.get(conversation.source, 0)
        count[conversation.source] = number + 1
        samples[Key(conversation.source, number)] = place, conversation
    return samples


def _check_same(entrant: Entrant, answer: Prediction, conversation: Conversation) -> None:
    """Whether a sample still has the right answer that it was scored with.

    Raises:
        UserError: It doesn't, so that the file has answers to other data.
    """
    last = conversation.messages[-1]
    if last.role != "assistant" or last.calls or any(isinstance(part, Located) for part in last.parts):
        return
    right = "".join(getattr(part, "text", "") for part in last.parts).strip()
    if answer.reference is not None and answer.reference.strip() != right:
        raise UserError(
            f"{entrant.path}: found another right answer to {conversation.source} than the data has: "
            f"{_short(answer.reference)} there, {_short(right)} here; answer this data again"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
