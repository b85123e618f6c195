"""From the record of a run to its page and pictures."""

from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_vlm_callbacks.run_report.charts import charts, frame, rank_map
from lightning_vlm_callbacks.run_report.history import History, read_history
from lightning_vlm_callbacks.run_report.page import report_page
from lightning_vlm_callbacks.run_report.png import file_name, save_chart, save_ranks
from lightning_vlm_callbacks.whole_files import refusal, write_whole

__all__ = ["draw_report"]

PAGE = "report.html"
PICTURES = "report"


def draw_report(record: Path, *, announce: bool = True) -> list[Path]:
    """Draw the page beside a record, and the pictures in a folder beside it.

    A report that can't be drawn or written is no reason for a run to fail: it is a warning.

    Args:
        record: The file of the run that was recorded last.
        announce: Whether to say where the page is.

    Returns:
        The page and the pictures; nothing if there was nothing to draw.
    """
    page = record.with_name(PAGE)
    try:
        history = read_history(record)
        if not history.curves:
            rank_zero_info(f"RunReport: nothing was logged, so there is no {PAGE}; events are in {record}")
            return []
        write_whole(page, report_page(history, str(Path(*record.absolute().parent.parts[-3:]))))
        pictures = _draw_pictures(record.with_name(PICTURES), history)
    except Exception as error:
        why = refusal(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        rank_zero_warn(f"RunReport: the report of {record} can't be drawn: {why}")
        return []
    if announce:
        rank_zero_info(f"RunReport: {page}")
    return [page, *pictures]


def _draw_pictures(folder: Path, history: History) -> list[Path]:
    if find_spec("matplotlib") is None:
        rank_zero_info("RunReport: no PNGs, as matplotlib isn't installed; pip install matplotlib")
        return []
    folder.mkdir(exist_ok=True)
    axes, files = frame(history), []
    for chart in charts(history):
        if chart.place == "main":
            files.append(folder / file_name(chart.title))
            save_chart(files[-1], chart, axes)
    ranks = rank_map(history)
    if ranks is not None:
        files.append(folder / file_name(ranks.title))
        save_ranks(files[-1], ranks)
    return files
