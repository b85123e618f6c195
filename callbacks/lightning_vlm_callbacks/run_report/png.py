"""Charts as PNG files. Needs matplotlib, and only here."""

import math
import re
from pathlib import Path
from typing import Any, Literal

from lightning_vlm_callbacks.run_report.charts import Chart, Frame, RankMap
from lightning_vlm_callbacks.run_report.svg import curve_colour, mark_colour, stage_colour
from lightning_vlm_callbacks.whole_files import written_whole

__all__ = ["file_name", "save_chart", "save_ranks"]


def file_name(title: str) -> str:
    """A name for the file of a chart.

    >>> file_name("Update of the weights, ‖Δw‖/‖w‖")
    'update-of-the-weights-w-w.png'
    """
    words = re.findall(r"[a-z0-9]+", title.lower())
    return f"{'-'.join(words)}.png"


def save_chart(file: Path, chart: Chart, frame: Frame) -> None:
    """Draw a chart with its stages and marks."""
    figure, axis = _figure(9.0, 3.6, chart.title, None)
    # Room for eight digits, as many as a label has; to find out, matplotlib would draw all of it once more.
    figure.subplots_adjust(left=0.09, right=0.985, bottom=0.14, top=0.87)
    for place, stage in enumerate(frame.stages):
        axis.axvspan(stage.start, stage.end, color=stage_colour(place), zorder=0)
        axis.annotate(f"stage {place}", (stage.start, 1), xycoords=("data", "axes fraction"), fontsize=7)
    for event in frame.marks:
        top, style = 0.05, "-"
        if event.kind == "best":
            top, style = 1.0, "--"
        axis.axvline(event.step, ymax=top, color=mark_colour(event.kind), linestyle=style, linewidth=1.2)
    for place, (name, points) in enumerate(chart.curves.items()):
        steps = [step for step, _ in points]
        values = [value if math.isfinite(value) else math.nan for _, value in points]
        marker = "." if len(points) < 30 else None
        axis.plot(steps, values, label=name, color=curve_colour(place), linewidth=1.4, marker=marker)
    axis.set_yscale("log" if chart.is_log else "linear")
    axis.set_xlim(frame.start, frame.end)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8, ncols=2, frameon=False)
    with written_whole(file) as unfinished:
        figure.savefig(unfinished, dpi=120)


def save_ranks(file: Path, ranks: RankMap) -> None:
    """Draw the rank of each layer from step to step."""
    names = list(ranks.ranks)
    count = len(names)
    height = max(3.0, min(0.17 * count + 1.2, 40.0))  # in inches
    figure, axis = _figure(10.0, height, ranks.title, "constrained")
    rows = list(ranks.ranks.values())
    cells = axis.pcolormesh(ranks.edges, range(count + 1), rows, vmin=0)
    middles = [row + 0.5 for row in range(count)]
    font_size = min(8.0, 75 * height / count)  # so that names don't overlap
    axis.set_yticks(middles, names, fontsize=font_size)
    axis.invert_yaxis()
    figure.colorbar(cells, ax=axis, label="rank")
    with written_whole(file) as unfinished:
        figure.savefig(unfinished, dpi=120)


def _figure(
    width: float, height: float, title: str, layout: Literal["constrained"] | None
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # pyplot would change the backend of the calling program

    figure = Figure(figsize=(width, height), layout=layout)
    axis = figure.subplots()
    # Without y, matplotlib measures all labels to put the title above them.
    axis.set_title(title, loc="left", fontsize=11, pad=14, y=1.0)
    axis.set_xlabel("step")
    return figure, axis
