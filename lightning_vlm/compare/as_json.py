"""A comparison for programs."""

import math
from typing import Any

from lightning_vlm.compare.changed import Change
from lightning_vlm.compare.comparison import Comparison, Model, SetResult
from lightning_vlm.compare.estimates import Difference, Estimate, ScoreRow
from lightning_vlm.compare.sentences import findings


def as_json(comparison: Comparison, most: int) -> dict[str, Any]:
    """All of it, but of the samples that changed only some.

    Args:
        comparison: It.
        most: How many samples that were won, and how many that were lost.
    """
    return _finite(
        {
            "models": [_model(comparison, model) for model in comparison.models],
            "sets": [_set(comparison, result, most) for result in comparison.sets],
            "findings": [f"{word}: {text}" for word, text in findings(comparison)],
        }
    )


def _model(comparison: Comparison, model: Model) -> dict[str, Any]:
    facts = {} if model.facts is None else model.facts._asdict()
    against = model.entrant.against
    return {
        "label": model.label,
        "path": model.entrant.path,
        "against": None if against is None else comparison.models[against].label,
        **facts,
        "peak": model.peak,
        "answers_per_second": model.answers_per_second,
        "tokens_per_second": model.tokens_per_second,
    }


def _set(comparison: Comparison, result: SetResult, most: int) -> dict[str, Any]:
    labels = [model.label for model in comparison.models]
    changed = {}
    for number, of_model in enumerate(result.changes):
        if of_model is not None:
            changed[labels[number]] = {
                "score": of_model.measure,
                "won": len(of_model.won),
                "lost": len(of_model.lost),
                "compared": of_model.compared,
                "chance": of_model.chance,
                "samples": [_change(change) for change in of_model.won[:most] + of_model.lost[:most]],
            }
    return {
        "name": result.set.name,
        "samples": len(result.keys),
        "left_out": result.left_out,
        "groups": result.groups,
        "scores": {
            part.task or "all": {row.name: _row(labels, row) for row in part.rows} for part in result.parts
        },
        "answers": {label: texts._asdict() for label, texts in zip(labels, result.texts, strict=True)},
        "right": result.right and result.right._asdict(),
        "changed": changed,
    }


def _row(labels: list[str], row: ScoreRow) -> dict[str, Any]:
    return {
        label: {"estimate": _with_interval(estimate), "difference": _with_interval(difference)}
        for label, estimate, difference in zip(labels, row.estimates, row.differences, strict=True)
    }


def _with_interval(found: Estimate | Difference | None) -> dict[str, Any] | None:
    if found is None:
        return None
    row = found._asdict()
    row["interval"] = None if found.interval is None else list(found.interval)
    return row


def _change(change: Change) -> dict[str, Any]:
    row = change._asdict()
    return {**row.pop("key")._asdict(), **row}


def _finite(value: Any) -> Any:
    """JSON has no number that isn't finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
