"""Numbers that an expression takes from all samples: x.mean(), np.max(x), len(x).

In ``I(x - x.mean())`` the mean belongs to the samples of the fit. Computed afresh from new rows it
would be theirs, silently, so it is kept with the formula, as scale(x) keeps what it learns. What
cannot be kept (x.rank(), a function of the user's that looks at all samples) is found by computing
the expression on some of the samples, and has no value for new data.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import format_expr, sanitize_variable_names

from flashmm.arrays.types import IntArray

__all__ = [
    "MARK",
    "constant",
    "differs",
    "only_by_rows",
    "samples_to_try",
    "text_of",
    "with_constants",
]

# The key in formulaic's state of transforms under which the numbers of an expression are kept.
MARK = "numbers of "
_OF_SAMPLES = (list, np.ndarray, pd.DataFrame, pd.Series)
_WITH_NAMES_OF_THEIR_OWN = (ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
_PYTHON = frozenset(("abs", "float", "int", "bool", "str"))
# Gives a sample what stands at another; formulaic calls it a transform.
_ACROSS = frozenset(("lag",))


def with_constants(
    expression: str,
    known: Mapping[str, Any] | None,
    environment: Mapping[str, Any],
    compute: Callable[[str], Any] | None = None,
) -> tuple[str, dict[str, Any]]:
    """An expression with the values it takes from all samples in place of what computes them.

    Parameters
    ----------
    expression
        What stands inside a call or braces.
    known
        Part of the expression -> its value, as the fit learnt it; None to learn it now.
    environment
        Names that it may look up: columns, and functions.
    compute
        Computes a part, to learn.

    Returns
    -------
    expression
        The same expression where it takes no such values.
    known
        What was known or learnt.
    """
    aliases: dict[str, str] = {}
    held = dict.fromkeys(n for n in environment if isinstance(environment[n], _OF_SAMPLES))
    try:
        tree = ast.parse(sanitize_variable_names(expression, held, aliases), mode="eval")
    except SyntaxError:  # said elsewhere
        return expression, {}
    walker = _Walker({*held, *aliases}, aliases, environment, known, compute)
    new = walker.visit(tree)
    return (text_of(new, aliases) if walker.replaced else expression), walker.known


def text_of(tree: ast.AST, aliases: Mapping[str, str]) -> str:
    """A tree as an expression, its columns in backticks again."""
    if aliases:
        tree = copy.deepcopy(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in aliases:
                node.id = f"`{aliases[node.id]}`"
    return str(format_expr(tree))


class _Walker(ast.NodeTransformer):
    """Replaces the largest parts that give one value for all samples."""

    def __init__(
        self,
        held: set[str],
        aliases: Mapping[str, str],
        environment: Mapping[str, Any],
        known: Mapping[str, Any] | None,
        compute: Callable[[str], Any] | None,
    ) -> None:
        self.held, self.aliases, self.environment = held, aliases, environment
        self.known = dict(known or {})
        self.compute = compute if known is None else None
        self.replaced = False

    def visit(self, node: ast.AST) -> Any:
        """A number in place of a part that has one; other parts with theirs replaced."""
        if isinstance(
            node, (ast.Lambda, ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp)
        ):
            return node
        if not isinstance(node, (ast.Call, ast.Subscript, ast.Attribute)):
            return self.generic_visit(node)
        # Q("my column") names its column in a string.
        named = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if not named & {*self.held, "Q"}:
            return node
        if not _by_elements(node, self.environment):
            instead = self._constant(node)
            if instead is not None:
                self.replaced = True
                return instead
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # x.clip: the method itself has no value.
            node.func.value = self.visit(node.func.value)
            node.args = [self.visit(argument) for argument in node.args]
            for keyword in node.keywords:
                keyword.value = self.visit(keyword.value)
            return node
        return self.generic_visit(node)

    def _constant(self, node: ast.expr) -> ast.expr | None:
        key = text_of(node, self.aliases)
        if self.compute is not None and key not in self.known:
            try:
                value = self.compute(key)
            except Exception:  # a part alone may have no value; the whole is computed next
                return None
            kept = _kept(value)
            if kept is not None:
                self.known[key] = kept
        return constant(self.known[key]) if key in self.known else None


def _kept(value: Any) -> Any:
    """A summary as plain data; None for what is none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "biuf":
        return _kept(value[()])
    return None


def constant(value: float | str) -> ast.expr:
    """A value as a part of an expression."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
        return ast.UnaryOp(ast.USub(), ast.Constant(-value))
    return ast.Constant(value)


def _by_elements(node: ast.expr, environment: Mapping[str, Any]) -> bool:
    """Whether a call surely gives each sample a value of its own: np.log, scale."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    if isinstance(function, ast.Name):
        name = function.id
        if environment.get(name) is TRANSFORMS.get(name, builtins):
            return name not in _ACROSS
        return name in _PYTHON and name not in environment
    return (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and environment.get(function.value.id) is np
        and (
            isinstance(getattr(np, function.attr, None), np.ufunc)
            or function.attr in ("where", "clip", "isin", "round", "around")
        )
    )


def only_by_rows(expression: str, environment: Mapping[str, Any]) -> bool:
    """Whether all of an expression surely looks at one sample at a time."""
    tree = ast.parse(sanitize_variable_names(expression, {}, {}), mode="eval")
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not _by_elements(node, environment):
                return False
            inside.add(node.func)
        elif isinstance(node, ast.Attribute) and node not in inside:
            base = node.value
            if not (
                isinstance(base, ast.Name) and isinstance(environment.get(base.id), ModuleType)
            ):
                return False
        elif isinstance(node, (ast.Subscript, ast.Lambda, ast.GeneratorExp, ast.ListComp)):
            return False
    return True


def samples_to_try(n: int) -> Iterator[IntArray]:
    """Positions of samples on which an expression is tried: one, a third of them, and backwards."""
    yield np.arange(n, dtype=np.intp)[::-1]
    if n > 1:
        yield np.flatnonzero(np.random.default_rng(0).random(n) < 1 / 3)
        yield np.array([n // 2], dtype=np.intp)


def differs(some: Any, all_: Any, positions: IntArray) -> bool:
    """Whether values computed on some samples are not those of the same samples among all.

    Parameters
    ----------
    some
        Values of the samples at ``positions``; of any kind that a factor may have.
    all_
        Values of all samples.
    positions
        Which samples, shape (c,).
    """
    some, all_ = (getattr(value, "__wrapped__", value) for value in (some, all_))
    if isinstance(all_, Mapping):
        return not isinstance(some, Mapping) or any(
            differs(some.get(key), value, positions)
            for key, value in all_.items()
            if not str(key).startswith("__")
        )
    if sp.issparse(all_) or sp.issparse(some):
        some, all_ = (v.toarray() if sp.issparse(v) else v for v in (some, all_))
    ours, theirs = np.asarray(some), np.asarray(all_)
    if theirs.ndim == 0:
        return bool(ours.ndim != 0 or ours != theirs)
    if ours.ndim != theirs.ndim or ours.shape[0] != positions.size:
        return True
    theirs = theirs[positions]
    if ours.shape != theirs.shape:
        return True
    if ours.dtype.kind in "biufc" and theirs.dtype.kind in "biufc":
        size = float(np.nanmax(np.abs(theirs), initial=0.0)) if theirs.size else 0.0
        return not np.allclose(ours, theirs, rtol=1e-9, atol=1e-12 * size, equal_nan=True)
    same = (ours == theirs) | (pd.isna(ours) & pd.isna(theirs))
    return not bool(np.all(same))
