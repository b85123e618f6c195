"""Which samples are worth labelling next, from the file of answers that `predict` writes."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from lightning_vlm.errors import UserError
from lightning_vlm.metrics.text import token_f1

By = Literal["loss", "disagreement", "visual_gain"]


class Worth(NamedTuple):
    """A sample, and why a person should look at it.

    Args:
        source: Where it came from.
        task: Its task.
        value: How much it is worth; the scale depends on what is asked for.
        reason: Why, in a sentence.
    """

    source: str
    task: str
    value: float
    reason: str


def worth_labelling(
    answers: str | Path | Iterable[Mapping[str, Any]], count: int, by: By = "disagreement"
) -> list[Worth]:
    """The samples that a person should label next, the most useful first; none needs a right answer.

    Args:
        answers: The file that `predict` has written, or its rows.
        count: How many to choose. Rows that don't say what is asked for are left out.
        by: `loss` is the mean loss that the model gives its own best answer, in nats a token: it is unsure.
            `disagreement` is how much two candidates differ that are drawn by their probabilities, in the
            mean of 1 - token F1: it would say this or that. Both need several answers (`generation:
            {num_return_sequences: 4, num_beams: 4}`). `visual_gain` takes the least `visual_gain` of rows
            that have one (`inspect.gain.with_gains`), in nats a token: it answers without looking.

    Raises:
        UserError: The file can't be read, there is no such choice, or no row says what is asked for.

    >>> blue, red = ({"text": text, "log_prob": -0.7, "length": 1} for text in ("blue", "red"))
    >>> rows = [{"source": "a:1", "candidates": [blue, blue]}, {"source": "a:2", "candidates": [blue, red]}]
    >>> worth_labelling(rows, 1)[0].reason
    "2 different answers among 2: 'blue', 'red'"
    """
    if by not in get_args(By):
        raise UserError(f"by: found {by!r}; expected one of {', '.join(get_args(By))}")
    rows = _read(Path(answers)) if isinstance(answers, str | Path) else answers
    found = []
    for row in rows:
        judged = _JUDGES[by](row)
        if judged is not None:
            found.append(Worth(str(row.get("source", "?")), str(row.get("task", "default")), *judged))
    if not found:
        needs = "a visual_gain" if by == "visual_gain" else "several candidates with their probabilities"
        raise UserError(f"by {by}: found no row with {needs}")
    return sorted(found, key=lambda worth: -worth.value)[:count]


def _read(path: Path) -> list[Any]:
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: found no file of answers ({error})") from None
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f"{path}: found a line that isn't an object; expected a file that predict has written"
        )
    return rows


def _by_loss(row: Mapping[str, Any]) -> tuple[float, str] | None:
    known = _known_candidates(row)
    if not known:
        return None
    best = known[0]
    loss = -best["log_prob"] / max(1, best.get("length") or 1)
    return loss, f"{loss:.2f} nats a token for its own answer {_quoted(best['text'])}"


def _by_disagreement(row: Mapping[str, Any]) -> tuple[float, str] | None:
    known = _known_candidates(row)
    if len(known) < 2:
        return None
    most = max(one["log_prob"] for one in known)
    chances = [math.exp(one["log_prob"] - most) for one in known]
    total = sum(chances) ** 2
    value = 0.0
    for (one, first), (other, second) in combinations(zip(known, chances, strict=True), 2):
        value += 2 * first * second / total * (1 - token_f1(one["text"], other["text"]))
    texts = Counter(one["text"].strip() for one in known)
    shown = ", ".join(_quoted(text) for text in list(texts)[:3])
    return value, f"{len(texts)} different answers among {len(known)}: {shown}"


def _by_visual_gain(row: Mapping[str, Any]) -> tuple[float, str] | None:
    gain = row.get("visual_gain")
    if not isinstance(gain, int | float) or not math.isfinite(gain):
        return None
    return -gain, f"the picture lowers the loss of its answer by {gain:.2f} nats a token"


def _known_candidates(row: Mapping[str, Any]) -> list[Any]:
    candidates = row.get("candidates") or []
    return [one for one in candidates if isinstance(one.get("log_prob"), int | float)]


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


_JUDGES: dict[By, Callable[[Mapping[str, Any]], tuple[float, str] | None]] = {
    "loss": _by_loss,
    "disagreement": _by_disagreement,
    "visual_gain": _by_visual_gain,
}
