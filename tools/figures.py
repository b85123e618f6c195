"""Figures of the product's code, printed by `make lint` and never a reason to fail.

`python -m tools.figures` prints code lines and nodes a line of each room, the longest functions, the modules
that only one other imports, and how many options each public class has.
"""

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
PACKAGES = {"lightning_vlm": ROOT, "lightning_vlm_callbacks": ROOT / "callbacks"}
"""Each package, and the folder that it is in."""

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


class Module(NamedTuple):
    """A file of the product.

    Args:
        name: As it is imported.
        tree: Its syntax tree.
        lines: How many lines the file has.
        code: The numbers of its lines that are neither docstring, comment nor blank.
    """

    name: str
    tree: ast.Module
    lines: int
    code: set[int]

    @property
    def nodes(self) -> int:
        """Statements and expressions: how much there is to read."""
        return sum(isinstance(node, ast.stmt | ast.expr) for node in ast.walk(self.tree))


def read_modules() -> list[Module]:
    """All modules of the product."""
    modules = []
    for package, folder in PACKAGES.items():
        for file in sorted((folder / package).rglob("*.py")):
            source = file.read_text("utf-8")
            tree = ast.parse(source)
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join(part for part in parts if part != "__init__")
            modules.append(Module(name, tree, source.count("\n"), code_lines(source, tree)))
    return modules


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """The numbers of the lines that hold code.

    >>> source = "# A comment.\\ndef f():\\n    '''A docstring.'''\\n\\n    return 1\\n"
    >>> sorted(code_lines(source, ast.parse(source)))
    [2, 5]
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for docstring in _docstrings(tree):
        lines.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return lines


def _docstrings(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            yield node.body[0]


def _functions(module: Module) -> Iterator[tuple[int, str]]:
    """How many code lines each function has, and its name."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef):
            span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            yield len(module.code & set(span)), f"{module.name}.{node.name}"


def _importers(modules: list[Module]) -> dict[str, set[str]]:
    """For each module, which others import it or something of it."""
    names = {module.name for module in modules}
    importers: dict[str, set[str]] = defaultdict(set)
    for module in modules:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                importers[inner if inner in names else node.module].add(module.name)
    return importers


def _options(modules: list[Module]) -> Iterator[tuple[int, str]]:
    """How many arguments each public class takes."""
    public = {name for module in modules if module.name in PACKAGES for name in _exported(module.tree)}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and node.name in public:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                        arguments = method.args
                        yield len(arguments.args) - 1 + len(arguments.kwonlyargs), node.name


def _exported(tree: ast.Module) -> list[str]:
    """The names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def _rooms(modules: list[Module]) -> Table:
    rooms: dict[str, list[Module]] = defaultdict(list)
    packages = {parent for module in modules for parent in [module.name.rpartition(".")[0]]}
    for module in modules:
        room = module.name if module.name in packages else module.name.rpartition(".")[0]
        rooms[room].append(module)
    table = Table("room", "files", "code lines", "nodes a line", "longest file", title="Rooms")
    for room, inside in [*sorted(rooms.items()), ("all", modules)]:
        code = sum(len(module.code) for module in inside)
        nodes = sum(module.nodes for module in inside)
        longest = max(inside, key=lambda module: module.lines)
        file = f"{longest.lines} {longest.name.rpartition('.')[2]}"
        table.add_row(room, str(len(inside)), f"{code:,}", f"{nodes / max(code, 1):.2f}", file)
    return table


def main() -> None:
    """Print the figures."""
    modules = read_modules()
    console = Console(width=100)
    console.print(_rooms(modules))
    functions = sorted((entry for module in modules for entry in _functions(module)), reverse=True)[:5]
    console.print("Longest functions:", ", ".join(f"{name} {lines}" for lines, name in functions))
    importers = _importers(modules)
    single = [module.name for module in modules if len(importers[module.name]) == 1]
    console.print(f"Modules with one importer: {len(single)} of {len(modules)}")
    options = sorted(_options(modules), reverse=True)
    console.print("Options of public classes:", ", ".join(f"{name} {count}" for count, name in options))


if __name__ == "__main__":
    main()
