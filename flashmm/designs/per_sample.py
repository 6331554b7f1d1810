"""One positive number per sample: weights and size factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.labels import in_order
from flashmm.arrays.numeric import float_array
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, nearest

__all__ = ["per_sample", "positive"]


def per_sample(values: Any, data: Any, name: str) -> FloatArray | None:
    """Values of an option: an array in the order of ``data``, or the name of one of its columns.

    A Series or DataArray is matched to ``data`` by label.
    """
    if values is None:
        return None
    data = pd.DataFrame(data)
    if isinstance(values, str):
        if values not in data.columns:
            columns = [str(column) for column in data.columns]
            raise InputError(
                f"`{name}` names {values!r}, which is no column of `data`. "
                f"{nearest(values, columns)}"
            )
        values = data[values]
    return positive(values, len(data), name, data.index)


def positive(values: Any, n: int, name: str, samples: pd.Index | None) -> FloatArray:
    """Positive numbers of n samples, matched by label where they carry labels."""
    array = float_array(in_order(values, samples, f"`{name}`", strict=True), f"`{name}`")
    if array.shape != (n,):
        raise InputError(f"`{name}` has shape {array.shape}, but there are {n} samples.")
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if bad.size:
        raise InputError(
            f"`{name}` must be positive and finite; it is {array[bad[0]]:g} for sample {bad[0]} "
            f"({bad.size} in all)."
        )
    return array
