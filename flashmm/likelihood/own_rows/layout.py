"""How the random effects of features with rows of their own fall apart: blocks and a border.

The effects of one grouping factor meet no others of that factor: Z'WZ is block-diagonal on them,
whatever the weights. All blocks have the same effects in the same order. Everything else, and X, is
the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashmm.arrays.types import IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.design_checks import pairs_of
from flashmm.likelihood.structure import MAX_EFFECTS, partitions
from flashmm.stats.own_designs import DesignSums

if TYPE_CHECKING:
    import scipy.sparse as sp

__all__ = ["OwnLayout", "dense_layout", "find_layout"]


@dataclass(frozen=True)
class OwnLayout:
    """Where the parts of Z'WZ are, and which parameters belong to which.

    Parameters
    ----------
    fine
        Columns of Z of each block, shape (L, s).
    border
        The other columns, shape (q2,).
    blocks, coupling, corner
        Positions among the entries of Z'WZ, nnz for one that is always zero: of the blocks
        (L, s, s), of what couples them to the border (L, s, q2), and of the border (q2, q2).
    fine_params
        For each parameter of the blocks its position in theta and the pairs of effects, both
        orders, that its G joins.
    border_params
        For each other parameter its position and the rows and columns of its ones.
    """

    fine: IntArray
    border: IntArray
    blocks: IntArray
    coupling: IntArray
    corner: IntArray
    fine_params: tuple[tuple[int, tuple[tuple[int, int], ...]], ...]
    border_params: tuple[tuple[int, tuple[tuple[IntArray, IntArray], ...]], ...]

    @property
    def L(self) -> int:
        """Number of blocks."""
        return int(self.fine.shape[0])

    @property
    def s(self) -> int:
        """Effects of a block."""
        return int(self.fine.shape[1])

    @property
    def q2(self) -> int:
        """Columns of Z in the border."""
        return int(self.border.size)

    def work(self, p: int) -> float:
        """Multiplications of an evaluation per feature."""
        w, k = self.q2 + p + 1, len(self.fine_params)
        pairs = k * (k + 1) / 2
        return self.L * self.s * w**2 * (1 + k + pairs) + 10.0 * w**3 + self.L * self.s**3 * 10


def find_layout(designs: DesignSums, structure: CovarianceStructure) -> OwnLayout | None:
    """The layout with the least work; None where no term falls into small blocks."""
    graph = designs.graph()
    found = [_layout(designs, structure, fine) for fine in _candidates(graph, structure)]
    layouts = [layout for layout in found if layout is not None]
    return min(layouts, key=lambda layout: layout.work(designs.p), default=None)


def dense_layout(designs: DesignSums, structure: CovarianceStructure) -> OwnLayout:
    """The layout without blocks: every column of Z is in the border."""
    layout = _layout(designs, structure, np.zeros((0, 1), dtype=np.intp))
    assert layout is not None
    return layout


def _candidates(graph: sp.csr_array, structure: CovarianceStructure) -> list[IntArray]:
    """Blocks of columns: the levels of each term, and what falls into small blocks together."""
    found = []
    for position, term in enumerate(structure.terms):
        start, s = structure.offsets[position], len(term.effects)
        columns = start + np.arange(term.n_columns).reshape(-1, s)
        inside = graph[columns.ravel()][:, columns.ravel()].tocoo()
        if s <= MAX_EFFECTS and np.array_equal(inside.row // s, inside.col // s):
            found.append(columns)
    for partition in partitions(graph, structure, nested=False):
        if (partition.fine >= 0).all():
            found.append(_in_order(partition.fine, structure))
    return found


def _in_order(fine: IntArray, structure: CovarianceStructure) -> IntArray:
    """The columns of each block by term and effect."""
    kind = np.empty(structure.q, dtype=np.intp)
    for position, term in enumerate(structure.terms):
        start, stop = structure.offsets[position : position + 2]
        effect = np.arange(stop - start) % len(term.effects)
        kind[start:stop] = position * (MAX_EFFECTS + 1) + np.minimum(effect, MAX_EFFECTS)
    order = np.argsort(kind[fine], axis=1, kind="stable")
    return np.take_along_axis(fine, order, axis=1)


def _layout(
    designs: DesignSums, structure: CovarianceStructure, fine: IntArray
) -> OwnLayout | None:
    """The layout with certain blocks; None where their parameters are not the same in all."""
    L, s = fine.shape
    block, slot = np.full(structure.q, -1), np.full(structure.q, -1)
    block[fine] = np.arange(L)[:, None]
    slot[fine] = np.arange(s)
    border = np.flatnonzero(block < 0)
    place = np.full(structure.q, -1)
    place[border] = np.arange(border.size)
    fine_params, border_params = [], []
    for i, parameter in enumerate(structure.parameters):
        pairs = pairs_of(structure, parameter)
        inside = block[pairs[0][0]] >= 0
        if not inside.any():
            border_params.append((i, tuple((place[a], place[b]) for a, b in pairs)))
            continue
        a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
        joined = {(int(x), int(y)) for x, y in zip(slot[a], slot[b], strict=True)}
        if not inside.all() or (block[a] != block[b]).any() or a.size != L * len(joined):
            return None
        fine_params.append((i, tuple(sorted(joined))))
    where = _entries(designs, structure.q)
    return OwnLayout(
        fine,
        border,
        where(fine[:, :, None], fine[:, None, :]),
        where(fine[:, :, None], border[None, None, :]),
        where(border[:, None], border[None, :]),
        tuple(fine_params),
        tuple(border_params),
    )


def _entries(designs: DesignSums, q: int):  # type: ignore[no-untyped-def]
    """A function that gives the positions of the entries at rows and columns of Z'WZ."""
    keys = designs.rows * q + designs.columns

    def where(rows: IntArray, columns: IntArray) -> IntArray:
        key = np.minimum(rows, columns) * q + np.maximum(rows, columns)
        found = np.minimum(np.searchsorted(keys, key), max(keys.size - 1, 0))
        return np.where(keys[found] == key, found, keys.size) if keys.size else key * 0

    return where
