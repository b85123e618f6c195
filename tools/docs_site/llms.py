"""`llms.txt` and `llms-full.txt`, from which programs read the documentation (llmstxt.org)."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

from tools.docs_site import api

FIRST = "agents.md"
"""The page that both files begin with."""
OPTIONAL = ("notebooks/", "project/", "reference/configs/", "families.md", "rivals.md")
"""What most tasks can do without: listed last, and not in `llms-full.txt`."""
FILES = ("llms.txt", "llms-full.txt")

_ENTRY = re.compile(r"^::: (\S+)\n(?:    options: .*\n?)?", re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
_BLOCK = re.compile(r"```.*?```", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.?])\s+(?=[A-Z`*])")
_DOCSTRING = re.compile(r"^(?:class|def) .*:\n    (.+(?:\n    \S.*)*)", re.MULTILINE)


def write(site: Path, config: MkDocsConfig, read: dict[str, str], root: Path) -> None:
    """Write both files, and the Markdown of each page beside its HTML.

    Args:
        site: The folder of the built site.
        config: The config of mkdocs.
        read: The Markdown of each page, by its place.
        root: The repository.
    """
    read = {place: with_signatures(text, root) for place, text in read.items()}
    head = read[FIRST].partition("\n\n")[2].strip()
    opening = f"# {config.site_name}\n\n> {config.site_description}\n\n{head}\n"
    lines, full, optional = [opening], [opening], ["## Optional\n"]
    for title, places in _sections(config.nav or []):
        needed = [place for place in places if place != FIRST and not place.startswith(OPTIONAL)]
        optional += [entry(place, read[place]) for place in places if place.startswith(OPTIONAL)]
        if needed:
            lines += [f"## {title}\n", *(entry(place, read[place]) for place in needed), ""]
            full += [f"<!-- {place} -->\n\n{read[place].strip()}\n" for place in needed]
    (site / "llms.txt").write_text("\n".join([*lines, *optional, ""]), "utf-8")
    (site / "llms-full.txt").write_text("\n".join(full), "utf-8")
    for place, text in read.items():
        (site / place).parent.mkdir(parents=True, exist_ok=True)
        (site / place).write_text(text, "utf-8")


def with_signatures(text: str, root: Path) -> str:
    """A page of the API with signatures and docstrings in place of their names."""
    return _ENTRY.sub(lambda match: api.as_text(root, match[1]) + "\n", text)


def entry(place: str, text: str) -> str:
    """A page in a list: its title, and its first sentence.

    >>> entry("a.md", "# A `b`\\n\\nSays [what](c.md) b is. More.\\n")
    '- [A `b`](a.md): Says what b is.'
    """
    title = next((line[2:] for line in text.splitlines() if line.startswith("# ")), place)
    prose = [
        block.strip()
        for block in _BLOCK.sub("", text).split("\n\n")
        if block.strip() and not block.strip().startswith(("#", "|", "!", "<", "-", "`pip"))
    ]
    prose += [found[1] for found in _DOCSTRING.finditer(text)]
    if not prose:
        return f"- [{title}]({place})"
    words = _LINK.sub(r"\1", " ".join(prose[0].split()))
    sentence = _SENTENCE_END.split(words)[0]
    return f"- [{title}]({place}): {sentence.rstrip(':.')}."


def _sections(nav: list[Any]) -> list[tuple[str, list[str]]]:
    """The sections of the navigation, and the places of all pages in each."""
    found: list[tuple[str, list[str]]] = []
    for one in nav:
        if isinstance(one, dict):
            ((title, below),) = one.items()
            found.append((title, _places(below)))
        else:
            found.append(("Start", [one]))
    return found


def _places(below: Any) -> list[str]:
    if isinstance(below, str):
        return [below]
    if isinstance(below, dict):
        return [place for one in below.values() for place in _places(one)]
    return [place for one in below for place in _places(one)]
