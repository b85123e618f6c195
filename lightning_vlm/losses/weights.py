"""How much each token counts in the loss: a table by kind, times its sample's and its turn's weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_vlm.curve import Curve, Point
from lightning_vlm.data.parts import MAX_WEIGHT
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.nearest import did_you_mean

LEAST_WEIGHT = 1e-20
"""A token below this counts as one without weight: float32 can't divide a step's gradients by it."""


@dataclass(frozen=True)
class KindWeights:
    """The weight of a token by its kind.

    Images and padding always weigh 0 and cannot be set: a patch placeholder stands for pixels and padding for
    nothing, so there is no next word to learn there.

    Args:
        special: What the chat template adds around the words.
        instruction: The words of system and user turns.
        response: The words of assistant turns, each with its end-of-turn token.
        box: A marked box inside an assistant turn.
        entity: A marked key entity inside an assistant turn.

    Raises:
        UserError: A weight that isn't from 0 to a million, or no weight above 0.

    >>> KindWeights(box=3.0)
    KindWeights(special=0.0, instruction=0.0, response=1.0, box=3.0, entity=1.5)
    """

    special: float = 0.0
    instruction: float = 0.0
    response: float = 1.0
    box: float = 2.0
    entity: float = 1.5

    @classmethod
    def read(cls, given: "KindWeights | Mapping[str, float] | None") -> "KindWeights":
        """From what a checkpoint or Python has: an object, its keys, or None for the defaults.

        Raises:
            UserError: A kind that there isn't.

        >>> KindWeights.read({"box": 3.0}).box
        3.0
        """
        if isinstance(given, KindWeights):
            return given
        known = [field.name for field in fields(cls)]
        for kind in given or {}:
            if kind not in known:
                raise UserError(f"token_weights: there is no kind {kind}{did_you_mean(str(kind), known)}")
        return cls(**(given or {}))

    def __post_init__(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT):
                raise UserError(
                    f"token_weights.{name}: found {weight}; expected a finite number >= 0, at most "
                    f"{MAX_WEIGHT:,.0f}"
                )
        if not any(weights.values()):
            raise UserError(
                "token_weights: found 0 for every kind; give at least one, usually 'response', more"
            )


def token_weights(kinds: Tensor, table: KindWeights, factors: Tensor) -> Tensor:
    """The weight of every token: that of its kind times its factor.

    Args:
        kinds: Tensor of shape [batch, sequence], int8, values of `Kind`.
        table: The weight of each kind.
        factors: Tensor of shape [batch, sequence] or [batch, 1], floating-point, on the device of `kinds`:
            the weights of samples and turns.

    Returns:
        Tensor of shape [batch, sequence], float32. The host never waits for the device.

    >>> kinds = torch.tensor([[Kind.IMAGE, Kind.RESPONSE, Kind.BOX], [Kind.RESPONSE, Kind.ENTITY, Kind.PAD]])
    >>> token_weights(kinds.to(torch.int8), KindWeights(), torch.tensor([[1.0], [2.0]]))
    tensor([[0., 1., 2.],
            [2., 3., 0.]])
    """
    by_kind = {
        Kind.PAD: 0.0,
        Kind.SPECIAL: table.special,
        Kind.IMAGE: 0.0,
        Kind.INSTRUCTION: table.instruction,
        Kind.RESPONSE: table.response,
        Kind.BOX: table.box,
        Kind.ENTITY: table.entity,
    }
    weights = torch.tensor([by_kind[kind] for kind in Kind], dtype=torch.float32)
    # A blocking copy of even these few numbers would make the host wait for the device.
    weights = weights.to(kinds.device, non_blocking=True)
    return weights[kinds.long()] * factors.float()


class WeightCurve:
    """The weights of kinds as a function of progress, without state.

    Args:
        points: Where weights are known: each has `at`, a progress from 0 to 1, and the weights of some kinds.
            They increase, the first is at 0 and names every kind that a later one names. Between two points
            that name it a kind's weight goes from one to the other, after its last it stays; kinds that no
            point names keep their own.
        between: `steps` holds a point's weight until the next one, `linear` is a straight line, `smooth` half
            a cosine, level at both points.

    Raises:
        UserError: Points that aren't so.

    >>> curve = WeightCurve([{"at": 0, "instruction": 1.0}, {"at": 0.5, "instruction": 0.0}], "linear")
    >>> [curve(progress, KindWeights()).instruction for progress in (0, 0.25, 0.5, 1)]
    [1.0, 0.5, 0.0, 0.0]
    """

    def __init__(
        self, points: Sequence[dict[str, float]], between: Literal["steps", "linear", "smooth"] = "steps"
    ) -> None:
        if between not in ("steps", "linear", "smooth"):
            raise UserError(f"between: found {between!r}; expected steps, linear or smooth")
        if not points:
            raise UserError("points: found none; expected at least {at: 0, ...} with the weight of a kind")
        for place, point in enumerate(points):
            _check_point(place, point)
        ats = [point["at"] for point in points]
        if ats[0] != 0:
            raise UserError(f"points[0].at: found {ats[0]}; expected 0, where training begins")
        for place in range(1, len(ats)):
            if ats[place] <= ats[place - 1]:
                raise UserError(
                    f"points[{place}].at: found {ats[place]} after {ats[place - 1]}; expected more each time"
                )
            for kind in points[place].keys() - points[0].keys():
                raise UserError(
                    f"points[{place}].{kind}: found no weight of {kind} at the first point; give it one to "
                    "begin with"
                )
        self._ats = ats
        self.of_kind: dict[str, Curve] = {}
        """Each kind's own curve."""
        for kind in points[0].keys() - {"at"}:
            own = [Point(point["at"], float(point[kind]), between) for point in points if kind in point]
            self.of_kind[kind] = Curve(own, tolerance=_ROUNDING)

    def __call__(self, progress: float, table: KindWeights) -> KindWeights:
        """The weights at a progress.

        Args:
            progress: How much of training is done, 0 to 1; what lies outside counts as 0 or 1.
            table: Of the kinds that no point names.

        Raises:
            UserError: No kind has weight.
        """
        return replace(table, **{kind: curve(progress) for kind, curve in self.of_kind.items()})

    def check(self, table: KindWeights) -> None:
        """Raise a `UserError` if with such a table no kind has weight at some point."""
        for at in self._ats:
            try:
                self(at, table)
            except UserError as error:
                raise UserError(f"points at {at}: {error}") from None


_ROUNDING = 1e-6
"""Of progress, so that step 2 of 3 is at 0.6666667."""


def _check_point(place: int, point: Any) -> None:
    kinds = [field.name for field in fields(KindWeights)]
    if not isinstance(point, dict) or "at" not in point or len(point) < 2:
        raise UserError(
            f"points[{place}]: found {point}; expected at and the weight of a kind, such as "
            "{at: 0.3, instruction: 0.5}"
        )
    for key, value in point.items():
        where = f"points[{place}].{key}"
        if key in ("image", "pad"):
            raise UserError(f"{where}: found {value}; pictures and padding always weigh 0, leave it out")
        if key not in ("at", *kinds):
            near = did_you_mean(str(key), kinds)
            raise UserError(f"{where}: there is no such kind; expected one of {', '.join(kinds)}{near}")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and 0 <= value <= (1 if key == "at" else MAX_WEIGHT)):
            expected = f"a finite number >= 0, at most {MAX_WEIGHT:,.0f}"
            if key == "at":
                expected = "a fraction of training from 0 to 1"
            raise UserError(f"{where}: found {value}; expected {expected}")
