"""Features that X and Z together explain exactly, from the blocks of Z'Z."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from flashmm.arrays.namespaces import BoolArray, FloatArray, like, to_numpy
from flashmm.likelihood.elimination.layout import Layout, independent_columns
from flashmm.likelihood.elimination.small import pairs
from flashmm.likelihood.projection import Projection

__all__ = ["perfect_fits"]

_RANK = 1e-10


def perfect_fits(layout: Layout, projection: Projection) -> BoolArray:
    """Features that X and Z explain exactly, shape (m,); none where they explain everything.

    Least squares of y on [O, O_2, W]: the finest blocks are orthonormal, and of the others
    A'(I - O O')A is the Gram matrix that is left, block by block and then dense.
    """
    n, fine, coarse = projection.n, layout.fine, layout.coarse
    base = to_numpy(layout.base)
    directions = layout.to_directions.times(projection.ZRy.T)
    y = to_numpy(directions)
    left = np.zeros((layout.q_c + layout.w, y.shape[1]))
    left[: layout.q_c + layout.q_z] = y[fine.size :]
    left -= to_numpy(layout.C.transposed_times(directions[: fine.size, :]))
    left *= to_numpy(layout.unspanned)[:, None]
    explained = (y[: fine.size] ** 2).sum(axis=0)
    rank = int(fine.present.sum())

    first, second = layout.parts
    own = np.zeros((layout.w, layout.w))
    rows, columns = np.triu_indices(layout.w)
    own[rows, columns] = own[columns, rows] = base[second:]
    a_c, a_w = left[: layout.q_c], left[layout.q_c :]
    if coarse.L:
        s, L = coarse.s, coarse.L
        blocks = np.empty((L, s, s))
        for i, (a, b) in enumerate(pairs(s)):
            blocks[:, a, b] = blocks[:, b, a] = base[i * L : (i + 1) * L]
        G, more = _pseudo_inverse(blocks)
        rank += more - int((~coarse.present).sum())
        coupling = base[first:second].reshape(s, L, layout.w).swapaxes(0, 1)
        a_c = a_c.reshape(s, L, -1).swapaxes(0, 1)
        K = G @ coupling
        own -= np.tensordot(K, coupling, axes=([0, 1], [0, 1]))
        a_w = a_w - np.tensordot(K, a_c, axes=([0, 1], [0, 1]))
        explained += (a_c * (G @ a_c)).sum(axis=(0, 1))
    length = np.sqrt(np.diag(layout.WW))
    there = np.flatnonzero(length)  # not a level that a slope never moves, say
    scaled = own[np.ix_(there, there)] / np.outer(length[there], length[there])
    kept = independent_columns(scaled)
    factor = np.linalg.cholesky(scaled[np.ix_(kept, kept)])
    kept = there[kept]
    if kept.size:  # older scipy refuses a system without unknowns
        part = scipy.linalg.solve_triangular(factor, a_w[kept] / length[kept, None], lower=True)
        explained += (part**2).sum(axis=0)
    more = kept.size
    if rank + more >= n:
        return projection.scale < 0
    total = float(n - projection.p)
    exact = total - explained <= to_numpy(projection.rounding)
    return like(exact, projection.scale) & projection.varies


def _pseudo_inverse(gram: FloatArray) -> tuple[FloatArray, int]:
    """Pseudo-inverses of Gram matrices (..., r, r), and the sum of their ranks."""
    if gram.shape[-1] == 0:
        return gram, 0
    values, vectors = np.linalg.eigh(gram)
    kept = values > _RANK * np.maximum(values[..., -1:], _RANK)
    inverse = np.where(kept, 1.0 / np.where(kept, values, 1.0), 0.0)
    return (vectors * inverse[..., None, :]) @ np.swapaxes(vectors, -1, -2), int(kept.sum())
