"""formulaic's materializer, with R's reading of booleans and of arithmetic of whole numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from formulaic.materializers import PandasMaterializer
from formulaic.parser.types import Factor
from formulaic.utils.layered_mapping import LayeredMapping
from interface_meta import override  # what formulaic's own materializers are written with

if TYPE_CHECKING:
    from formulaic import ModelSpec

__all__ = ["Materializer"]

# Whole numbers up to this are floats.
_EXACT = 2**53


class Materializer(PandasMaterializer):  # type: ignore[misc]
    """Booleans are a factor with the levels False and True; whole numbers do not wrap around.

    A boolean is a column, or what an expression such as ``I(x > 2)`` gives.
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
        whole = {
            name: values.astype(np.float64)
            for name, values in self.data.items()
            if isinstance(name, str)
            and name in expr
            and values.dtype.kind in "iu"
            and ("**" in expr or _fit_floats(values))
        }
        if whole and not expr.startswith(("C(", "hashed(")):
            known = set(spec.transform_state)
            try:
                found = self._compute(expr, metadata, spec, whole)
                if "**" in expr or _is_numeric(found[0]):
                    return found
            except Exception:
                if "**" in expr:
                    raise
            # Labels are those of whole numbers, and so are positions.
            for key in set(spec.transform_state) - known:
                del spec.transform_state[key]
        return self._compute(expr, metadata, spec, {})

    def _compute(
        self, expr: str, metadata: Any, spec: ModelSpec, instead: Mapping[str, Any]
    ) -> tuple[Any, set[Any]]:
        """An expression with other values for some columns, and formulaic's notes of it."""
        before = self.layered_context  # type: ignore[has-type]
        if instead:
            self.layered_context = LayeredMapping(LayeredMapping(instead, name="data"), before)
        try:
            return super()._evaluate(expr, metadata, spec)  # type: ignore[no-any-return]
        finally:
            self.layered_context = before


def _fit_floats(values: Any) -> bool:
    """Whether whole numbers are the same as floats."""
    return values.size == 0 or -_EXACT <= int(values.min()) <= int(values.max()) <= _EXACT


def _is_numeric(values: Any) -> bool:
    """Whether a factor's values are numbers or conditions, not levels."""
    notes = getattr(values, "__formulaic_metadata__", None)
    if notes is not None and notes.kind is Factor.Kind.CATEGORICAL:
        return False
    inner = getattr(values, "__wrapped__", values)
    return isinstance(inner, dict) or getattr(getattr(inner, "dtype", None), "kind", "?") in "fb"
