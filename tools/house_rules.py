"""Rules of the house that no linter knows; `python -m tools.house_rules` fails where one is broken.

- A module doesn't use a name of another module that begins with `_`.
- The words of `WORDS` don't stand in anything that a person reads.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = ("lightning_vlm", "lightning_vlm_callbacks", "tests", "benchmarks", "tools")
WORDS = {
    "told": "say who prints, raises or logs it",
    "anew": "again",
    "the seed": "a seed, or the name of what is meant",
}
"""Words that made readers stop, and what to write instead."""

_TEXTS = (".py", ".md", ".yaml", ".toml", ".ipynb")
_EXCEPT = ("CHANGELOG.md", "tools/house_rules.py")


def foreign_private_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each private name that is taken from another module of ours.

    >>> list(foreign_private_names("from lightning_vlm.step import _total\\n"))
    [(1, '_total')]
    >>> list(foreign_private_names("from lightning_vlm import step\\nstep._total()\\n"))
    [(2, 'step._total')]
    """
    tree = ast.parse(source)
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield node.lineno, alias.name
                elif alias.name.islower():
                    modules.add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or getattr(node.value, "id", None) not in modules:
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.lineno, ast.unparse(node)


def forbidden_words(text: str) -> Iterator[tuple[int, str]]:
    """Line and word of each forbidden word.

    >>> list(forbidden_words("It is wrapped anew."))
    [(1, 'anew')]
    """
    for number, line in enumerate(text.splitlines(), 1):
        for word in WORDS:
            if re.search(rf"\b{word}\b", line, re.IGNORECASE):
                yield number, word


def main() -> int:
    """Print each breach; the exit status."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    breaches = []
    for name in listed.stdout.splitlines():
        file = ROOT / name
        if not name.endswith(_TEXTS) or name in _EXCEPT or not file.exists():
            continue
        text = file.read_text("utf-8")
        for line, word in forbidden_words(text):
            breaches.append(f"{name}:{line}: the word {word!r}; write {WORDS[word]}")
        if name.endswith(".py"):
            for line, private in foreign_private_names(text):
                breaches.append(
                    f"{name}:{line}: {private} is private to its module; make it public or move it"
                )
    print("\n".join(breaches) or "House rules: no breach")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
