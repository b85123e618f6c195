"""From Markdown as GitHub reads it to Markdown as Python-Markdown reads it, which mkdocs uses."""

import re

_FENCE = re.compile(r"^\s*(```+|~~~+)")
_ITEM = re.compile(r"^( *)([-*+]|\d+[.)]) +")
_ESCAPED = re.compile(r"(`+)(?:(?!\1).)*?\1")


def for_python_markdown(text: str) -> str:
    r"""The same page for the other reader.

    - A list may follow a line of text: it gets an empty line before it.
    - What belongs to an item may be indented by two columns: it gets four.
    - `\|` in code in a table is a bar: the backslash goes.

    >>> print(for_python_markdown("Words:\n- a\n  - b\n\n  more"))
    Words:
    <BLANKLINE>
    - a
        - b
    <BLANKLINE>
        more
    """
    out: list[str] = []
    fence = ""
    shift = unit = 0
    in_list = False
    for line in text.split("\n"):
        indent = len(line) - len(line.lstrip(" "))
        if fence:
            out.append(" " * shift + line if line.strip() else line)
            if line.strip() == fence:
                fence = ""
            continue
        item = _ITEM.match(line)
        if item and indent == 0:
            if not in_list and out and out[-1].strip():
                out.append("")
            in_list = True
            unit = 2 if item[2] in "-*+" else len(item[0])
        elif line.strip() and indent == 0:
            in_list = in_list and bool(out[-1].strip()) and not line.startswith(("#", "|", "```", "<"))
        shift = 0
        if in_list and unit and indent >= unit and (item or not out[-1].strip() or _FENCE.match(line)):
            shift = (4 - unit) * (indent // unit)
        opened = _FENCE.match(line)
        fence = opened[1] if opened else ""
        if line.lstrip().startswith("|"):
            line = _ESCAPED.sub(lambda match: match[0].replace("\\|", "|"), line)
        out.append(" " * max(0, shift) + line if line.strip() else line)
    return "\n".join(out)
