"""Formulas of columns of numbers, made without formulaic's machinery.

Of ``1 + Days`` nothing needs to be parsed, coded or learnt, and what formulaic does about it takes
longer than the fit of one feature. The columns and the spec are those that it makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec, SimpleFormula
from formulaic.materializers.base import EncodedTermStructure
from formulaic.materializers.types import EvaluatedFactor, ScopedFactor, ScopedTerm
from formulaic.parser.types import Factor
from formulaic.utils.variables import Variable

from flashmm.arrays.types import FloatArray
from flashmm.designs.design import INTERCEPT
from flashmm.formulas.materializer import Materializer

__all__ = ["plain_numbers"]


def plain_numbers(
    data: pd.DataFrame, formula: SimpleFormula, output: str
) -> tuple[FloatArray, ModelSpec] | None:
    """The columns of a formula of an intercept and columns of numbers, and formulaic's spec.

    Parameters
    ----------
    data
        Clean columns of the n samples, see `flashmm.formulas.sample_table.clean`.
    formula
        The formula.
    output
        What the spec is to make later: ``"numpy"`` or ``"sparse"``.

    Returns
    -------
    tuple or None
        The columns, float64, dense whatever the output, shape (n, c), and the spec; None for a
        formula that holds anything else.
    """
    values = np.ones((len(data), len(formula)))
    structure: list[EncodedTermStructure] = []
    encoders: dict[str, tuple[Any, dict[str, Any]]] = {}
    for i, term in enumerate(formula):
        if len(term.factors) != 1:
            return None
        factor = term.factors[0]
        if factor.expr == "1" and factor.eval_method is Factor.EvalMethod.LITERAL:
            structure.append(EncodedTermStructure(term, [ScopedTerm(())], [INTERCEPT]))
            continue
        plain = (
            factor.eval_method is Factor.EvalMethod.LOOKUP and factor.kind is Factor.Kind.UNKNOWN
        )
        if not plain or factor.expr not in data.columns:
            return None
        column = data[factor.expr]
        if column.dtype.kind not in "iuf":
            return None
        values[:, i] = column.to_numpy()
        variables = {Variable(factor.expr, roles=("value",), source="data")}
        scoped = ScopedFactor(EvaluatedFactor(factor, None, variables))
        structure.append(EncodedTermStructure(term, [ScopedTerm((scoped,))], [factor.expr]))
        encoders[factor.expr] = (Factor.Kind.NUMERICAL, {})
    spec = ModelSpec(
        formula=formula,
        materializer=Materializer.REGISTER_NAME,
        materializer_params={},
        na_action="ignore",
        output=output,
        structure=structure,
        encoder_state=encoders,
    )
    return values, spec
