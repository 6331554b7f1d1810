"""Conditional covariance of the random effects of one feature, level by level."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure

__all__ = ["conditional_covariance", "covariance_of_effects"]

_CHUNK_BYTES = 2**26


def covariance_of_effects(structure: CovarianceStructure, theta: FloatArray) -> sp.csc_array:
    """D(theta) of one feature, theta (k,), sparse, shape (q, q)."""
    rows, columns, values = [], [], []
    for value, parameter in zip(theta, structure.parameters, strict=False):
        left, right = structure.columns(parameter)
        pairs = [(left, right)] if parameter.is_variance else [(left, right), (right, left)]
        for row, column in pairs:
            rows.append(row)
            columns.append(column)
            values.append(np.full(row.size, value))
    entries = (np.concatenate(rows), np.concatenate(columns))
    return sp.csc_array((np.concatenate(values), entries), shape=(structure.q, structure.q))


def conditional_covariance(
    ZZ: sp.csr_array, structure: CovarianceStructure, theta: FloatArray, columns: IntArray
) -> FloatArray:
    """var(b | y, beta) = D - D Z'V^-1Z D = D (I + Z'Z D / sigma2)^-1, in blocks.

    Parameters
    ----------
    ZZ
        Z'Z, shape (q, q).
    structure
        The random terms.
    theta
        Variance parameters of one feature, the residual last and positive, shape (k,).
    columns
        Columns of Z that make each block, shape (L, s).

    Returns
    -------
    ndarray (L, s, s)
    """
    L, s = columns.shape
    D = covariance_of_effects(structure, theta)
    system = sp.eye_array(structure.q, format="csc") + (D @ ZZ).tocsc() / theta[-1]
    factor = splu(sp.csc_array(system))
    blocks = np.empty((L, s, s))
    step = max(1, _CHUNK_BYTES // (8 * structure.q * s))
    for start in range(0, L, step):
        chosen = columns[start : start + step]
        solved = factor.solve(D[:, chosen.ravel()].toarray()).reshape(structure.q, -1, s)
        own = np.arange(chosen.shape[0])[:, None, None]
        blocks[start : start + step] = solved[chosen[:, :, None], own, np.arange(s)]
    return 0.5 * (blocks + np.swapaxes(blocks, 1, 2))
