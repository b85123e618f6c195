"""Messages that docs/troubleshooting.md explains or docs/packing.md shows are ones that the code prints."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.pages import blocks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
FIRST_CELLS = re.findall(r"^\| (`.+?`) \|", PAGE.partition("## By message")[2], re.MULTILINE)
MESSAGES = [message for cell in FIRST_CELLS for message in re.findall(r"`([^`]+)`", cell)]
SHOWN = [block.text for block in blocks("docs/packing.md") if block.language == "text"]
ANYTHING = "…"
LEAST = 15
"""Letters that a text of the code must have of its own to say which message it is."""


def text_of(node: ast.AST) -> str:
    """The text of an expression, with a dash of `…` for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ANYTHING
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ANYTHING


@pytest.fixture(scope="module")
def texts():
    """All texts of the code of both packages."""
    found = set()
    for package in (ROOT / "lightning_vlm", ROOT / "callbacks" / "lightning_vlm_callbacks"):
        for file in package.rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            found |= {
                text_of(node) for node in ast.walk(tree) if isinstance(node, ast.Constant | ast.JoinedStr)
            }
    return found


def fits(message, text):
    """Whether a text of the code begins as the message does, wherever either has something filled in."""
    pattern = ".*".join(re.escape(part) for part in message.split(ANYTHING))
    return re.match(pattern, text) is not None


def left_of(message, texts):
    """What is left of a message without the texts of the code that it has in it."""
    left = message
    for text in sorted(texts, key=len, reverse=True):
        parts = text.split(ANYTHING)
        is_told_apart = len(re.sub(r"\W", "", "".join(parts))) >= LEAST
        if is_told_apart and re.search(".*".join(re.escape(part) for part in parts), message):
            for part in filter(str.strip, parts):
                left = left.replace(part, " | ")
    return left


def test_there_are_messages():
    assert len(MESSAGES) > 45


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_prints_it(message, texts):
    assert any(fits(message, text) for text in texts)


@pytest.mark.parametrize("message", SHOWN, ids=lambda message: " ".join(message.split()[:4]))
def test_the_code_prints_what_a_page_shows(message, texts):
    assert re.findall(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", left_of(message, texts)) == []
