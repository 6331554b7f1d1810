"""How Z'Z falls apart: which terms are eliminated block by block, and which stay a border.

Terms fall into small blocks when the graph of their columns, joined where Z'Z or D is not
zero, has small connected components. Nothing is read off names or the order of terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from flashmm.arrays.types import IntArray
from flashmm.designs.design import CovarianceStructure

__all__ = ["MAX_EFFECTS", "Partition", "partitions"]

MAX_EFFECTS = 6


@dataclass(frozen=True)
class Partition:
    """Which columns of Z are eliminated first, which second, and which make up the border.

    Parameters
    ----------
    fine
        Columns of each finest block, -1 where a block has fewer, shape (L, s).
    coarse
        The same of the second elimination, shape (L2, s2); L2 = 0 if there is none.
    border
        The other columns, shape (q_z,).
    """

    fine: IntArray
    coarse: IntArray
    border: IntArray


def partitions(
    ZZ: sp.csr_array, structure: CovarianceStructure, *, nested: bool
) -> list[Partition]:
    """Every partition that has some term in its finest blocks; with a coarse factor if nested."""
    graph = _Graph.of(ZZ, structure)
    found: dict[tuple[frozenset[int], frozenset[int]], Partition] = {}
    every = range(len(structure.terms))
    for seed in every:
        fine = graph.grow([], [seed, *_by_size(structure, set(every) - {seed})], None)
        if seed not in fine:
            continue
        blocks = graph.blocks(fine)
        rest = _by_size(structure, set(every) - set(fine))
        coarse: list[int] = []
        if nested:
            choices = [graph.grow([], [u, *(t for t in rest if t != u)], blocks) for u in rest]
            choices = [choice for choice in choices if choice]
            if not choices:
                continue
            coarse = max(choices, key=lambda terms: graph.components(terms)[0])
        key = (frozenset(fine), frozenset(coarse))
        border = sorted(set(every) - set(fine) - set(coarse))
        if any(structure.terms[t].positions for t in border):
            continue  # a border knows one partner of each effect, not those at some distance
        if key not in found:
            second = graph.blocks(coarse, blocks) if coarse else np.empty((0, 0), dtype=np.intp)
            found[key] = Partition(blocks, second, graph.columns(border))
    return list(found.values())


def _by_size(structure: CovarianceStructure, terms: set[int]) -> list[int]:
    return sorted(terms, key=lambda t: (-structure.terms[t].n_columns, t))


@dataclass(frozen=True)
class _Graph:
    """Columns of Z, joined where Z'Z or D is not zero: ``edges`` (q, q); columns of each term.

    ``most``: columns that a block with a term may have. With a covariance at each distance few
    parameters make a large block worth its while.
    """

    edges: sp.csr_array
    of_term: tuple[IntArray, ...]
    most: tuple[int, ...]

    @classmethod
    def of(cls, ZZ: sp.csr_array, structure: CovarianceStructure) -> _Graph:
        joined = sp.coo_array(ZZ != 0)
        rows, columns = [joined.row], [joined.col]
        for parameter in structure.parameters:
            if not parameter.is_variance:
                left, right = structure.columns(parameter)
                rows.append(left)
                columns.append(right)
        row, column = np.concatenate(rows), np.concatenate(columns)
        edges = sp.csr_array((np.ones(row.size), (row, column)), shape=ZZ.shape)
        offsets = structure.offsets
        return cls(
            edges,
            tuple(np.arange(a, b) for a, b in pairwise(offsets)),
            tuple(
                max(MAX_EFFECTS, len(term.effects) + 1) if term.curve else MAX_EFFECTS
                for term in structure.terms
            ),
        )

    def columns(self, terms: list[int]) -> IntArray:
        """Columns of some terms."""
        return np.concatenate([np.empty(0, dtype=np.intp), *(self.of_term[t] for t in terms)])

    def components(self, terms: list[int], through: IntArray | None = None) -> tuple[int, IntArray]:
        """How many components the columns of some terms have, and each column's.

        With ``through``, blocks (L, s) of other columns, columns are joined that meet one block.
        """
        columns = self.columns(terms)
        graph = self.edges[columns, :][:, columns]
        if through is not None:
            L, s = through.shape
            kept = through.ravel() >= 0
            block = np.repeat(np.arange(L), s)[kept]
            member = sp.csr_array(
                (np.ones(block.size), (through.ravel()[kept], block)),
                shape=(self.edges.shape[0], L),
            )
            meets = (self.edges + self.edges.T)[columns, :] @ member
            graph = sp.block_array([[graph, meets], [meets.T, None]], format="csr")
        _, labels = connected_components(graph, directed=False)
        _, labels = np.unique(labels[: columns.size], return_inverse=True)
        return int(labels.max(initial=-1)) + 1, labels

    def grow(self, chosen: list[int], candidates: list[int], through: IntArray | None) -> list[int]:
        """Add the candidates that leave the blocks small and keep each term's own blocks apart."""
        for term in candidates:
            more = [*chosen, term]
            _, labels = self.components(more, through)
            if np.bincount(labels).max() > max(self.most[t] for t in more):
                continue
            start, apart = 0, True
            for t in more:
                own, _ = self.components([t])
                stop = start + self.of_term[t].size
                apart &= np.unique(labels[start:stop]).size == own
                start = stop
            if apart:
                chosen = more
            elif not chosen:
                return []
        return chosen

    def blocks(self, terms: list[int], through: IntArray | None = None) -> IntArray:
        """Columns of each block, -1 where a block has fewer, shape (L, s)."""
        columns = self.columns(terms)
        count, labels = self.components(terms, through)
        order = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels, minlength=count)
        within = np.arange(columns.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        blocks = np.full((count, int(sizes.max(initial=1))), -1, dtype=np.intp)
        blocks[labels[order], within] = columns[order]
        return blocks
