"""What is unusual about a gradient: rules on the norms of groups. For `GradientMonitor`."""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, Literal, NamedTuple

__all__ = ["Anomaly", "Limits", "RunningNorm", "Watch", "anomaly"]

Anomaly = Literal["nan", "exploding", "vanishing", "dead"]

WARM_UP = 25
"""How many norms are seen before any is called unusual, as in ZClip."""
ALPHA = 0.97
"""The share of the running mean and variance that stays when a new norm is added, as in ZClip."""
LEAST_SPREAD = 0.05
"""The least standard deviation, as a share of the mean: norms that hardly vary may still move a little."""
MIN_NORM = 1e-7
"""A norm below this is vanishing: the step is lost when the weights are rounded to float32."""
DEAD_AFTER = 10
"""A group is dead after this many norms in a row that are zero or missing."""


class Limits(NamedTuple):
    """The limits above which a norm is exploding; None turns a rule off."""

    max_norm: float | None
    """The largest norm."""
    max_z: float | None
    """The most standard deviations above the mean."""


class RunningNorm(NamedTuple):
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

    def after(self, norm: float, max_z: float | None) -> "RunningNorm":
        """With one norm more.

        >>> RunningNorm().after(1.0, max_z=6.0).after(3.0, max_z=6.0)
        RunningNorm(seen=2, mean=2.0, variance=1.0)
        >>> RunningNorm(25, 1.0, 0.01).after(math.nan, max_z=6.0)
        RunningNorm(seen=25, mean=1.0, variance=0.01)
        """
        if not math.isfinite(norm):
            return self
        norm = min(norm, self.limit(max_z))
        seen = self.seen + 1
        is_warm_up = self.seen < WARM_UP
        share = 1 / seen if is_warm_up else 1 - ALPHA
        mean = self.mean + share * (norm - self.mean)
        # During the warm-up this is the variance of all norms so far (Welford); afterwards it is as in ZClip.
        other_mean = self.mean if is_warm_up else mean
        square = (norm - mean) * (norm - other_mean)
        variance = self.variance + share * (square - self.variance)
        return RunningNorm(seen, mean, variance)


def anomaly(norm: float | None, usual: RunningNorm, dead_for: int, limits: Limits) -> Anomaly | None:
    """What is wrong with the gradient of a group at a step.

    Args:
        norm: Of the gradient; None if there is none.
        usual: From the steps before.
        dead_for: Steps in a row, this one included, without gradient or with nothing but zeros.
        limits: See `Limits`.

    Returns:
        `nan`: an element is NaN or infinite. `exploding`: the norm is above `max_norm`, or more than `max_z`
        standard deviations above the mean. `dead`: `dead_for` has reached 10. `vanishing`: the norm is below
        1e-7 and not zero. None: nothing.

    >>> limits = Limits(max_norm=100.0, max_z=6.0)
    >>> norms = (1.2, 2.3, 101.0, 1e-9, math.nan, 0.0)
    >>> [anomaly(norm, RunningNorm(25, 1.0, 0.04), 0, limits) for norm in norms]
    [None, 'exploding', 'exploding', 'vanishing', 'nan', None]
    """
    if dead_for >= DEAD_AFTER:
        return "dead"
    if norm is None or norm == 0:
        return None
    if not math.isfinite(norm):
        return "nan"
    if limits.max_norm is not None and norm > limits.max_norm:
        return "exploding"
    if norm > usual.limit(limits.max_z):
        return "exploding"
    if norm < MIN_NORM:
        return "vanishing"
    return None


class Watch:
    """Judges the norms of groups at each step, keeps running norms, and counts anomalies.

    Args:
        limits: For all groups.
        has_scaler: Whether a GradScaler handles gradients that are `nan`, which then aren't an anomaly.

    >>> watch = Watch(Limits(max_norm=100.0, max_z=6.0))
    >>> watch.judge(0, {"head": 512.0, "stem": 1.0})
    (True, ["exploding in 'head': norm 512 (usually 0 ± 0)"])
    >>> watch.judge(1, {"head": 300.0, "stem": 1.0})
    (True, [])
    >>> list(watch.counts())
    ["exploding in 'head' 2× (steps 0 to 1)"]
    """

    def __init__(self, limits: Limits, has_scaler: bool = False) -> None:
        self.limits = limits
        self.has_scaler = has_scaler
        self.trained = 0
        self.usual: dict[str, RunningNorm] = {}
        self.dead_for: dict[str, int] = {}
        self.seen: dict[str, dict[str, list[int]]] = {}
        """Group -> anomaly -> how many steps, the first, the last."""

    def judge(self, step: int, norms: Mapping[str, float | None], trained: int = 0) -> tuple[bool, list[str]]:
        """Judge a step.

        Args:
            step: Its number.
            norms: Of each group; None if it could have a gradient and has none.
            trained: How many parameters train. When that changes, what was usual is no measure any more, for
                any group: what trains beside it changes its gradient too.

        Returns:
            Whether a group is `nan` or `exploding`; and the first anomaly of each kind and group, as a
            sentence.
        """
        if trained != self.trained:
            self.trained = trained
            self.usual = {}
        alarm = False
        news = []
        # What one overflow makes of the other groups is finite by chance, and usual of none of them.
        are_finite = all(norm is None or math.isfinite(norm) for norm in norms.values())
        for group, norm in norms.items():
            usual = self.usual.get(group, RunningNorm())
            found = self._judge_group(group, norm, usual, learns=are_finite)
            if found is None:
                continue
            if found in ("nan", "exploding"):
                alarm = True
            if self._count(group, found, step) == 1:
                value = "no gradient" if norm is None else f"norm {norm:.3g}"
                news.append(f"{found} in {group!r}: {value} (usually {usual.mean:.3g} ± {usual.spread:.2g})")
        return alarm, news

    def _judge_group(
        self, group: str, norm: float | None, usual: RunningNorm, learns: bool
    ) -> Anomaly | None:
        dead_for = 0
        if norm is None or norm == 0:
            dead_for = self.dead_for.get(group, 0) + 1
        self.dead_for[group] = dead_for
        if norm is not None and learns:
            self.usual[group] = usual.after(norm, self.limits.max_z)
        found = anomaly(norm, usual, dead_for, self.limits)
        if found == "nan" and self.has_scaler:
            return None
        return found

    def _count(self, group: str, found: Anomaly, step: int) -> int:
        """Count an anomaly; how many there are of it now."""
        counts = self.seen.setdefault(group, {}).setdefault(found, [0, step, step])
        counts[0] += 1
        counts[2] = step
        return counts[0]

    def counts(self) -> Iterator[str]:
        """A sentence for each anomaly of each group."""
        for group, anomalies in self.seen.items():
            for found, (count, first, last) in anomalies.items():
                yield f"{found} in {group!r} {count}× (steps {first} to {last})"

    def state_dict(self) -> dict[str, Any]:
        """All of this as primitives."""
        return {
            "trained": self.trained,
            "usual": {group: list(usual) for group, usual in self.usual.items()},
            "dead_for": dict(self.dead_for),
            "seen": deepcopy(self.seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.trained = state["trained"]
        self.usual = {group: RunningNorm(*usual) for group, usual in state["usual"].items()}
        self.dead_for = dict(state["dead_for"])
        self.seen = state["seen"]
