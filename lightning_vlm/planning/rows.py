"""The rows of a plan's table: methods by their counted steps, and ranks between and beyond counted ones."""

from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.planning.methods import Fit
from lightning_vlm.planning.planned import Row
from lightning_vlm.planning.search import Counts, Line
from lightning_vlm.planning.step import Method, Need

_NOTHING = Need(*[0] * len(Need._fields))


def counted_row(name: str, counts: Counts, room: float) -> Row:
    """The row of a method whose steps are counted."""
    kept, again = counts.line(False), counts.line(True)
    trained = sum(weight.numel() for weight in counts.step.trained)
    fit = Fit(kept.most(room), again.most(room))
    return Row(name, trained, counts.need(False, 1), kept, again, fit)


def refused_row(name: str, why: UserError) -> Row:
    """The row of a method that a model can't have."""
    return Row(name, 0, _NOTHING, Line(0, 0), Line(0, 0), Fit(0, 0), why_not=str(why))


def rank_of(method: Method) -> int | None:
    """The rank of a method that is LoRA on the whole language model and a projector in full; else None.

    >>> rank_of(Method("", {"projector": "full", "language": {"lora": {"r": 8}}}))
    8
    """
    match method.plan:
        case {"projector": "full", "language": {"lora": {"r": int(rank), **more}}, **others}:
            return None if more or others else rank
    return None


def of_rank(name: str, rank: int, low: tuple[int, Row], high: tuple[int, Row], room: float) -> Row:
    """The row of a rank, of those of two other ranks: all of it grows in proportion.

    Args:
        name: Of the method.
        rank: Of LoRA.
        low: A rank and its row.
        high: Another.
        room: What there is.
    """
    share = (rank - low[0]) / (high[0] - low[0])
    return _sum(name, low[1], 1 - share, high[1], share, room)


def with_rank_of(name: str, row: Row, one: Row, other: Row, room: float) -> Row:
    """The row of another rank on the same weights: one row, and the difference of two others."""
    return _sum(name, _sum(name, row, 1, other, 1, room), 1, one, -1, room)


def _sum(name: str, one: Row, times: float, other: Row, others: float, room: float) -> Row:
    def add(this: Any, that: Any) -> Any:
        if isinstance(this, tuple):
            return type(this)(*(add(*both) for both in zip(this, that, strict=True)))
        found = this * times + that * others
        return round(found) if isinstance(this, int) else found

    kept, again = add(one.kept, other.kept), add(one.recomputed, other.recomputed)
    return Row(
        name,
        add(one.trained, other.trained),
        add(one.need, other.need),
        kept,
        again,
        Fit(kept.most(room), again.most(room)),
        counted=False,
    )
