"""Each message that docs/troubleshooting.md explains is one that the code can print."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE.partition("## By message")[2], re.MULTILINE)
ANYTHING = "…"


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


def test_there_are_messages():
    assert len(MESSAGES) > 25


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_prints_it(message, texts):
    assert any(fits(message, text) for text in texts)
