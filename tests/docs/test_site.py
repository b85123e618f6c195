"""The documentation site: it builds without a warning, fetches nothing, and each page can be reached."""

import functools
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.pages import ROOT, pages
from tools.docs_site.links import Links

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""What a browser fetches for each tag; other addresses are only gone to."""
KILOBYTES = 900
"""The most that a page and all its scripts and styles may weigh, without pictures and the search."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; building fails for a link or anchor that isn't there."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder)


class Addresses(HTMLParser):
    """What a page fetches, and where it leads."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        address = given.get(FETCHED.get(tag, ""))
        if address and given.get("rel") not in ("canonical", "prev", "next"):
            self.fetched.append(address)
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")


@functools.cache
def addresses(file: Path) -> Addresses:
    """The addresses of a page."""
    return Addresses(file)


def test_nothing_comes_from_a_network(site):
    for file in site.rglob("*.html"):
        assert [one for one in addresses(file).fetched if re.match(r"(\w+:)?//", one)] == [], file
    for file in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//", file.read_text("utf-8")) == [], file


def test_each_page_is_reached_from_the_first(site):
    seen, waiting = set(), [site / "index.html"]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for link in addresses(file).links:
            path = urlsplit(link)
            if not path.scheme and path.path.endswith(".html"):
                waiting.append((file.parent / path.path).resolve())
    missing = {file.resolve() for file in site.rglob("*.html")} - {file.resolve() for file in seen}
    assert {file.name for file in missing} <= {"404.html"}


def test_pages_are_light(site):
    for file in {*site.rglob("*.html")} - {site / "404.html"}:  # its addresses begin at the root of a host
        parts = [one for one in addresses(file).fetched if one.endswith((".css", ".js"))]
        weight = file.stat().st_size + sum((file.parent / one).stat().st_size for one in {*parts})
        assert weight < KILOBYTES * 1000, (file, weight)


def test_pages_for_programs(site):
    text = (site / "llms.txt").read_text("utf-8")
    places = re.findall(r"^- \[.+?\]\((.+?)\): \S", text, re.MULTILINE)
    listed = {*places, "agents.md"}
    assert listed == {str(file.relative_to(site)) for file in site.rglob("*.md")}
    whole = (site / "llms-full.txt").read_text("utf-8")
    needed = text.partition("## Optional")[0].count("\n- [")
    assert len(re.findall(r"^<!-- \S+\.md -->$", whole, re.MULTILINE)) == needed
    assert len(text) < 30_000
    assert len(whole) < 700_000
    for words in ("lightning-vlm init ", "lightning-vlm lint ", "lightning-vlm fit ", "exit status"):
        assert words in text, words
    assert "class GradNorm(alpha: float=1.5" in whole  # what a browser sees is more than a directive
    assert ":::" not in whole
    assert {"llms.txt", "llms-full.txt"} <= {*addresses(site / "agents.html").links}


def test_a_narrow_screen_knows_what_a_cell_is(site):
    page = (site / "troubleshooting.html").read_text("utf-8")
    assert page.count('data-label="what to do"') > 60
    assert "data-stacks" not in (site / "families.html").read_text("utf-8").partition("<h2")[0]


@pytest.mark.parametrize("page", pages())
def test_external_addresses_are_well_formed(page):
    for address in re.findall(r"\]\((\w+:[^)\s]*)\)", (ROOT / page).read_text("utf-8")):
        parts = urlsplit(address)
        assert parts.scheme == "https", address
        assert re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc), address


def test_the_page_of_installation_names_each_extra():
    text = (ROOT / "docs" / "install.md").read_text("utf-8")
    table = (ROOT / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^([\w-]+) = \[", table.partition("\n[")[0], re.MULTILINE)
    rows = re.findall(r"^\| (`.*?`) \|", text.partition("## Extras")[2].partition("##")[0], re.MULTILINE)
    assert {*extras} == {*re.findall(r"`(\w+)`", " ".join(rows))}


def test_the_page_of_installation_names_the_versions_of_the_packaging():
    text = (ROOT / "docs" / "install.md").read_text("utf-8")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    pinned = (ROOT / "constraints.txt").read_text("utf-8")
    rows = re.findall(r"^\| ([a-z]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for name, lowest, tested in rows:
        assert f'"{name}>={lowest}"' in project
        assert f"{name}=={tested}\n" in pinned
    python = re.search(r"^\| Python \| ([\d.]+) \|", text, re.MULTILINE)
    assert python
    assert f'requires-python = ">={python[1]}"' in project


@pytest.mark.parametrize(
    ("place", "text", "wanted"),
    [
        ("plan.md", "[r](../benchmarks/RESULTS.md#a)", "[r](project/results.md#a)"),
        ("reference/keys.md", "[r](../../README.md)", "[r](../project/readme.md)"),
        ("project/readme.md", "[`p`](docs/plan.md)", "[`p`](../plan.md)"),
        ("project/readme.md", "[docs/plan.md](docs/plan.md)", "[Plan: what fits into memory](../plan.md)"),
        ("plan.md", "[q](../configs/quickstart.yaml)", "[q](reference/configs/index.md#quickstart)"),
        ("plan.md", "[its test](../tests/conftest.py)", "its test (`tests/conftest.py`)"),
        ("plan.md", "[`tests/conftest.py`](../tests/conftest.py)", "`tests/conftest.py`"),
        ("plan.md", "`[r](../nothing.md)`", "`[r](../nothing.md)`"),
        ("plan.md", "```text\n[r](../nothing.md)\n```", "```text\n[r](../nothing.md)\n```"),
    ],
)
def test_links_that_leave_the_folder(place, text, wanted):
    links = Links(ROOT, place)
    assert links.rewritten(text) == wanted
    assert links.broken == []


def test_a_link_to_nothing_is_broken():
    links = Links(ROOT, "plan.md", "https://host/name/blob/main")
    assert (
        links.rewritten("[a](../tests/conftest.py)") == "[a](https://host/name/blob/main/tests/conftest.py)"
    )
    links.rewritten("[a](nothing.md) [b](../nothing.py)")
    assert links.broken == ["nothing.md", "../nothing.py"]
