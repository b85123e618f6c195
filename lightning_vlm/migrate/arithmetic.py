"""The arithmetic of shell scripts: `$((8 * 2))` and `$(expr 16 / 8)`."""

import ast
import operator
from collections.abc import Callable

_LONGEST = 200
_LARGEST = 10**18
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda one, other: abs(one) // abs(other) * (1 if (one < 0) == (other < 0) else -1),
    ast.Mod: lambda one, other: abs(one) % abs(other) * (-1 if one < 0 else 1),
}


def whole_number(text: str) -> str | None:
    """What a sum of whole numbers gives, as a shell divides: towards zero. None for other texts.

    >>> whole_number("64 / (4 * 8)"), whole_number("7 / 2 - 1"), whole_number("-7 / 2"), whole_number("1 / 0")
    ('2', '2', '-3', None)
    """
    if len(text) > _LONGEST:
        return None
    try:
        return str(_value(ast.parse(text.strip(), mode="eval").body))
    except (ValueError, SyntaxError, ZeroDivisionError):
        return None


def expr(command: str) -> str | None:
    """What `expr 16 / 8` gives; None for other commands.

    >>> expr("expr 16 / 8"), expr("date")
    ('2', None)
    """
    first, _, rest = command.strip().partition(" ")
    return whole_number(rest.replace("\\", "")) if first == "expr" else None


def _value(node: ast.AST) -> int:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            found = number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            found = -_value(inner)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATIONS:
            found = _OPERATIONS[type(sign)](_value(left), _value(right))
        case _:
            raise ValueError(node)
    if abs(found) > _LARGEST:
        raise ValueError(found)
    return found
