"""Designs and data of features with rows of their own, by group of samples.

The sums of a group h are those of `flashmm.likelihood.own_rows.elimination.Pieces` over its samples
alone; at theta the weighted sums over all samples are sum_h (sums of h) / sigma2_h.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.likelihood.own_rows.elimination import Pieces
from flashmm.likelihood.own_rows.layout import OwnLayout
from flashmm.likelihood.own_rows.stacked_designs import StackedProjection
from flashmm.stats.algebra import column_positions
from flashmm.stats.own_designs import DesignSums
from flashmm.stats.own_rows import PatternedStats

__all__ = ["GroupPieces", "StackedGroups"]


@dataclass(frozen=True)
class GroupPieces:
    """The pieces of B features for H groups, in the coordinates of a layout.

    Parameters
    ----------
    d
        Z_l'I_h Z_l of each block, shape (B, H, s, s, L).
    U
        [Z_2, X, y]'I_h Z_1, X whitened and y less its least-squares fit, shape (B, H, w + 1, s, L).
    FF
        Cross-products of [Z_2, X, y], shape (B, H, w + 1, w + 1).
    n
        Samples, shape (B, H).
    """

    d: FloatArray
    U: FloatArray
    FF: FloatArray
    n: FloatArray

    def take(self, index: IntArray | slice) -> GroupPieces:
        """Those of some of the features."""
        return GroupPieces(self.d[index], self.U[index], self.FF[index], self.n[index])

    def weighted(self, c: FloatArray) -> Pieces:
        """Sums over the groups, weighted by c (B, H)."""

        def total(values: FloatArray) -> FloatArray:
            B, H = c.shape
            flat = np.matmul(c[:, None], values.reshape(B, H, -1))
            return np.asarray(flat.reshape(B, *values.shape[2:]))

        return Pieces(total(self.d), total(self.U), total(self.FF), self.n.sum(axis=1))


@dataclass(frozen=True)
class _Group:
    """One group: its designs, where its columns of Z are among all, and sums over Y, centred."""

    designs: DesignSums
    columns: IntArray
    XY: FloatArray
    ZY: FloatArray
    yy: FloatArray
    a: FloatArray


@dataclass(frozen=True)
class StackedGroups:
    """Sums by group of the features of a `StackedProjection`.

    Parameters
    ----------
    groups
        The groups' own, for all features of the statistics.
    features
        Positions of the F features of the stack among them, shape (F,).
    """

    groups: tuple[_Group, ...]
    features: IntArray

    @classmethod
    def of(cls, stats: PatternedStats, features: IntArray) -> StackedGroups:
        """Of some features of statistics."""
        assert stats.groups is not None
        found = []
        for part, own in zip(stats.groups.parts, stats.group_designs, strict=True):
            columns = column_positions(stats.structure, part.structure)
            found.append(_Group(own, columns, *part.centred()))
        return cls(tuple(found), features)

    def take(self, features: IntArray) -> StackedGroups:
        """Those of some of the features."""
        return replace(self, features=self.features[features])

    @property
    def H(self) -> int:
        """Number of groups."""
        return len(self.groups)

    def sizes(self, index: IntArray) -> FloatArray:
        """Samples of each group for designs (B,), shape (B, H)."""
        return np.stack([group.designs.n[index] for group in self.groups], axis=1)

    def gather(
        self, p: StackedProjection, layout: OwnLayout, features: IntArray, passes: Iterable[slice]
    ) -> GroupPieces:
        """Pieces of some features of the stack, few at a time."""
        B, H, L, s = features.size, self.H, layout.L, layout.s
        w = layout.q2 + p.p + 1
        found = GroupPieces(
            np.empty((B, H, s, s, L)),
            np.empty((B, H, w, s, L)),
            np.empty((B, H, w, w)),
            self.sizes(p.designs.index[features]),
        )
        places = [_entries(p.designs.sums, group) for group in self.groups]
        for here in passes:
            for h, group in enumerate(self.groups):
                self._put(p, layout, features[here], group, places[h], _at(found, here, h))
        return found

    def _put(
        self,
        p: StackedProjection,
        layout: OwnLayout,
        features: IntArray,
        group: _Group,
        places: IntArray,
        into: Pieces,
    ) -> None:
        """Put the pieces of one group in their place."""
        stack, own, q2 = p.designs, group.designs, layout.q2
        index, there = stack.index[features], self.features[features]
        root = stack.root_weight[features]
        unit = root[:, None] * stack.column_scale[group.columns]
        entries = np.zeros((features.size, stack.sums.rows.size + 1))
        entries[:, places] = own.ZZ[index] / stack.entry_scale[places] / root[:, None] ** 2
        W, size = p.whitening[features], np.sqrt(p.scale[features])
        change = p.beta_ols[features] - group.a[:, there].T
        XX, ZX = own.XX[index], own.ZX[index]
        XY, ZY = group.XY[:, there].T, group.ZY[:, there].T
        left_X = XY - np.matmul(XX, change[:, :, None])[:, :, 0]
        left_Z = ZY - np.matmul(ZX, change[:, :, None])[:, :, 0]
        yy = group.yy[there] - ((XY + left_X) * change).sum(axis=1)
        w, q = into.FF.shape[1] - 1, stack.structure.q
        FZ = np.zeros((features.size, w + 1 - q2, q))  # [X, y]'I_h Z
        FZ[:, :-1, group.columns] = np.matmul(np.swapaxes(W, 1, 2), np.swapaxes(ZX, 1, 2))
        FZ[:, -1, group.columns] = left_Z / size[:, None]
        FZ[:, :, group.columns] /= unit[:, None]
        into.d[:] = entries[:, layout.blocks.transpose(1, 2, 0)]
        into.U[:, :q2] = entries[:, layout.coupling.transpose(2, 1, 0)]
        into.U[:, q2:] = FZ[:, :, layout.fine.T]
        FF, border = into.FF, layout.border
        FF[:, :q2, :q2] = entries[:, layout.corner]
        FF[:, q2:, :q2] = FZ[:, :, border]
        FF[:, :q2, q2:] = np.swapaxes(FF[:, q2:, :q2], 1, 2)
        FF[:, q2:w, q2:w] = np.matmul(np.swapaxes(W, 1, 2), np.matmul(XX, W))
        along = np.matmul(left_X[:, None], W)[:, 0] / size[:, None]
        FF[:, q2:w, w], FF[:, w, q2:w] = along, along
        FF[:, w, w] = yy / p.scale[features]


def _at(found: GroupPieces, here: slice, h: int) -> Pieces:
    """Views of the pieces of one group."""
    return Pieces(found.d[here, h], found.U[here, h], found.FF[here, h], found.n[here, h])


def _entries(whole: DesignSums, group: _Group) -> IntArray:
    """Where the entries of a group's Z'WZ are among those of all samples."""
    first, second = group.columns[group.designs.rows], group.columns[group.designs.columns]
    keys = whole.rows * whole.q + whole.columns
    wanted = np.minimum(first, second) * whole.q + np.maximum(first, second)
    return np.searchsorted(keys, wanted).astype(np.intp)
