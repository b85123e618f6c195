"""One thing that `lint` finds, and the report of all."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import PIL.Image

from lightning_vlm.errors import DataError
from lightning_vlm.lint.kinds import KINDS, SEVERITIES, Kind


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing.

    Args:
        kind: What, by a name of `KINDS`.
        split: Of which data: `train`, `val` or `test`; empty where it is of all.
        source: Where, as `file:line`.
        key: The key or part there; empty for the whole sample.
        found: What stands there.
        expected: What is accepted instead; empty for what the kind's fix says.
        also: Other rows that it is about: further rows with this picture, the row that this one repeats.
        drops: The rows that `--fix` leaves out for it.
    """

    kind: str
    split: str
    source: str
    key: str
    found: str
    expected: str = ""
    also: tuple[str, ...] = ()
    drops: tuple[str, ...] = ()

    @classmethod
    def of_error(cls, error: DataError, split: str, kind: str) -> "Finding":
        """What an error says.

        Args:
            error: Of the reader or the renderer.
            split: Of which data.
            kind: The kind where the error has none of its own.
        """
        kind = error.kind if error.kind in KINDS else kind
        drops = (error.source,) if KINDS[kind].drops else ()
        return cls(kind, split, error.source, error.key, error.found, error.expected, (), drops)

    @property
    def about(self) -> Kind:
        """Its row of the table."""
        return KINDS[self.kind]

    @property
    def fix(self) -> str:
        """What to do, in words."""
        return self.expected or self.about.fix

    def as_json(self) -> dict[str, Any]:
        """As a line of `--json`."""
        return {
            "kind": self.kind,
            "severity": self.about.severity,
            "split": self.split,
            "source": self.source,
            "key": self.key,
            "found": self.found,
            "expected": self.expected or None,
            "fix": self.about.fix,
            "also": list(self.also),
        }


class Task(NamedTuple):
    """How much of a task there is in one split."""

    split: str
    name: str
    samples: int
    share: float


class Shown(NamedTuple):
    """A picture that something is wrong with, small."""

    finding: Finding
    picture: PIL.Image.Image


@dataclass
class Report:
    """All that `lint` finds.

    Args:
        name: Of the model whose processor reads the data.
        max_length: The most tokens of a sample.
    """

    name: str
    max_length: int | None
    findings: list[Finding] = field(default_factory=list)
    samples: Counter[str] = field(default_factory=Counter)
    """How many samples each split has, bad ones included."""
    lengths: Counter[tuple[int, str]] = field(default_factory=Counter)
    """How many samples have a length before any cutting, and a fate: kept, cut or skipped."""
    pictures: int = 0
    """How many different picture files there are."""
    sides: Counter[tuple[int, str]] = field(default_factory=Counter)
    """How many pictures have a longer side of so many pixels, and are fine or not."""
    tasks: list[Task] = field(default_factory=list)
    effective_tasks: dict[str, float] = field(default_factory=dict)
    """How many equally large tasks would be as varied, for each split."""
    shown: list[Shown] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings; one that is there already counts once."""
        self.findings += findings

    def settle(self) -> None:
        """Bring findings into their order: by kind as in the table, then as they came; each once."""
        order = {kind: place for place, kind in enumerate(KINDS)}
        unique: dict[tuple[str, ...], Finding] = {}
        for one in self.findings:
            unique.setdefault((one.kind, one.split, one.source, one.key, one.found), one)
        self.findings = sorted(unique.values(), key=lambda one: order[one.kind])

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings of each kind that there is, in the order of the table."""
        kinds: defaultdict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            kinds[finding.kind].append(finding)
        return dict(kinds)

    def count(self, severity: str) -> int:
        """How many findings are as severe."""
        return sum(one.about.severity == severity for one in self.findings)

    def verdict(self) -> str:
        """How many there are of each severity, in words.

        >>> report = Report("drawn-vlm", None)
        >>> report.verdict()
        'nothing found'
        >>> report.add([Finding("cut", "train", "a.jsonl:1", "", "900 tokens")])
        >>> report.verdict()
        '1 note'
        """
        parts = []
        for severity in SEVERITIES:
            count = self.count(severity)
            if count:
                parts.append(f"{count:,} {severity}{'s' if count > 1 else ''}")
        return ", ".join(parts) or "nothing found"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Some names of many.

    >>> listed(["a:1", "a:2", "a:3", "a:4", "a:5"])
    'a:1, a:2, a:3 and 2 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
