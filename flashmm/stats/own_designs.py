"""What the designs of features with rows of their own sum to: all features at once.

Feature j weights its samples by w_j (zero: it does not have the sample) and may have columns of X
of its own: a column of the design times a covariate of the feature. The sums of its design are then
linear in w_j, or in w_j times its covariates, so those of all features are matrix products: the
weights times the products of the columns of [X, Z], sample by sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import BoolArray, FloatArray, IntArray

__all__ = ["DesignSums", "OwnColumns", "RowProducts", "add_design_sums", "pairs_of_columns"]

# Sums of so many bytes are made at once: few enough that weights stay in the cache meanwhile.
_CHUNK_BYTES = 2**21


@dataclass(frozen=True)
class OwnColumns:
    """Which columns of X are multiplied by a covariate of the feature's own.

    Parameters
    ----------
    names
        The covariates.
    of
        For each coefficient the positions of the covariates that multiply its column; none for
        most.
    """

    names: tuple[str, ...]
    of: tuple[tuple[int, ...], ...]

    @classmethod
    def none(cls, p: int) -> OwnColumns:
        """No column is a feature's own."""
        return cls((), ((),) * p)

    @cached_property
    def groups(self) -> dict[tuple[int, ...], IntArray]:
        """Columns that are multiplied by the same covariates."""
        found: dict[tuple[int, ...], list[int]] = {}
        for column, covariates in enumerate(self.of):
            found.setdefault(covariates, []).append(column)
        return {key: np.array(columns) for key, columns in found.items()}

    def factor(self, group: tuple[int, ...], values: Sequence[FloatArray]) -> FloatArray | None:
        """What a group's columns are multiplied by, of the shape of ``values``; None for one."""
        result: FloatArray | None = None
        for position in group:
            result = values[position] if result is None else result * values[position]
        return result


@dataclass(frozen=True)
class DesignSums:
    """Sums of P designs over the samples, weighted.

    Parameters
    ----------
    n
        Samples of positive weight, shape (P,).
    log_weights
        Sum of their logarithms, shape (P,).
    total
        Sum of the weights, shape (P,).
    signature
        Weighted sums of fixed random numbers: equal where all weights and covariates are, (P, 2).
    X_sums
        Sums of the columns of X over the samples of positive weight, not weighted, shape (P, p).
    WX_sums
        The same, weighted, shape (P, p).
    XX, ZX
        X'WX and Z'WX, shapes (P, p, p) and (P, q, p).
    ZZ
        The entries of Z'WZ at (rows, columns), its upper triangle, shape (P, nnz).
    rows, columns
        Shape (nnz,).
    """

    n: FloatArray
    log_weights: FloatArray
    total: FloatArray
    signature: FloatArray
    X_sums: FloatArray
    WX_sums: FloatArray
    XX: FloatArray
    ZX: FloatArray
    ZZ: FloatArray
    rows: IntArray
    columns: IntArray

    @classmethod
    def zeros(cls, count: int, p: int, q: int, pairs: tuple[IntArray, IntArray]) -> DesignSums:
        """Nothing summed yet."""
        return cls(
            np.zeros(count),
            np.zeros(count),
            np.zeros(count),
            np.zeros((count, 2)),
            np.zeros((count, p)),
            np.zeros((count, p)),
            np.zeros((count, p, p)),
            np.zeros((count, q, p)),
            np.zeros((count, pairs[0].size)),
            *pairs,
        )

    @property
    def count(self) -> int:
        """Number of designs P."""
        return int(self.n.size)

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return int(self.XX.shape[1])

    @property
    def q(self) -> int:
        """Number of random effects."""
        return int(self.ZX.shape[1])

    def at(self, index: IntArray | slice) -> DesignSums:
        """Some of the designs."""
        own = (field.name for field in fields(self) if field.name not in ("rows", "columns"))
        return replace(self, **{name: getattr(self, name)[index] for name in own})

    def put(self, index: IntArray, some: DesignSums) -> None:
        """Overwrite some of the designs, in place."""
        for field in fields(self):
            if field.name not in ("rows", "columns"):
                getattr(self, field.name)[index] = getattr(some, field.name)

    def selected(self, coefs: IntArray, columns: IntArray) -> DesignSums:
        """With only some columns of X and of Z, in that order."""
        place = np.full(self.q, -1)
        place[columns] = np.arange(columns.size)
        first, second = place[self.rows], place[self.columns]
        kept = np.flatnonzero((first >= 0) & (second >= 0))
        first, second = first[kept], second[kept]
        rows, cols = np.minimum(first, second), np.maximum(first, second)
        order = np.lexsort((cols, rows))
        return DesignSums(
            self.n,
            self.log_weights,
            self.total,
            self.signature,
            self.X_sums[:, coefs],
            self.WX_sums[:, coefs],
            np.ascontiguousarray(self.XX[:, coefs][:, :, coefs]),
            np.ascontiguousarray(self.ZX[:, columns][:, :, coefs]),
            np.ascontiguousarray(self.ZZ[:, kept[order]]),
            rows[order],
            cols[order],
        )

    def turned(self, basis: FloatArray) -> DesignSums:
        """Over the columns of X basis (p, c)."""
        return replace(
            self,
            X_sums=self.X_sums @ basis,
            WX_sums=self.WX_sums @ basis,
            XX=np.matmul(basis.T, np.matmul(self.XX, basis)),
            ZX=np.matmul(self.ZX, basis),
        )

    def placed(self, coefs: IntArray, source: IntArray) -> DesignSums:
        """Over other columns: ``coefs`` of X, and of Z those at ``source``, -1 for a new one."""
        held = np.flatnonzero(source >= 0)
        part = self.selected(coefs, source[held])
        ZX = np.zeros((self.count, source.size, coefs.size))
        ZX[:, held] = part.ZX
        return replace(part, ZX=ZX, rows=held[part.rows], columns=held[part.columns])

    def plus(self, other: DesignSums, sign: float) -> DesignSums:
        """Design by design this + sign * other, over the same columns."""
        q = self.q
        mine, theirs = (part.rows * q + part.columns for part in (self, other))
        keys = np.union1d(mine, theirs)
        ZZ = np.zeros((self.count, keys.size))
        ZZ[:, np.searchsorted(keys, mine)] = self.ZZ
        ZZ[:, np.searchsorted(keys, theirs)] += sign * other.ZZ
        names = ("n", "log_weights", "total", "signature", "X_sums", "WX_sums", "XX", "ZX")
        sums = {name: getattr(self, name) + sign * getattr(other, name) for name in names}
        return replace(self, **sums, ZZ=ZZ, rows=keys // q, columns=keys % q)

    def dense_ZZ(self, index: IntArray | slice) -> FloatArray:
        """Z'WZ of some designs, shape (B, q, q)."""
        entries = self.ZZ[index]
        result = np.zeros((entries.shape[0], self.q, self.q))
        result[:, self.rows, self.columns] = entries
        result[:, self.columns, self.rows] = entries
        return result

    def sparse_ZZ(self, design: int) -> sp.csr_array:
        """Z'WZ of one design."""
        off = self.rows != self.columns
        values = self.ZZ[design]
        return sp.csr_array(
            (
                np.concatenate([values, values[off]]),
                (
                    np.concatenate([self.rows, self.columns[off]]),
                    np.concatenate([self.columns, self.rows[off]]),
                ),
            ),
            shape=(self.q, self.q),
        )

    def graph(self) -> sp.csr_array:
        """Where Z'WZ may be other than zero, ones, shape (q, q)."""
        ones = DesignSums.zeros(1, self.p, self.q, (self.rows, self.columns))
        ones.ZZ[:] = 1.0
        return ones.sparse_ZZ(0)


def pairs_of_columns(Z: sp.csr_array) -> tuple[IntArray, IntArray]:
    """Pairs of columns that some sample has both of, upper triangle, row by row."""
    pattern = sp.csr_array((np.ones(Z.nnz), Z.indices.copy(), Z.indptr.copy()), shape=Z.shape)
    both = sp.coo_array(sp.triu(pattern.T @ pattern))
    order = np.lexsort((both.col, both.row))
    return both.row[order].astype(np.intp), both.col[order].astype(np.intp)


@dataclass(frozen=True)
class RowProducts:
    """Products of the columns of [X, Z], sample by sample, for some samples.

    Parameters
    ----------
    X
        Shape (n, p).
    Z
        Shape (n, q), by samples.
    own
        Which columns of X are a feature's own.
    pairs
        The entries of Z'Z that are kept.
    noise
        Two random numbers for each sample, shape (n, 2).
    """

    X: FloatArray
    Z: sp.csr_array
    own: OwnColumns
    pairs: tuple[IntArray, IntArray]
    noise: FloatArray

    @classmethod
    def of(
        cls,
        X: FloatArray,
        Z: sp.csr_array,
        own: OwnColumns,
        pairs: tuple[IntArray, IntArray],
        samples: slice | IntArray,
        n: int,
    ) -> RowProducts:
        """Products of the rows of some of n samples."""
        noise = np.random.default_rng(15).uniform(0.5, 1.5, size=(n, 2))
        return cls(X, Z, own, pairs, noise[samples])

    @cached_property
    def transposed_Z(self) -> sp.csr_array:
        """Z', by rows."""
        return sp.csr_array(self.Z.T)

    @cached_property
    def noise_columns(self) -> list[FloatArray]:
        """The columns of ``noise``, each in one piece."""
        return [np.ascontiguousarray(column) for column in self.noise.T]

    @cached_property
    def XX(self) -> dict[tuple[tuple[int, ...], tuple[int, ...]], FloatArray]:
        """Products of the columns of two groups, each shape (n, p_u p_v).

        Of a group with itself only those of the upper triangle, row by row.
        """
        groups, found = self.own.groups, {}
        keys = list(groups)
        for i, u in enumerate(keys):
            for v in keys[i:]:
                left, right = self.X[:, groups[u]], self.X[:, groups[v]]
                if u == v:
                    rows, columns = np.triu_indices(left.shape[1])
                    found[u, v] = left[:, rows] * left[:, columns]
                else:
                    found[u, v] = (left[:, :, None] * right[:, None, :]).reshape(left.shape[0], -1)
        return found

    @cached_property
    def ZX(self) -> dict[tuple[int, ...], sp.csr_array]:
        """Products of the columns of Z and of a group's, each shape (q p_u, n)."""
        found = {}
        entries = self.Z.tocoo()
        for u, columns in self.own.groups.items():
            count = columns.size
            values = entries.data[:, None] * self.X[entries.row][:, columns]
            rows = entries.col.astype(np.int64)[:, None] * count + np.arange(count)
            samples = np.broadcast_to(entries.row[:, None], rows.shape)
            found[u] = sp.csr_array(
                (values.ravel(), (rows.ravel(), samples.ravel())),
                shape=(self.Z.shape[1] * count, self.Z.shape[0]),
            )
        return found

    @cached_property
    def ZZ(self) -> sp.csr_array:
        """Products of pairs of columns of Z, shape (nnz, n)."""
        Z, q = self.Z, self.Z.shape[1]
        counts = np.diff(Z.indptr)
        keys = self.pairs[0].astype(np.int64) * q + self.pairs[1]
        rows, samples, values = [], [], []
        most = int(counts.max(initial=0))
        for a in range(most):
            for b in range(most):
                sample = np.flatnonzero(counts > max(a, b))
                first, second = Z.indptr[sample] + a, Z.indptr[sample] + b
                upper = Z.indices[first] <= Z.indices[second]
                sample, first, second = sample[upper], first[upper], second[upper]
                key = Z.indices[first].astype(np.int64) * q + Z.indices[second]
                rows.append(np.searchsorted(keys, key))
                samples.append(sample)
                values.append(Z.data[first] * Z.data[second])
        shape = (keys.size, Z.shape[0])
        if not rows:
            return sp.csr_array(shape)
        entries = (np.concatenate(rows), np.concatenate(samples))
        return sp.csr_array((np.concatenate(values), entries), shape=shape)


def add_design_sums(
    into: DesignSums,
    slots: IntArray,
    products: RowProducts,
    weights: FloatArray | BoolArray,
    values: Sequence[FloatArray] = (),
) -> None:
    """Add the sums over some samples to those of some designs, in place.

    Parameters
    ----------
    into
        The sums so far.
    slots
        Positions of the f designs among them.
    products
        Products of the rows of the samples.
    weights
        Their weights, shape (f, n); zero for a sample that is not there. Booleans where each is
        there or not.
    values
        The covariates that are features' own, each of that shape; finite.
    """
    p, q = into.p, into.q
    width = 8 * (max(q * p, into.rows.size) + 4 * weights.shape[1] + p * p)
    step = max(16, _CHUNK_BYTES // max(width, 1))
    together = slots.size > 0 and bool((np.diff(slots) == 1).all())
    for start in range(0, slots.size, step):
        stop = min(start + step, slots.size)
        here = slice(start, stop)
        if together:
            some = into.at(slice(int(slots[start]), int(slots[stop - 1]) + 1))  # views
            _add_some(some, products, weights[here], [part[here] for part in values])
            continue
        some = into.at(slots[here])
        _add_some(some, products, weights[here], [part[here] for part in values])
        into.put(slots[here], some)


def _add_some(
    into: DesignSums,
    products: RowProducts,
    given: FloatArray | BoolArray,
    values: Sequence[FloatArray],
) -> None:
    """The same for all the designs of ``into``."""
    own, q, f = products.own, into.q, into.count
    there = given > 0
    count = np.count_nonzero(there, axis=1)
    into.n[:] += count
    plain = given.dtype == bool
    seen = np.ascontiguousarray(there, dtype=np.float64)
    weights = seen if plain else np.ascontiguousarray(given, dtype=np.float64)
    if plain:
        into.total[:] += count
    else:
        logs = np.log(weights, out=np.zeros_like(weights), where=there)
        into.log_weights[:] += logs.sum(axis=1)
        into.total[:] += weights.sum(axis=1)
    signed = weights
    for number, part in enumerate(values):
        signed = signed + weights * part * (number + 2)
    for k in range(products.noise.shape[1]):
        # Row by row, so that equal weights have equal signatures wherever they stand.
        into.signature[:, k] += np.einsum("fn,n->f", signed, products.noise_columns[k])
    factors = {u: own.factor(u, values) for u in own.groups}
    turned = np.ascontiguousarray(weights.T)
    for u, columns in own.groups.items():
        factor = factors[u]
        X = products.X[:, columns]
        mine = seen if factor is None else seen * factor
        X_sums = mine @ X
        into.X_sums[:, columns] += X_sums
        weighted = weights if factor is None else weights * factor
        into.WX_sums[:, columns] += X_sums if plain else weighted @ X
        by_sample = turned if factor is None else np.ascontiguousarray(weighted.T)
        ZX = (products.ZX[u] @ by_sample).T.reshape(f, q, columns.size)
        if columns.size == into.p:
            into.ZX[:] += ZX
        else:
            into.ZX[:, :, columns] += ZX
    for (u, v), outer in products.XX.items():
        weighted = weights
        for factor in (factors[u], factors[v]):
            weighted = weighted if factor is None else weighted * factor
        left, right = own.groups[u], own.groups[v]
        XX = weighted @ outer
        if u == v:
            rows, cols = np.triu_indices(left.size)
            into.XX[:, left[rows], left[cols]] += XX
            off = rows != cols
            into.XX[:, left[cols[off]], left[rows[off]]] += XX[:, off]
        else:
            XX = XX.reshape(f, left.size, right.size)
            into.XX[:, left[:, None], right] += XX
            into.XX[:, right[:, None], left] += np.swapaxes(XX, 1, 2)
    into.ZZ[:] += (products.ZZ @ turned).T
