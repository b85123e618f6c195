"""docs/right.md names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "right.md").read_text("utf-8")
CELLS = [line.strip("| ").rpartition("|")[2] for line in PAGE.splitlines() if line.startswith("| **")]
NAMED = re.findall(r"\[([\w./]+)\]\(\.\./(tests/[\w/.]+)\)((?: `\w+`)?)", " ".join(CELLS))


def test_each_row_names_a_test():
    assert len(CELLS) >= 20
    assert all(re.search(r"\(\.\./tests/", cell) for cell in CELLS)


@pytest.mark.parametrize(
    ("name", "file", "function"), NAMED, ids=lambda value: value.strip(" `").rpartition("/")[2] or "all"
)
def test_it_is_there(name, file, function):
    assert name == file
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert any(one.startswith("test") for one in tests)
    assert not function or function.strip(" `") in tests
