"""The generated pages of docs/reference are current, and say something of every key."""

import pytest

from tools.docs_site import reference


@pytest.fixture(scope="module")
def written():
    return reference.pages()


@pytest.mark.parametrize("name", ["api.md", "commands.md", "keys.md"])
def test_current(written, name):
    old = (reference.FOLDER / name).read_text("utf-8")
    assert written[name] == old, f"{name} is old: python -m tools.docs_site.reference"


def test_every_key_is_explained(written):
    rows = [line for line in written["keys.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if row.endswith("| |") or row.endswith("|  |")] == []
