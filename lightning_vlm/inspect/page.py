"""What `look` found, as one HTML page that needs nothing else: no script, no font, no file, no network."""

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path

import PIL.Image

from lightning_vlm.errors import UserError
from lightning_vlm.inspect.figures import (
    Bin,
    Picture,
    Preview,
    Row,
    Sample,
    left_out_words,
    length_words,
    percent,
    range_words,
    sample_words,
    share_words,
)
from lightning_vlm.inspect.style import STYLE
from lightning_vlm.inspect.tokens import Piece, seen
from lightning_vlm.kinds import Kind

TOP = 36
"""The room above the histogram, for its labels."""
REASONS = 50
"""Samples left out that are listed."""
SIDE = 768
"""The longer side of an embedded picture; larger ones are made smaller."""


def save(preview: Preview, path: str | Path) -> Path:
    """Write the page, and make its folder.

    Raises:
        UserError: It can't be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(preview), "utf-8")
    except OSError as error:
        raise UserError(f"out is '{path}', where no page can be written ({error.strerror})") from error
    return path


def page(preview: Preview) -> str:
    """The whole page."""
    title = f"What {preview.name} will learn"
    figures = "".join(
        (
            f"<p class=big>{escape(share_words(preview))}.</p>",
            "".join(f"<p class=note><b>Note:</b> {escape(note)}</p>" for note in preview.notes),
            f"<div class=side>{_kinds(preview)}{_tasks(preview)}</div>",
            f"<h2>Lengths</h2><p>{escape(length_words(preview))}.</p>{_histogram(preview)}",
            _left_out(preview),
        )
    )
    samples = "".join(_sample(number, one) for number, one in enumerate(preview.samples, 1))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # The data can't run scripts or fetch anything.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{figures}\n<h2>Samples</h2>{_legend(preview)}\n{samples}"
        "</main></body></html>\n"
    )


def _legend(preview: Preview) -> str:
    chips = " ".join(
        f'<span class="{_classes(kind, preview.kind_weight(kind))}">{kind.name.lower()}</span>'
        f"<small>×{preview.kind_weight(kind):g}</small>"
        for kind in Kind
    )
    return (
        f"<div class=legend>{chips} <span class=how><b class=on>bold and underlined</b> is learned, with its "
        "weight behind it if that isn't 1; point at a token for its id, kind and weight; <i class=dot> </i> "
        "space, <b class=mark>↵</b> new line, <b class=mark>⇥</b> tab</span></div>"
    )


def _sample(number: int, sample: Sample) -> str:
    shown = "".join(_picture(place, one) for place, one in enumerate(sample.pictures, 1))
    figures = f"<div class=pictures>{shown}</div>" if shown else ""
    text = ""
    for weight, run in groupby(sample.pieces, lambda piece: piece.weight):
        text += "".join(map(_piece, run))
        text += "" if weight in (0, 1) else f"<sup class=mark>×{weight:g}</sup>"
    return (
        f'<section id="s{number}"><h3>{number}<span class=task>{escape(sample.fact.task)}</span>'
        f"<small>{escape(sample_words(sample))}</small><code>{escape(sample.conversation.source)}</code></h3>"
        f"<div class=sample>{figures}<pre dir=auto>{text}</pre></div></section>\n"
    )


def _piece(piece: Piece) -> str:
    some = f"{piece.ids[0]} … ({len(piece.ids)})" if len(piece.ids) > 8 else ", ".join(map(str, piece.ids))
    title = f"id {some} · {piece.kind.name.lower()} · weight {piece.weight:g}"
    if piece.kind in (Kind.IMAGE, Kind.PAD):
        text = escape(piece.text)
    else:
        text = "".join(_character(one, mark) for one, mark in seen(piece.text)) or "<b class=mark>∅</b>"
    return f'<span class="{_classes(piece.kind, piece.weight)}" title="{title}">{text}</span>'


def _character(one: str, mark: str) -> str:
    """What can't be seen gets a mark, but what is copied from the page stays the text itself."""
    if one == " ":
        return "<i class=dot> </i>"
    if one == mark:
        return escape(one)
    return f"<b class=mark>{mark}</b>{one if one in chr(10) + chr(9) else ''}"


def _classes(kind: Kind, weight: float) -> str:
    return f"t {kind.name.lower()}{' on' if weight else ''}"


def _picture(number: int, picture: Picture) -> str:
    """A picture with its boxes over it, in its own pixels."""
    wide, high = picture.image.size
    shapes, words = "", ""
    for place, (box, answer) in enumerate(picture.boxes, 1):
        x1, y1, x2, y2 = (
            value * side for value, side in zip(box.xyxy, (wide, high, wide, high), strict=True)
        )
        kind = "answer" if answer else "question"
        area = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:g}" height="{y2 - y1:g}"'
        shapes += f'<rect class=halo {area} /><rect class="{kind}" {area} />'
        size = max(wide, high) / 16
        shapes += f'<text x="{x1 + size / 5:g}" y="{y1 + size:g}" font-size="{size:g}">{place}</text>'
        words += f"<li>in {'an' if answer else 'a'} {kind}: {escape(str(box))}</li>"
    over = f'<svg viewBox="0 0 {wide} {high}" preserveAspectRatio="none">{shapes}</svg>' if shapes else ""
    # Small pictures are enlarged without smoothing.
    width = max(min(wide, 360), 240 if wide >= high else 240 * wide // high)
    grown = " class=grown" if width > wide else ""
    return (
        f'<figure style="width:{width}px"><div>'
        f'<img{grown} alt="picture {number}" src="{_data(picture.image)}">'
        f"{over}</div><figcaption>picture {number}, {wide}×{high} pixels{_boxes(words)}</figcaption></figure>"
    )


def _boxes(words: str) -> str:
    return f"; boxes<ol>{words}</ol>" if words else ""


def _data(image: PIL.Image.Image) -> str:
    """A picture as a data URI; small ones keep their exact pixels."""
    image, file = image.copy(), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    kind = "png" if image.width * image.height <= 256 * 256 else "jpeg"
    image.save(file, kind, **({} if kind == "png" else {"quality": 88}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _kinds(preview: Preview) -> str:
    total = preview.total
    rows = [
        (
            f'<span class="{_classes(kind, preview.kind_weight(kind))}">{row.name}</span>',
            f"{preview.kind_weight(kind):g}",
            f"{row.tokens:,}",
            percent(row.tokens, total.tokens),
            f"{row.learned:,}",
            percent(row.weight, total.weight),
        )
        for kind, row in preview.by_kind().items()
    ]
    return _table(("kind", "weight", "tokens", "share", "learned", "share of weight"), rows)


def _tasks(preview: Preview) -> str:
    total = preview.total

    def cells(row: Row) -> Iterator[str]:
        yield escape(row.name)
        yield from (f"{number:,}" for number in (row.samples, row.tokens, row.learned))
        yield percent(row.learned, row.tokens)
        yield percent(row.weight, total.weight)

    names = ("task", "samples", "tokens", "learned", "share learned", "share of weight")
    return _table(names, (cells(row) for row in (*preview.by_task(), total)))


def _left_out(preview: Preview) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in left_out_words(preview))
    errors = [*(one.error for one in preview.left_out), *preview.opened]
    rows = [
        (f"<code>{escape(one.source)}</code>", *map(escape, (one.key, one.found, one.expected)))
        for one in errors[:REASONS]
    ]
    table = _table(("source", "where", "found", "expected"), rows).replace("<table", "<table class=text")
    more = f"<p>and {len(errors) - REASONS:,} more.</p>" if len(errors) > REASONS else ""
    return f"<h2>Cut and left out</h2>{lines}{table if rows else ''}{more}"


def _histogram(preview: Preview, width: int = 720, height: int = 150) -> str:
    bins, limit = preview.bins(), preview.max_length
    if not bins:
        return ""
    low, high = bins[0].start, bins[-1].stop
    most = max(sum(one[2:]) for one in bins)
    step = width / len(bins)
    shapes = ""
    for place, one in enumerate(bins):
        top: float = height + TOP
        words = f"{range_words(one)} tokens: {_fates(one)}"
        shapes += f"<g><title>{words}</title>"
        shapes += f'<rect class=back x="{place * step:.1f}" y="{TOP}" width="{step:.1f}" height="{height}" />'
        for fate in ("kept", "cut", "left_out"):
            tall = getattr(one, fate) / most * height
            if tall:
                tall = max(tall, 2)  # a bar for a single sample stays visible
                top -= tall
                shapes += f'<rect class={fate} x="{place * step + 1:.1f}" y="{top:.1f}" '
                shapes += f'width="{step - 2:.1f}" height="{tall:.1f}" />'
        shapes += f'</g><text class=count x="{(place + 0.5) * step:.1f}" y="{top - 4:.1f}">'
        shapes += f"{sum(one[2:]) or ''}</text>"
        if place % 2 == 0 or len(bins) < 9:
            shapes += f'<text class=tick x="{place * step:.1f}" y="{height + TOP + 16}">{one.start:,}</text>'
    if limit is not None and low <= limit < high:
        x = (limit - low) / (high - low) * width
        end = "end" if x > width / 2 else "start"
        shapes += f'<path class=limit d="M{x:.1f} 8V{height + TOP}" />'
        shapes += f'<text class=limit x="{x + (-6 if end == "end" else 6):.1f}" y="12" text-anchor="{end}">'
        shapes += f"max_length {limit:,}</text>"
    fates = (("kept", "whole"), ("cut", "cut by whole rounds"), ("left_out", "left out"))
    key = "".join(f"<b class={fate}></b>{words}" for fate, words in fates)
    return (
        f'<div class=wide><svg class=histogram role=img aria-label="How many samples have which length" '
        f'viewBox="-20 0 {width + 40} {height + TOP + 22}">{shapes}</svg></div><p class=fates>{key}</p>'
    )


def _fates(one: Bin) -> str:
    parts = [f"{getattr(one, fate):,} {fate.replace('_', ' ')}" for fate in ("kept", "cut", "left_out")]
    return ", ".join(part for part in parts if not part.startswith("0 ")) or "none"
