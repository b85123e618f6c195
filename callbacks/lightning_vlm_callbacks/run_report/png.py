"""Charts as PNG files. Needs matplotlib, and only here."""

import math
import re
from pathlib import Path
from typing import Any

from lightning_vlm_callbacks.run_report.charts import Chart, Frame, RankMap
from lightning_vlm_callbacks.run_report.svg import COLOURS, MARK_COLOURS, OTHER_MARK_COLOUR, STAGE_COLOURS

__all__ = ["file_name", "save_chart", "save_ranks"]


def file_name(title: str) -> str:
    """A name for the file of a chart.

    >>> file_name("Update of the weights, ‖Δw‖/‖w‖")
    'update-of-the-weights-w-w.png'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") + ".png"


def save_chart(file: Path, chart: Chart, frame: Frame) -> None:
    """Draw a chart with its stages and marks."""
    figure, axis = _figure(9.0, 3.6, chart.title)
    for number, stage in enumerate(frame.stages):
        axis.axvspan(stage.start, stage.end, color=STAGE_COLOURS[number % len(STAGE_COLOURS)], zorder=0)
        axis.annotate(f"stage {number}", (stage.start, 1), xycoords=("data", "axes fraction"), fontsize=7)
    for event in frame.marks:
        top = 1.0 if event.kind == "best" else 0.05
        style = "--" if event.kind == "best" else "-"
        colour = MARK_COLOURS.get(event.kind, OTHER_MARK_COLOUR)
        axis.axvline(event.step, ymax=top, color=colour, linestyle=style, linewidth=1.2)
    for number, (name, points) in enumerate(chart.curves.items()):
        values = [value if math.isfinite(value) else math.nan for _, value in points]
        steps = [step for step, _ in points]
        marker = "." if len(points) < 30 else None
        axis.plot(
            steps, values, label=name, color=COLOURS[number % len(COLOURS)], linewidth=1.4, marker=marker
        )
    axis.set_yscale("log" if chart.is_log else "linear")
    axis.set_xlim(frame.start, frame.end)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, ncols=2, frameon=False)
    figure.savefig(file, dpi=120)


def save_ranks(file: Path, ranks: RankMap) -> None:
    """Draw the rank of each layer from step to step."""
    names = list(ranks.ranks)
    height = max(3.0, min(0.17 * len(names) + 1.2, 40.0))
    figure, axis = _figure(10.0, height, ranks.title)
    cells = axis.pcolormesh(ranks.edges, range(len(names) + 1), list(ranks.ranks.values()), vmin=0)
    axis.set_yticks(
        [row + 0.5 for row in range(len(names))], names, fontsize=min(8.0, 75 * height / len(names))
    )
    axis.invert_yaxis()
    figure.colorbar(cells, ax=axis, label="rank")
    figure.savefig(file, dpi=120)


def _figure(width: float, height: float, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # pyplot would change the backend of the calling program

    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.set_title(title, loc="left", fontsize=11, pad=14)
    axis.set_xlabel("step")
    return figure, axis
