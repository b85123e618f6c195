"""`llms.txt` and `llms-full.txt`, from which programs read the documentation (llmstxt.org)."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

HEAD = """\
# Lightning VLM

> {description}

Everything below is Markdown. In a copy of the repository the pages lie in `docs/` under the same names
(`first-model.md` is `docs/first-model.md`), ready configs in `configs/`, notebooks in `notebooks/`;
README.md, ARCHITECTURE.md and CONTRIBUTING.md are at its root. `lightning-vlm --help`,
`lightning-vlm COMMAND --help` and `lightning-vlm recipes` print the same facts without a network.
All pages in one file: [llms-full.txt](llms-full.txt).
"""


def write(site: Path, config: MkDocsConfig, read: dict[str, str]) -> None:
    """Write both files, and the Markdown of each page beside its HTML.

    Args:
        site: The folder of the built site.
        config: The config of mkdocs.
        read: The Markdown of each page, by its place.
    """
    head = HEAD.format(description=config.site_description)
    lines, full = [head], [head]
    for title, places in _sections(config.nav or []):
        lines.append(f"## {title}\n")
        for place in places:
            if place in read:
                lines.append(f"- [{heading(read[place])}]({place})")
                full.append(f"<!-- {place} -->\n\n{read[place].strip()}\n")
        lines.append("")
    (site / "llms.txt").write_text("\n".join(lines), "utf-8")
    (site / "llms-full.txt").write_text("\n".join(full), "utf-8")
    for place, text in read.items():
        (site / place).parent.mkdir(parents=True, exist_ok=True)
        (site / place).write_text(text, "utf-8")


def heading(text: str) -> str:
    """The title of a page.

    >>> heading("# A `b`\\n\\nWords.")
    'A b'
    """
    first = next((line for line in text.splitlines() if line.startswith("# ")), "# ")
    return first[2:].replace("`", "")


def _sections(nav: list[Any]) -> list[tuple[str, list[str]]]:
    """The sections of the navigation, and the places of all pages in each."""
    found: list[tuple[str, list[str]]] = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, below),) = entry.items()
            found.append((title, _places(below)))
        else:
            found.append(("Start", [entry]))
    return found


def _places(below: Any) -> list[str]:
    if isinstance(below, str):
        return [below]
    if isinstance(below, dict):
        return [place for one in below.values() for place in _places(one)]
    return [place for one in below for place in _places(one)]
