"""What was found, in plain words."""

from collections.abc import Iterator

from lightning_vlm.compare.comparison import Comparison, Model, SetResult
from lightning_vlm.compare.estimates import FEWEST, FEWEST_CHANGED, Difference, Estimate, ScoreRow
from lightning_vlm.compare.measures import OF_ALL_BOXES
from lightning_vlm.compare.sets import GENERAL
from lightning_vlm.metrics.score_table import heading

MOST_LENGTH_BIAS = 0.3
"""From this correlation on, the length of answers is worth a word."""


MOST_SCORES = 3
"""How many scores of a set are spoken of."""


def main_rows(result: SetResult) -> list[ScoreRow]:
    """The scores that are spoken of: those that say which answers are better."""
    rows = [row for row in result.parts[0].rows if row.name in result.main] or result.parts[0].rows[:1]
    return rows[:MOST_SCORES]


def findings(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What was found, each with a word in front: gain, forgetting, what quantising lost, what changed."""
    for number, model in enumerate(comparison.models):
        if model.entrant.against is None:
            continue
        other = comparison.models[model.entrant.against]
        for result in comparison.sets:
            for row in main_rows(result):
                difference = row.differences[number]
                if difference is not None:
                    text = _finding(result, row, difference, model, other)
                    yield _word(result, model), text + _of_loss(result, number, difference.verdict)
            changed = result.changes[number]
            if changed is not None and (changed.won or changed.lost):
                counts = f"{len(changed.won):,} won, {len(changed.lost):,} lost"
                text = f"{_of(result)}{counts} ({_names(changed.measure)})"
                if changed.chance is not None and changed.won and changed.lost:
                    text += f"; of a fair coin so unequal {_percent(changed.chance)} of the time"
                yield "changed", text
    if all(result.set.name != GENERAL for result in comparison.sets):
        yield "forgetting", f"not measured; add a set of other tasks: --data {GENERAL}=FILE"


def notes(comparison: Comparison) -> Iterator[str]:
    """What should be known to read the numbers."""
    for model in comparison.models:
        on = model.facts.on if model.facts is not None else ""
        if on and model.entrant.kind == "base" and not model.quantized:
            yield f"{model.label} is in {on}, as its checkpoint was trained on it"
    for result in comparison.sets:
        in_files = {name for answers in result.answers for one in answers for name in one.scores}
        if missing := [name for name in OF_ALL_BOXES if name in in_files]:
            yield f"{_of(result)}{', '.join(missing)} can't be made of files of answers; compare the models"
        if result.left_out:
            yield f"{_of(result)}{result.left_out:,} samples that not all models have answered are left out"
        if result.groups < len(result.keys):
            yield f"{_of(result)}samples of the same pictures are drawn together: {result.groups:,} groups"
        for model, texts in zip(comparison.models, result.texts, strict=True):
            if texts.bias is not None and abs(texts.bias) >= MOST_LENGTH_BIAS:
                what = "long" if texts.bias > 0 else "short"
                yield f"{_of(result)}{what} answers of {model.label} score better ({texts.bias:+.2f})"


def _word(result: SetResult, model: Model) -> str:
    if model.quantized:
        return "quantised"
    return "forgetting" if result.set.name == GENERAL else "gain"


def _finding(result: SetResult, row: ScoreRow, difference: Difference, model: Model, other: Model) -> str:
    between = f"{model.label} against {other.label}, {result.set.name}"
    text = f"{between}: {heading(row.name)} {difference_text(difference)}: "
    if difference.verdict == "same":
        return text + "the same on each sample"
    if difference.verdict == "too few":
        return text + f"too few samples to tell (under {FEWEST}, or under {FEWEST_CHANGED} that changed)"
    if difference.verdict == "unclear":
        return text + "the interval holds 0, so these samples show no difference"
    forgets = result.set.name == GENERAL and difference.verdict == "worse"
    more = ", it has forgotten" if forgets else ""
    return text + f"{difference.verdict}{more}; the interval excludes 0"


def _of_loss(result: SetResult, number: int, verdict: str) -> str:
    """What the loss of right answers says where that is something else than a score does."""
    for row in result.parts[0].rows:
        difference = row.differences[number] if row.name == "loss" else None
        if difference is not None and difference.verdict in {"better", "worse"} - {verdict}:
            return f"; but the loss is {difference.verdict}, {difference_text(difference)}"
    return ""


def _of(result: SetResult) -> str:
    return f"{result.set.name}: "


def _names(measures: str) -> str:
    return ", ".join(heading(name) for name in measures.split(", "))


def _percent(share: float) -> str:
    return "less than 0.1%" if share < 0.001 else f"{share:.1%}"


def estimate_text(estimate: Estimate | None) -> str:
    """A score with its interval.

    >>> from lightning_vlm.compare.bootstrap import Interval
    >>> estimate_text(Estimate(0.5, Interval(0.4, 0.6), 100))
    '0.500 [0.400, 0.600]'
    """
    if estimate is None:
        return ""
    if estimate.interval is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.interval.low)}, {number(estimate.interval.high)}]"


def difference_text(difference: Difference | None) -> str:
    """A difference with its interval, without the verdict."""
    if difference is None:
        return ""
    if difference.interval is None:
        return signed(difference.value)
    low, high = difference.interval
    return f"{signed(difference.value)} [{signed(low)}, {signed(high)}]"


def number(value: float) -> str:
    """A number of a table.

    >>> number(0.98765), number(12.3), number(1234.5), number(123456.7)
    ('0.988', '12.30', '1234', '1.23e+05')
    """
    size = abs(value)
    if size >= 1e4:
        return f"{value:.3g}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def signed(value: float) -> str:
    """The same with its sign; zero has none.

    >>> signed(0.5), signed(-0.5), signed(0.0)
    ('+0.500', '-0.500', '0')
    """
    return "0" if value == 0 else ("+" if value > 0 else "") + number(value)


def size_text(count: float) -> str:
    """A count of bytes.

    >>> size_text(2_500_000), size_text(7.6e9)
    ('2.5 MB', '7.6 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def method_lines(comparison: Comparison) -> Iterator[str]:
    """How each model was trained, as far as that is known."""
    for model in comparison.models:
        facts = model.facts
        if facts is not None and facts.method:
            on = f" on {facts.on}" if facts.on and not model.quantized else ""
            yield f"{model.label}: {facts.method}{on}; step {facts.step:,}"


def model_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """The table of models: what each is and what it took; the first row has the headings."""
    rows: list[tuple[str, ...]] = [
        ("model", "trained", "parameters", "weights", "GPU peak", "answers/s", "tokens/s")
    ]
    for model in comparison.models:
        facts = model.facts
        if facts is None:
            rows.append((model.label, *[""] * 6))
            continue
        rows.append(
            (
                model.label,
                "" if facts.trained is None else f"{facts.trained:,}",
                f"{facts.parameters:,}",
                size_text(facts.size),
                "" if model.peak is None else size_text(model.peak),
                _speed(model.answers_per_second),
                _speed(model.tokens_per_second),
            )
        )
    return _without_empty(rows)


TEXT_COLUMNS = ("answers", "differ", "distinct-1", "distinct-2", "empty", "length", "ratio", "bias")
"""What is said of answers, see `Texts`."""


def text_rows(comparison: Comparison, result: SetResult) -> list[tuple[str, ...]]:
    """The table of what answers are like; the first row has the headings."""
    rows: list[tuple[str, ...]] = [TEXT_COLUMNS]
    everyone = [(model.label, texts) for model, texts in zip(comparison.models, result.texts, strict=True)]
    if result.right is not None:
        everyone.append(("(right)", result.right))
    for label, texts in everyone:
        rows.append(
            (
                label,
                f"{texts.different:.1%}",
                "" if texts.distinct_1 is None else f"{texts.distinct_1:.3f}",
                "" if texts.distinct_2 is None else f"{texts.distinct_2:.3f}",
                f"{texts.empty:.1%}",
                f"{texts.length:.1f}",
                "" if texts.ratio is None else f"{texts.ratio:.2f}×",
                "" if texts.bias is None else f"{texts.bias:+.2f}",
            )
        )
    return rows


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _without_empty(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without columns that say nothing."""
    kept = [at for at in range(len(rows[0])) if at == 0 or any(row[at] for row in rows[1:])]
    return [tuple(row[at] for at in kept) for row in rows]
