"""What is unusual about a gradient: rules on the norms of groups. For `GradientMonitor`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["Kind", "Limits", "Usual", "Watch", "anomaly"]

Kind = Literal["nan", "exploding", "vanishing", "dead"]

WARM_UP = 25
"""Norms that are seen before any is called unusual, as in ZClip."""
ALPHA = 0.97
"""How much of the running mean and variance a new norm leaves, as in ZClip."""
LEAST_SPREAD = 0.05
"""A standard deviation below this share of the mean counts as this much: steady norms may move a little."""


class Limits(NamedTuple):
    """What a norm is held against; None leaves a rule out."""

    max_norm: float | None
    max_z: float | None
    min_norm: float | None
    dead_after: int | None


class Usual(NamedTuple):
    """The norm that a group usually has.

    As in ZClip (https://arxiv.org/abs/2504.02507, section 3), these are the mean and variance of the first
    norms, then running ones. A norm that isn't finite is left out, and a norm above `limit` counts as
    `limit`: a single spike changes little, but a lasting rise soon counts as usual.
    """

    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @property
    def spread(self) -> float:
        """The standard deviation, or `LEAST_SPREAD` of the mean if that is more."""
        return max(math.sqrt(self.variance), LEAST_SPREAD * self.mean)

    def limit(self, max_z: float | None) -> float:
        """Above this a norm is unusual; infinite during the warm-up, and as long as all norms were zero."""
        if max_z is None or self.seen < WARM_UP or self.mean == 0:
            return math.inf
        return self.mean + max_z * self.spread

    def after(self, norm: float, max_z: float | None) -> "Usual":
        """With one norm more.

        >>> Usual().after(1.0, max_z=6.0).after(3.0, max_z=6.0)
        Usual(seen=2, mean=2.0, variance=1.0)
        >>> Usual(25, 1.0, 0.01).after(math.nan, max_z=6.0)
        Usual(seen=25, mean=1.0, variance=0.01)
        """
        if not math.isfinite(norm):
            return self
        norm = min(norm, self.limit(max_z))
        warm_up = self.seen < WARM_UP
        share = 1 / (self.seen + 1) if warm_up else 1 - ALPHA
        mean = self.mean + share * (norm - self.mean)
        # During the warm-up, the variance of all norms so far (Welford); afterwards as in ZClip.
        square = (norm - mean) * (norm - self.mean if warm_up else norm - mean)
        return Usual(self.seen + 1, mean, self.variance + share * (square - self.variance))


def anomaly(norm: float | None, usual: Usual, dead_for: int, limits: Limits) -> Kind | None:
    """What is wrong with the gradient of a group at a step.

    Args:
        norm: Of the gradient; None if there is none.
        usual: From the steps before.
        dead_for: Steps in a row, this one included, without gradient or with nothing but zeros.
        limits: See `Limits`.
    Returns:
        `nan`: an element is NaN or infinite. `exploding`: the norm is above `max_norm`, or more than `max_z`
        standard deviations above the mean. `dead`: `dead_for` has reached `dead_after`. `vanishing`: the norm
        is below `min_norm` and not zero. None: nothing.

    >>> limits = Limits(max_norm=100.0, max_z=6.0, min_norm=1e-7, dead_after=10)
    >>> [anomaly(norm, Usual(25, 1.0, 0.04), 0, limits) for norm in (1.2, 2.3, 101.0, 1e-9, math.nan, 0.0)]
    [None, 'exploding', 'exploding', 'vanishing', 'nan', None]
    """
    if limits.dead_after is not None and dead_for >= limits.dead_after:
        return "dead"
    if not norm:
        return None
    if not math.isfinite(norm):
        return "nan"
    if norm > min(math.inf if limits.max_norm is None else limits.max_norm, usual.limit(limits.max_z)):
        return "exploding"
    return "vanishing" if limits.min_norm is not None and norm < limits.min_norm else None


class Watch:
    """Judges the norms of groups at each step, keeps running norms, and counts anomalies.

    Args:
        limits: For all groups.
        scaled: Whether a GradScaler handles gradients that are `nan`, which then aren't an anomaly.

    >>> watch = Watch(Limits(max_norm=100.0, max_z=6.0, min_norm=1e-7, dead_after=10))
    >>> watch.judge(0, {"head": 512.0, "stem": 1.0})
    (True, ["exploding in 'head': norm 512 (usually 0 ± 0)"])
    >>> watch.judge(1, {"head": 300.0, "stem": 1.0})
    (True, [])
    >>> list(watch.counts())
    ["exploding in 'head' 2× (steps 0 to 1)"]
    """

    def __init__(self, limits: Limits, scaled: bool = False) -> None:
        self.limits, self.scaled = limits, scaled
        self.trained = 0
        self.usual: dict[str, Usual] = {}
        self.dead_for: dict[str, int] = {}
        self.seen: dict[str, dict[str, list[int]]] = {}
        """Group -> kind -> how many steps, the first, the last."""

    def judge(self, step: int, norms: Mapping[str, float | None], trained: int = 0) -> tuple[bool, list[str]]:
        """Judge a step.

        Args:
            step: Its number.
            norms: Of each group; None if it could have a gradient and has none.
            trained: How many parameters train. When that changes, what was usual is no measure any more, for
                any group: what trains beside it changes its gradient too.
        Returns:
            Whether a group is `nan` or `exploding`; and the first of each kind and group, in words.
        """
        alarm, news = False, []
        if trained != self.trained:
            self.trained, self.usual = trained, {}
        for group, norm in norms.items():
            usual = self.usual.get(group, Usual())
            self.dead_for[group] = 0 if norm else self.dead_for.get(group, 0) + 1
            kind = anomaly(norm, usual, self.dead_for[group], self.limits)
            if norm is not None:
                self.usual[group] = usual.after(norm, self.limits.max_z)
            if kind is None or (kind == "nan" and self.scaled):
                continue
            alarm = alarm or kind in ("nan", "exploding")
            seen = self.seen.setdefault(group, {}).setdefault(kind, [0, step, step])
            seen[:] = seen[0] + 1, seen[1], step
            if seen[0] == 1:
                value = "no gradient" if norm is None else f"norm {norm:.3g}"
                news.append(f"{kind} in {group!r}: {value} (usually {usual.mean:.3g} ± {usual.spread:.2g})")
        return alarm, news

    def counts(self) -> Iterator[str]:
        """All that was unusual, in words."""
        for group, kinds in self.seen.items():
            for kind, (count, first, last) in kinds.items():
                yield f"{kind} in {group!r} {count}× (steps {first} to {last})"

    def state(self) -> dict[str, Any]:
        """All of this as primitives."""
        return {
            "trained": self.trained,
            "usual": {group: list(usual) for group, usual in self.usual.items()},
            "dead_for": dict(self.dead_for),
            "seen": {
                group: {kind: list(of) for kind, of in kinds.items()} for group, kinds in self.seen.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.trained = state["trained"]
        self.usual = {group: Usual(*usual) for group, usual in state["usual"].items()}
        self.dead_for, self.seen = dict(state["dead_for"]), state["seen"]
