"""Designs of features that miss different samples: cross-products and roots of each.

X'X, Z'X, Z'Z and n differ by feature. Roots are made a chunk of features at a time and kept while
they fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from flashmm.likelihood.base import Forms
from flashmm.likelihood.gates import CONFOUNDED, pairs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from flashmm.designs.design import CovarianceStructure
    from flashmm.stats.own_rows import PatternedStats

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["DesignStack", "Root", "StackedProjection", "entry_sums"]

_RANK_TOLERANCE = 1e-10
_CHUNK_BYTES = 2**25
_KEPT_BYTES = 2**29


@dataclass(frozen=True)
class Root:
    """Roots K K' of Z'RZ or Z'Z of B features.

    Parameters
    ----------
    K, left_inverse
        Shapes (B, q, r); zero in columns beyond a feature's rank.
    held
        One for columns within the rank, else zero, shape (B, r).
    """

    K: FloatArray
    left_inverse: FloatArray
    held: FloatArray

    @property
    def rank(self) -> FloatArray:
        """Ranks, shape (B,)."""
        return np.asarray(self.held.sum(axis=1))

    def take(self, index: IntArray) -> Root:
        """The roots of some of the features."""
        return Root(self.K[index], self.left_inverse[index], self.held[index])

    @classmethod
    def of(cls, gram: FloatArray, most: int) -> Root:
        """Roots of positive semi-definite matrices (B, q, q) of rank at most ``most``."""
        values, vectors = np.linalg.eigh(gram)
        r = min(gram.shape[-1], most)
        values, vectors = values[:, gram.shape[-1] - r :], vectors[:, :, gram.shape[-1] - r :]
        held = values > _RANK_TOLERANCE * np.maximum(values[:, -1:], 1.0)
        root = np.sqrt(np.where(held, values, 0.0))
        inverse = np.divide(1.0, root, out=np.zeros_like(root), where=held)
        return cls(
            vectors * root[:, None, :], vectors * inverse[:, None, :], held.astype(np.float64)
        )


@dataclass(frozen=True)
class DesignStack:
    """What the designs of F features have of their own, scaled like a `Projection`.

    Parameters
    ----------
    X, Z
        The design of all samples, shapes (n, p) and (n, q); Z scaled.
    observed
        Which samples each feature has, shape (F, n).
    structure
        Random terms.
    column_scale
        What the columns of Z were divided by, shape (q,).
    """

    X: FloatArray
    Z: sp.csr_array
    observed: BoolArray
    structure: CovarianceStructure
    column_scale: FloatArray

    @classmethod
    def of(cls, stats: PatternedStats, features: IntArray, column_scale: FloatArray) -> DesignStack:
        """The designs of some features."""
        Z = sp.csr_array(stats.Z @ sp.diags_array(1.0 / column_scale))
        observed = stats.observed[stats.pattern[features]]
        return cls(stats.X, Z, observed, stats.structure, column_scale)

    @cached_property
    def n(self) -> FloatArray:
        """Samples of each feature, shape (F,)."""
        return np.asarray(self.observed.sum(axis=1), dtype=np.float64)

    def XX(self) -> FloatArray:
        """X'X of each feature, shape (F, p, p)."""
        F, p = self.observed.shape[0], self.X.shape[1]
        result, there = np.empty((F, p, p)), self.observed.astype(np.float64)
        for i in range(p):
            result[:, i] = there @ (self.X[:, [i]] * self.X)
        return result

    def ZX(self, features: slice) -> FloatArray:
        """Z'X of some features, shape (B, q, p)."""
        there = self.observed[features].astype(np.float64)
        columns = [np.asarray((self.Z.T @ (there * x).T).T) for x in self.X.T]
        return np.stack(columns, axis=2)

    @cached_property
    def _outer(self) -> sp.csr_array:
        """Row by row the products of the elements of Z, transposed: shape (q * q, n)."""
        Z, q = self.Z, self.Z.shape[1]
        counts = np.diff(Z.indptr)
        most = int(counts.max(initial=0))
        rows, columns, values = [], [], []
        for a in range(most):
            for b in range(most):
                sample = np.flatnonzero(counts > max(a, b))
                first, second = Z.indptr[sample] + a, Z.indptr[sample] + b
                rows.append(Z.indices[first].astype(np.int64) * q + Z.indices[second])
                columns.append(sample)
                values.append(Z.data[first] * Z.data[second])
        if not rows:
            return sp.csr_array((q * q, Z.shape[0]))
        entries = (np.concatenate(rows), np.concatenate(columns))
        return sp.csr_array((np.concatenate(values), entries), shape=(q * q, Z.shape[0]))

    def ZZ(self, features: slice) -> FloatArray:
        """Z'Z of some features, shape (B, q, q)."""
        there, q = self.observed[features].astype(np.float64), self.Z.shape[1]
        return np.asarray((self._outer @ there.T).T).reshape(-1, q, q)


@dataclass(frozen=True)
class StackedProjection:
    """Statistics of features with designs of their own, projected off X and scaled.

    Names and units are those of `flashmm.likelihood.projection.Projection`; F features.

    Parameters
    ----------
    designs
        What their designs are made of.
    whitening
        W with W'X'XW = I, shape (F, p, p).
    log_det_XX, log_weights, scale, rounding
        Shape (F,).
    WXY
        W'X'y in the units of y, shape (F, p).
    ZY
        Scaled Z'y in the units of y, shape (F, q).
    beta_ols
        Shape (F, p).
    """

    designs: DesignStack
    whitening: FloatArray
    log_det_XX: FloatArray
    log_weights: FloatArray
    scale: FloatArray
    rounding: FloatArray
    WXY: FloatArray
    ZY: FloatArray
    beta_ols: FloatArray
    _kept: dict[tuple[str, int], tuple[FloatArray, Root]] = field(default_factory=dict)

    @property
    def m(self) -> int:
        """Number of features F."""
        return int(self.scale.size)

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return int(self.beta_ols.shape[1])

    @property
    def structure(self) -> CovarianceStructure:
        """Random terms."""
        return self.designs.structure

    @property
    def most(self) -> int:
        """Samples of the feature that has most."""
        return int(self.designs.n.max(initial=0))

    @cached_property
    def chunk(self) -> int:
        """Features whose roots are made at once."""
        q = self.structure.q
        each = 8 * q * (4 * min(q, self.most) + self.p + 2 * q)
        return max(1, _CHUNK_BYTES // each)

    def chunks(self, features: IntArray) -> Iterator[tuple[slice, int, IntArray]]:
        """Where the features of each chunk are, its number, and their positions in it.

        Features ascend.
        """
        numbers = features // self.chunk
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], features.size], strict=True):
            number = int(numbers[start])
            yield slice(start, stop), number, features[start:stop] - number * self.chunk

    def roots(self, number: int, *, full: bool = False) -> tuple[FloatArray, Root]:
        """Z'XW (B, q, p) and the root of Z'RZ, or of Z'Z if ``full``, of a chunk of features."""
        key = ("full" if full else "projected", number)
        found = self._kept.get(key)
        if found is None:
            here = slice(number * self.chunk, min((number + 1) * self.chunk, self.m))
            ZXW = np.matmul(self.designs.ZX(here), self.whitening[here])
            gram = self.designs.ZZ(here)
            if not full:
                gram -= np.matmul(ZXW, np.swapaxes(ZXW, 1, 2))
            found = ZXW, Root.of(gram, self.most - (0 if full else self.p))
            size = 8 * (ZXW.size + 2 * found[1].K.size)
            if (len(self._kept) + 1) * size <= _KEPT_BYTES:
                self._kept[key] = found
        return found

    def well_posed(self, here: slice) -> BoolArray:
        """Features whose components have something left beside X and can be told apart, (B,)."""
        ZXW = np.matmul(self.designs.ZX(here), self.whitening[here])
        ZZ = self.designs.ZZ(here)
        S = ZZ - np.matmul(ZXW, np.swapaxes(ZXW, 1, 2))
        k, structure = len(self.structure.parameters), self.structure
        good = np.ones(S.shape[0], dtype=bool)
        left, raw = (np.diagonal(part, axis1=1, axis2=2) for part in (S, ZZ))
        for parameter in structure.parameters:
            if parameter.is_variance:
                rows, _ = structure.columns(parameter)
                good &= left[:, rows].sum(axis=1) > CONFOUNDED * raw[:, rows].sum(axis=1)
        forms = entry_sums(structure, S)
        information = forms.second
        information[:, :k, k] = information[:, k, :k] = forms.first[:, :k]
        information[:, k, k] = self.designs.n[here] - self.p
        length = np.sqrt(np.diagonal(information, axis1=1, axis2=2))
        length = np.where(good[:, None] & (length > 0), length, 1.0)
        values = np.linalg.eigvalsh(information / (length[:, :, None] * length[:, None, :]))
        return np.asarray(good & (values[:, 0] >= CONFOUNDED))

    def coordinates(self, where: IntArray, ZXW: FloatArray, root: Root) -> FloatArray:
        """Coordinates u of Z'Ry, Z'Ry = K u in units of y's residual, shape (B, r)."""
        ZRy = self.ZY[where] - np.matmul(ZXW, self.WXY[where][:, :, None])[:, :, 0]
        ZRy /= np.sqrt(self.scale[where])[:, None]
        return np.asarray(np.matmul(np.swapaxes(root.left_inverse, 1, 2), ZRy[:, :, None])[:, :, 0])


def entry_sums(structure: CovarianceStructure, T: FloatArray) -> Forms:
    """tr(G_i T) and tr(G_i T G_j T) for symmetric T (B, q, q); the residual's entries are zero."""
    B, k = T.shape[0], len(structure.parameters)
    first, second = np.zeros((B, k + 1)), np.zeros((B, k + 1, k + 1))
    pairs = [pairs_of(structure, parameter) for parameter in structure.parameters]
    for i, mine in enumerate(pairs):
        for a, b in mine:
            first[:, i] += T[:, a, b].sum(axis=1)
        for j in range(i + 1):
            for a, b in mine:
                for c, d in pairs[j]:
                    second[:, i, j] += (T[:, b][:, :, c] * T[:, a][:, :, d]).sum(axis=(1, 2))
            second[:, j, i] = second[:, i, j]
    return Forms(np.zeros(B), first, second)
