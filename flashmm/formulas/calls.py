"""What stands inside calls and braces of a formula: Python, but R's operators as R means them.

Outside of calls a formula has operators of its own; inside, ``I(x^2)`` is arithmetic. There R's
``^`` is a power where Python's is a bitwise exclusive or, silent for whole numbers, so it is
rewritten before anything is parsed. Operators without a meaning for columns are refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from formulaic import SimpleFormula
from formulaic.parser.types import Factor, Term, Token

from flashmm.exceptions import InputError
from flashmm.formulas.allowed import FUNCTIONS
from flashmm.formulas.structures import KNOWN, STRUCTURES

__all__ = [
    "refuse_arithmetic",
    "refuse_bases",
    "refuse_bitwise",
    "refuse_lost_offsets",
    "refuse_powers",
    "with_powers",
    "without_offsets",
]

# Text in quotes and names in backticks hold no operators.
_QUOTED = re.compile(r"""(`[^`]*`|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
_INSTEAD = {
    "%%": "the remainder is one % in Python: (a) % (b)",
    "%/%": "whole division is // in Python: (a) // (b)",
    "%in%": "write np.isin(a, [...])",
}
# Functions and methods whose results are conditions.
_CONDITIONS = frozenset(
    (
        "between",
        "contains",
        "duplicated",
        "endswith",
        "eq",
        "equal",
        "ge",
        "greater",
        "greater_equal",
        "gt",
        "invert",
        "isclose",
        "isfinite",
        "isin",
        "isinf",
        "isna",
        "isnan",
        "isnull",
        "le",
        "less",
        "less_equal",
        "logical_and",
        "logical_not",
        "logical_or",
        "logical_xor",
        "lt",
        "match",
        "ne",
        "notna",
        "not_equal",
        "notnull",
        "signbit",
        "startswith",
    )
)
# Arithmetic that counts conditions in R, and in Python joins them or fails.
_COUNTS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.USub: "-",
    ast.UAdd: "+",
}
_COUNTING_CALLS = frozenset(
    ("add", "cumprod", "cumsum", "multiply", "negative", "positive", "power", "square", "subtract")
)
_SYMBOLS: dict[type[ast.AST], str] = {
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.MatMult: "@",
}


def with_powers(text: str, tokens: Iterable[Token], source: str) -> str:
    """A formula with ``^`` inside its calls and braces as ``**``; see `refuse_powers`.

    Parameters
    ----------
    text, tokens
        The formula, and its tokens.
    source
        Where it stands, for messages.

    Raises
    ------
    InputError
        If a call holds an operator of R between percent signs, ``!``, ``&&`` or ``||``, or the
        formula ``%in%``.
    """
    pieces, end = [], 0
    for token in tokens:
        if token.kind is Token.Kind.OPERATOR and token.token == "in":
            raise InputError(
                f"{source}: %in% is read in more than one way. Write b:a for `a %in% b`, as R "
                "reads it, or b / a for b and a nested in it."
            )
        if token.kind is not Token.Kind.PYTHON or token.source_start is None:
            continue
        start, stop = token.source_start, int(token.source_end or 0) + 1
        pieces += [text[end:start], _as_python(text[start:stop], source)]
        end = stop
    return "".join([*pieces, text[end:]])


def _as_python(call: str, source: str) -> str:
    parts = _QUOTED.split(call)
    for i in range(0, len(parts), 2):
        found = re.search(r"%(?!%\w)[^%\s()]*%", parts[i])
        if found:
            advice = _INSTEAD.get(found[0], "put spaces or parentheses around each %")
            raise InputError(
                f"{source}: {found[0]} is not understood inside a call ({call}); {advice}, or "
                "store the values as a column of data."
            )
        found = re.search(r"&&|\|\||!(?!=)", parts[i])
        if found:
            raise InputError(
                f"{source}: {found[0]} is not understood inside a call ({call}). Write conditions "
                "as (a > 0) & (b > 0), (a > 0) | (b > 0), and a negation as (a == False)."
            )
        parts[i] = parts[i].replace("^", "**")
    return "".join(parts)


def refuse_arithmetic(tokens: Sequence[Token], source: str) -> None:
    """Raise for numbers that scale a term.

    formulaic reads ``2:x`` as the column 2 x under the name of x: its coefficient would be half
    of what it is called.
    """
    for position, token in enumerate(tokens):
        first = position  # of (a + b)^(2) too
        while first and str(tokens[first - 1].token) == "(":
            first -= 1
        before = tokens[first - 1] if first else None
        after = tokens[position + 1] if position + 1 < len(tokens) else None
        operator = str(before.token) if before is not None and _is(before, "OPERATOR") else ""
        if _is(token, "VALUE") and _scales(str(token.token), operator, after):
            raise InputError(
                f"{source}: the number {token.token} stands outside a call, where operators join "
                f"terms. Write I({token.token} * x) for arithmetic on a column."
            )


def refuse_lost_offsets(tokens: Sequence[Token], formula: SimpleFormula, source: str) -> None:
    """Raise for an offset that the formula takes away again, which R adds all the same."""
    texts = [re.sub(r"\s", "", str(token.token)) for token in tokens]
    offsets = {text for text in texts if text.startswith("offset(")}
    left = [f for term in formula for f in term.factors if f.expr.startswith("offset(")]
    minus = any(text.endswith("-") and after in offsets for text, after in pairwise(texts))
    if minus or len({factor.expr for factor in left}) < len(offsets):
        raise InputError(
            f"{source}: an offset has a coefficient of one and cannot be taken away with -. "
            "Write offset(-(x)) to subtract it, or leave it out."
        )


def refuse_bases(tree: ast.AST, source: str) -> None:
    """Raise for ``log(x, 2)``: R's second argument is the base, numpy's is where to write."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (len(node.args) > 1 or node.keywords):
            name = ast.unparse(node.func).removeprefix("np.")
            if name in ("log", "log2", "log10", "exp"):
                bases = "Write log2(x) or log10(x), or I(log(x) / np.log(3)) for another base."
                raise InputError(
                    f"{source}: {name} takes one argument here ({ast.unparse(node)}). "
                    + bases * (name != "exp")
                )


def _is(token: Token, kind: str) -> bool:
    return bool(token.kind is Token.Kind[kind])


def _scales(number: str, operator: str, after: Token | None) -> bool:
    try:
        float(number)
    except ValueError:  # quoted text, of which formulaic says what is wrong
        return False
    if operator in ("^", "**"):
        return False
    joined = operator == ":" or (after is not None and str(after.token) == ":")
    return number not in ("0", "1") or (number == "0" and joined)


def refuse_powers(formula: SimpleFormula, source: str) -> None:
    """Raise for what a parsed formula holds that means something else.

    ``^`` inside a call, whose parentheses are gone already, and numbers that scale a term.
    """
    for term in formula:
        numbers = [f.expr for f in term.factors if f.eval_method.value == "literal"]
        if len(term.factors) > 1 and any(number not in ("0", "1") for number in numbers):
            raise InputError(
                f"{source}: the number in {str(term)!r} scales a column but not its name. Write "
                "I(2 * x)."
            )
    for factor in (factor for term in formula for factor in term.factors):
        if factor.eval_method.value == "python" and any(
            "^" in part for part in _QUOTED.split(factor.expr)[::2]
        ):
            raise InputError(
                f"{source}: {factor.expr!r} holds ^, which Python reads as a bitwise operator. "
                "Write ** for a power, or pass the formula as text."
            )


def _called_with_a_bar(node: ast.AST) -> tuple[str, list[ast.expr]] | None:
    """The name of a call whose arguments hold a bar, as in ``toep(0 + f | g)``, and these."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return None
    barred: list[ast.expr] = [
        each for each in node.args if isinstance(each, ast.BinOp) and isinstance(each.op, ast.BitOr)
    ]
    return (node.func.id, barred) if barred else None


def refuse_structure(name: str, source: str, written: str) -> None:
    """Raise where a call around a bar can only be meant as a structure of random effects."""
    if name in STRUCTURES:
        raise InputError(
            f"{source}: {written} is a random term inside of something else. Random terms stand by "
            "themselves, joined by `+`."
        )
    if name not in FUNCTIONS:
        raise InputError(
            f"{source}: {name}(...) is no covariance of random effects. Known are {KNOWN}."
        )


def refuse_bitwise(tree: ast.AST, is_condition: Callable[[ast.AST], bool], source: str) -> None:
    """Raise for operators that act on the bits of numbers, or not element by element.

    Parameters
    ----------
    tree
        A parsed expression.
    is_condition
        Whether a name is a boolean column.
    source
        Where the expression stands, for messages.
    """

    def condition(node: ast.AST) -> bool:
        if isinstance(node, ast.BinOp):
            logical = isinstance(node.op, (ast.BitAnd, ast.BitOr))
            return logical and condition(node.left) and condition(node.right)
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name) and function.id in ("I", "Q") and node.args:
                return condition(node.args[0])
            name = function.attr if isinstance(function, ast.Attribute) else ""
            return name in _CONDITIONS
        return isinstance(node, ast.Compare) or is_condition(node)

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            raise InputError(
                f"{source}: {node.attr} in {ast.unparse(tree)!r} is no method for columns; write "
                "the operator."
            )
        counting = _counting(node)
        if counting is not None and all(map(condition, counting[1])):
            raise InputError(
                f"{source}: {counting[0]} in {ast.unparse(tree)!r} stands between conditions, "
                "which R would count and Python would not. Write (a > 0) * 1 for a condition as a "
                "number, or join conditions with & or |."
            )
        called = _called_with_a_bar(node)
        if called is not None and not all(map(condition, called[1])):
            refuse_structure(called[0], source, ast.unparse(node))
        if isinstance(node, ast.BinOp) and type(node.op) in _SYMBOLS and not condition(node):
            symbol = _SYMBOLS[type(node.op)]
            advice = (
                f"Between conditions put each in parentheses: (a > 0) {symbol} (b > 0)"
                if symbol in "&|"
                else "Store the values as a column of data"
            )
            raise InputError(
                f"{source}: {symbol} in {ast.unparse(tree)!r} acts on the bits of whole numbers, "
                f"or on matrices. {advice}."
            )
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            raise InputError(
                f"{source}: ~ in {ast.unparse(tree)!r} is a formula in R and acts on bits in "
                "Python. Write a negation as (a == False), or store it as a column of data."
            )
        chained = isinstance(node, ast.Compare) and len(node.ops) > 1
        negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        if chained or negated or isinstance(node, (ast.BoolOp, ast.IfExp)):
            raise InputError(
                f"{source}: {ast.unparse(node)!r} asks one question of a whole column. Sample by "
                "sample it is (a > 0) & (b > 0), (a > 0) | (b > 0), (a == False) for `not a`, and "
                "np.where(a > 0, b, c) for `b if a > 0 else c`."
            )
        if isinstance(node, ast.Compare) and any(
            isinstance(operator, (ast.In, ast.NotIn)) for operator in node.ops
        ):
            raise InputError(
                f"{source}: `in` in {ast.unparse(tree)!r} does not act on each sample. Write "
                "np.isin(a, [...])."
            )


def _counting(node: ast.AST) -> tuple[str, list[ast.expr]] | None:
    """What an arithmetic operation is called, and its operands; None for another node."""
    if isinstance(node, ast.BinOp) and type(node.op) in _COUNTS:
        return _COUNTS[type(node.op)], [node.left, node.right]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _COUNTS:
        return _COUNTS[type(node.op)], [node.operand]
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.attr in _COUNTING_CALLS
        and node.args
    ):
        return node.func.attr, node.args
    return None


def without_offsets(
    formula: SimpleFormula, source: str
) -> tuple[SimpleFormula, SimpleFormula | None]:
    """Take the terms ``offset(...)`` out of a formula.

    Returns
    -------
    kept
        The formula without them.
    held
        A formula of what they hold; None without any.

    Raises
    ------
    InputError
        If an offset is part of an interaction or does not hold one expression.
    """
    kept, held = [], []
    for term in formula:
        inside = [_inside_offset(factor, source) for factor in term.factors]
        if not any(inside):
            kept.append(term)
        elif len(inside) > 1:
            raise InputError(
                f"{source}: an offset has a coefficient of one and cannot be part of an "
                f"interaction ({term}). Write offset(x) as a term of its own."
            )
        else:
            held.append(Term([inside[0]]))
    if not held:
        return formula, None
    return (
        SimpleFormula(kept, _ordering=formula.ordering),
        SimpleFormula(held, _ordering="none"),
    )


def _inside_offset(factor: Any, source: str) -> Factor | None:
    """What ``offset(...)`` holds, as a factor; None for another factor."""
    expression: str = factor.expr
    if factor.eval_method.value != "python" or "offset" not in expression:
        return None
    # Names in backticks are not Python; others of the same length stand in for them.
    blank = re.sub(r"`[^`]*`", lambda m: "_" * len(m[0].encode(errors="surrogatepass")), expression)
    try:
        call = ast.parse(blank, mode="eval").body
    except SyntaxError:  # the names of the formula are checked next
        return None
    calls = [
        node
        for node in ast.walk(call)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "offset"
    ]
    if not calls:
        return None
    if calls != [call]:
        raise InputError(
            f"{source}: offset(...) inside {expression!r} has no meaning. Write offset(x) as a "
            "term of its own."
        )
    arguments = calls[0].args
    if len(arguments) != 1 or calls[0].keywords or isinstance(arguments[0], ast.Starred):
        raise InputError(f"{source}: write one expression in {expression!r}, as offset(log(x)).")
    start, stop = arguments[0].col_offset, arguments[0].end_col_offset
    inner = expression.encode()[start:stop].decode()
    if isinstance(arguments[0], ast.Name):
        return Factor(inner.strip("`"), eval_method="lookup")
    return Factor(inner, eval_method="python")
