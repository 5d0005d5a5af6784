"""Symbolic sizes and guards: texts that torch evaluates, so only arithmetic of a known form passes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from deploypruner.pt2.refusal import Refusal, shown

_SYMBOL = re.compile(r"[A-Za-z_]{1,12}\d{1,5}", re.ASCII)
_KEY = re.compile(r"[\w .:/@+-]{1,256}")
_LONGEST = 50_000  # characters
_DEEPEST = 150  # Python's parser and sympy recurse
_GREATEST_POWER = 256
_SIZE_LIMIT = 2**63

# What srepr writes of sympy's classes and of torch.utils._sympy.functions.
_FUNCTIONS = frozenset(
    "Integer Rational Float Add Mul Pow Mod Max Min Abs floor ceiling sqrt "
    "Equality Unequality LessThan GreaterThan StrictLessThan StrictGreaterThan Eq Ne Le Ge Lt Gt "
    "And Or Not ITE Piecewise ExprCondPair Tuple "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural "
    "FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt "
    "RoundDecimal ToFloat Identity".split()
)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_CONSTANTS = frozenset({"true", "false", "oo", "int_oo"})
_ASSUMPTIONS = frozenset(
    "integer positive negative nonnegative nonpositive nonzero zero real finite infinite extended_real rational "
    "commutative even odd prime complex algebraic hermitian".split()
)
# What torch's printers of Python code write.
_GUARD_CALLS = frozenset({"max", "min", "abs", "int", "float", "round"})
_MATH = frozenset(
    "floor ceil trunc sqrt log2 log exp cos cosh acos sin sinh asin tan tanh atan fabs pow isnan".split()
)
_OF_TENSORS = frozenset({"size", "stride", "storage_offset", "dim"})

_OPERATORS = (
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.LShift, ast.RShift),
    *(ast.USub, ast.UAdd, ast.Not, ast.And, ast.Or, ast.BitAnd, ast.BitOr, ast.Invert),
    *(ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)
_COMPOUND = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, *_OPERATORS)


def symbol(text: str) -> str:
    """Accept the name of a symbolic size: s77, u0.

    Raises:
        Refusal: Any other text, or one that is a function's name.
    """
    if not _SYMBOL.fullmatch(text) or text in _FUNCTIONS | _CONSTANTS | {"Symbol"}:
        raise Refusal(f"{shown(text)} is not the name of a symbolic size")
    return text


def key(text: str) -> str:
    """Accept a text that torch puts between quotes in source code of its own: keys of dicts, constant inputs.

    Raises:
        Refusal: It holds quotes, backslashes, control characters or other signs that code could hide in.
    """
    if text and not _KEY.fullmatch(text):
        raise Refusal(f"{shown(text)} has signs other than letters, digits, spaces and . : / @ + - _")
    return text


def size_expression(text: str) -> str:
    """Accept what torch.export writes of a symbolic size, and write it anew.

    Raises:
        Refusal: Anything but numbers, symbols, arithmetic, comparisons and known functions of them.
    """
    tree = _parsed(text, "size")
    for node in _nodes(tree):
        _check_size_node(node)
    _check_powers(tree)
    return ast.unparse(tree)


def guard(text: str) -> str:
    """Accept a condition on input sizes as torch.export writes it, and write it anew.

    Raises:
        Refusal: Anything but arithmetic and comparisons of numbers and of the inputs' sizes.
    """
    tree = _parsed(text, "guard")
    for node in _nodes(tree):
        _check_guard_node(node)
    _check_powers(tree)
    return ast.unparse(tree)


def _parsed(text: str, what: str) -> ast.Expression:
    if len(text) > _LONGEST:
        raise Refusal(f"a {what} expression of {len(text)} characters, more than {_LONGEST}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Refusal(f"{shown(text)} is not a {what} expression") from None
    if _deeper(tree, _DEEPEST):
        raise Refusal(f"a {what} expression nested deeper than {_DEEPEST}")
    return tree


def _deeper(tree: ast.AST, limit: int) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(limit):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but the arguments of a Symbol and the text of a Float, which have rules of their own."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.Call) and _called(node) in ("Symbol", "Float"):
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            waiting += [*node.args, *node.keywords]
            if isinstance(node.func, ast.Attribute) and node.func.attr in _OF_TENSORS:
                waiting.append(node.func.value)
            continue
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            if not (isinstance(node.value, ast.Name) and node.value.id == "L"):
                waiting.append(node.value)
            continue
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context)]


def _check_size_node(node: ast.AST) -> None:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumed):
            symbol(name)
            if all(k.arg in _ASSUMPTIONS and isinstance(k.value, ast.Constant) for k in assumed) and all(
                k.value.value in (True, False, None) for k in assumed if isinstance(k.value, ast.Constant)
            ):
                return
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(digits))], keywords=[precision]):
            if re.fullmatch(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?", digits, re.ASCII) and _is_int(precision.value, 64):
                return
        case ast.Call(func=ast.Name(id=name), args=_, keywords=[]) if name in _FUNCTIONS:
            return
        case ast.Tuple(elts=[_, _]):  # a pair of Piecewise
            return
        case ast.Name(id=name):
            if name not in _CONSTANTS:
                symbol(name)
            return
        case _:
            if _is_number(node) or isinstance(node, _COMPOUND):
                return
    raise Refusal(f"{shown(ast.unparse(node))} is no part of a size expression")


def _check_guard_node(node: ast.AST) -> None:
    match node:
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _GUARD_CALLS:
            return
        case ast.Call(func=ast.Attribute(value=ast.Name(id="math"), attr=name), keywords=[]) if name in _MATH:
            return
        case ast.Call(func=ast.Attribute(value=ast.Subscript(), attr=name), args=[], keywords=[]):
            if name in _OF_TENSORS:
                return
        case ast.Attribute(value=ast.Name(id="math"), attr="inf" | "nan"):
            return
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str(name))):
            key(name)
            return
        case ast.Subscript(slice=ast.Constant(value=int())):
            return
        case ast.Subscript(slice=ast.Constant(value=str(name))):
            key(name)
            return
        case ast.Name(id="math") | ast.IfExp():
            return
        case _:
            if _is_number(node) or isinstance(node, _COMPOUND):
                return
    raise Refusal(f"{shown(ast.unparse(node))} is no part of a condition on input sizes")


def _is_number(node: ast.AST) -> bool:
    """A literal, and none that could not be a size."""
    if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float):
        return False
    return isinstance(node.value, float) or abs(node.value) < _SIZE_LIMIT


def _is_int(node: ast.AST, limit: int) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value <= limit


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _check_powers(tree: ast.AST) -> None:
    """Powers of literals are computed at once: those that would fill the memory are refused."""
    product = 1
    for node in ast.walk(tree):
        exponent: ast.AST | None = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
            exponent = node.right
        elif isinstance(node, ast.Call) and (_called(node) in _POWERS or _is_math_pow(node)) and len(node.args) == 2:
            exponent = node.args[1]
        if exponent is None:
            continue
        found = _literal(exponent)
        if found is None:
            raise Refusal(f"{shown(ast.unparse(node))} is a power that is neither a number nor a symbol")
        product *= max(1, found)
        if product > _GREATEST_POWER:
            raise Refusal(f"powers above {_GREATEST_POWER} in a size expression")


def _is_math_pow(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == "pow"


def _literal(node: ast.AST) -> int | None:
    """Size of a literal exponent rounded up, 1 for a symbol, None for anything else."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _literal(inner)
        case ast.Constant(value=int() | float() as value):
            return int(min(abs(value), 1e9)) + 1 if isinstance(value, float) else abs(value)
        case ast.Call(func=ast.Name(id="Integer" | "Rational"), args=[number, *_]):
            return _literal(number)
        case ast.Call(func=ast.Name(id="Float")) | ast.Call(func=ast.Name(id="Symbol")) | ast.Name():
            return 1
    return None
