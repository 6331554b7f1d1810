"""X'X, Z'X and Z'Z: by codes where columns have few distinct rows, else some samples at a time."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray
from flashmm.designs.compact import CompactMatrix, Layer, LayeredMatrix, steps
from flashmm.stats.block_sums import DesignColumns

__all__ = ["design_products"]

# Pairs of codes up to which they are counted in a dense table.
_PAIRS = 2**22
# Samples at a time.
_ROWS = 2**14


def design_products(
    columns: DesignColumns, weights: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, sp.csr_array]:
    """X'X, Z'X and Z'Z, shapes (p, p), (q, p), (q, q); no copy of the design is made.

    Parameters
    ----------
    columns
        The design.
    weights
        Precision of each sample, shape (n,).
    """
    parts = columns.parts
    if parts.grouped is not None and not parts.in_layers.size:
        return _by_codes(columns, weights)
    return _by_rows(columns, weights)


def _by_codes(
    columns: DesignColumns, weights: FloatArray | None
) -> tuple[FloatArray, FloatArray, sp.csr_array]:
    parts, (p, q) = columns.parts, (columns.X.shape[1], columns.Z.shape[1])
    grouped, T, D = parts.grouped, parts.table, parts.dense
    assert grouped is not None
    weighted = D if weights is None else D * weights[:, None]
    table, rest = np.ix_(parts.in_table, parts.in_table), parts.in_dense
    XX, ZX = np.zeros((p, p)), np.zeros((q, p))
    count = np.bincount(grouped.codes, weights, grouped.count)
    XX[table] = (T.T * count) @ T
    both = T.T @ _sums(grouped, weighted)
    XX[np.ix_(parts.in_table, rest)], XX[np.ix_(rest, parts.in_table)] = both, both.T
    XX[np.ix_(rest, rest)] = D.T @ weighted
    ZZ = sp.csr_array((q, q))
    for layer in columns.layers:
        each = _product(layer.weights, weights)
        ZX[:, parts.in_table] += _counts(layer, grouped, each) @ T
        scaled = weighted if layer.weights is None else weighted * layer.weights[:, None]
        ZX[:, rest] += _sums(layer, scaled)
        for other in columns.layers:
            ZZ = ZZ + _counts(layer, other, _product(each, other.weights))
    ZZ = sp.csr_array(ZZ)
    ZZ.eliminate_zeros()
    return XX, ZX, ZZ


def _product(one: FloatArray | None, other: FloatArray | None) -> FloatArray | None:
    return other if one is None else one if other is None else one * other


def _sums(layer: Layer, values: FloatArray) -> FloatArray:
    """Sums of the columns of values (n, c) by code, shape (count, c)."""
    result = np.empty((layer.count, values.shape[1]))
    for i in range(values.shape[1]):
        result[:, i] = np.bincount(layer.codes, values[:, i], layer.count)
    return result


def _counts(one: Layer, other: Layer, weights: FloatArray | None) -> sp.csr_array:
    """Number of samples, or sums of their weights (n,), by both codes: (count, count)."""
    shape = one.count, other.count
    if one is other:
        return sp.csr_array(sp.diags_array(np.bincount(one.codes, weights, one.count) * 1.0))
    if shape[0] * shape[1] <= _PAIRS:
        pair = one.codes.astype(np.intp) * shape[1] + other.codes
        return sp.csr_array(np.bincount(pair, weights, shape[0] * shape[1]).reshape(shape) * 1.0)
    values = np.ones(one.codes.size) if weights is None else weights
    return sp.csr_array(sp.coo_array((values, (one.codes, other.codes)), shape=shape))


def _by_rows(
    columns: DesignColumns, weights: FloatArray | None
) -> tuple[FloatArray, FloatArray, sp.csr_array]:
    """Some samples at a time."""
    X, Z = columns.X, columns.Z
    p, q = X.shape[1], Z.shape[1]
    if weights is None and X.shape[0] <= _ROWS and not isinstance(X, CompactMatrix):
        transposed_Z = columns.transposed_Z
        ZZ = transposed_Z @ (Z[:] if isinstance(Z, LayeredMatrix) else Z)
        ZZ.eliminate_zeros()
        ZZ.sort_indices()
        return X.T @ X, transposed_Z @ X, ZZ
    XX, ZX, ZZ = np.zeros((p, p)), np.zeros((q, p)), sp.csr_array((q, q))
    for here in steps(X.shape[0], _ROWS):
        part_X, part_Z = X[here], Z[here]
        weighted_X, weighted_Z = part_X, part_Z
        if weights is not None:
            weighted_X = part_X * weights[here, None]
            weighted_Z = sp.csr_array(part_Z * weights[here, None])
        transposed_Z = sp.csr_array(part_Z.T)
        XX += part_X.T @ weighted_X
        ZX += transposed_Z @ weighted_X
        ZZ = ZZ + transposed_Z @ weighted_Z
    return XX, ZX, sp.csr_array(ZZ)
