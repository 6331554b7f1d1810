"""Designs of features with rows of their own: cross-products and roots of each.

X'WX, Z'WX, Z'WZ and n differ by feature. Roots are made a chunk of features at a time and kept
while they fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.base import Forms
from flashmm.likelihood.design_checks import CONFOUNDED, along_curves, pairs_of
from flashmm.likelihood.own_rows.elimination import Pieces
from flashmm.stats.own_designs import DesignSums
from flashmm.stats.own_rows import PatternedStats

__all__ = ["DesignStack", "Root", "StackedProjection", "entry_sums", "told_apart", "weight_units"]

_RANK_TOLERANCE = 1e-10
_CHUNK_BYTES = 2**25
_KEPT_BYTES = 2**29
_NOT_BY_FEATURE = ("designs", "_kept", "kept_pieces")


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


def weight_units(stats: PatternedStats) -> FloatArray:
    """Geometric means of each design's weights over that of the samples', shape (P,)."""
    designs = stats.designs
    mean = designs.log_weights / np.maximum(designs.n, 1.0)
    return np.asarray(np.exp(np.where(designs.n > 0, mean - stats.log_weights / stats.n, 0.0)))


@dataclass(frozen=True)
class DesignStack:
    """What the designs of F features have of their own, scaled like a `Projection`.

    Parameters
    ----------
    sums
        What the designs sum to.
    index
        The design of each feature, shape (F,).
    structure
        Random terms.
    column_scale
        What the columns of Z were divided by, shape (q,).
    root_weight
        Root of each feature's unit of weight, by which its Z is divided too, shape (F,).
    """

    sums: DesignSums
    index: IntArray
    structure: CovarianceStructure
    column_scale: FloatArray
    root_weight: FloatArray

    @classmethod
    def of(cls, stats: PatternedStats, features: IntArray, column_scale: FloatArray) -> DesignStack:
        """The designs of some features."""
        index = stats.pattern[features]
        root = np.sqrt(weight_units(stats))[index]
        return cls(stats.designs, index, stats.structure, column_scale, root)

    def take(self, features: IntArray) -> DesignStack:
        """The designs of some of the features."""
        return DesignStack(
            self.sums,
            self.index[features],
            self.structure,
            self.column_scale,
            self.root_weight[features],
        )

    @cached_property
    def n(self) -> FloatArray:
        """Samples of each feature, shape (F,)."""
        return self.sums.n[self.index]

    @property
    def XX(self) -> FloatArray:
        """X'WX of each feature, shape (F, p, p)."""
        return self.sums.XX[self.index]

    @property
    def units(self) -> FloatArray:
        """What the columns of Z of each feature were divided by, shape (F, q)."""
        return self.root_weight[:, None] * self.column_scale

    def ZX(self, features: slice | IntArray) -> FloatArray:
        """Z'WX of some features, shape (B, q, p)."""
        unit = self.root_weight[features, None] * self.column_scale
        return np.asarray(self.sums.ZX[self.index[features]] / unit[:, :, None])

    def whitened_ZX(self, features: IntArray, W: FloatArray) -> FloatArray:
        """W'X'WZ of some features and their matrices W (B, p, p), shape (B, p, q)."""
        ZX = self.sums.ZX[self.index[features]]
        result = np.matmul(np.swapaxes(W, 1, 2), np.swapaxes(ZX, 1, 2))
        result /= (self.root_weight[features, None] * self.column_scale)[:, None]
        return np.asarray(result)

    @cached_property
    def entry_scale(self) -> FloatArray:
        """What the entries of Z'WZ are divided by, but for the weight, shape (nnz,)."""
        return np.asarray(self.column_scale[self.sums.rows] * self.column_scale[self.sums.columns])

    def ZZ(self, features: slice | IntArray) -> FloatArray:
        """Z'WZ of some features, shape (B, q, q)."""
        unit = self.root_weight[features, None] * self.column_scale
        dense = self.sums.dense_ZZ(self.index[features])
        return np.asarray(dense / (unit[:, :, None] * unit[:, None, :]))


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
    # Pieces of all features in a layout, for every likelihood of these statistics.
    kept_pieces: list[Pieces] = field(default_factory=list)

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

    def take(self, features: IntArray) -> StackedProjection:
        """The same for some of the features."""
        own = (part.name for part in fields(self) if part.name not in _NOT_BY_FEATURE)
        return StackedProjection(
            self.designs.take(features), *(getattr(self, name)[features] for name in own)
        )

    @cached_property
    def most(self) -> int:
        """Samples of the feature that has most."""
        return int(self.designs.n.max(initial=0))

    @cached_property
    def chunk(self) -> int:
        """Features whose roots are made at once."""
        q = self.structure.q
        each = 8 * q * (4 * min(q, self.most) + self.p + 2 * q)
        return max(1, _CHUNK_BYTES // max(each, 64))

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

    def well_posed(self, here: slice, *, known_residual: bool = False) -> BoolArray:
        """Features whose components have something left beside X and can be told apart, (B,)."""
        ZXW = np.matmul(self.designs.ZX(here), self.whitening[here])
        ZZ = self.designs.ZZ(here)
        S = ZZ - np.matmul(ZXW, np.swapaxes(ZXW, 1, 2))
        raw = np.diagonal(ZZ, axis1=1, axis2=2)
        totals = np.zeros((S.shape[0], len(self.structure.parameters)))
        for i, parameter in enumerate(self.structure.parameters):
            if parameter.is_variance:
                totals[:, i] = raw[:, self.structure.columns(parameter)[0]].sum(axis=1)
        forms = entry_sums(self.structure, S)
        df = self.designs.n[here] - self.p
        return told_apart(
            self.structure, forms.first, forms.second, totals, df, known_residual=known_residual
        )

    def coordinates(self, where: IntArray, ZXW: FloatArray, root: Root) -> FloatArray:
        """Coordinates u of Z'Ry, Z'Ry = K u in units of y's residual, shape (B, r)."""
        ZRy = self.ZY[where] - np.matmul(ZXW, self.WXY[where][:, :, None])[:, :, 0]
        ZRy /= np.sqrt(self.scale[where])[:, None]
        return np.asarray(np.matmul(np.swapaxes(root.left_inverse, 1, 2), ZRy[:, :, None])[:, :, 0])


def told_apart(
    structure: CovarianceStructure,
    first: FloatArray,
    second: FloatArray,
    totals: FloatArray,
    df: FloatArray,
    *,
    known_residual: bool = False,
) -> BoolArray:
    """Features whose components have something left beside X and can be told apart, shape (B,).

    Parameters
    ----------
    structure
        Random terms; k parameters of D.
    first, second
        tr(G_i Z'RZ) and tr(G_i Z'RZ G_j Z'RZ), in the first k of each axis.
    totals
        tr(G_i Z'Z), shape (B, k).
    df
        n - p, shape (B,).
    known_residual
        Whether the residual variance is known, so that no component is mistaken for it.
    """
    k = len(structure.parameters)
    is_variance = structure.is_variance[:k]
    kept = (first[:, :k] > CONFOUNDED * totals) | ~is_variance
    good: BoolArray = np.asarray(kept.all(axis=1))
    information = np.zeros((first.shape[0], k + 1, k + 1))
    information[:, :k, :k] = second[:, :k, :k]
    information[:, :k, k] = information[:, k, :k] = first[:, :k]
    information[:, k, k] = df
    if known_residual:
        information = information[:, :k, :k]
    if structure.curved is not None:  # some distances may be between no two samples
        information = along_curves(information, structure.curved)
    if information.shape[1] == 0:
        return good
    # Of features without samples to spare this is zero, or by rounding less.
    length = np.sqrt(np.maximum(np.diagonal(information, axis1=1, axis2=2), 0.0))
    length = np.where(good[:, None] & (length > 0), length, 1.0)
    information /= length[:, :, None] * length[:, None, :]
    if information.shape[1] == 2:  # LAPACK takes as long as a step of the fit
        a, b, c = information[:, 0, 0], information[:, 0, 1], information[:, 1, 1]
        lowest = np.asarray(0.5 * (a + c) - np.hypot(0.5 * (a - c), b), dtype=np.float64)
    else:
        lowest = np.asarray(np.linalg.eigvalsh(information)[:, 0], dtype=np.float64)
    return np.asarray(good & (lowest >= CONFOUNDED))


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
