"""Draws of summary statistics from the model, exactly and at a cost free of n.

With W = [X, Z] and u = y - X beta = Z b + e, everything a fit needs of y is W'u and u'u.
W'e ~ N(0, sigma2 W'W) lives in the span of W; what lies outside has an independent sum of squares,
sigma2 times a chi-square on n - rank(W) degrees of freedom. So

    W'u = W'Z b + W'e,     u'u = b'Z'Z b + 2 b'Z'e + e'e.

Where D is indefinite but V positive definite no b exists; then, with W = Q K' and Q orthonormal,
Q'u ~ N(0, sigma2 I + K_Z' D K_Z) is drawn instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from flashmm.arrays.namespaces import cholesky
from flashmm.arrays.types import FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.stats.fields import Shift, Sums
from flashmm.stats.known_levels import RootMap, root_map
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["FeatureStreams", "Sampler", "block_roots", "gram_root"]

_RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class FeatureStreams:
    """Random numbers of some features: each has its own, so that batches do not matter.

    Parameters
    ----------
    normals, squares
        A generator per feature for normal variates and one for chi-squares.
    """

    normals: tuple[np.random.Generator, ...]
    squares: tuple[np.random.Generator, ...]

    @classmethod
    def spawn(cls, rng: np.random.Generator, count: int) -> FeatureStreams:
        """Streams for ``count`` features."""
        children = rng.spawn(2 * count)
        return cls(tuple(children[:count]), tuple(children[count:]))

    def take(self, positions: Sequence[int] | NDArray[np.intp]) -> FeatureStreams:
        """Those of some features."""
        return FeatureStreams(
            tuple(self.normals[i] for i in positions), tuple(self.squares[i] for i in positions)
        )


@dataclass(frozen=True)
class Sampler:
    """Draws statistics for the design that some statistics describe.

    Parameters
    ----------
    stats
        Statistics with the design; their features do not matter.
    """

    stats: SummaryStats

    @cached_property
    def _root(self) -> FloatArray:
        """K with K K' = W'W, shape (p + q, rank)."""
        return gram_root(self.stats)

    @cached_property
    def _known(self) -> RootMap | None:
        """How effects of levels with known covariances follow from independent ones."""
        return root_map(self.stats.structure, np.asarray(self.stats.ZZ.diagonal() > 0))

    @property
    def _structure(self) -> CovarianceStructure:
        """The terms of the independent effects."""
        structure: CovarianceStructure = self.stats.structure
        return structure if self._known is None else self._known.inner

    def at(self, rows: NDArray[np.intp]) -> Sampler:
        """The same for some of the features: one design serves all."""
        del rows
        return self

    @property
    def rank(self) -> int:
        """Rank of W."""
        return int(self._root.shape[1])

    def batch_size(self, memory: int) -> int:
        """How many draws fit into ``memory`` bytes, their fit not counted."""
        return max(1, memory // (8 * 8 * (self.stats.p + self.stats.q + 8)))

    def draw(
        self, theta: FloatArray, beta: FloatArray, count: int, streams: FeatureStreams
    ) -> SummaryStats:
        """Statistics of ``count`` replicates of each of F features.

        Parameters
        ----------
        theta
            Variance parameters in the units of y, V positive definite, shape (F, k).
        beta
            Fixed effects, shape (F, p).
        count
            Replicates of each.
        streams
            Random numbers of the F features.

        Returns
        -------
        SummaryStats
            F x ``count`` features, the replicates of a feature side by side, numbered from 0.
        """
        s, rank = self.stats, self.rank
        features = theta.shape[0]
        outside = s.n - rank
        chi = np.zeros((features, count))
        if outside > 0:
            for row, stream in zip(chi, streams.squares, strict=True):
                row[:] = stream.chisquare(outside, count)
        roots, proper = block_roots(s.structure, theta)
        width = rank + self._structure.q
        normals = np.empty((features, count, width))
        for row, stream in zip(normals, streams.normals, strict=True):
            row[:] = stream.standard_normal((count, width))
        WU = np.empty((features, count, s.p + s.q))
        uu = np.empty((features, count))
        for rows, method in ((proper, self._through_effects), (~proper, self._through_basis)):
            if rows.any():
                chosen = [root[rows] for root in roots]
                WU[rows], uu[rows] = method(theta[rows], chosen, normals[rows], chi[rows])
        return self._assembled(
            WU.reshape(features * count, s.p + s.q), uu.ravel(), np.repeat(beta, count, axis=0)
        )

    def _through_effects(
        self, theta: FloatArray, roots: list[FloatArray], normals: FloatArray, chi: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        s, rank = self.stats, self.rank
        sigma = np.sqrt(theta[:, -1])[:, None, None]
        g, z = normals[..., :rank], normals[..., rank:]
        We = sigma * (g @ self._root.T)
        b = np.empty_like(z)
        structure = self._structure
        for columns, root in zip(structure.block_columns(), roots, strict=True):
            for a, own in enumerate(columns):
                total = root[:, a, 0, None, None] * z[..., columns[0]]
                for c in range(1, len(columns)):
                    total = total + root[:, a, c, None, None] * z[..., columns[c]]
                b[..., own] = total
        flat = b.reshape(b.shape[0] * b.shape[1], structure.q)
        if self._known is not None:
            flat = self._known.to_levels(flat)
            b = flat.reshape(*b.shape[:2], s.q)
        ZZb = np.asarray((s.ZZ @ flat.T).T).reshape(b.shape)
        Xb = b @ s.ZX
        ee = theta[:, -1:] * ((g * g).sum(axis=-1) + chi)
        uu = (b * (ZZb + 2.0 * We[..., s.p :])).sum(axis=-1) + ee
        We[..., : s.p] += Xb
        We[..., s.p :] += ZZb
        return We, uu

    def _through_basis(
        self, theta: FloatArray, roots: list[FloatArray], normals: FloatArray, chi: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        del roots
        s, rank = self.stats, self.rank
        K_Z, structure = self._root[s.p :], self._structure
        if self._known is not None:
            K_Z = self._known.transposed(K_Z)
        covariance = theta[:, -1, None, None] * np.eye(rank)
        for i, parameter in enumerate(structure.parameters):
            upper, lower = structure.columns(parameter)
            product = K_Z[upper].T @ K_Z[lower]
            product = product if parameter.is_variance else product + product.T
            covariance = covariance + theta[:, i, None, None] * product
        L, ok = cholesky(covariance)
        L = np.where(ok[:, None, None], L, np.nan)
        t = np.matmul(normals[..., :rank], np.swapaxes(L, 1, 2))
        return t @ self._root.T, (t * t).sum(axis=-1) + theta[:, -1:] * chi

    def _assembled(self, WU: FloatArray, uu: FloatArray, beta: FloatArray) -> SummaryStats:
        """Statistics of y = X beta + u; u's own are kept as a shift, free of cancellation."""
        s = self.stats
        XU, ZU = np.ascontiguousarray(WU[:, : s.p].T), np.ascontiguousarray(WU[:, s.p :].T)
        a = np.ascontiguousarray(beta.T)
        Xa = s.XX @ a
        return replace(
            s,
            XY=XU + Xa,
            ZY=ZU + s.ZX @ a,
            yy=uu + (a * (2.0 * XU + Xa)).sum(axis=0),
            feature_names=np.arange(uu.size),
            shift=Shift(np.arange(uu.size), a, XU, ZU, uu),
            groups=None,
        )


def gram_root(sums: Sums) -> FloatArray:
    """K with K K' = W'W for W = [X, Z], shape (p + q, rank)."""
    gram = np.block([[sums.XX, sums.ZX.T], [sums.ZX, sums.ZZ.toarray()]])
    length = np.sqrt(np.diag(gram))
    length = np.where(length > 0, length, 1.0)
    values, vectors = scipy.linalg.eigh(gram / np.outer(length, length))
    keep = values > _RANK_TOLERANCE * values[-1] * values.size
    return np.asarray(length[:, None] * vectors[:, keep] * np.sqrt(values[keep]))


def block_roots(
    structure: CovarianceStructure, theta: FloatArray
) -> tuple[list[FloatArray], NDArray[np.bool_]]:
    """Roots of the covariance blocks, each (F, s, s), and where all of them exist, (F,)."""
    k, roots = len(structure.parameters), []
    proper = np.asarray((theta[:, k:] >= 0).all(axis=1))
    for block in structure.blocks():
        if block[0, 0] >= k:
            continue  # a residual variance
        values, vectors = np.linalg.eigh(theta[:, block])
        proper = proper & (values[:, 0] >= -1e-12 * np.abs(values[:, -1]))
        roots.append(vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :])
    return roots, proper
