"""Draws of sums by group where groups of samples have residual variances of their own.

With W_h = [X_h, Z_h] = Q_h K_h', Q_h orthonormal, all that a fit needs of u = Z b + e is, for each
group h, t_h = Q_h'u = K_Zh'b + sigma_h g_h with g_h standard normal, and the sum of squares
outside, sigma_h^2 times a chi-square on n_h - rank(W_h) degrees of freedom:

    W_h'u = K_h t_h,     u_h'u_h = t_h't_h + sigma_h^2 chi^2.

Where D is indefinite but V positive definite no b exists, and all t_h are drawn together from
N(0, diag(sigma_h^2) + K_Z'D K_Z). As in `flashmm.inference.draws`, group by group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.namespaces import cholesky
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.draws import FeatureStreams, block_roots, gram_root
from flashmm.stats.algebra import column_positions
from flashmm.stats.fields import AnySums, GroupSums, Shift
from flashmm.stats.group_names import known_groups
from flashmm.stats.known_levels import RootMap, root_map
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["GroupSampler"]


@dataclass(frozen=True)
class GroupSampler:
    """Draws statistics with sums by group for the design that some describe.

    Parameters
    ----------
    stats
        Statistics with sums of the H groups; their features do not matter.
    """

    stats: SummaryStats

    @property
    def _groups(self) -> GroupSums:
        return known_groups(self.stats)

    @cached_property
    def _columns(self) -> list[IntArray]:
        """Which columns of Z each group has."""
        parts = self._groups.parts
        return [column_positions(self.stats.structure, part.structure) for part in parts]

    @cached_property
    def _roots(self) -> list[FloatArray]:
        """K_h with K_h K_h' = W_h'W_h, over the group's own columns, (p + q_h, rank_h)."""
        return [gram_root(part) for part in self._groups.parts]

    @cached_property
    def _known(self) -> RootMap | None:
        """How effects of levels with known covariances follow from independent ones."""
        return root_map(self.stats.structure, np.asarray(self.stats.ZZ.diagonal() > 0))

    @cached_property
    def _along(self) -> FloatArray:
        """K_Z over the independent effects, all groups side by side, (c, sum of ranks)."""
        s = self.stats
        K_Z = np.zeros((s.q, sum(root.shape[1] for root in self._roots)))
        start = 0
        for root, here in zip(self._roots, self._columns, strict=True):
            K_Z[here, start : start + root.shape[1]] = root[s.p :]
            start += root.shape[1]
        return K_Z if self._known is None else self._known.transposed(K_Z)

    def at(self, rows: NDArray[np.intp]) -> GroupSampler:
        """The same for some of the features: one design serves all."""
        del rows
        return self

    def batch_size(self, memory: int) -> int:
        """How many draws fit into ``memory`` bytes, their fit not counted."""
        H = self._groups.k
        return max(1, memory // (8 * 6 * H * (self.stats.p + self.stats.q + 8)))

    def draw(
        self, theta: FloatArray, beta: FloatArray, count: int, streams: FeatureStreams
    ) -> SummaryStats:
        """Statistics of ``count`` replicates of each of F features; see `Sampler.draw`.

        ``theta``: those of D and the residual variances, shape (F, k + H).
        """
        structure = self.stats.structure if self._known is None else self._known.inner
        ranks = [root.shape[1] for root in self._roots]
        features, width = theta.shape[0], sum(ranks)
        H, sigma2 = len(ranks), theta[:, -len(ranks) :]
        chi = np.zeros((features, count, H))
        outside = np.array([part.n for part in self._groups.parts]) - np.array(ranks)
        some = np.flatnonzero(outside > 0)
        for row, stream in zip(chi, streams.squares, strict=True):
            row[:, some] = stream.chisquare(outside[some], (count, some.size))
        normals = np.empty((features, count, width + structure.q))
        for row, stream in zip(normals, streams.normals, strict=True):
            row[:] = stream.standard_normal((count, normals.shape[2]))
        each = np.repeat(sigma2, ranks, axis=1)  # the variance of each t, (F, width)
        roots, proper = block_roots(structure, theta)
        t = np.sqrt(each)[:, None, :] * normals[..., :width]
        if proper.any():
            b = np.empty((int(proper.sum()), count, structure.q))
            z = normals[proper][..., width:]
            for columns, root in zip(structure.block_columns(), roots, strict=True):
                for a, own in enumerate(columns):
                    b[..., own] = sum(
                        root[proper, a, c, None, None] * z[..., columns[c]]
                        for c in range(len(columns))
                    )
            t[proper] += b @ self._along
        if not proper.all():
            t[~proper] = self._jointly(theta[~proper], each[~proper], normals[~proper, :, :width])
        return self._assembled(
            t.reshape(-1, width),
            (sigma2[:, None, :] * chi).reshape(-1, H),
            np.repeat(beta, count, axis=0),
        )

    def _jointly(self, theta: FloatArray, each: FloatArray, normals: FloatArray) -> FloatArray:
        """All t of features with an indefinite D, shape (F, count, width)."""
        structure = self.stats.structure if self._known is None else self._known.inner
        covariance = each[:, :, None] * np.eye(each.shape[1])
        for i, parameter in enumerate(structure.parameters):
            upper, lower = structure.columns(parameter)
            product = self._along[upper].T @ self._along[lower]
            product = product if parameter.is_variance else product + product.T
            covariance = covariance + theta[:, i, None, None] * product
        L, ok = cholesky(covariance)
        L = np.where(ok[:, None, None], L, np.nan)
        return np.asarray(np.matmul(normals, np.swapaxes(L, 1, 2)))

    def _assembled(self, t: FloatArray, outside: FloatArray, beta: FloatArray) -> SummaryStats:
        """Statistics of y = X beta + u from the t of all groups, (m, width)."""
        s, parts, start = self.stats, [], 0
        total = Shift(
            np.arange(t.shape[0]),
            np.ascontiguousarray(beta.T),
            np.zeros((s.p, t.shape[0])),
            np.zeros((s.q, t.shape[0])),
            np.zeros(t.shape[0]),
        )
        for h, (part, root) in enumerate(zip(self._groups.parts, self._roots, strict=True)):
            own = t[:, start : start + root.shape[1]]
            start += root.shape[1]
            WU, uu = root @ own.T, (own * own).sum(axis=1) + outside[:, h]
            shift = replace(total, XY=WU[: s.p], ZY=WU[s.p :], yy=uu)
            parts.append(_of_shift(part, shift))
            total.XY[:] += shift.XY
            total.ZY[self._columns[h]] += shift.ZY
            total.yy[:] += shift.yy
        return replace(_of_shift(s, total), groups=replace(self._groups, parts=tuple(parts)))


def _of_shift(sums: AnySums, shift: Shift) -> AnySums:
    """The sums of y = X a + u, those of u kept as a shift, free of cancellation."""
    a = shift.a
    Xa = sums.XX @ a
    return replace(
        sums,
        XY=shift.XY + Xa,
        ZY=shift.ZY + sums.ZX @ a,
        yy=shift.yy + (a * (2.0 * shift.XY + Xa)).sum(axis=0),
        feature_names=np.arange(shift.yy.size),
        shift=shift,
        groups=None,
    )
