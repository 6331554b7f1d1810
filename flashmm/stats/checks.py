"""The gate of SummaryStats: shapes, symmetry, and labels that the statistics carry themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import axis_labels
from flashmm.exceptions import InputError, listing

__all__ = ["check_shapes", "sample_count", "shared_labels"]

# Columns of Z up to which Z'Z is compared with its transpose as a dense matrix, which is faster.
_DENSE = 200


def sample_count(n: Any) -> int:
    """The number of samples as an int, if it is a whole number."""
    whole = isinstance(n, (int, np.integer, float, np.floating)) and not isinstance(n, bool)
    if not whole or n != np.floor(n) or n < 0:
        raise InputError(f"n, the number of samples, must be a whole number, not {n!r}.")
    return int(n)


def shared_labels(stats: object, what: str, **axes: tuple[int, ...]) -> list[Any] | None:
    """Labels that the statistics carry along some axes, all alike; None if none carries any."""
    known: tuple[str, pd.Index] | None = None
    for name, positions in axes.items():
        value = getattr(stats, name)
        for axis in positions:
            labels = axis_labels(value, axis)
            if labels is None:
                continue
            if known is None:
                known = name, labels
            elif list(known[1]) != list(labels):
                raise InputError(
                    f"{known[0]} and {name} label the {what} differently: {listing(known[1])} "
                    f"and {listing(labels)}. They must agree, in the same order."
                )
    return None if known is None else list(known[1])


def check_shapes(fields: dict[str, Any], p: int, q: int, m: int) -> None:
    """Raise if statistics do not fit together, or those of the design cannot be sums."""
    expected = {
        "XX": (p, p),
        "XY": (p, m),
        "ZX": (q, p),
        "ZY": (q, m),
        "ZZ": (q, q),
        "yy": (m,),
    }
    for name, shape in expected.items():
        if fields[name].shape != shape:
            raise InputError(
                f"{name} has shape {fields[name].shape}, but must be {shape}: the other "
                f"statistics say p={p} (XY), q={q} (ZZ), m={m} (XY)."
            )
    for name in ("XX", "ZX"):
        if not np.isfinite(fields[name]).all():
            raise InputError(f"{name} holds missing or infinite values.")
    if not np.isfinite(fields["ZZ"].data).all():
        raise InputError("ZZ holds missing or infinite values.")
    for name, gram in (("XX", fields["XX"]), ("ZZ", fields["ZZ"])):
        length = np.sqrt(np.abs(gram.diagonal()))
        if sp.issparse(gram) and q > _DENSE:
            difference = sp.coo_array(gram - gram.T)
            apart, scale = difference.data, length[difference.row] * length[difference.col]
        else:
            dense = gram.toarray() if sp.issparse(gram) else gram
            apart, scale = dense - dense.T, length[:, None] * length
        if (np.abs(apart) > 1e-8 * scale).any():
            raise InputError(f"{name} is not symmetric; it must be {name[0]}'{name[0]}.")
