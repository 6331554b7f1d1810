"""formulaic's materializer, with R's reading of booleans and of powers of whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from formulaic.materializers import PandasMaterializer
from formulaic.utils.layered_mapping import LayeredMapping
from interface_meta import override  # what formulaic's own materializers are written with

if TYPE_CHECKING:
    from formulaic import ModelSpec

__all__ = ["Materializer"]


class Materializer(PandasMaterializer):  # type: ignore[misc]
    """Booleans are a factor with the levels False and True; powers do not wrap around.

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
        before = self.layered_context  # type: ignore[has-type]
        if "**" in expr and not expr.startswith("C("):
            whole = {
                name: values.astype(np.float64)
                for name, values in self.data.items()
                if isinstance(name, str) and name in expr and values.dtype.kind in "iu"
            }
            self.layered_context = LayeredMapping(LayeredMapping(whole, name="data"), before)
        try:
            value, variables = super()._evaluate(expr, metadata, spec)
        finally:
            self.layered_context = before
        return value, variables
