"""A comparison as one HTML page that needs no other file: `page.html` is its template."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_vlm_callbacks.whole_files import refusal, write_whole

from lightning_vlm.callbacks.prediction_table.history import Answer, answer_of, shorten
from lightning_vlm.callbacks.prediction_table.page import svg_path
from lightning_vlm.callbacks.prediction_table.samples import SIDE, Place, Row, row_of
from lightning_vlm.compare.changed import Change
from lightning_vlm.compare.comparison import Comparison, Part, SetResult, conversation_of
from lightning_vlm.compare.estimates import ScoreRow
from lightning_vlm.compare.sentences import (
    difference_text,
    estimate_text,
    findings,
    method_lines,
    model_rows,
    notes,
    number,
    text_rows,
)
from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_table import heading
from lightning_vlm.outputs.html import data_uri, templates
from lightning_vlm.terminal import visible

_EXACT = 96 * 96
WIDTH = 230
"""How wide a picture is shown, in pixels of the page."""


class Table(NamedTuple):
    """A table."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


class Line(NamedTuple):
    """A line of a table of scores.

    Args:
        score: Its name; empty where it stands above.
        model: The model.
        value: With its interval.
        bar: Where the ends of the interval and the value lie, from 0 to 100; None where none is drawn.
        difference: With its interval.
        verdict: Of it.
    """

    score: str
    model: str
    value: str
    bar: tuple[float, float, float] | None
    difference: str
    verdict: str


class Sample(NamedTuple):
    """A sample that changed.

    Args:
        row: Its pictures, and what lies in them.
        prompt: What was asked.
        right: What is right.
        before: What the one model answered.
        after: What the other did.
        score: What says so, with its values.
    """

    row: Row
    prompt: str
    right: str | None
    before: Answer
    after: Answer
    score: str


class Changed(NamedTuple):
    """What changed between two models on a set.

    Args:
        title: Of the section.
        before: The one model.
        after: The other.
        won: The first samples that were won.
        lost: The first that were lost.
        counts: How many there are of both.
    """

    title: str
    before: str
    after: str
    won: list[Sample]
    lost: list[Sample]
    counts: tuple[int, int]


def save(comparison: Comparison, path: Path, most: int, image_root: str | None = None) -> None:
    """Write the page.

    Args:
        comparison: What is on it.
        path: The file.
        most: How many samples that were won, and how many that were lost, are shown.
        image_root: Where paths of pictures in files of answers begin, if no data is there.

    Raises:
        UserError: It can't be written there.
    """
    try:
        write_whole(path, page(comparison, most, image_root))
    except OSError as error:
        raise UserError(f"--out: {refusal(error)}") from error


def page(comparison: Comparison, most: int, image_root: str | None = None) -> str:
    """The whole page."""
    filters: dict[str, Any] = {
        "data_uri": lambda picture: data_uri(picture, SIDE, _EXACT),
        "path": svg_path,
        "short": "{:.4g}".format,
        "visible": visible,
    }
    models = model_rows(comparison)
    return (
        templates(Path(__file__).parent, filters)
        .get_template("page.html")
        .render(
            models=comparison.models,
            model_table=Table(models[0], models[1:]),
            findings=list(findings(comparison)),
            notes=list(notes(comparison)),
            methods=list(method_lines(comparison)),
            sets=[_set(comparison, result) for result in comparison.sets],
            changed=list(_changed(comparison, most, image_root)),
            width=WIDTH,
        )
    )


def _set(comparison: Comparison, result: SetResult) -> dict[str, Any]:
    texts = text_rows(comparison, result)
    parts = [
        {"task": part.task, "samples": part.samples, "lines": list(_lines(comparison, part))}
        for part in result.parts
    ]
    return {
        "name": result.set.name,
        "where": result.set.where,
        "parts": parts,
        "texts": Table(texts[0], texts[1:]),
    }


def _lines(comparison: Comparison, part: Part) -> Iterator[Line]:
    for row in part.rows:
        name = heading(row.name)
        bars = _bars(row)
        for place, model in enumerate(comparison.models):
            estimate, difference = row.estimates[place], row.differences[place]
            if estimate is None:
                continue
            verdict = "" if difference is None else difference.verdict
            yield Line(
                name,
                model.label,
                estimate_text(estimate),
                bars[place],
                difference_text(difference),
                verdict,
            )
            name = ""


def _bars(row: ScoreRow) -> list[tuple[float, float, float] | None]:
    """Where intervals and values of a score lie, on a scale from 0 to the largest, or to 1."""
    numbers = [0.0]
    for estimate in row.estimates:
        if estimate is not None and estimate.interval is not None:
            numbers += [*estimate.interval, estimate.value]
    top = 1.0 if max(numbers) <= 1 else max(numbers)
    bars: list[tuple[float, float, float] | None] = []
    for estimate in row.estimates:
        if estimate is None or estimate.interval is None or min(numbers) < 0:
            bars.append(None)
        else:
            low, high = estimate.interval
            bars.append((100 * low / top, 100 * high / top, 100 * estimate.value / top))
    return bars


def _changed(comparison: Comparison, most: int, image_root: str | None) -> Iterator[Changed]:
    for result in comparison.sets:
        places = {key: place for place, key in enumerate(result.keys)}
        for number_of, changes in enumerate(result.changes):
            other = comparison.models[number_of].entrant.against
            if changes is None or other is None or not (changes.won or changes.lost):
                continue
            before, after = comparison.models[other].label, comparison.models[number_of].label
            samples = []
            for some in (changes.won[:most], changes.lost[:most]):
                shown = [
                    _sample(result, change, places[change.key], other, number_of, image_root)
                    for change in some
                ]
                samples.append(shown)
            yield Changed(
                f"{result.set.name}: {after} against {before}",
                before,
                after,
                samples[0],
                samples[1],
                (len(changes.won), len(changes.lost)),
            )


def _sample(
    result: SetResult, change: Change, place: int, before: int, after: int, image_root: str | None
) -> Sample:
    one, other = result.answers[before][place], result.answers[after][place]
    conversation = conversation_of(result.set, one) or conversation_of(result.set, other)
    if conversation is None:
        conversation = _of_files(one.prediction, image_root)
    values = f"{heading(change.measure)} {number(change.before)} → {number(change.after)}"
    prediction = one.prediction
    return Sample(
        row_of(Place(0, place), conversation),
        shorten(prediction.prompt),
        None if prediction.reference is None else shorten(prediction.reference),
        answer_of(one.prediction),
        answer_of(other.prediction),
        values,
    )


def _of_files(answer: Prediction, image_root: str | None) -> Conversation:
    """What a file of answers says of a sample. Only pictures below the root are opened."""
    root = Path(image_root or ".")
    pictures: Sequence[Image] = [Image(Path(file), root=root) for file in answer.images if file]
    message = Message("user", (*pictures, Text(answer.prompt or "?")))
    return Conversation((message,), task=answer.task, source=answer.source)
