"""What a record says, in bounded memory: curves, thinned out evenly where they are long, and events."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Curve", "Event", "History", "read_history"]

MOST_POINTS = 2000
"""A curve with more points than this loses every second one."""
EVENT_FIELDS = ("time", "step", "event", "text")
"""What each event has in the record; whatever else it has are its values."""


class Curve:
    """Values over steps.

    >>> curve = Curve(most=4)
    >>> for step in range(10):
    ...     curve.add(step, step / 10)
    >>> curve.points()
    [(0, 0.0), (4, 0.4), (8, 0.8), (9, 0.9)]
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._points: list[tuple[int, float]] = []
        self._last: tuple[int, float] | None = None
        self._every = 1
        """Of so many values one is kept."""
        self._offered = 0
        """How many values have been added."""

    def add(self, step: int, value: float) -> None:
        """Add a value. Where steps don't increase, what was recorded from there on is recorded again."""
        if self._last is not None and step <= self._last[0]:
            self.rewind(step)
        self._last = (step, value)
        if self._offered % self._every == 0:
            self._points.append(self._last)
        self._offered += 1
        if len(self._points) > self._most:
            self._points = self._points[::2]
            self._every *= 2

    def rewind(self, step: int) -> None:
        """Forget what was at this step and later."""
        self._points = [(earlier, value) for earlier, value in self.points() if earlier < step]
        self._last = self._points[-1] if self._points else None
        self._offered = len(self._points) * self._every

    def points(self) -> list[tuple[int, float]]:
        """Steps, increasing, and their values. The last one is always there."""
        points = dict(self._points)
        if self._last is not None:
            points[self._last[0]] = self._last[1]
        return sorted(points.items())


class Event(NamedTuple):
    """Something that happened in a run."""

    step: int
    kind: str
    text: str
    time: float
    values: dict[str, Any]

    @property
    def key(self) -> tuple[int, str, str]:
        """What is the same if it happens once more in a resumed run."""
        return self.step, self.kind, self.text


class History:
    """What is known of one run, however often it was resumed."""

    def __init__(self) -> None:
        self.curves: dict[str, Curve] = {}
        self.events: list[Event] = []
        self.seconds = 0.0
        """How long its processes have run, from their first line to their last."""
        self.last_step = 0
        self._last_time: float | None = None
        self._known: set[tuple[int, str, str]] = set()
        """The keys of events."""

    def begin(self) -> None:
        """A process begins to write: the time since the last line doesn't count."""
        self._last_time = None

    def rewind(self, step: int) -> None:
        """The run was resumed after so many steps: what came later is going to be recorded again."""
        for name, curve in list(self.curves.items()):
            curve.rewind(step)
            if not curve.points():
                del self.curves[name]
        self.events = [event for event in self.events if event.step <= step]
        self._known = {event.key for event in self.events}
        self.last_step = min(self.last_step, step)

    def add(self, entry: dict[str, Any]) -> None:
        """Add a line of the record."""
        step = int(entry["step"])
        now = float(entry["time"])
        if self._last_time is not None:
            self.seconds += max(now - self._last_time, 0.0)
        self._last_time = now
        self.last_step = max(self.last_step, step)
        for name, value in entry.get("metrics", {}).items():
            self.curves.setdefault(name, Curve()).add(step, float(value))
        if "event" in entry:
            self._add_event(step, now, entry)

    def _add_event(self, step: int, now: float, entry: dict[str, Any]) -> None:
        values = {key: value for key, value in entry.items() if key not in EVENT_FIELDS}
        event = Event(step, entry["event"], entry.get("text", ""), now, values)
        if event.kind == "checkpoint":  # of thousands only the last one is of interest
            self.events = [other for other in self.events if other.kind != "checkpoint"]
        elif event.kind != "resumed":
            # What happens between two steps happens once more if a run is resumed there.
            if event.key in self._known:
                return
            self._known.add(event.key)
        self.events.append(event)


def read_history(file: Path) -> History:
    """Read the run that was recorded last in a file.

    A file may hold several runs, one after another. A line that isn't whole, as a killed process leaves
    it, is left out.
    """
    runs: dict[str, History] = {}
    current = History()
    for entry in _entries(file):
        kind = entry.get("event")
        if kind in ("started", "resumed"):
            current = runs.setdefault(str(entry.get("run")), History())
            current.begin()
        if kind == "resumed":
            current.rewind(int(entry["step"]))
        current.add(entry)
    return current


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "step" in entry and "time" in entry:
                yield entry
