"""What a line of a file of answers says."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_vlm.data.boxes.pixels import as_row
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_choice import ScoreChoice

KEYS = (
    "id",
    "source",
    "task",
    "prompt",
    "images",
    "videos",
    "reasoning",
    "answer",
    "reference",
    "scores",
    "candidates",
    "boxes",
    "right_boxes",
    "unread",
)
"""What each line has."""
_OF_ALL_VERSIONS = ("source", "task", "prompt", "images", "answer", "reference", "scores", "candidates")
"""What each line had in earlier versions too."""
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""JSON takes these as they are, but `str.splitlines` ends a line at them."""


def answer_row(answer: Prediction, choice: ScoreChoice | None = None) -> dict[str, Any]:
    """What a line of the file says.

    `scores` has those that are chosen for the task, where they apply, and `log_prob` and `score` where
    several answers were ranked. A number that isn't finite is null. `id` is the sample's own, or else its
    source. `boxes` are those of the answer in pixels of the pictures as they came, and `unread` says what
    could not be read as one; both are null where no boxes were asked for. `right_boxes` are those of the
    right answer, null where it has none.

    >>> row = answer_row(Prediction("q.jsonl:1", "vqa", "red", "red", prompt="What colour?"))
    >>> row["answer"], row["scores"]
    ('red', {'exact_match': 1.0, 'token_f1': 1.0})
    """
    scores: dict[str, float | None] = {}
    for name, value in (choice or ScoreChoice()).values(answer).items():
        scores[name] = _finite(value)
    if answer.candidates:
        best = answer.candidates[0]
        scores |= {"log_prob": _finite(best.log_prob), "score": _finite(best.score)}
    candidates = []
    for candidate in answer.candidates:
        numbers = {"log_prob": _finite(candidate.log_prob), "score": _finite(candidate.score)}
        candidates.append({**candidate._asdict(), **numbers})
    return {
        "id": answer.source if answer.id is None else answer.id,
        "source": answer.source,
        "task": answer.task,
        "prompt": answer.prompt,
        "images": list(answer.images),
        "videos": list(answer.videos),
        "reasoning": answer.reasoning,
        "answer": answer.text,
        "reference": answer.reference,
        "scores": scores,
        "candidates": candidates,
        "boxes": answer.found and [as_row(item, answer.views) for item in answer.found.items],
        "right_boxes": [as_row(item, answer.views) for item in answer.right] or None,
        "unread": answer.found and list(answer.found.faults),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON."""
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    # A lone surrogate can't be encoded in UTF-8, but its escape is valid JSON.
    return (line.translate(_LINE_ENDS) + "\n").encode("utf-8", "backslashreplace")


def holds_answers(path: Path) -> bool:
    """Whether a file is one of ours, or empty, so that it may be renamed."""
    try:
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        row = json.loads(line) if line else dict.fromkeys(KEYS)
    except ValueError:  # not text, or not JSON
        return False
    return isinstance(row, dict) and set(_OF_ALL_VERSIONS) <= row.keys()
