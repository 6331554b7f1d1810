"""Draws of the sums of features with rows of their own, exactly and at a cost free of n.

As in `flashmm.inference.draws`, with W = [X, Z] multiplied by the roots of a feature's own weights.
With W = Q K' and Q orthonormal, Q'u ~ N(0, sigma2 I + K_Z' D K_Z) and W'u = K Q'u. Where Z falls
into blocks that share no samples, K has them first,

    K' = [R' C; 0 G']      R R' = Z'Z,   C = R^-1 Z'X,   G G' = X'X - C'C,

so that the covariance of Q'u is block-diagonal too, and no matrix has the size of Z'Z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.draws import FeatureStreams, Sampler
from flashmm.inference.group_draws import GroupSampler
from flashmm.likelihood.own_rows.elimination import covariance_of_blocks
from flashmm.likelihood.own_rows.layout import OwnLayout, find_layout
from flashmm.stats.fields import Shift
from flashmm.stats.known_levels import in_roots
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["OwnSampler", "sampler_of"]

_RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class _Roots:
    """K of P designs.

    Parameters
    ----------
    R
        Of Z'Z, block by block, shape (P, L, s, s); zero in columns beyond its rank.
    held
        One for columns within the rank, else zero, shape (P, L, s).
    C
        Shape (P, L, s, p).
    G
        Shape (P, p, p); zero in columns beyond its rank.
    held_X
        Shape (P, p).
    """

    R: FloatArray
    held: FloatArray
    C: FloatArray
    G: FloatArray
    held_X: FloatArray

    @property
    def rank(self) -> FloatArray:
        """Ranks of W, shape (P,)."""
        return np.asarray(self.held.sum(axis=(1, 2)) + self.held_X.sum(axis=1))


@dataclass(frozen=True)
class OwnSampler:
    """Draws statistics of features with rows of their own; names as in `Sampler`.

    Parameters
    ----------
    stats
        Statistics of the features, in the order of the parameters that `draw` is given.
    """

    stats: PatternedStats

    def at(self, rows: IntArray) -> OwnSampler:
        """The same for some of the features."""
        return OwnSampler(self.stats.at(rows))

    def batch_size(self, memory: int) -> int:
        """How many draws fit into ``memory`` bytes, their fit not counted."""
        p, q, layout = self.stats.p, self.stats.q, self._layout
        width = (p + q) ** 2 if layout is None else q * (p + 3 * layout.s) + p * p
        return max(1, memory // (8 * (8 * (p + q + 8) + 4 * width)))

    @cached_property
    def _layout(self) -> OwnLayout | None:
        """The blocks, where all of Z falls into them."""
        layout = find_layout(self.stats.designs, self.stats.structure)
        return layout if layout is not None and layout.q2 == 0 else None

    def draw(
        self, theta: FloatArray, beta: FloatArray, count: int, streams: FeatureStreams
    ) -> PatternedStats:
        """Statistics of ``count`` replicates of each of the F features; see `Sampler.draw`."""
        s, layout = self.stats, self._layout
        roots = _dense_roots(s) if layout is None else _block_roots(s, layout)
        outside = (s.designs.n - roots.rank)[s.pattern]
        chi = np.zeros((s.m, count))
        for row, left, stream in zip(chi, outside, streams.squares, strict=True):
            if left > 0:
                row[:] = stream.chisquare(left, count)
        normals = np.empty((s.m, count, s.p + s.q))
        for row, stream in zip(normals, streams.normals, strict=True):
            row[:] = stream.standard_normal((count, s.p + s.q))
        if layout is None:
            covariance = _dense_covariance(s, roots, theta)
            columns = np.arange(s.q)[None]
        else:
            D = covariance_of_blocks(layout, theta)[:, None]
            R = roots.R[s.pattern]
            covariance = np.matmul(np.swapaxes(R, 2, 3), np.matmul(D, R))
            columns = layout.fine
        XU, ZU, uu = _through_basis(s, roots, columns, covariance, theta[:, -1], normals)
        return self._assembled(XU, ZU, uu + theta[:, -1:] * chi, beta)

    def _assembled(
        self, XU: FloatArray, ZU: FloatArray, uu: FloatArray, beta: FloatArray
    ) -> PatternedStats:
        """Statistics of y = X beta + u; u's own are kept as a shift, free of cancellation."""
        s, count = self.stats, uu.shape[1]
        designs = s.designs
        Xa = np.matmul(designs.XX[s.pattern], beta[:, :, None])[:, None, :, 0]
        Za = np.matmul(designs.ZX[s.pattern], beta[:, :, None])[:, None, :, 0]
        yy = uu + ((2.0 * XU + Xa) * beta[:, None, :]).sum(axis=2)

        def by_feature(values: FloatArray) -> FloatArray:
            return np.ascontiguousarray(values.reshape(s.m * count, values.shape[2]).T)

        own = by_feature(XU), by_feature(ZU), uu.ravel()
        a = np.ascontiguousarray(np.repeat(beta, count, axis=0).T)
        sums = replace(
            s.sums,
            XY=by_feature(XU + Xa),
            ZY=by_feature(ZU + Za),
            yy=yy.ravel(),
            feature_names=np.arange(uu.size),
            shift=Shift(np.arange(uu.size), a, *own),
        )
        return PatternedStats(sums, designs, np.repeat(s.pattern, count), s.own)


def sampler_of(stats: SummaryStats | PatternedStats) -> Sampler | OwnSampler | GroupSampler:
    """What draws statistics like these."""
    if isinstance(stats, PatternedStats):
        return OwnSampler(in_roots(stats)[0])
    if len(stats.structure.residuals) > 1:
        return GroupSampler(stats)
    return Sampler(stats)


def _block_roots(stats: PatternedStats, layout: OwnLayout) -> _Roots:
    """Roots of all designs where Z falls into blocks."""
    designs = stats.designs
    none = np.zeros((designs.count, 1))
    d = np.concatenate([designs.ZZ, none], axis=1)[:, layout.blocks]
    R, left, held = _root(d)
    C = np.matmul(left, designs.ZX[:, layout.fine])
    flat = C.reshape(designs.count, stats.q, stats.p)
    G, _, held_X = _root(
        designs.XX - np.matmul(np.swapaxes(flat, 1, 2), flat),
        np.sqrt(np.diagonal(designs.XX, axis1=1, axis2=2)),
    )
    return _Roots(R, held, C, G, held_X)


def _dense_roots(stats: PatternedStats) -> _Roots:
    """Roots of all designs, Z as one block."""
    designs = stats.designs
    every = np.arange(designs.count)
    R, left, held = _root(designs.dense_ZZ(every))
    C = np.matmul(left, designs.ZX)
    G, _, held_X = _root(
        designs.XX - np.matmul(np.swapaxes(C, 1, 2), C),
        np.sqrt(np.diagonal(designs.XX, axis1=1, axis2=2)),
    )
    return _Roots(R[:, None], held[:, None], C[:, None], G, held_X)


def _root(
    gram: FloatArray, length: FloatArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """R with R R' = gram (..., s, s), a left inverse of it, and which columns are in its rank.

    Eigenvalues count where they exceed rounding once the columns have the lengths (..., s) of
    one, by default those that the diagonal tells.
    """
    if length is None:
        length = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    length = np.where(length > 0, length, 1.0)
    if gram.shape[-1] == 1:
        values, vectors = gram[..., 0] / length**2, np.ones((1, 1))
    else:
        values, vectors = np.linalg.eigh(gram / (length[..., :, None] * length[..., None, :]))
    held = values > _RANK_TOLERANCE * gram.shape[-1]
    root = np.sqrt(np.where(held, values, 0.0))
    inverse = np.divide(1.0, root, out=np.zeros_like(root), where=held)
    R = length[..., :, None] * vectors * root[..., None, :]
    left = inverse[..., :, None] * np.swapaxes(vectors, -1, -2) / length[..., None, :]
    return R, left, held.astype(np.float64)


def _dense_covariance(stats: PatternedStats, roots: _Roots, theta: FloatArray) -> FloatArray:
    """R'DR of each feature, Z as one block, shape (F, 1, q, q)."""
    R = roots.R[:, 0]
    result = np.zeros((theta.shape[0], *R.shape[1:]))
    for i, parameter in enumerate(stats.structure.parameters):
        rows, columns = stats.structure.columns(parameter)
        product = np.matmul(np.swapaxes(R[:, rows], 1, 2), R[:, columns])
        if not parameter.is_variance:
            product = product + np.swapaxes(product, 1, 2)
        result += theta[:, i, None, None] * product[stats.pattern]
    return result[:, None]


def _through_basis(
    stats: PatternedStats,
    roots: _Roots,
    columns: IntArray,
    covariance: FloatArray,
    sigma2: FloatArray,
    normals: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """X'u (F, c, p), Z'u (F, c, q) and the part of u'u in the span of W (F, c).

    Parameters
    ----------
    stats, roots
        The features and the roots of their designs.
    columns
        Columns of Z of the blocks, shape (L, s).
    covariance
        Of Q'u within the blocks, but for sigma2 I, shape (F, L, s, s).
    sigma2
        Shape (F,).
    normals
        Shape (F, c, p + q).
    """
    (L, s), p = columns.shape, stats.p
    index, F, count = stats.pattern, *normals.shape[:2]
    held = roots.held[index]
    values, vectors = np.diagonal(covariance, axis1=2, axis2=3), None
    if s > 1:
        values, vectors = np.linalg.eigh(covariance)
    values = values + sigma2[:, None, None]
    improper = values < -1e-12 * np.abs(values).max(axis=2, keepdims=True, initial=0.0)
    deviation = np.sqrt(np.where(improper, np.nan, np.maximum(values, 0.0)))
    t = normals[..., : L * s].reshape(F, count, L, s) * deviation[:, None]
    if vectors is not None:
        t = np.moveaxis(np.matmul(vectors, np.moveaxis(t, 1, 3)), 3, 1)
    t *= held[:, None]
    g = normals[..., L * s :] * np.sqrt(sigma2)[:, None, None] * roots.held_X[index][:, None]
    ZU = np.empty((F, count, L * s))
    moved = np.matmul(roots.R[index], np.moveaxis(t, 1, 3))  # (F, L, s, c)
    ZU[:, :, columns] = np.moveaxis(moved, 3, 1)
    flat = t.reshape(F, count, L * s)
    XU = np.matmul(flat, roots.C[index].reshape(F, L * s, p))
    XU += np.matmul(g, np.swapaxes(roots.G[index], 1, 2))
    return XU, ZU, (flat * flat).sum(axis=2) + (g * g).sum(axis=2)
