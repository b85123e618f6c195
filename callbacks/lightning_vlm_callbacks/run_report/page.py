"""The page of a run: one HTML file that needs no other."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape

from lightning_vlm_callbacks.run_report.charts import Chart, Frame, charts, frame, rank_map
from lightning_vlm_callbacks.run_report.history import Event, History
from lightning_vlm_callbacks.run_report.rank_svg import rank_svg
from lightning_vlm_callbacks.run_report.svg import chart_svg, curve_colour, mark_colour, number, stage_colour

__all__ = ["report_page"]

MOST_EVENTS = 200
MOST_OTHERS = 60
"""Of the charts that are in no family."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may do for the page: it runs no script and fetches nothing."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 960px;
  margin: 24px auto; padding: 0 16px; }
h1 { font-size: 22px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 28px 0 2px; }
p, dl { margin: 6px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; }
dt { color: #777; } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: #555; }
svg .stage { fill: #888; } svg .bad { fill: #d62728; font-size: 15px; }
.grid { stroke: #ddd; fill: none; } .tick { stroke: #999; fill: none; }
.curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.mark { stroke-width: 2; fill: none; } .best { stroke-dasharray: 4 3; stroke-width: 1.5; }
.legend { font-size: 13px; margin: 0 0 4px; } .legend span { margin-right: 16px; white-space: nowrap; }
.legend i { display: inline-block; width: 12px; height: 3px; vertical-align: middle; margin-right: 5px; }
.legend i.band { height: 11px; border: 1px solid #ccc; }
.legend b { font-weight: 600; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 0 20px; }
.small h2 { font-size: 14px; margin-top: 16px; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th { text-align: left; color: #777; font-weight: 500; }
td, th { padding: 3px 14px 3px 0; border-bottom: 1px solid #eee; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } td.text { overflow-wrap: anywhere; }
summary { cursor: pointer; margin-top: 28px; font-weight: 600; }
"""


def report_page(history: History, title: str) -> str:
    """The page of a run, as HTML.

    Args:
        history: Of the run.
        title: What the page is about, such as the run's folder.
    """
    body = "".join(_body(history, title))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def _body(history: History, title: str) -> Iterator[str]:
    axes = frame(history)
    found = charts(history)
    yield f"<h1>{escape(title)}</h1>"
    yield _facts(history)
    yield _explanation(axes)
    for chart in _placed(found, "main"):
        yield _chart(chart, axes)
    ranks = rank_map(history)
    if ranks is not None:
        yield f"<h2>{escape(ranks.title)}</h2>{rank_svg(ranks)}"
    others = _placed(found, "other")
    if others:
        yield "<h2>Other</h2><div class=small>"
        for chart in others[:MOST_OTHERS]:
            yield f"<div>{_chart(chart, axes, small=True)}</div>"
        yield "</div>"
    if len(others) > MOST_OTHERS:
        count = len(others) - MOST_OTHERS
        yield f"<p>{count} more charts aren't drawn; their values are in report.jsonl.</p>"
    details = _placed(found, "details")
    if details:
        yield "<details><summary>More about gradients</summary>"
        for chart in details:
            yield _chart(chart, axes)
        yield "</details>"
    yield _events(history.events)


def _placed(found: Sequence[Chart], place: str) -> list[Chart]:
    return [chart for chart in found if chart.place == place]


def _facts(history: History) -> str:
    """How the run went, in a few lines."""
    facts = {}
    if history.events:
        facts["started"] = f"{datetime.fromtimestamp(history.events[0].time):%Y-%m-%d %H:%M}"
    facts["steps"] = f"{history.last_step:,} in {_duration(history.seconds)}"
    facts["end"] = _end(history.events)
    last_of_kind = {event.kind: event for event in history.events}
    for kind, label in (("best", "best checkpoint"), ("checkpoint", "last checkpoint")):
        if kind in last_of_kind:
            event = last_of_kind[kind]
            facts[label] = f"step {event.step:,}: {event.text}"
    lines = [f"<dt>{label}</dt><dd>{escape(text)}</dd>" for label, text in facts.items()]
    return f"<dl>{''.join(lines)}</dl>"


def _end(events: Sequence[Event]) -> str:
    """How the last process ended that recorded its end."""
    for event in reversed(events):
        if event.kind == "ended":
            return event.text
        if event.kind == "interrupted":
            return f"interrupted at step {event.step:,}: {event.text}"
    return "none was recorded: the process is still running, or was killed"


def _duration(seconds: float) -> str:
    """A length of time for people.

    >>> [_duration(seconds) for seconds in (4.26, 75, 7384)]
    ['4.3 s', '1 min 15 s', '2 h 3 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _explanation(axes: Frame) -> str:
    """What bands and marks mean, as far as there are any."""
    lines = []
    for place, stage in enumerate(axes.stages):
        band = f'<i class="band" style="background:{stage_colour(place)}"></i>'
        steps = f"steps {stage.start:,} to {stage.end:,}"
        lines.append(f'<p class="legend">{band}stage {place}, {steps}: {escape(stage.text)}</p>')
    kinds = dict.fromkeys(event.kind for event in axes.marks)
    marks = [_swatch(mark_colour(kind), escape(kind)) for kind in kinds]
    if marks:
        lines.append(f'<p class="legend">marks: {"".join(marks)}</p>')
    return "".join(lines)


def _swatch(colour: str, text: str) -> str:
    return f'<span><i style="background:{colour}"></i>{text}</span>'


def _chart(chart: Chart, axes: Frame, small: bool = False) -> str:
    legend = []
    for place, (name, points) in enumerate(chart.curves.items()):
        _, last_value = points[-1]
        label = f"{escape(name)} <b>{number(last_value)}</b>"
        legend.append(_swatch(curve_colour(place), label))
    if chart.missing:
        legend.append(f"<span>and {chart.missing} more, which are in report.jsonl</span>")
    picture = chart_svg(chart, axes, 440, 180) if small else chart_svg(chart, axes)
    return f'<h2>{escape(chart.title)}</h2><p class="legend">{" ".join(legend)}</p>{picture}'


def _events(events: Sequence[Event]) -> str:
    shown = events[-MOST_EVENTS:]
    note = ""
    if len(shown) < len(events):
        note = f"<p>The last {len(shown)} of {len(events)}.</p>"
    rows = ["<tr><th>step</th><th>time</th><th>event</th><th></th></tr>"]
    for event in shown:
        time = f"{datetime.fromtimestamp(event.time):%Y-%m-%d&nbsp;%H:%M:%S}"
        rows.append(
            f'<tr><td class="number">{event.step:,}</td><td>{time}</td>'
            f'<td>{escape(event.kind)}</td><td class="text">{escape(event.text)}</td></tr>'
        )
    return f"<h2>Events</h2>{note}<table>{''.join(rows)}</table>"
