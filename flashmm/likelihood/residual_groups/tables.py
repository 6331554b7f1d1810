"""Products of the fixed effects' sums by level that all features share, for sums over the levels.

A level l has the sums u_lh of X over its samples in group h, and n_lh of them. All that REML's
matrices of size p need of theta are sums over l of a weight times sym(u_lh u_lg'), where only the
weight depends on theta and so on the feature: matrix products, features x levels by levels x
products. Symmetric matrices are packed, p (p + 1) / 2 numbers. Levels with equal n_l have equal
weights, so their products are added up beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray

__all__ = ["Packing", "Tables", "inverse_of_definite"]


@dataclass(frozen=True)
class Packing:
    """Symmetric p x p matrices as the entries of their upper triangles.

    Parameters
    ----------
    p
        Rows.
    rows, columns
        Positions of the t = p (p + 1) / 2 entries, shape (t,).
    where
        Which of them stands at each place of the matrix, shape (p, p).
    twice
        How often each stands there, shape (t,).
    """

    p: int
    rows: IntArray
    columns: IntArray
    where: IntArray
    twice: FloatArray

    @classmethod
    def of(cls, p: int) -> Packing:
        """For p rows."""
        rows, columns = np.triu_indices(p)
        where = np.empty((p, p), dtype=np.intp)
        where[rows, columns] = where[columns, rows] = np.arange(rows.size)
        return cls(p, rows, columns, where, np.where(rows == columns, 1.0, 2.0))

    def packed(self, matrices: FloatArray) -> FloatArray:
        """The entries of symmetric matrices (..., p, p), shape (..., t)."""
        return np.asarray(matrices[..., self.rows, self.columns])

    def unpacked(self, entries: FloatArray) -> FloatArray:
        """The matrices (..., p, p) of entries (..., t)."""
        flat = np.take(entries, self.where.ravel(), axis=-1)
        return flat.reshape(*entries.shape[:-1], self.p, self.p)


@dataclass(frozen=True)
class Tables:
    """Sums of products over the levels of each kind; k kinds of levels differ in their n_l.

    Parameters
    ----------
    packing
        Of the fixed effects.
    kind
        Kind of each level, shape (q,).
    counts
        Levels of each kind, shape (k,).
    n
        n_lh of a level of each kind, shape (k, H).
    first, second
        The pairs g <= h of groups that share levels, shape (P,).
    products
        Sums of u_g u_h' + u_h u_g' of each pair, half of it where g = h, shape (k, P t).
    pair, group
        Pairs and groups that share levels, shape (T,).
    weighted
        Products of the pair times n_h of the group, shape (k, T t).
    """

    packing: Packing
    kind: IntArray
    counts: FloatArray
    n: FloatArray
    first: IntArray
    second: IntArray
    products: FloatArray
    pair: IntArray
    group: IntArray
    weighted: FloatArray

    @classmethod
    def make(cls, d: FloatArray, U: FloatArray, most: int) -> Tables | None:
        """Of the groups' sums d (H, q) and U (H, q, p); None where they take over ``most`` bytes.

        They do not pay where there are many fixed effects: work and memory grow by their square.
        """
        H, q, p = U.shape
        n, kind = np.unique(d.T, axis=0, return_inverse=True)
        if n.shape[0] > q // 2:  # what it saves is less than what it costs
            n, kind = d.T.copy(), np.arange(q)
        kind = np.ravel(kind)
        there = d.T > 0
        pairs = [(g, h) for g in range(H) for h in range(g, H) if (there[:, g] & there[:, h]).any()]
        triples = [
            (i, h)
            for i, (g, k) in enumerate(pairs)
            for h in range(H)
            if (there[:, g] & there[:, k] & there[:, h]).any()
        ]
        packing, k = Packing.of(p), n.shape[0]
        t = packing.twice.size
        if 8 * k * t * (len(pairs) + len(triples)) > most:
            return None
        products = np.zeros((k, len(pairs), t))
        for i, (g, h) in enumerate(pairs):
            each = U[g][:, packing.rows] * U[h][:, packing.columns]
            if g != h:
                each = each + U[h][:, packing.rows] * U[g][:, packing.columns]
            np.add.at(products[:, i], kind, each)
        first, second = (np.array(part, dtype=np.intp) for part in zip(*pairs, strict=True))
        pair, group = (np.array(part, dtype=np.intp) for part in zip(*triples, strict=True))
        weighted = products[:, pair] * n[:, group, None]
        counts = np.bincount(kind, minlength=k).astype(np.float64)
        flat = products.reshape(k, len(pairs) * t), weighted.reshape(k, len(triples) * t)
        return cls(packing, kind, counts, n, first, second, flat[0], pair, group, flat[1])

    @property
    def k(self) -> int:
        """Kinds of levels."""
        return int(self.counts.size)

    @property
    def t(self) -> int:
        """Entries of a packed matrix."""
        return int(self.packing.twice.size)

    def by_level(self, values: FloatArray) -> FloatArray:
        """Values of the kinds (B, k) at the levels, (B, q)."""
        return values if self.k == self.kind.size else values[:, self.kind]

    def products_of(self, c: FloatArray) -> FloatArray:
        """c_g c_h of the pairs, shape (B, P), for c (B, H)."""
        return c[:, self.first] * c[:, self.second]

    def slopes_of(self, c: FloatArray) -> FloatArray:
        """Their derivatives by each c_h, shape (B, H, P)."""
        groups = np.arange(c.shape[1])[:, None]
        by_first = np.where(self.first == groups, c[:, None, self.second], 0.0)
        return by_first + np.where(self.second == groups, c[:, None, self.first], 0.0)

    def of_pairs(self, weights: FloatArray) -> FloatArray:
        """Sums over the levels for weights (B, k), shape (B, P, t)."""
        return (weights @ self.products).reshape(weights.shape[0], self.first.size, self.t)

    def of_triples(self, weights: FloatArray) -> FloatArray:
        """Sums over the levels for weights (B, k) times n_h, shape (B, T, t)."""
        return (weights @ self.weighted).reshape(weights.shape[0], self.pair.size, self.t)


def inverse_of_definite(matrices: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Inverses (B, p, p) and log determinants (B,) of positive definite matrices (B, p, p).

    By Gauss-Jordan elimination, entry by entry over all of them: NaN for one that is not definite,
    and others stay right.
    """
    A = np.array(np.moveaxis(matrices, 0, -1), order="C")  # features last: long inner loops
    p, count = A.shape[0], A.shape[2]
    product, log_det = np.ones(count), np.zeros(count)
    for k in range(p):
        pivot = np.where(A[k, k] > 0.0, A[k, k], np.nan)
        product = product * pivot
        if k % 8 == 7 or k == p - 1:
            log_det += np.log(product)
            product = np.ones(count)
        row = A[k] / pivot
        column = A[:, k].copy()
        A[k] = 0.0
        A[:, k] = 0.0
        column[k] = -1.0
        row[k] = 1.0 / pivot
        A -= column[:, None] * row[None]
    return np.ascontiguousarray(np.moveaxis(A, -1, 0)), log_det
