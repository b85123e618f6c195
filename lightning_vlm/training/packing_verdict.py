"""What the proof of packing has found, whether that is exact, and how it is said."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vlm.counted import counted
from lightning_vlm.errors import UserError

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""How far packed may be from alone, as a share of the norm, whatever rounding was measured: in 16 bits it is
what another attention kernel makes in a deep model. What shows exactly needs no tolerance: positions, and
whether a sample sees another."""
TIMES_ROUNDING = 4
"""How many times as far from alone packed may be as padded is."""
MOST = 0.2
"""No rounding excuses more."""


class Distances(NamedTuple):
    """How far two computations of the same samples are from one another, as shares of the norms.

    Args:
        hidden_states: Of what the head gets.
        losses: Of the losses of tokens.
        gradients: Of the loss's gradients by what enters the language model.
    """

    hidden_states: float
    losses: float
    gradients: float


class Verdict(NamedTuple):
    """What packing does to some samples of a model.

    Args:
        model: The name of its class.
        samples: How many samples were packed.
        distances: Of packed from alone.
        rounding: Of a sample from itself in a padded batch.
        tolerance: The distance that is allowed whatever `rounding` is.
        same_positions: Whether the tokens of each sample have the positions that the model gives them alone.
        moved: How far a sample's hidden states move when its neighbour is changed; 0 if no bit is another.
        seen: The largest gradient of a sample's hidden states by what enters for its neighbours, as a share
            of that by what enters for itself.
    """

    model: str
    samples: int
    distances: Distances
    rounding: Distances
    tolerance: float
    same_positions: bool
    moved: float
    seen: float

    def check(self) -> None:
        """Refuse packing that isn't exact.

        Raises:
            UserError: Names what is off, and by how much.
        """
        faults = self._faults()
        if faults:
            samples = counted(self.samples, "sample")
            raise UserError(
                f"data.batching packed isn't exact for {self.model}: on {samples} of the first "
                f"batch {' and '.join(faults[:2])}; set data.batching to tokens"
            )

    def in_words(self) -> str:
        """A line for the log."""
        hidden, _, gradients = (short(distance) for distance in self.distances)
        most, most_of_gradients = (short(self._limit(name)) for name in ("hidden_states", "gradients"))
        samples = counted(self.samples, "sample")
        return (
            f"Packing proved on {samples} of the first batch: packed and alone differ by "
            f"{hidden}, gradients by {gradients} (rounding may make {most} and {most_of_gradients}); "
            "no sample sees another"
        )

    def _faults(self) -> list[str]:
        faults = []
        if self.seen != 0:
            faults.append(f"samples see one another (a gradient of {short(self.seen)} that should be 0)")
        if not self.same_positions:
            faults.append("tokens have other positions than alone")
        if not self.moved <= self._limit("hidden_states"):
            faults.append(f"changing one sample moves others by {short(self.moved)}")
        for name, distance in self.distances._asdict().items():
            limit = self._limit(name)
            if not distance <= limit:
                words = name.replace("_", " ")
                faults.append(
                    f"{words} packed and alone differ by {short(distance)}, of which rounding explains "
                    f"{short(limit)}"
                )
        return faults

    def _limit(self, name: str) -> float:
        tolerance = 4 * self.tolerance if name == "gradients" else self.tolerance
        rounding = TIMES_ROUNDING * getattr(self.rounding, name)
        return max(tolerance, min(rounding, MOST))


def tolerance_of(hidden: Tensor) -> float:
    """The tolerance for the precision that a forward pass computes in.

    Args:
        hidden: Its output; the autocast of the pass must still be on.

    >>> tolerance_of(torch.ones(1, dtype=torch.bfloat16))
    0.05
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if dtype == torch.float32 and hidden.is_cuda and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float16  # TF32 has as many digits
    return TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])


def short(number: float) -> str:
    """A distance in few characters.

    >>> short(2.7e-7), short(0.034), short(0.0)
    ('3e-7', '0.034', '0')
    """
    if not number:
        return "0"
    if not number < 1e-2:
        return f"{number:.2g}"
    digit, exponent = f"{number:.0e}".split("e")
    return f"{digit}e{int(exponent)}"
