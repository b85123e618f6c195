"""What `lint` finds as one HTML page that needs no other file: `page.html` is its template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_vlm_callbacks.whole_files import refusal, write_whole

from lightning_vlm.errors import UserError
from lightning_vlm.lint import terminal
from lightning_vlm.lint.finding import Report, listed
from lightning_vlm.lint.kinds import KINDS
from lightning_vlm.outputs.histogram import bins_of
from lightning_vlm.outputs.html import data_uri, templates
from lightning_vlm.terminal import visible

ROWS = 100
"""How many findings of each kind are listed."""
FATES = {"kept": "whole", "cut": "cut by whole rounds", "skipped": "left out"}
_FATE_CLASSES = {"kept": "good", "cut": "warn", "skipped": "bad"}
_STATES = {"fine": "fine", "odd": "with a finding"}
_STATE_CLASSES = {"fine": "good", "odd": "bad"}


def save(report: Report, path: str) -> Path:
    """Write the page, and make its folder.

    Raises:
        UserError: It can't be written there.
    """
    try:
        write_whole(Path(path), page(report))
    except OSError as error:
        raise UserError(f"out: {refusal(error)}") from error
    return Path(path)


def page(report: Report) -> str:
    """The whole page."""
    filters: dict[str, Callable[..., Any]] = {
        "data_uri": data_uri,
        "listed": listed,
        "thousands": "{:,}".format,
        "visible": visible,
    }
    lengths = report.lengths
    return (
        templates(Path(__file__).parent, filters)
        .get_template("page.html")
        .render(
            report=report,
            kinds=KINDS,
            most=ROWS,
            read=terminal.describe(report),
            task_lines=list(terminal.tasks(report)),
            length_bins=bins_of(lengths),
            fates=FATES,
            fate_classes=_FATE_CLASSES,
            side_bins=bins_of(report.sides),
            states=_STATES,
            state_classes=_STATE_CLASSES,
        )
    )
