"""Small mistakes, put into the source of a module one at a time."""

import ast
import copy
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, NamedTuple

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


class Mutant(NamedTuple):
    """A function with one mistake in it.

    Args:
        name: What tells it from the others of its module, also where lines have moved: its function, the line
            of source, what is changed there, and into what.
        function: The name of the function in the module, such as `Units.in_order`.
        node: Which node of the module's tree is changed.
        line: Where it is.
    """

    name: str
    function: str
    node: int
    line: int

    def code(self, source: str, file: str) -> CodeType:
        """The code of the function with the mistake.

        Args:
            source: Of the module.
            file: Its name, for tracebacks.

        >>> from types import FunctionType
        >>> source = "def f(a):\\n    return a < 2"
        >>> FunctionType(mutants_of(source)[0].code(source, "f.py"), {})(2)
        True
        """
        tree = ast.parse(source)
        place = list(ast.walk(tree))[self.node]
        made = _changed(place)

        class Replace(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST:
                if node is place and made is not None:
                    return ast.copy_location(made, node)
                return self.generic_visit(node)

        whole = _code_of(copy.deepcopy(tree), self.function, file)
        changed: Any = Replace().visit(tree)
        code = _code_of(changed, self.function, file)
        if (
            code.co_freevars != whole.co_freevars
        ):  # `super()` is gone, and a function can't get code without it
            body = dict(_functions(changed))[self.function].body
            body.append(ast.Expr(ast.Name("__class__", ast.Load())))
            code = _code_of(changed, self.function, file)
        return code


def _code_of(tree: ast.Module, function: str, file: str) -> CodeType:
    code = compile(ast.fix_missing_locations(tree), file, "exec", dont_inherit=True)
    for name in function.split("."):
        inner = [one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name]
        code = inner[-1]
    return code


def watched(source: str, file: str) -> dict[str, CodeType]:
    """The code of each function of a module, which says so when it is called.

    Args:
        source: Of the module.
        file: Its name, for tracebacks.

    Returns:
        By the name of the function. It calls `__called__`, a global of the module, with that name.
    """
    tree = ast.parse(source)
    names = []
    for name, node in _functions(tree):
        names.append(name)
        docstring = 1 if ast.get_docstring(node) is not None else 0
        node.body.insert(docstring, ast.parse(f"__called__({name!r})").body[0])
    return {name: _code_of(tree, name, file) for name in names}


def mutants_of(source: str) -> list[Mutant]:
    """Every mutant of a module: comparisons, arithmetic, conditions, numbers, and statements left out.

    Texts, annotations, default values, decorators, assertions and what runs as the module is imported stay as
    they are.

    >>> [mutant.name for mutant in mutants_of("def f(a):\\n    return a < 2")]
    ['f: return a < 2: a < 2 -> a <= 2', 'f: return a < 2: 2 -> 3']
    """
    tree = ast.parse(source)
    indices = {id(node): index for index, node in enumerate(ast.walk(tree))}
    lines = source.splitlines()
    found: list[Mutant] = []
    for function, node in _functions(tree):
        for place in _places(node):
            made = _changed(place)
            if made is None:
                continue
            number: int = getattr(place, "lineno", 0)
            name = f"{function}: {lines[number - 1].strip()}: {_in_words(place)} -> {_in_words(made)}"
            again = sum(one.name.split(" (again")[0] == name for one in found)
            name += f" (again, {again})" if again else ""
            found.append(Mutant(name, function, indices[id(place)], number))
    return found


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of a module and the methods of its classes; what is defined inside belongs to them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


def _places(node: ast.AST) -> Iterator[ast.AST]:
    """What may be changed in a function: nothing inside of texts and of the errors that it raises.

    `strict=True` of `zip` stays as well: it asserts that two lists are of one length, as those are that a
    function made itself.
    """
    children: Iterable[ast.AST | None] = ast.iter_child_nodes(node)
    if isinstance(node, ast.FunctionDef):
        children = node.body
    elif isinstance(node, ast.AnnAssign):
        children = [node.value]
    for child in children:
        asserts = isinstance(child, ast.keyword) and child.arg == "strict"
        if child is None or asserts or isinstance(child, ast.JoinedStr | ast.arguments):
            continue
        yield child
        if not isinstance(child, ast.Raise | ast.Assert):
            yield from _places(child)


def _changed(node: ast.AST) -> ast.AST | None:
    """What takes the place of a piece of source; None where nothing does."""
    made: Any = copy.copy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        made.ops = [COMPARED[type(node.ops[0])]()]
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in COMPUTED:
        made.op = COMPUTED[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        made.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        made = node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        made.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        made.value = node.value + 1
    elif isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        made.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Continue | ast.Break):
        made = ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        made = ast.Pass()
    else:
        return None
    return made


def _in_words(node: ast.AST) -> str:
    first, *rest = ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).splitlines()
    return first + (" ..." if rest else "")
