"""Models side by side: scores, differences, what changed, and what their answers are like."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from lightning_vlm.compare.answered import Answered, AnswerSet, Key, answered_by_all
from lightning_vlm.compare.answering import Facts
from lightning_vlm.compare.changed import Changes, changes, main_measures
from lightning_vlm.compare.entrants import Entrant
from lightning_vlm.compare.estimates import ScoreRow, score_row
from lightning_vlm.compare.measures import Measure, measures_of
from lightning_vlm.compare.sets import SampleSet
from lightning_vlm.compare.texts import Texts, texts_of
from lightning_vlm.data.conversation import Conversation, Located
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.score_choice import ScoreChoice


class Model(NamedTuple):
    """A model, and what it took.

    Args:
        entrant: It.
        facts: What it is; None of a file of answers.
        sets: Its answers to each set.
    """

    entrant: Entrant
    facts: Facts | None
    sets: list[AnswerSet]

    @property
    def label(self) -> str:
        """What it is called."""
        return self.entrant.label

    @property
    def quantized(self) -> str | None:
        """The method by which it is quantised for the comparison."""
        return self.entrant.quantized

    @property
    def answers_per_second(self) -> float | None:
        """Measured over all sets; None of a file of answers."""
        return self._per_second(sum(one.timed for one in self.sets))

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of answers, likewise."""
        return self._per_second(sum(one.tokens for one in self.sets))

    @property
    def peak(self) -> int | None:
        """The most bytes of a GPU in use; None where that wasn't measured."""
        peaks = [one.peak for one in self.sets if one.peak is not None]
        return max(peaks, default=None)

    def _per_second(self, count: int) -> float | None:
        seconds = sum(one.seconds for one in self.sets)
        return count / seconds if seconds else None


class Part(NamedTuple):
    """The scores of the samples of a task.

    Args:
        task: It; empty for all samples.
        samples: How many there are.
        rows: The scores.
    """

    task: str
    samples: int
    rows: list[ScoreRow]


class SetResult(NamedTuple):
    """What was found on a set.

    Args:
        set: The set.
        keys: Its samples that all models have answered.
        left_out: How many others some model has answered.
        groups: How many groups of samples were drawn: those that share pictures are together.
        answers: Of each model, to `keys`.
        parts: The scores of all samples, and of each task where there are several.
        main: The scores that say which answers are better, of all tasks.
        changes: Of each model, what changed from the one that it is compared with.
        texts: What the answers of each model are like.
        right: What the right answers are like; None where there are none.
    """

    set: SampleSet
    keys: list[Key]
    left_out: int
    groups: int
    answers: list[list[Answered]]
    parts: list[Part]
    main: list[str]
    changes: list[Changes | None]
    texts: list[Texts]
    right: Texts | None


class Comparison(NamedTuple):
    """Models on sets."""

    models: list[Model]
    sets: list[SetResult]


def compare(
    models: Sequence[Model], sets: Sequence[SampleSet], choice: ScoreChoice, only_common: bool = False
) -> Comparison:
    """Compare models.

    Args:
        models: With their answers.
        sets: On which.
        choice: Which scores each task has.
        only_common: Whether the samples may be others in each file of answers.

    Raises:
        UserError: Answers to different prompts, no sample that all have answered, or none with a score.
    """
    return Comparison(
        list(models),
        [
            _on_set(models, one, [model.sets[number].answers for model in models], choice, only_common)
            for number, one in enumerate(sets)
        ],
    )


def _on_set(
    models: Sequence[Model],
    one: SampleSet,
    given: Sequence[dict[Key, Answered]],
    choice: ScoreChoice,
    only_common: bool,
) -> SetResult:
    keys = answered_by_all(given)
    left_out = len({key for answers in given for key in answers}) - len(keys)
    if not keys:
        raise UserError(f"compare: found no sample of {one.name} that all models have answered")
    if one.source is None and left_out and not only_common:
        raise UserError(
            f"compare: found {left_out:,} samples that not all files have answered, and {len(keys):,} that "
            "all have; compare answers to the same data, or with --common only those"
        )
    answers = [[of_model[key] for key in keys] for of_model in given]
    for number, model in enumerate(models):
        _check_same(models[0], model, one, answers[0], answers[number])
    tasks = list(dict.fromkeys(answer.prediction.task for answer in answers[0]))
    measures = {task: measures_of(choice, [task]) for task in tasks}
    groups = [_group(key, answer) for key, answer in zip(keys, answers[0], strict=True)]
    against = [model.entrant.against for model in models]
    parts = [Part("", len(keys), _rows(answers, against, groups, choice, measures_of(choice, tasks)))]
    if not any(row.name not in ("loss", "perplexity") for row in parts[0].rows):
        raise UserError(
            f"compare: found no right answer in {one.name} that a score could compare with "
            f"({', '.join(tasks)}); expected a last assistant turn, or other model.scores"
        )
    if len(tasks) > 1:
        for task in sorted(tasks):
            places = [place for place, answer in enumerate(answers[0]) if answer.prediction.task == task]
            of_task = [[of_model[place] for place in places] for of_model in answers]
            of_groups = [groups[place] for place in places]
            rows = _rows(of_task, against, of_groups, choice, measures[task])
            parts.append(Part(task, len(places), rows))
    main = main_measures(measures, choice, answers[0])
    changed = [
        None if other is None else changes(keys, answers[other], answers[number], main)
        for number, other in enumerate(against)
    ]
    right = [answer.prediction.reference for answer in answers[0]]
    texts = [_texts(of_model, right, main) for of_model in answers]
    there = [text for text in right if text is not None]
    of_right = texts_of(there) if there else None
    names = list(dict.fromkeys(measure.name for measure in main.values()))
    return SetResult(one, keys, left_out, len(set(groups)), answers, parts, names, changed, texts, of_right)


def _rows(
    answers: Sequence[Sequence[Answered]],
    against: Sequence[int | None],
    groups: Sequence[Hashable],
    choice: ScoreChoice,
    measures: Sequence[Measure],
) -> list[ScoreRow]:
    rows = [score_row(measure, answers, against, groups, choice) for measure in measures]
    return [row for row in rows if row is not None and any(row.estimates)]


def _texts(answers: Sequence[Answered], right: Sequence[str | None], main: dict[str, Measure]) -> Texts:
    scores = []
    for answer in answers:
        measure = main.get(answer.prediction.task)
        value = None if measure is None else measure.of(answer)
        scores.append(None if measure is None or value is None else value * measure.direction)
    tasks = [answer.prediction.task for answer in answers]
    return texts_of([answer.prediction.text for answer in answers], right, scores, tasks)


def _group(key: Key, answer: Answered) -> Hashable:
    """What a sample shares with those that are drawn together with it: its pictures, where they are files."""
    files = (*answer.prediction.images, *answer.prediction.videos)
    return files if files and None not in files else key


def conversation_of(one: SampleSet, answer: Answered) -> Conversation | None:
    """The sample of an answer; None where only files of answers are compared."""
    return None if one.source is None or answer.place is None else one.source[answer.place]


def _check_same(
    first: Model, other: Model, one: SampleSet, before: Sequence[Answered], after: Sequence[Answered]
) -> None:
    """Whether two models were asked the same, where one of them is a file of answers.

    Raises:
        UserError: They weren't.
    """
    if "answers" not in (first.entrant.kind, other.entrant.kind):
        return
    for here, there in zip(before, after, strict=True):
        conversation = conversation_of(one, here)
        if conversation is not None and _has_boxes(conversation):
            continue  # each model writes them in its own way
        for name in ("prompt", "reference"):
            found, expected = getattr(there.prediction, name), getattr(here.prediction, name)
            if found != expected:
                what = "prompts" if name == "prompt" else "right answers"
                raise UserError(
                    f"compare: found different {what} of {here.prediction.source}: {_short(expected)} of "
                    f"{first.label}, {_short(found)} of {other.label}; expected answers to the same data"
                )


def _has_boxes(conversation: Conversation) -> bool:
    return any(isinstance(part, Located) for turn in conversation.messages for part in turn.parts)


def _short(text: str | None) -> str:
    return "none" if text is None else repr(text if len(text) <= 40 else f"{text[:39]}…")
