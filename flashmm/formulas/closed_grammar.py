"""Expressions from a file: read by a closed grammar and computed here, never by Python's eval.

A saved result holds its formulas as text, and a file may come from anybody. What its formulas may
use is closed: columns, numbers, operators, formulaic's transforms, elementwise functions of numpy,
and names that their author passed as context and the reader passes again. An `Expression` is
checked as a whole when the file is read; computing it walks the checked tree.
"""

from __future__ import annotations

import ast
import builtins
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import format_expr, sanitize_variable_names

from flashmm.exceptions import InputError
from flashmm.formulas.allowed import (
    CODING_CLASSES,
    CODINGS,
    FUNCTIONS,
    LEARNT,
    LIMITS,
    METHOD_SUMMARIES,
    NUMPY_CALLS,
    NUMPY_NUMBERS,
    NUMPY_SUMMARIES,
    ONLY_BY_NAME,
    PARAMETERS,
    PYTHON_SUMMARIES,
    TAKE_TEXT,
)
from flashmm.formulas.summaries import constant, text_of

__all__ = ["Expression", "check_context_name", "read_expression"]

_LENGTH, _NODES, _OPERATIONS, _DEPTH = 100_000, 20_000, 500, 100
_TEXT = 80  # characters of an expression that a message quotes

_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_LOGIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Parameters
    ----------
    text
        What it was read from.
    tree
        Its parsed form.
    aliases
        Names of the tree -> columns whose names are no identifiers.
    columns, context
        Names that it may look up: columns of data, and names that the user passes.
    """

    text: str
    tree: ast.expr
    aliases: Mapping[str, str]
    columns: frozenset[str]
    context: frozenset[str]
    stateful: tuple[tuple[str, str], ...] = field(default=())

    def value(
        self,
        data: Mapping[str, Any],
        context: Mapping[str, Any],
        state: dict[str, Any],
        metadata: Any = None,
        spec: Any = None,
    ) -> Any:
        """Compute it.

        Parameters
        ----------
        data
            Column -> values.
        context
            What the user passes.
        state
            Call -> what a stateful transform has learnt.
        metadata, spec
            What formulaic passes on to its transforms.
        """
        machine = _Machine(self, data, context, state, metadata, spec)
        with np.errstate(all="ignore"):
            return machine.run(self.tree)

    def unlearnt(self, state: Mapping[str, Any]) -> str | None:
        """The first stateful transform without the state that it needs; None if there is none."""
        for key, function in self.stateful:
            known = state.get(key)
            if not isinstance(known, dict) or not set(LEARNT[function]) <= set(known):
                return key
        return None


def check_context_name(name: object) -> str:
    """A name that a file says was passed as context; nothing of Python's own may be called so."""
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise InputError(f"The name {str(name)[:_TEXT]!r} cannot be one that is passed as context.")
    if name in ("np", "contr") or (hasattr(builtins, name) and name not in FUNCTIONS):
        raise InputError(f"The name {name!r} of Python cannot be one that is passed as context.")
    return name


def read_expression(
    text: str,
    columns: frozenset[str],
    context: frozenset[str] = frozenset(),
    learnt: Mapping[str, Any] | None = None,
) -> Expression:
    """Read an expression and check all of it.

    Parameters
    ----------
    text
        Python as formulaic reads it: names in backticks are columns.
    columns, context
        Names that it may look up.
    learnt
        Part, such as ``"x.mean()"`` -> the value it had for all samples of the fit, which stands
        in its place.

    Raises
    ------
    InputError
        If it is no expression or uses what it may not; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> expression = read_expression("log(x + 1)", frozenset({"x"}))
    >>> expression.value({"x": np.array([0.0, np.e - 1])}, {}, {}).round(8).tolist()
    [0.0, 1.0]
    >>> read_expression("open('x')", frozenset())
    Traceback (most recent call last):
    flashmm.exceptions.InputError: It calls 'open', which a formula of a file may not.
    """
    if len(text) > _LENGTH:
        raise InputError(f"It has {len(text)} characters, more than {_LENGTH}.")
    aliases: dict[str, str] = {}
    environment: dict[str, Any] = dict.fromkeys([*columns, *context, *TRANSFORMS])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = sanitize_variable_names(text, environment, aliases)
            tree = ast.parse(code, mode="eval").body
    except (
        *(IndexError, MemoryError, OverflowError, RecursionError, SyntaxError, ValueError),
    ) as error:
        raise InputError(f"{_short(text)!r} is no expression: {type(error).__name__}.") from None
    _check_size(tree)
    checker = _Checker(columns, context, aliases)
    try:
        tree = _Learnt(checker, dict(learnt or {}), aliases).visit(tree)
        checker.check(tree)
    except RecursionError:
        raise InputError("It is nested too deep.") from None
    return Expression(text, tree, aliases, columns, context, tuple(checker.stateful))


def _short(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def _shown(node: ast.AST) -> str:
    """A part of an expression, for a message."""
    return _short(ast.unparse(node))


def _check_size(tree: ast.AST) -> None:
    """Raise for a tree that is too deep or too large to walk; without recursion."""
    level, total, operations = [tree], 0, 0
    for _ in range(_DEPTH):
        if not level:
            return
        total += len(level)
        operations += sum(isinstance(node, (ast.BinOp, ast.Call, ast.Compare)) for node in level)
        if total > _NODES or operations > _OPERATIONS:
            raise InputError(
                f"It is larger than a formula of a file may be ({_OPERATIONS} operations)."
            )
        level = [child for node in level for child in _children(node)]
    raise InputError(f"It is nested more than {_DEPTH} deep.")


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop)):
            yield child


class _Checker:
    """Walks a tree and raises for what is not in the grammar."""

    def __init__(
        self, columns: frozenset[str], context: frozenset[str], aliases: Mapping[str, str]
    ) -> None:
        self.columns, self.context, self.aliases = columns, context, aliases
        self.stateful: list[tuple[str, str]] = []

    def check(self, node: ast.AST) -> None:
        """Check an operand: something with a value per sample, or a number."""
        if isinstance(node, ast.Constant):
            self._check_constant(node)
        elif isinstance(node, ast.Name):
            name = self.aliases.get(node.id, node.id)
            if name not in self.columns and name not in self.context:
                raise InputError(f"It uses {name!r}, which is no column.")
        elif isinstance(node, ast.BinOp):
            if type(node.op) not in {*_ARITHMETIC, *_LOGIC, ast.Pow}:
                raise self._refused(f"the operator {_name_of(node.op)}", node)
            self.check(node.left)
            self.check(node.right)
        elif isinstance(node, ast.UnaryOp):
            if not isinstance(node.op, (ast.UAdd, ast.USub, ast.Invert)):
                raise self._refused(f"the operator {_name_of(node.op)}", node)
            self.check(node.operand)
        elif isinstance(node, ast.Compare):
            if len(node.ops) > 1 or type(node.ops[0]) not in _COMPARISONS:
                raise self._refused("such a comparison", node)
            self.check(node.left)
            self.check(node.comparators[0])
        elif isinstance(node, ast.Call):
            self._check_call(node)
        elif isinstance(node, ast.Attribute):
            if not _is_numpy(node) or node.attr not in NUMPY_NUMBERS:
                raise self._refused("an attribute", node)
        else:
            raise self._refused(_name_of(node), node)

    def check_summary(self, node: ast.Call) -> None:
        """Check a call that stands for a number: one that gives all samples one value."""
        function = node.func
        if isinstance(function, ast.Name):
            allowed = function.id in PYTHON_SUMMARIES or function.id in self.context
        elif isinstance(function, ast.Attribute) and _is_numpy(function):
            allowed = function.attr in NUMPY_SUMMARIES
        elif isinstance(function, ast.Attribute):
            allowed = function.attr in METHOD_SUMMARIES
            self.check(function.value)
        else:
            allowed = False
        if not allowed:
            raise InputError(f"It calls {_shown(function)!r}, which a formula of a file may not.")
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._check_argument(argument)

    def _check_constant(self, node: ast.Constant) -> None:
        if node.value is not None and type(node.value) not in (bool, int, float, str):
            raise self._refused(f"a constant of type {type(node.value).__name__}", node)

    def _check_argument(self, node: ast.AST) -> None:
        """Check an argument: an operand, a coding, or a literal list, tuple or dict."""
        if isinstance(node, (ast.List, ast.Tuple)):
            for item in node.elts:
                self._check_literal(item)
        elif isinstance(node, ast.Dict):
            if None in node.keys:
                raise self._refused("**", node)
            for key, value in zip(node.keys, node.values, strict=True):
                self._check_literal(key or value)
                self._check_literal(value)
        elif _is_coding(node) or (isinstance(node, ast.Name) and node.id in CODING_CLASSES):
            return
        else:
            self.check(node)

    def _check_literal(self, node: ast.AST) -> None:
        if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
            self._check_argument(node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
            self._check_literal(node.operand)
        elif isinstance(node, ast.Constant):
            self._check_constant(node)
        else:
            raise self._refused(f"{_name_of(node)} in a list", node)

    def _check_call(self, node: ast.Call) -> None:
        name, parameters, by_position = self._signature(node)
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                raise self._refused("*", node)
            self._check_argument(argument)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self._refused("**", node)
            if parameters is not None and keyword.arg not in parameters:
                raise InputError(
                    f"It passes {keyword.arg!r} to {name}, which a formula of a file may not."
                )
            if keyword.arg.startswith("_"):
                raise InputError(f"It passes {keyword.arg!r}, which a formula of a file may not.")
            self._check_argument(keyword.value)
        if parameters is None:
            return
        if len(node.args) > by_position:
            raise InputError(f"It passes {len(node.args)} arguments by position to {name}.")
        given = dict(zip(parameters, node.args, strict=False))
        given.update({str(keyword.arg): keyword.value for keyword in node.keywords})
        for parameter, value in given.items():
            limit = LIMITS.get(name if (name, parameter) == ("hashed", "levels") else parameter)
            if limit is not None:
                self._check_limit(name, parameter, value, limit)
        if name == "Q":
            self._check_quoted(node)
        elif name in LEARNT and not (name == "poly" and _is_raw(given)):
            self.stateful.append((_state_key(node), name))

    def _check_limit(self, name: str, parameter: str, value: ast.AST, limit: int) -> None:
        if isinstance(value, ast.UnaryOp) and isinstance(value.operand, ast.Constant):
            value = value.operand
        number = value.value if isinstance(value, ast.Constant) else np.inf
        if number is not None and not (type(number) is int and number <= limit):
            raise InputError(
                f"It passes {parameter}={_shown(value)} to {name}; a formula of a file may pass "
                f"whole numbers up to {limit}."
            )

    def _check_quoted(self, node: ast.Call) -> None:
        quoted = node.args[0] if len(node.args) == 1 and not node.keywords else None
        if not isinstance(quoted, ast.Constant) or quoted.value not in self.columns:
            raise InputError(f"It uses {_shown(node)}, which is no column.")

    def _signature(self, node: ast.Call) -> tuple[str, tuple[str, ...] | None, int]:
        """Name of a function, what may be passed to it (None: anything), how much by position."""
        function = node.func
        if isinstance(function, ast.Name):
            name = self.aliases.get(function.id, function.id)
            if name in self.context:
                return name, None, 0
            if name in PARAMETERS:
                parameters = PARAMETERS[name]
                return name, parameters, ONLY_BY_NAME.get(name, len(parameters))
            raise InputError(f"It calls {name!r}, which a formula of a file may not.")
        if isinstance(function, ast.Attribute):
            if _is_numpy(function) and function.attr in NUMPY_CALLS:
                parameters = NUMPY_CALLS[function.attr]
                decimals = parameters if parameters[-1] == "decimals" else ()
                return f"np.{function.attr}", decimals, len(parameters)
            if _is_coding(function):
                parameters = CODINGS[function.attr]
                return f"contr.{function.attr}", parameters, len(parameters)
            raise InputError(f"It calls {_shown(function)!r}, which a formula of a file may not.")
        raise self._refused(f"a call of {_name_of(function)}", node)

    @staticmethod
    def _refused(what: str, node: ast.AST) -> InputError:
        return InputError(f"It uses {what} ({_shown(node)}), which a formula of a file may not.")


class _Learnt(ast.NodeTransformer):
    """Puts what the fit learnt of all samples in place of what gave it, once that is checked."""

    def __init__(
        self, checker: _Checker, learnt: Mapping[str, Any], aliases: Mapping[str, str]
    ) -> None:
        self.checker, self.learnt, self.aliases = checker, learnt, aliases

    def visit(self, node: ast.AST) -> Any:
        """The value of a summary; another node with the summaries in it replaced."""
        if isinstance(node, ast.Call):
            key = text_of(node, self.aliases)
            if key in self.learnt:
                self.checker.check_summary(node)
                return constant(self.learnt[key])
        return self.generic_visit(node)


def _is_numpy(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "np"


def _is_coding(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or node.attr not in CODINGS:
        return False
    return isinstance(node.value, ast.Name) and node.value.id == "contr"


def _is_raw(given: Mapping[str, ast.AST]) -> bool:
    raw = given.get("raw")
    return isinstance(raw, ast.Constant) and raw.value is True


def _name_of(node: ast.AST) -> str:
    """What a kind of node is called."""
    return {
        "JoinedStr": "an f-string",
        "NamedExpr": "an assignment",
        "Lambda": "lambda",
        "Subscript": "a subscript",
        "IfExp": "if ... else",
        "BoolOp": "and, or",
        "BitXor": "^",
        "LShift": "<<",
        "RShift": ">>",
        "MatMult": "@",
        "Not": "not",
    }.get(type(node).__name__, type(node).__name__)


def _state_key(node: ast.Call) -> str:
    """Under which name formulaic keeps the state of a call."""
    return str(format_expr(node))


@dataclass(frozen=True)
class _Machine:
    """Computes a checked tree."""

    expression: Expression
    data: Mapping[str, Any]
    context: Mapping[str, Any]
    state: dict[str, Any]
    metadata: Any
    spec: Any

    def run(self, node: ast.AST) -> Any:
        """The value of a node."""
        if isinstance(node, ast.Constant):
            value = node.value
            return float(value) if type(value) is int and abs(value) > 2**53 else value
        if isinstance(node, ast.Name):
            return self._named(self.expression.aliases.get(node.id, node.id))
        if isinstance(node, ast.BinOp):
            return self._binary(node.op, self.run(node.left), self.run(node.right))
        if isinstance(node, ast.UnaryOp):
            return self._unary(node.op, self.run(node.operand))
        if isinstance(node, ast.Compare):
            left, right = self.run(node.left), self.run(node.comparators[0])
            return _COMPARISONS[type(node.ops[0])](left, right)
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.Attribute) and _is_numpy(node):
            return getattr(np, node.attr)
        raise InputError(
            f"{_shown(node)} has no value."
        )  # the checker has let nothing else through

    def _named(self, name: str) -> Any:
        if name in self.expression.columns:
            return self.data[name]
        if name in self.context:
            return self.context[name]
        raise InputError(f"{name!r} is not defined; pass it again: context={{{name!r}: ...}}.")

    @staticmethod
    def _binary(kind: ast.operator, left: Any, right: Any) -> Any:
        for value in (left, right):
            _refuse_text(value)
        if isinstance(kind, ast.Pow):
            # Whole numbers would grow without end, or wrap around.
            return operator.pow(_as_float(left), right)
        if type(kind) in _LOGIC:
            if not all(_is_boolean(value) for value in (left, right)):
                raise InputError("& and | join conditions, not numbers.")
            return _LOGIC[type(kind)](left, right)
        return _ARITHMETIC[type(kind)](left, right)

    @staticmethod
    def _unary(kind: ast.unaryop, value: Any) -> Any:
        _refuse_text(value)
        if isinstance(kind, ast.Invert):
            if not _is_boolean(value):
                raise InputError("~ turns conditions round, not numbers.")
            return np.logical_not(value)
        return -value if isinstance(kind, ast.USub) else +value

    def _called(self, node: ast.Call) -> Any:
        function = node.func
        arguments = [self._argument(argument) for argument in node.args]
        options = {str(k.arg): self._argument(k.value) for k in node.keywords}
        if isinstance(function, ast.Attribute):
            if not _is_numpy(function):
                return getattr(TRANSFORMS["contr"], function.attr)(*arguments, **options)
            if function.attr not in TAKE_TEXT:
                for argument in (*arguments, *options.values()):
                    _refuse_text(argument)
            return getattr(np, function.attr)(*arguments, **options)
        assert isinstance(function, ast.Name)
        name = self.expression.aliases.get(function.id, function.id)
        if name in self.expression.context:
            called = self._named(name)
        elif name == "Q":
            return self.data[arguments[0]]
        else:
            called = FUNCTIONS[name]
        if getattr(called, "__is_stateful_transform__", False):
            key = _state_key(node)
            options |= {
                "_state": self.state.setdefault(key, {}),
                "_metadata": self.metadata if key == self.expression.text else None,
                "_spec": self.spec,
                "_context": None,
            }
        return called(*arguments, **options)

    def _argument(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
            return ast.literal_eval(node)
        if isinstance(node, ast.Attribute) and _is_coding(node):
            return getattr(TRANSFORMS["contr"], node.attr)
        if isinstance(node, ast.Name) and node.id in CODING_CLASSES:
            return TRANSFORMS[node.id]
        return self.run(node)


def _refuse_text(value: Any) -> None:
    """Raise for operands that are no numbers: text can be repeated, or be a format, without end."""
    kind = getattr(getattr(value, "dtype", None), "kind", None)
    if kind is None:
        kind = "f" if isinstance(value, (bool, int, float)) else "O"
    if kind not in "biufc":
        raise InputError("An operator stands beside text, where it needs numbers.")


def _is_boolean(value: Any) -> bool:
    return getattr(getattr(value, "dtype", None), "kind", None) == "b"


def _as_float(value: Any) -> Any:
    if np.ndim(value) == 0:
        return np.float64(value)
    return value if value.dtype.kind == "f" else value.astype(np.float64)
