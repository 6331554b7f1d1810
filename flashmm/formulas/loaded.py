"""Formulas from a file: taken apart by a closed grammar, and their columns made without eval.

formulaic encodes factors and multiplies columns, as for any formula; what it would hand to
Python's eval goes to `flashmm.formulas.closed_grammar` instead.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from formulaic import Formula, ModelSpec, SimpleFormula
from formulaic.errors import FormulaicError
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Factor, Token
from interface_meta import override  # what formulaic's own materializers are written with

from flashmm.exceptions import InputError, listing
from flashmm.formulas.closed_grammar import Expression, read_expression
from flashmm.formulas.materializer import Materializer, whole_as_floats
from flashmm.formulas.sample_table import Columns, evaluating, numbers

__all__ = ["LoadedFormula", "read_formula"]

_LENGTH, _TOKENS = 200_000, 20_000
_KINDS = (Token.Kind.NAME, Token.Kind.VALUE, Token.Kind.PYTHON)


@dataclass(frozen=True)
class LoadedFormula:
    """A formula of a file, checked.

    Parameters
    ----------
    formula
        Its terms.
    expressions
        Factor -> what computes it, for factors that are not columns or numbers.
    columns, context
        Names that it may look up: columns of data, and names that the user passes.
    """

    formula: SimpleFormula
    expressions: Mapping[str, Expression]
    columns: frozenset[str]
    context: frozenset[str]

    def materialise(
        self,
        spec: ModelSpec,
        data: pd.DataFrame,
        context: Mapping[str, Any],
        output: Literal["numpy", "sparse"],
    ) -> Any:
        """Formulaic's matrix of some rows."""
        own = {name: context[name] for name in self.context if name in context}
        materializer = _LoadedMaterializer(data, context=own)
        materializer.formula = self
        return materializer.get_model_matrix(spec, output=output, na_action="ignore")

    def width(self, spec: ModelSpec, data: pd.DataFrame) -> float:
        """About how many columns it makes of data, found factor by factor."""
        materializer = _LoadedMaterializer(data)
        materializer.formula = self
        widths: dict[str, int] = {}
        for factor in {factor for term in self.formula for factor in term.factors}:
            values = materializer._evaluate_factor(factor, spec, set()).values
            inner = getattr(values, "__wrapped__", values)
            _, state = spec.encoder_state.get(factor.expr, (None, {}))
            if "categories" in state:
                widths[factor.expr] = len(state["categories"])
            elif isinstance(inner, dict):
                widths[factor.expr] = len(inner)
            else:
                shape: tuple[int, ...] = getattr(inner, "shape", ())
                widths[factor.expr] = int(shape[1]) if len(shape) > 1 else 1
        products = (math.prod(widths[f.expr] for f in term.factors) for term in self.formula)
        return float(sum(products))

    def build(
        self, spec: ModelSpec, columns: Columns, source: str, output: Literal["numpy", "sparse"]
    ) -> tuple[Any, Any]:
        """Columns of the rows of ``columns``, as `Columns.build` gives them."""
        with evaluating(source):
            matrix = self.materialise(spec, columns.data, columns.context, output)
            values = numbers(matrix, len(columns.data), output)
        columns.refuse_non_finite([(0, values)], matrix.model_spec.column_names, source)
        return values, matrix.model_spec


class _LoadedMaterializer(Materializer):
    """The materializer, with another way to compute factors."""

    REGISTER_NAME = "flashmm-loaded"
    REGISTER_INPUTS = ()

    formula: LoadedFormula

    @override
    def _lookup(self, name: str) -> tuple[Any, set[Any]]:
        if name in self.formula.columns:
            return self.data[name], set()
        if name in self.context:
            return self.context[name], set()
        raise InputError(f"{name!r} is not defined; pass it again: context={{{name!r}: ...}}.")

    @override
    def _evaluate(self, expr: str, metadata: Any, spec: ModelSpec) -> tuple[Any, set[Any]]:
        expression = self.formula.expressions[expr]
        state = spec.transform_state
        data = ChainMap(whole_as_floats(expr, self.data), self.data)
        return expression.value(data, self.context, state, metadata, spec), set()


def read_formula(
    text: str,
    columns: frozenset[str],
    context: frozenset[str],
    source: str,
    learnt: Mapping[str, Mapping[str, Any]] | None = None,
) -> LoadedFormula:
    """Take a formula of a file apart.

    Parameters
    ----------
    text
        Terms joined by ``+``, each of factors joined by ``:``, as `terms_text` writes them.
    columns, context
        Names that it may look up.
    source
        Where it stands, for messages.
    learnt
        Expression -> values that it takes from all samples of the fit, by the part that gives them.

    Raises
    ------
    InputError
        If it holds anything else; the message names it.
    """
    known = learnt or {}
    if len(text) > _LENGTH:
        raise InputError(f"{source} has {len(text)} characters, more than {_LENGTH}.")
    try:
        tokens = list(tokenize(text))
        _check_tokens(tokens, source)
        for token in tokens:  # formulaic parses these again: they must be sound by then
            if token.kind is Token.Kind.PYTHON:
                _expression(token.token, columns, context, source, known)
        formula = Formula(text)
    except FormulaicError as error:
        raise InputError(f"{source} cannot be read: {str(error).splitlines()[0]}") from None
    except InputError:
        raise
    except (IndexError, MemoryError, RecursionError, SyntaxError, ValueError) as error:
        raise InputError(f"{source} cannot be read: {type(error).__name__}.") from None
    if not isinstance(formula, SimpleFormula):
        raise InputError(f"{source} cannot be read: it has more than one part.")
    expressions = {}
    for factor in {factor.expr: factor for term in formula for factor in term.factors}.values():
        if factor.eval_method is Factor.EvalMethod.LOOKUP:
            if factor.expr not in columns and factor.expr not in context:
                raise InputError(f"{source} uses {factor.expr!r}, which is no column.")
        elif factor.eval_method is Factor.EvalMethod.PYTHON:
            expressions[factor.expr] = _expression(factor.expr, columns, context, source, known)
    return LoadedFormula(formula, expressions, columns, context)


def _expression(
    text: str,
    columns: frozenset[str],
    context: frozenset[str],
    source: str,
    learnt: Mapping[str, Mapping[str, Any]],
) -> Expression:
    try:
        return read_expression(text, columns, context, learnt.get(text))
    except InputError as error:
        raise InputError(f"{source} is refused. {error}") from None


def _check_tokens(tokens: list[Token], source: str) -> None:
    """Raise for what makes more of terms than a list of products: powers, nesting, parts."""
    if len(tokens) > _TOKENS:
        raise InputError(f"{source} has {len(tokens)} parts, more than {_TOKENS}.")
    wrong = [
        token.token
        for token in tokens
        if token.kind not in _KINDS
        and not (token.kind is Token.Kind.OPERATOR and token.token in ("+", ":"))
    ]
    if wrong:
        raise InputError(f"{source} is refused: it holds {listing(wrong)} outside of calls.")
