"""Pictures of curves over steps, for the callbacks that save one. Needs matplotlib, and only here."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = ["History", "need_matplotlib", "save_curves"]

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values, equally many."""


def need_matplotlib(wish: str) -> None:
    """Say at setup, not at the end of a run, that a picture can't be drawn.

    Args:
        wish: The option that needs matplotlib, set so that it doesn't, such as
            "GradientMonitor(picture=False)".

    Raises:
        ModuleNotFoundError: matplotlib isn't installed.
    """
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            f"a picture needs matplotlib, which isn't installed; pip install matplotlib, or set {wish}"
        )


def save_curves(
    file: str | Path,
    panels: Mapping[str, Mapping[str, Curve]],
    marks: Mapping[str, float] | None = None,
    log: Sequence[str] = (),
) -> Path:
    """Draw panels of curves, one below another, over a common axis of steps, as a PNG.

    Args:
        file: Where the picture goes; its folder is made.
        panels: Title -> name -> the curve. Values that are not finite leave a gap.
        marks: Name -> step of vertical lines through all panels.
        log: Titles of panels with a logarithmic axis.
    Returns:
        The file.

    >>> import tempfile
    >>> curves = {"loss": {"train": ([1, 2, 3], [2.0, 1.0, 0.5])}}
    >>> save_curves(Path(tempfile.mkdtemp(), "loss.png"), curves).stat().st_size > 1000
    True
    """
    from matplotlib.figure import Figure  # pyplot would change the backend of the calling program

    figure = Figure(figsize=(9, 0.8 + 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, (steps, values) in curves.items():
            axis.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 30 else None)
        for mark, step in (marks or {}).items():
            axis.axvline(step, color="gray", linewidth=0.8, linestyle=":")
            axis.annotate(
                mark,
                (step, 1),
                xycoords=("data", "axes fraction"),
                fontsize=7,
                rotation=90,
                va="top",
                ha="right",
            )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_yscale("log" if title in log else "linear")
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize=8, ncols=2)
    axes[-1].set_xlabel("step")
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


class History:
    """Values over steps, thinned out evenly when there are too many.

    >>> history = History(most=4)
    >>> for step in range(10):
    ...     history.add(step, {"all": step / 10})
    >>> history.curve("all")
    ([0, 4, 8], [0.0, 0.4, 0.8])
    """

    def __init__(self, most: int = 1000) -> None:
        self.most, self.every, self.offered = most, 1, 0
        self.points: list[tuple[int, dict[str, float]]] = []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step, if it is one of those to keep."""
        if self.offered % self.every == 0:
            self.points.append((step, dict(values)))
        self.offered += 1
        if len(self.points) > self.most:
            self.points, self.every = self.points[::2], 2 * self.every

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps, and the values of one name; NaN where a step has none."""
        return [step for step, _ in self.points], [values.get(name, math.nan) for _, values in self.points]
