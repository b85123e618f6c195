"""The pages of the callbacks say all options with their defaults, and each has a picture."""

import inspect
import re
from pathlib import Path

import lightning_vlm_callbacks
import PIL.Image
import pytest
import yaml
from lightning.pytorch import Callback

import lightning_vlm

DOCS = Path(__file__).parents[2] / "docs"
PUBLIC = {
    name: getattr(package, name)
    for package in (lightning_vlm_callbacks, lightning_vlm)
    for name in package.__all__
    if inspect.isclass(getattr(package, name)) and issubclass(getattr(package, name), Callback)
}
PAGES = {
    page.read_text("utf-8").splitlines()[0].removeprefix("# "): page
    for page in (DOCS / "callbacks").glob("*.md")
    if page.name != "README.md"
}
LIMITS = {"readme.png": 150_000}


def rows(text):
    """The cells of the tables of a page, but for their headings."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def options_of(page):
    """Name -> default, as the table under "Options" has them."""
    section = page.read_text("utf-8").split("## Options")[1].split("\n## ")[0]
    _heading, _line, *options = rows(section)
    names = [name.strip("`") for name, _, _ in options]
    assert len(set(names)) == len(names)
    return {
        name: default if default == "required" else yaml.safe_load(default.strip("`"))
        for name, (_, default, _) in zip(names, options, strict=True)
    }


def test_each_has_a_page_and_a_row():
    assert PAGES.keys() == PUBLIC.keys()
    linked = re.findall(
        r"^\| \[(\w+)\]\((.*?)\)", (DOCS / "callbacks" / "README.md").read_text("utf-8"), re.M
    )
    assert {name: DOCS / "callbacks" / link for name, link in linked} == PAGES


@pytest.mark.parametrize("name", PUBLIC)
def test_options_are_those_of_the_signature(name):
    signature = inspect.signature(PUBLIC[name].__init__)
    expected = {
        option.name: "required" if option.default is option.empty else option.default
        for option in signature.parameters.values()
        if option.name != "self"
    }
    assert list(options_of(PAGES[name]).items()) == list(expected.items())


@pytest.mark.parametrize("name", PUBLIC)
def test_a_page_shows_its_callback_both_ways(name):
    text = PAGES[name].read_text("utf-8")
    assert re.search(rf"```yaml\n[^`]*class_path: {name}\b", text)
    assert re.search(rf"```python\n[^`]*{name}\(", text)
    (picture,) = re.findall(r"!\[.+\]\((.*?)\)", text)
    assert (PAGES[name].parent / picture).is_file()


@pytest.mark.parametrize("picture", sorted((DOCS / "pictures").glob("*.png")), ids=lambda file: file.name)
def test_pictures_are_small_and_shown(picture):
    assert picture.stat().st_size < LIMITS.get(picture.name, 80_000)
    assert PIL.Image.open(picture).width <= 900
    assert PIL.Image.open(picture).mode in ("P", "RGB")  # none is transparent, so it reads on dark pages too
