"""What is changed in the HTML of a page, so that its tables and code read well on a narrow screen."""

import html
import re

_TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)
_ROW = re.compile(r"<tr>.*?</tr>", re.DOTALL)
_HEADING = re.compile(r"<th[^>]*>(.*?)</th>", re.DOTALL)
_TAG = re.compile(r"<[^>]+>")
_CODE = re.compile(r"<pre.*?</pre>|<code>([^<]*)</code>", re.DOTALL)  # blocks of code, and code in a line
_OPTION = re.compile(r"(?<=[>\s])--[a-z][\w.+-]*")
_JOINT = re.compile(r"([/_.])(?=.)")

MOST_COLUMNS = 4
"""Tables with more columns are tables of numbers, which scroll."""
LONGEST = 36
"""Code of one word that is longer may be broken at the end of a line: behind `/`, `_` and `.`."""


def for_narrow_screens(page: str) -> str:
    """The HTML of a page, with what the style sheet needs to know about tables and code.

    - A cell knows the heading of its column: a narrow screen shows the cells of a row one below the other.
    - An option or a short key stays in one piece; a long path may be broken at its joints.

    Args:
        page: The HTML of a page, without its frame.

    >>> for_narrow_screens("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>")
    '<table data-stacks><tr><th>a</th><th>b</th></tr><tr><td>1</td><td data-label="b">2</td></tr></table>'
    >>> for_narrow_screens("<code>fit --config a</code>")
    '<code>fit <span class="whole">--config</span> a</code>'
    """
    return _CODE.sub(_code, _TABLE.sub(_table, page))


def _table(match: re.Match[str]) -> str:
    headings = [html.unescape(_TAG.sub("", heading)).strip() for heading in _HEADING.findall(match[0])]
    if len(headings) > MOST_COLUMNS:
        return match[0]
    rows = _ROW.sub(lambda row: _labelled(row[0], headings), match[0])
    return rows.replace("<table>", "<table data-stacks>", 1)


def _labelled(row: str, headings: list[str]) -> str:
    """A row whose cells, but for the first, know the heading of their column."""
    start, *cells = row.split("<td")
    labels = ["", *(f' data-label="{html.escape(heading)}"' if heading else "" for heading in headings[1:])]
    return start + "".join(f"<td{label}{cell}" for label, cell in zip(labels, cells, strict=False))


def _code(match: re.Match[str]) -> str:
    text = match[1]
    if text is None or " " in text:
        return _OPTION.sub(r'<span class="whole">\g<0></span>', match[0])
    if len(html.unescape(text)) <= LONGEST:
        return f'<code class="whole">{text}</code>'
    breakable = _JOINT.sub(r"\1<wbr>", text)
    return f"<code>{breakable}</code>"
