"""What a plan has found, as plain figures."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from lightning_vlm.planning.choice import Choice
from lightning_vlm.planning.methods import Fit
from lightning_vlm.planning.search import Line
from lightning_vlm.planning.step import Need
from lightning_vlm.planning.written import Written


class Part(NamedTuple):
    """A part of the model: its parameters, and how many of them train."""

    name: str
    parameters: int
    trained: int


class Row(NamedTuple):
    """A method.

    Args:
        name: Of it.
        trained: Parameters that train.
        need: What a step on one of the longest samples needs, activations kept.
        kept: The peak by the samples of a batch, with activations kept.
        recomputed: Likewise, with activations computed again.
        fit: How many of the longest samples fit.
        counted: Whether steps were counted; else it follows from other ranks.
        why_not: Why the model can't have it; then the other figures say nothing.
    """

    name: str
    trained: int
    need: Need
    kept: Line
    recomputed: Line
    fit: Fit
    counted: bool = True
    why_not: str = ""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        if self.why_not:
            return {"name": self.name, "why_not": self.why_not}
        flat = self._asdict()
        for name in ("need", "kept", "recomputed", "fit"):
            flat[name] = flat[name]._asdict()
        return {**flat, "peak": self.need.peak}


class Epoch(NamedTuple):
    """How long an epoch takes.

    Args:
        seconds: Of it.
        steps: Optimizer steps in it.
        basis: What that was found from, for people.
        measured: Whether steps were measured.
    """

    seconds: float
    steps: int
    basis: str
    measured: bool


@dataclass(frozen=True)
class Planned:
    """A plan.

    Args:
        model: Its name.
        parts: Its parts, with what the config trains of them.
        device: What memory is meant.
        memory: The bytes that there are.
        room: Those of them that training may take.
        size: Samples of the training data.
        looked_at: How many of them were measured.
        tokens: The median and the most tokens of a sample.
        patches: The most patches.
        rows: The methods; the config's own is the first.
        written: What the config takes as it is; None where it leaves that to the device.
        choice: What was chosen.
        name: Of the chosen method.
        samples: Of an optimizer step, over all devices.
        need: Of the chosen batch.
        longest: The most tokens that a single sample may have; None where nothing fits.
        is_longest_of_model: Whether that is as many as the model has positions for.
        epoch: How long an epoch takes; None if that isn't known.
        changes: Keys of a config that the choice changes, with their new values and why.
        notes: What a person should know, a line each.
    """

    model: str
    parts: tuple[Part, ...]
    device: str
    memory: int
    room: int
    size: int
    looked_at: int
    tokens: tuple[int, int]
    patches: int
    rows: tuple[Row, ...]
    written: Written | None
    choice: Choice
    name: str
    samples: int
    need: Need
    longest: int | None
    is_longest_of_model: bool
    epoch: Epoch | None
    changes: tuple[tuple[str, Any, str], ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs; bytes everywhere."""
        found = asdict(self)
        found["parts"] = [part._asdict() for part in self.parts]
        found["rows"] = [row.as_json() for row in self.rows]
        found["written"] = self.written._asdict() if self.written else None
        found["need"] = {**self.need._asdict(), "peak": self.need.peak}
        found["epoch"] = self.epoch._asdict() if self.epoch else None
        found["changes"] = {key: value for key, value, _ in self.changes}
        return found
