"""Elementwise transforms of Y, applied block by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.compiled import assembled
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, nearest

__all__ = [
    "Transform",
    "apply_transform",
    "check_transform",
    "keeps_zero",
    "transform_name",
    "transformed_counts",
]

Transform = str | Callable[[Any], Any] | None

_PER_LOG = {"log2p1": 1.0 / np.log(2.0), "log1p": 1.0}


def check_transform(transform: Any) -> None:
    """Refuse what is neither a known name nor a callable."""
    if isinstance(transform, str) and transform not in _PER_LOG:
        raise InputError(
            f"Unknown transform {transform!r}. {nearest(transform, list(_PER_LOG))} "
            "A callable is accepted too."
        )
    if transform is not None and not isinstance(transform, str) and not callable(transform):
        raise InputError("`transform` must be 'log2p1', 'log1p', a callable or None.")


def transform_name(transform: Transform) -> str:
    """What to call a transform in a message."""
    if isinstance(transform, str):
        return transform
    return str(getattr(transform, "__name__", type(transform).__name__))


def keeps_zero(transform: Transform) -> bool:
    """Whether zero maps to zero, so that a transform can act on the stored elements alone.

    Only ufuncs are known to be elementwise; any other callable sees the zeros too.
    """
    if transform is None or isinstance(transform, str):
        return True
    return isinstance(transform, np.ufunc) and bool(transform(np.zeros(1))[0] == 0.0)


def apply_transform(values: Any, transform: Transform) -> Any:
    """A transformed block in float64; values themselves are left alone, whatever the callable."""
    if sp.issparse(values):
        if keeps_zero(transform):
            return with_data(values, _elementwise(values.data, transform))
        values = values.toarray()
    return _elementwise(values, transform)


@cache
def transformed_counts(transform: str | None) -> FloatArray:
    """What a transform with a name makes of 0, 1, 2, ...; empty for None."""
    table: FloatArray = _elementwise(np.arange(0 if transform is None else 2**16), transform)
    return table


def with_data(values: Any, data: Any) -> Any:
    """A compressed matrix with the pattern of ``values`` and other stored elements."""
    made = assembled(type(values), data, values.indices, values.indptr, values.shape)
    made.has_canonical_format = values.has_canonical_format
    return made


def _elementwise(given: Any, transform: Transform) -> Any:
    if transform is None:
        return np.asarray(given, dtype=np.float64)
    with np.errstate(all="ignore"):
        if isinstance(transform, str):
            result = np.log1p(given, dtype=np.float64)
            if transform != "log1p":
                result *= _PER_LOG[transform]
            return result
        try:
            result = np.asarray(transform(np.array(given, dtype=np.float64)), dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"`transform` failed on a block of Y: {error}") from error
    if result.shape != given.shape:
        raise InputError(
            f"`transform` changed the shape of a block from {given.shape} to {result.shape}; "
            "it must act on each element alone."
        )
    return result
