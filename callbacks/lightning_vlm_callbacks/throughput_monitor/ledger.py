"""What the time of a run went to and what was done in it, added up when its moments have come."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.throughput_monitor.clock import Clock
from lightning_vlm_callbacks.throughput_monitor.counting import Counts

__all__ = ["NUMBERS", "LapKind", "Ledger", "Span", "Timeline", "Totals", "figures", "numbers_of"]

LapKind = Literal["training", "warm-up", "compiling"]
"""What a batch was: one that counts, one of the first steps, or one in which code was compiled."""
NUMBERS = (*Counts._fields, "operations")
"""What is added up over batches."""


class Span(NamedTuple):
    """A stretch of time that was spent on one thing.

    Args:
        what: `step`, `waiting`, `saving` or `validation`.
        start: A moment of the clock.
        end: A later one.
    """

    what: str
    start: Any
    end: Any


class Timeline:
    """Cuts time into spans. What begins inside another thing interrupts it.

    Args:
        clock: Marks the moments.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open = ["step"]
        self._since = clock.now()
        self._spans: list[Span] = []

    def begin(self, what: str) -> None:
        """Time is spent on something else from now on."""
        self._cut()
        self._open.append(what)

    def end(self) -> None:
        """What began last has ended."""
        self._cut()
        if len(self._open) > 1:
            self._open.pop()

    def rename(self, what: str) -> None:
        """The time since the last moment was spent on something else."""
        self._cut(what)

    def take(self) -> list[Span]:
        """The spans until now; they belong to a batch."""
        self._cut()
        spans, self._spans = self._spans, []
        return spans

    def _cut(self, what: str | None = None) -> None:
        now = self._clock.now()
        self._spans.append(Span(what or self._open[-1], self._since, now))
        self._since = now


@dataclass
class Totals:
    """Sums over batches.

    Args:
        seconds: What time was spent on -> how much: `step`, `waiting`, and not counted as training
            `validation`, `saving`, `warm-up` and `compiling`.
        numbers: The sums of `NUMBERS`, over all processes; NaN is unknown.
        steps: Optimizer steps.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    numbers: list[float] = field(default_factory=lambda: [0.0] * len(NUMBERS))
    steps: int = 0

    def add(self, other: "Totals") -> None:
        """Add the sums of other batches."""
        for what, seconds in other.seconds.items():
            self.spend(what, seconds)
        self.numbers = [mine + more for mine, more in zip(self.numbers, other.numbers, strict=True)]
        self.steps += other.steps

    def spend(self, what: str, seconds: float) -> None:
        """Add time that was spent on something."""
        self.seconds[what] = self.spent(what) + seconds

    def spent(self, what: str) -> float:
        """The seconds that were spent on something."""
        return self.seconds.get(what, 0.0)

    def number(self, name: str) -> float | None:
        """One of `NUMBERS`, None if it is unknown."""
        value = self.numbers[NUMBERS.index(name)]
        return None if math.isnan(value) else value

    @property
    def training_seconds(self) -> float:
        """What counts as training: the steps, and the waiting between them."""
        return self.spent("step") + self.spent("waiting")


class _Lap(NamedTuple):
    spans: list[Span]
    kind: LapKind


class _Mark(NamedTuple):
    """The end of a stretch whose figures are wanted."""

    step: int
    steps: int
    numbers: HostCopy | list[float]
    moment: Any


class Ledger:
    """Adds up batches. Each is read when its last moment has come, so that nobody waits.

    Args:
        clock: That of the spans.
    """

    def __init__(self, clock: Clock) -> None:
        self.whole = Totals()
        """Of all stretches that were closed and read."""
        self._clock = clock
        self._unread: deque[_Lap | _Mark] = deque()
        self._stretch = Totals()

    def add(self, spans: list[Span], kind: LapKind) -> None:
        """Add a batch."""
        self._unread.append(_Lap(spans, kind))

    def close(self, step: int, steps: int, numbers: HostCopy | list[float]) -> None:
        """End a stretch.

        Args:
            step: What its last step is called in logs.
            steps: How many steps it has.
            numbers: Its sums, over all processes.
        """
        self._unread.append(_Mark(step, steps, numbers, self._clock.now()))

    def read(self, wait: bool = False) -> list[tuple[int, Totals]]:
        """Add up what has come.

        Args:
            wait: Wait for the rest too.

        Returns:
            The stretches that ended: what their last step is called, and their sums.
        """
        ended = []
        while self._unread:
            entry = self._unread[0]
            last = entry.moment if isinstance(entry, _Mark) else entry.spans[-1].end
            if wait:
                self._clock.wait(last)
            elif not self._clock.is_past(last):
                break
            self._unread.popleft()
            if isinstance(entry, _Lap):
                self._add_seconds(entry)
            else:
                ended.append((entry.step, self._end_stretch(entry)))
        return ended

    def _add_seconds(self, lap: _Lap) -> None:
        for what, start, end in lap.spans:
            counts_for = what
            if lap.kind != "training" and what in ("step", "waiting"):
                counts_for = lap.kind
            self._stretch.spend(counts_for, self._clock.seconds(start, end))

    def _end_stretch(self, mark: _Mark) -> Totals:
        stretch, self._stretch = self._stretch, Totals()
        stretch.steps = mark.steps
        numbers = mark.numbers
        stretch.numbers = numbers.read().tolist() if isinstance(numbers, HostCopy) else numbers
        self.whole.add(stretch)
        return stretch


def numbers_of(counts: Counts, operations: float | None) -> list[float]:
    """The `NUMBERS` of a batch, NaN where they are unknown.

    >>> numbers_of(Counts(4, tokens=9), None)
    [4.0, 9.0, nan, nan, nan]
    """
    return [math.nan if value is None else float(value) for value in (*counts, operations)]


def figures(totals: Totals, devices: int, peak: float | None) -> dict[str, float]:
    """What is logged of a stretch: rates, shares and MFU; only what is known.

    Args:
        totals: Its sums.
        devices: How many devices shared the work.
        peak: Operations a second of one of them at most.

    >>> totals = Totals({"step": 3.0, "waiting": 1.0}, [8.0, 600.0, 60.0, 200.0, 2e12], steps=2)
    >>> figures(totals, devices=1, peak=1e12)
    {'samples_per_second': 2.0, 'tokens_per_second': 150.0, 'learned_tokens_per_second': 15.0,
     'padding_share': 0.25, 'waiting_share': 0.25, 'step_seconds': 2.0,
     'tflops_per_device': 0.5, 'mfu': 0.5}
    """
    seconds = totals.training_seconds
    if not seconds or not totals.steps:
        return {}
    found: dict[str, float] = {}
    rates = {"samples": "samples", "tokens": "tokens", "learned": "learned_tokens"}
    for name, unit in rates.items():
        number = totals.number(name)
        if number is not None:
            found[f"{unit}_per_second"] = number / seconds
    tokens, padding = totals.number("tokens"), totals.number("padding")
    if tokens is not None and padding is not None and tokens + padding > 0:
        found["padding_share"] = padding / (tokens + padding)
    if "waiting" in totals.seconds:
        found["waiting_share"] = totals.spent("waiting") / seconds
    found["step_seconds"] = seconds / totals.steps
    operations = totals.number("operations")
    if operations is not None:
        found["tflops_per_device"] = operations / seconds / devices / 1e12
        if peak is not None:
            found["mfu"] = operations / seconds / devices / peak
    return found
