"""Small conditions over parameters, such as `batch_size * accumulation <= 256`.

Python's own grammar, of which comparisons, arithmetic, `and`, `or`, `not`, `in` and parentheses
are allowed. Nothing is called and no attribute is read, so a condition can do nothing but hold.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 500


def _of_numbers(compute: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Arithmetic of numbers alone: `"x" * 10**9` and `"%999999999d" % 1` would eat the memory."""

    def checked(left: Any, right: Any) -> Any:
        for value in (left, right):
            if not isinstance(value, int | float):
                raise TypeError(f"{value!r} is no number")
        return compute(left, right)

    return checked


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: _of_numbers(operator.add),
    ast.Sub: _of_numbers(operator.sub),
    ast.Mult: _of_numbers(operator.mul),
    ast.Div: _of_numbers(operator.truediv),
    ast.FloorDiv: _of_numbers(operator.floordiv),
    ast.Mod: _of_numbers(operator.mod),
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def names_in(expression: str) -> set[str]:
    """Names that a condition reads.

    Raises:
        ValueError: it is no condition, or has something that is not allowed.
    """
    tree = _parse(expression)
    try:
        _check(tree, expression)
    except RecursionError:
        raise ValueError(f"{expression!r} is nested too deep; write it flatter") from None
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def holds(expression: str, values: Mapping[str, Any]) -> bool:
    """Whether a condition holds; one that reads a name without a value holds.

    Raises:
        ValueError: it cannot be computed, as in `1 / 0` or `"a" < 1`.
    """
    if not names_in(expression) <= values.keys():
        return True
    try:
        return bool(_value(_parse(expression), values))
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{expression!r} cannot be computed: {error}") from None


def _parse(expression: str) -> ast.expr:
    if len(expression) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError(
            f"{expression!r} is no condition; write for example batch_size * 4 <= 256"
        ) from None


def _check(node: ast.expr, expression: str) -> None:
    allowed = (
        ast.BoolOp | ast.Compare | ast.BinOp | ast.UnaryOp | ast.Name | ast.Constant | ast.List
    )
    if isinstance(node, ast.Tuple):
        raise ValueError(f"{expression!r}: write lists with brackets")
    if (
        not isinstance(node, allowed)
        or (isinstance(node, ast.BinOp) and type(node.op) not in _BINARY)
        or (isinstance(node, ast.Compare) and any(type(op) not in _COMPARE for op in node.ops))
        or (isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.Not | ast.USub))
        or (isinstance(node, ast.Constant) and not isinstance(node.value, int | float | str))
    ):
        raise ValueError(
            f"{expression!r}: only comparisons, + - * / // %, and, or, not, in, numbers, text and "
            "names of parameters are allowed"
        )
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            _check(child, expression)


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return values[node.id]
        case ast.List():
            return [_value(item, values) for item in node.elts]
        case ast.UnaryOp():
            inner = _value(node.operand, values)
            return not inner if isinstance(node.op, ast.Not) else -inner
        case ast.BinOp():
            return _BINARY[type(node.op)](_value(node.left, values), _value(node.right, values))
        case ast.BoolOp():
            every = isinstance(node.op, ast.And)
            return (all if every else any)(_value(item, values) for item in node.values)
        case ast.Compare():
            left = _value(node.left, values)
            for op, item in zip(node.ops, node.comparators, strict=True):
                right = _value(item, values)
                if not _COMPARE[type(op)](left, right):
                    return False
                left = right
            return True
        case _:
            raise AssertionError(node)
