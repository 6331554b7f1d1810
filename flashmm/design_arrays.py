"""Designs from matrices: the gate for X, Z and the components of Z."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.design import CovarianceStructure, Design, RandomTerm
from flashmm.exceptions import InputError
from flashmm.labels import checked_labels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["as_structure", "design_from_arrays"]


def design_from_arrays(
    X: Any, Z: Any, *, components: Any = None, coef_names: Sequence[str] | None = None
) -> Design:
    """Design from matrices: X (n, p), Z (n, q), and the components of Z."""
    if coef_names is None and isinstance(X, pd.DataFrame):
        coef_names = [str(name) for name in X.columns]
    X = _finite_matrix(X, "X")
    if components is None and isinstance(Z, pd.DataFrame):
        levels = tuple(str(name) for name in Z.columns)
        components = CovarianceStructure((RandomTerm("Z1", "Z1", levels, covariance="identity"),))
    if sp.issparse(Z):
        Z = sp.csr_array(Z).astype(np.float64)
        if not np.isfinite(Z.data).all():
            raise InputError("Z holds missing or infinite values.")
    else:
        Z = sp.csr_array(_finite_matrix(Z, "Z"))
    if X.shape[0] != Z.shape[0]:
        raise InputError(f"X has {X.shape[0]} rows (samples), but Z has {Z.shape[0]}.")
    p = X.shape[1]
    if coef_names is None:
        coef_names = [f"x{i + 1}" for i in range(p)]
    names = checked_labels(coef_names, p, "coefficient", default=np.empty(0))
    return Design(X, Z, tuple(str(x) for x in names), as_structure(components, Z.shape[1]))


def as_structure(components: Any, q: int) -> CovarianceStructure:
    """A covariance structure over q columns from sizes, a dict of sizes or a structure."""
    if isinstance(components, CovarianceStructure):
        if components.q != q:
            raise InputError(f"The components own {components.q} columns, but Z has {q}.")
        return components
    if components is None:
        components = [q]
    if isinstance(components, (int, np.integer)):
        components = [int(components)]
    if isinstance(components, Mapping):
        sizes = {str(name): int(size) for name, size in components.items()}
    else:
        sizes = {f"Z{i + 1}": int(size) for i, size in enumerate(np.asarray(components).ravel())}
    if any(size < 1 for size in sizes.values()) or sum(sizes.values()) != q:
        raise InputError(
            f"`components` gives the sizes {list(sizes.values())}, which must be positive and sum "
            f"to the {q} columns of Z."
        )
    return CovarianceStructure(
        tuple(
            RandomTerm(name, name, tuple(str(i + 1) for i in range(size)), covariance="identity")
            for name, size in sizes.items()
        )
    )


def _finite_matrix(values: Any, name: str) -> FloatArray:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be numeric: {error}") from None
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2:
        raise InputError(f"{name} must have two dimensions; it has {matrix.ndim}.")
    if not np.isfinite(matrix).all():
        row, column = (int(x) for x in np.argwhere(~np.isfinite(matrix))[0])
        raise InputError(f"{name} is missing or infinite in row {row}, column {column}.")
    return matrix
