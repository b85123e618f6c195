"""Links of pages: those that leave `docs/` become links to pages of the site."""

import posixpath
import re
from collections.abc import Collection
from pathlib import Path

from tools.docs_site import api

REPOSITORY_PAGES = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "RELIABILITY.md": "project/reliability.md",
    "callbacks/README.md": "project/callbacks.md",
    "benchmarks/RESULTS.md": "project/results.md",
    "notebooks/README.md": "notebooks/README.md",
}
"""Files of the repository that are pages of the site, and where."""

CONFIGS = "reference/configs"
NOTEBOOKS = "notebooks"

_FENCE = re.compile(r"^([ \t]*)(```+).*?^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")


class Links:
    """The links of a page.

    Args:
        root: The repository.
        place: Where the page is in the site, such as `tasks/ocr.md`.
        repository: Where files of the repository can be read, such as `https://host/name/blob/main`; empty:
            the site only names them.
        made: What is made for the site alone, by its places.
    """

    def __init__(self, root: Path, place: str, repository: str = "", made: Collection[str] = ()) -> None:
        sources = {site: source for source, site in REPOSITORY_PAGES.items()}
        self._root = root
        self._place = place
        self._source = sources.get(place, place if place.startswith(f"{NOTEBOOKS}/") else f"docs/{place}")
        self._is_made = self._source.startswith("docs/") and not (root / self._source).exists()
        """Whether the page is made for the site, so that its links are those of the site."""
        self._repository = repository.rstrip("/")
        self._made = made
        self.broken: list[str] = []
        """The links to files that aren't there."""

    def rewritten(self, text: str) -> str:
        """The page with its links as the site has them; what is in code stays as it is."""
        code = [(match.start(), match.end()) for match in _FENCE.finditer(text)]
        code += [(match.start(), match.end()) for match in _CODE.finditer(text)]

        def replaced(match: re.Match[str]) -> str:
            if any(start <= match.start() < end for start, end in code):
                return match[0]
            return self._link(match)

        return _LINK.sub(replaced, text)

    def _link(self, match: re.Match[str]) -> str:
        is_picture, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if self._is_made or not path or re.match(r"[a-z]+:", target):
            return match[0]
        if posixpath.normpath(posixpath.join(posixpath.dirname(self._place), path)) in self._made:
            return match[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(self._source), path))
        if file.startswith("..") or not (self._root / file).exists():
            self.broken.append(target)
            return match[0]
        place, anchor = self._in_site(file, anchor)
        if place is not None:
            if text.strip("`") in (path, posixpath.basename(path)) and not anchor:
                text = self._title(file) or text
            here = posixpath.dirname(self._place)
            relative = posixpath.relpath(place, here or ".")
            return f"{is_picture}[{text}]({relative}{'#' if anchor else ''}{anchor})"
        if self._repository:
            return f"[{text}]({self._repository}/{file}{mark}{anchor})"
        plain = text.replace("`", "")
        return f"`{file}`" if plain in (file, path) else f"{text} (`{file}`)"

    def _title(self, file: str) -> str | None:
        """The heading of a page, which says more than the name of its file."""
        path = self._root / file
        if path.suffix != ".md":
            return None
        lines = path.read_text("utf-8").splitlines()
        return next((line[2:] for line in lines if line.startswith("# ")), None)

    def _in_site(self, file: str, anchor: str) -> tuple[str | None, str]:
        """Where a file of the repository is in the site, and at which heading; None if nowhere."""
        if file in REPOSITORY_PAGES:
            return REPOSITORY_PAGES[file], anchor
        if file == NOTEBOOKS:
            return f"{NOTEBOOKS}/README.md", anchor
        if file == "docs":
            return "index.md", anchor
        if file.startswith("docs/"):
            inside = file.removeprefix("docs/")
            is_folder = (self._root / file).is_dir()
            return (f"{inside}/index.md" if is_folder else inside), anchor
        if file == "configs":
            return f"{CONFIGS}/index.md", anchor
        if file.startswith("configs/"):
            inside = file.removeprefix("configs/")
            folder, _, name = inside.rpartition("/")
            if (self._root / file).is_dir():
                return f"{CONFIGS}/{inside}.md", ""
            return f"{CONFIGS}/{folder or 'index'}.md", heading_anchor(name.removesuffix(".yaml"))
        if file.startswith("notebooks/") and file.endswith(".ipynb"):
            return f"{file.removesuffix('.ipynb')}.md", anchor
        return api.place_of(self._root, file, anchor) or (None, anchor)


def heading_anchor(text: str) -> str:
    """The anchor of a heading, as GitHub makes it.

    >>> heading_anchor("qwen2.5-vl-3b"), heading_anchor("What's `x` & y?")
    ('qwen25-vl-3b', 'whats-x--y')
    """
    kept = re.sub(r"[^\w\- ]", "", text.strip().lower())
    return kept.replace(" ", "-")
