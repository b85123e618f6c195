"""A preview as one HTML page that needs no other file: `page.html` is its template."""

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import PIL.Image
from lightning_vlm_callbacks.whole_files import refusal, write_whole

from lightning_vlm.errors import UserError
from lightning_vlm.inspect import gain, summary
from lightning_vlm.inspect.preview import Preview
from lightning_vlm.inspect.tokens import Piece, visible_characters
from lightning_vlm.inspect.videos import seconds
from lightning_vlm.kinds import Kind
from lightning_vlm.outputs.html import data_uri, templates

ERRORS = 50
"""How many skipped samples are listed."""
FRAME_SIDE = 160
"""The longer side of an embedded frame of a video; larger frames are made smaller."""


def save(preview: Preview, path: str | Path) -> Path:
    """Write the page, and make its folder.

    Raises:
        UserError: It can't be written there.
    """
    path = Path(path)
    try:
        write_whole(path, page(preview))
    except OSError as error:
        raise UserError(f"out: {refusal(error)}") from error
    return path


def page(preview: Preview) -> str:
    """The whole page."""
    filters: dict[str, Callable[..., Any]] = {
        "data_uri": data_uri,
        "describe_gain": gain.describe,
        "describe_sample": summary.describe_sample,
        "gain_level": gain.level,
        "nats": "{:+.2f}".format,
        "runs_of_weight": runs_of_weight,
        "seconds": seconds,
        "short": "{:g}".format,
        "shown_width": shown_width,
        "thousands": "{:,}".format,
        "thumbnail": thumbnail,
        "tokens": "{:.4g} tokens".format,
        "visible_characters": visible_characters,
    }
    errors = summary.errors(preview)
    rows = [(error.source, error.key, error.found, error.expected) for error in errors[:ERRORS]]
    return (
        templates(Path(__file__).parent, filters)
        .get_template("page.html")
        .render(
            preview=preview,
            levels=gain.LEVELS,
            weights={kind.name.lower(): preview.kind_weight(kind) for kind in Kind},
            share=summary.describe_share(preview),
            kind_table=summary.kind_table(preview),
            task_table=summary.task_table(preview),
            lengths=summary.describe_lengths(preview),
            bins=summary.length_bins(preview),
            fates=summary.FATES,
            fate_classes={"kept": "good", "truncated": "warn", "skipped": "bad"},
            skipped=summary.describe_skipped(preview),
            errors=summary.Table(("source", "where", "found", "expected"), rows),
            more_errors=len(errors) - ERRORS,
        )
    )


def runs_of_weight(pieces: list[Piece]) -> Iterator[tuple[float, list[Piece]]]:
    """Each unbroken run of pieces of one weight."""
    for weight, run in groupby(pieces, lambda piece: piece.weight):
        yield weight, list(run)


def shown_width(image: PIL.Image.Image) -> int:
    """How wide a picture is shown, in pixels; small pictures are enlarged.

    >>> [shown_width(PIL.Image.new("RGB", size)) for size in ((1000, 500), (300, 100), (32, 32), (20, 80))]
    [360, 300, 240, 60]
    """
    wide, high = image.size
    least = 240 if wide >= high else 240 * wide // high
    return max(min(wide, 360), least)


def thumbnail(image: PIL.Image.Image) -> str:
    """A frame of a video as a data URI, small."""
    small = image.copy()
    small.thumbnail((FRAME_SIDE, FRAME_SIDE))
    return data_uri(small)
