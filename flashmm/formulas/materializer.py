"""formulaic's materializer, with R's reading of booleans and of arithmetic of whole numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
from formulaic.materializers import PandasMaterializer
from formulaic.utils.layered_mapping import LayeredMapping
from formulaic.utils.variables import get_required_variables
from interface_meta import override  # what formulaic's own materializers are written with

from flashmm.formulas.summaries import MARK, only_by_rows, with_constants

if TYPE_CHECKING:
    from formulaic import ModelSpec

__all__ = ["Materializer", "whole_as_floats"]

# What may make whole numbers too large for 64 bits; and what asks for whole numbers as they are.
_MAY_WRAP = re.compile(r"[*+-]|\bnp\.|\bpow\(")
_WANTS_WHOLE = re.compile(r"^C\(|\[|\.astype\(|\bhashed\(")


def whole_as_floats(expression: str, data: Mapping[Any, Any]) -> dict[str, Any]:
    """Columns of whole numbers that an expression computes with, as floats, which do not wrap.

    Parameters
    ----------
    expression
        What stands inside a call or braces.
    data
        Column -> values.
    """
    if expression.startswith("C("):
        return {}
    if "**" not in expression and (
        not _MAY_WRAP.search(expression) or _WANTS_WHOLE.search(expression)
    ):
        return {}
    return {
        name: values.astype(np.float64)
        for name, values in data.items()
        if isinstance(name, str) and name in expression and values.dtype.kind in "iu"
    }


class Materializer(PandasMaterializer):  # type: ignore[misc]
    """Booleans are a factor with the levels False and True; whole numbers do not wrap around.

    A boolean is a column, or what an expression such as ``I(x > 2)`` gives. Numbers that an
    expression takes from all samples are learnt, see `flashmm.formulas.summaries`.
    """

    REGISTER_NAME = "flashmm"
    REGISTER_INPUTS = ()

    @override
    def _is_categorical(self, values: Any) -> bool:
        kind = getattr(getattr(values, "dtype", None), "kind", "")
        return kind == "b" or bool(super()._is_categorical(values))

    @override
    def _encode_numerical(
        self, values: Any, metadata: Any, encoder_state: Any, spec: Any, drop_rows: Any
    ) -> Any:
        if getattr(getattr(values, "dtype", None), "kind", "f") in "iu":
            values = values.astype(np.float64)  # products of large whole numbers would wrap around
        return super()._encode_numerical(values, metadata, encoder_state, spec, drop_rows)

    @override
    def _evaluate(self, expr: str, metadata: Any, spec: ModelSpec) -> tuple[Any, set[Any]]:
        before = self.layered_context  # type: ignore[has-type]
        whole = whole_as_floats(expr, self.data)
        if whole:
            self.layered_context = LayeredMapping(LayeredMapping(whole, name="data"), before)
        try:
            value, variables = self._with_what_was_learnt(expr, metadata, spec)
        finally:
            self.layered_context = before
        plain = getattr(value, "__wrapped__", value)
        if isinstance(plain, (Number, str, np.generic)) or getattr(plain, "ndim", None) == 0:
            raise ValueError("it gives one value for all samples, where each must have its own")
        return value, variables

    def _with_what_was_learnt(
        self, expr: str, metadata: Any, spec: ModelSpec
    ) -> tuple[Any, set[Any]]:
        """The value of an expression; what it says of all samples is that of the first ones."""
        context = self.layered_context
        if only_by_rows(expr, context):
            value, variables = super()._evaluate(expr, metadata, spec)
            return value, variables
        state, key = spec.transform_state, f"{MARK}{expr}"

        def compute(part: str) -> Any:
            return super(Materializer, self)._evaluate(part, None, spec)[0]

        shortened, state[key] = with_constants(expr, state.get(key), context, compute)
        value, variables = super()._evaluate(shortened, metadata, spec)
        return value, variables | get_required_variables(expr, context)
