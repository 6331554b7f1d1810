"""How the factors of a formula are coded, and codings that would surprise."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from flashmm.exceptions import FormulaWarning, InputError, listing, warn

__all__ = ["OneLevelError", "check_coding", "coded_column", "reduced_factors", "said_before"]


class OneLevelError(InputError):
    """A factor has one level; ``factor`` is its expression."""

    def __init__(self, message: str, factor: str) -> None:
        super().__init__(message)
        self.factor = factor


def reduced_factors(spec: Any) -> dict[str, list[Any]]:
    """Factors that have one column less than levels somewhere in a formula, and their levels.

    Parameters
    ----------
    spec
        formulaic's model spec.
    """
    found: dict[str, list[Any]] = {}
    for term in spec.structure:
        for scoped in term.scoped_terms:
            for factor in scoped.factors:
                expression = str(getattr(factor.factor, "expr", factor.factor))
                kind, state = spec.encoder_state.get(expression, (None, {}))
                if factor.reduced and kind is not None and kind.value == "categorical":
                    found[expression] = list(state.get("categories", []))
    return found


def coded_column(expression: str) -> tuple[str, bool]:
    """The column that a factor codes, and whether its contrasts are chosen in the formula.

    ``f``, ``C(f)`` and ``C(f, contr.sum)`` code f; of other expressions the name is empty.
    """
    inside = re.fullmatch(r"C\((.*)\)", expression, flags=re.DOTALL)
    if inside is None:
        return ("" if re.search(r"[(\[{]", expression) else expression.strip("`")), False
    blank = re.sub(r"`[^`]*`", lambda m: "_" * len(m[0].encode(errors="surrogatepass")), expression)
    try:
        call = ast.parse(blank, mode="eval").body
    except SyntaxError:
        return "", False
    if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Name)):
        return "", False
    first = call.args[0]
    name = expression.encode()[first.col_offset : first.end_col_offset].decode().strip("`")
    chosen = len(call.args) > 1 or any(k.arg == "contrasts" for k in call.keywords)
    return name, chosen


def check_coding(spec: Any, data: pd.DataFrame, source: str) -> None:
    """Refuse factors that vanish; warn of ordered ones, which R codes differently.

    Parameters
    ----------
    spec
        formulaic's model spec.
    data
        The clean columns.
    source
        Where the formula stands, for messages.

    Raises
    ------
    OneLevelError
        If a factor has one level and so no column beside the intercept.

    Warns
    -----
    FormulaWarning
        If an ordered factor gets treatment contrasts without having been asked for.
    """
    ordered: list[str] = []
    for expression, levels in reduced_factors(spec).items():
        column, chosen = coded_column(expression)
        alone = re.fullmatch(r"""[IQ]\(\s*['"`]?([^()'"`]+?)['"`]?\s*\)""", expression)
        column = alone[1] if alone else column
        if len(levels) == 1:
            raise OneLevelError(
                f"{source}: the factor {expression!r} has one level in these samples "
                f"({str(levels[0])!r}), so it has no effect beside the intercept. Remove it from "
                "the formula, or check which samples were left out"
                f"{_more_levels(column, levels, data)}.",
                expression,
            )
        if column in data.columns and not chosen and getattr(data[column].dtype, "ordered", False):
            ordered.append(column)
    if ordered:
        _warn_of_order(ordered, source)


def _more_levels(column: str | None, levels: Sequence[Any], data: Any) -> str:
    """How to say that there are other levels elsewhere; nothing for a condition."""
    if column not in data.columns:
        return ""
    known = "[False, True]" if isinstance(levels[0], (bool, np.bool_)) else "['a', 'b']"
    return (
        f"; where other parts of the data have more levels, name them: C({column}, levels={known})"
    )


@contextmanager
def said_before() -> Iterator[None]:
    """Where a design is built again: its formulas have been warned about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FormulaWarning)
        yield


def _warn_of_order(columns: Sequence[str], source: str) -> None:
    first = columns[0] if columns[0].isidentifier() else f"`{columns[0]}`"
    warn(
        f"{source}: {listing(columns)} is ordered; it gets treatment contrasts, differences from "
        "its first level, where R takes polynomial ones. Tests of whole terms and marginal means "
        f"do not depend on it. Write C({first}, contr.poly) for R's coefficients, or "
        f"C({first}, contr.treatment) to keep these without a warning.",
        FormulaWarning,
    )
