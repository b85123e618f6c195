"""What mkdocs calls while it builds (`hooks` of mkdocs.yml); each function has the name of its event."""

# ruff: noqa: E402
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.docs_site import api, configs, llms, notebooks
from tools.docs_site.links import REPOSITORY_PAGES, Links
from tools.docs_site.markdown import for_python_markdown
from tools.docs_site.narrow import for_narrow_screens

_COMMENT = re.compile(r"^[ \t]*<!-- test:.*?-->[ \t]*\n", re.DOTALL | re.MULTILINE)
_BOOSTS = {
    "troubleshooting.md": 20,
    "reference/api/": 0.5,
    "reference/configs/": 0.2,
    "notebooks/": 0.3,
    "project/": 0.1,
    "families.md": 0.2,
    "rivals.md": 0.2,
    "what-trains.md": 3,
    "decisions.md": 0.3,
    "case-study.md": 0.3,
    "exercises.md": 0.3,
}
"""What a word on a page counts in the search where it isn't 1: who types a message looks for help."""
_read: dict[str, str] = {}
"""What each page says, by its place in the site; for llms.txt."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that don't lie in `docs/`, and lay out the navigation."""
    pages: dict[str, str | bytes] = {}
    for source, place in REPOSITORY_PAGES.items():
        pages[place] = (ROOT / source).read_text("utf-8")
    pages |= configs.pages(ROOT) | notebooks.pages(ROOT) | api.pages(ROOT)
    pages |= dict.fromkeys(llms.FILES, "")  # written at the end, when all pages have been read
    for place, content in pages.items():
        files.append(File.generated(config, place, content=content))
    known = [file.src_uri for file in files.documentation_pages()]
    config.nav = _laid_out(config.nav or [], known)
    return files


def _laid_out(nav: list[Any], known: list[str]) -> list[Any]:
    """The navigation with all pages of a folder in place of a name that ends in `/`."""
    found: list[Any] = []
    for entry in nav:
        if entry == f"{api.FOLDER}/":
            found += api.nav(ROOT)
        elif isinstance(entry, str) and entry.endswith("/"):
            inside = sorted(place for place in known if place.startswith(entry))
            first = [place for place in inside if place in (f"{entry}index.md", f"{entry}README.md")]
            found += first + [place for place in inside if place not in first]
        elif isinstance(entry, dict):
            ((title, below),) = entry.items()
            if isinstance(below, str) and below.endswith("/"):
                below = [below]
            below = _laid_out(below, known) if isinstance(below, list) else below
            found += [{title: below}] if below else []
        else:
            found.append(entry)
    return found


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave `docs/` into links within the site, and GitHub's Markdown into mkdocs'."""
    pictures = {file.src_uri for file in files.media_files()}
    links = Links(ROOT, page.file.src_uri, str(config.extra.get("repository") or ""), pictures)
    text = links.rewritten(_COMMENT.sub("", markdown))
    page.meta["search"] = {"boost": _boost(page.file.src_uri)}
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]
    if links.broken:
        raise PluginError(f"{page.file.src_uri} links to what isn't there: {', '.join(links.broken)}")
    _read[page.file.src_uri] = text
    if page.file.src_uri == llms.FIRST:  # the site alone has these files
        for name in llms.FILES:
            text = text.replace(f"`{name}`", f"[{name}]({name})")
    return for_python_markdown(text)


def _boost(place: str) -> float:
    return next((boost for start, boost in _BOOSTS.items() if place.startswith(start)), 1)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tell the style sheet what it can't see."""
    return for_narrow_screens(html)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the pages for programs that read."""
    llms.write(Path(config.site_dir), config, _read, ROOT)
