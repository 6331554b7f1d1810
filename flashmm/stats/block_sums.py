"""X'Y', Z'Y' and sums of squares of one block, at a few nanoseconds per stored element.

Columns built from factors have few distinct rows, and an indicator has one element per row: the
elements of a sparse block are first summed by an integer code per sample, and only these small
sums are multiplied. Continuous columns are multiplied directly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.compiled import add_by_row, add_products, add_rows
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.compact import CompactMatrix, Layer, LayeredMatrix, compacted, layers_of
from flashmm.sources import Block
from flashmm.sources.source import per_element
from flashmm.sources.transforms import with_data

# Elements of a dense block that are worked on together.
_CACHED = 2**16

__all__ = [
    "BlockSums",
    "DesignColumns",
    "GroupColumns",
    "add_groups",
    "block_sums",
    "design_columns",
    "group_sums",
    "grouped_columns",
]


@dataclass(frozen=True)
class DesignColumns:
    """X and Z in the form in which blocks are multiplied.

    Parameters
    ----------
    X, Z
        The design, shapes (n, p) and (n, q); indexed by samples they give their rows.
    parts
        X by kinds of columns.
    layers
        Z as a sum of layers.
    by_group
        The rows of each group of samples, where sums are kept by group; None where they are not.
    """

    X: FloatArray | CompactMatrix
    Z: sp.csr_array | LayeredMatrix
    parts: CompactMatrix
    layers: tuple[Layer, ...]
    by_group: GroupColumns | None = None

    @cached_property
    def transposed_Z(self) -> sp.csr_array:
        """Z', by rows."""
        Z = self.Z[:] if isinstance(self.Z, LayeredMatrix) else self.Z
        return Z.T.tocsr()

    def transposed_Z_of(self, samples: slice | IntArray) -> sp.csr_array:
        """The columns of Z' of some samples."""
        if isinstance(samples, slice) and samples == slice(0, self.X.shape[0]):
            return self.transposed_Z
        return sp.csr_array(self.Z[samples].T)


@dataclass(frozen=True)
class GroupColumns:
    """X and Z by group of samples.

    Parameters
    ----------
    codes
        Group of each sample, shape (n,).
    place
        Position of each sample among those of its group, shape (n,).
    rows
        Samples of each group.
    columns
        Positions of the columns of Z that each group has.
    parts
        Rows of X, and of these columns of Z, of the samples of each group.
    """

    codes: IntArray
    place: IntArray
    rows: tuple[IntArray, ...]
    columns: tuple[IntArray, ...]
    parts: tuple[DesignColumns, ...]


@dataclass(frozen=True)
class BlockSums:
    """Sums of one block.

    Parameters
    ----------
    XY, ZY, yy
        X'Y', Z'Y' and the sums of squares, shapes (p, f), (q, f), (f,).
    parts
        The same of each group of samples, Z'Y' over its own columns; empty where sums are not
        kept by group.
    """

    XY: FloatArray
    ZY: FloatArray
    yy: FloatArray
    parts: tuple[BlockSums, ...] = ()

    @classmethod
    def zeros(cls, design: DesignColumns, f: int) -> BlockSums:
        """Sums of f features over no sample yet."""
        groups = () if design.by_group is None else design.by_group.parts
        p, q = design.X.shape[1], design.Z.shape[1]
        parts = tuple(cls.zeros(group, f) for group in groups)
        return cls(np.zeros((p, f)), np.zeros((q, f)), np.zeros(f), parts)

    def at(self, slots: slice | IntArray) -> BlockSums:
        """The sums of some features: views of them where ``slots`` is a slice."""
        parts = tuple(part.at(slots) for part in self.parts)
        return BlockSums(self.XY[:, slots], self.ZY[:, slots], self.yy[slots], parts)

    def add(self, slots: slice | IntArray, sums: BlockSums) -> None:
        """Add the sums of some features to theirs."""
        with np.errstate(over="ignore", invalid="ignore"):
            self.XY[:, slots] += sums.XY
            self.ZY[:, slots] += sums.ZY
            self.yy[slots] += sums.yy
        for mine, theirs in zip(self.parts, sums.parts, strict=True):
            mine.add(slots, theirs)

    def gather(self, design: DesignColumns) -> None:
        """Add the sums of the groups to those of all samples, which are zero."""
        if design.by_group is None:
            return
        with np.errstate(over="ignore", invalid="ignore"):
            for columns, part in zip(design.by_group.columns, self.parts, strict=True):
                self.XY[:] += part.XY
                self.ZY[columns] += part.ZY
                self.yy[:] += part.yy


def design_columns(X: FloatArray | CompactMatrix, Z: sp.csr_array | LayeredMatrix) -> DesignColumns:
    """Split X into its kinds of columns and Z into layers, where they are not."""
    parts = X if isinstance(X, CompactMatrix) else compacted(X.__getitem__, X.shape[0], X)
    return DesignColumns(X, Z, parts, Z.layers if isinstance(Z, LayeredMatrix) else layers_of(Z))


def grouped_columns(
    design: DesignColumns,
    codes: IntArray,
    k: int,
    columns: tuple[IntArray, ...] | None = None,
    levels: IntArray | None = None,
) -> DesignColumns:
    """The design with its rows by group of samples too.

    Parameters
    ----------
    design
        X and Z of all samples.
    codes
        Group of each sample, shape (n,).
    k
        Number of groups.
    columns
        Columns of Z that each group has, if its samples here are not all that it has.
    levels
        Which level each column of Z is of, shape (q,): a group has all columns of its levels, those
        of effects that none of its samples has too. Each column by itself if not given.
    """
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(k + 1))
    rows = tuple(order[edges[i] : edges[i + 1]] for i in range(k))
    place = np.empty(codes.size, dtype=np.intp)
    place[order] = np.arange(codes.size) - edges[codes[order]]
    parts, own = [], []
    for i, here in enumerate(rows):
        part = sp.csr_array(design.Z[here])
        part.eliminate_zeros()
        mine = np.unique(part.indices).astype(np.intp) if columns is None else columns[i]
        if columns is None and levels is not None:
            mine = np.flatnonzero(np.isin(levels, levels[mine]))
        part = sp.csr_array(part[:, mine])
        X = _rows_of(design.parts, here)
        dense = X if isinstance(design.X, CompactMatrix) else design.X[here]
        parts.append(DesignColumns(dense, part, X, layers_of(part)))
        own.append(mine)
    by_group = GroupColumns(codes, place, rows, tuple(own), tuple(parts))
    return replace(design, by_group=by_group)


def _rows_of(X: CompactMatrix, rows: IntArray) -> CompactMatrix:
    """Some rows of X by kinds of columns, with the distinct rows that they have."""
    grouped, table = X.grouped, X.table
    if grouped is not None:
        present, codes = np.unique(grouped.codes[rows], return_inverse=True)
        grouped, table = Layer(codes, present.size), table[present]
    layers = tuple(
        Layer(
            layer.codes[rows],
            layer.count,
            None if layer.weights is None else layer.weights[rows],
        )
        for layer in X.layered.layers
    )
    return replace(
        X,
        shape=(rows.size, X.shape[1]),
        grouped=grouped,
        table=table,
        layered=LayeredMatrix(layers, (rows.size, X.layered.shape[1])),
        dense=X.dense[rows],
    )


def block_sums(
    block: Block,
    design: DesignColumns,
    weights: FloatArray | None = None,
    into: BlockSums | None = None,
    groups: FloatArray | None = None,
) -> BlockSums:
    """Sums of one block over its samples.

    Sums that overflow are infinite; their features get a verdict later.

    Parameters
    ----------
    block
        Some features of some samples.
    design
        X and Z of all samples.
    weights
        Precision of each sample of the design, shape (n,): all products are weighted by it.
    into
        Sums of the same features to add to; None to start from zero. Of a design by group only
        those of the groups are added to: `BlockSums.gather` adds these up.
    groups
        Sums of sparse blocks by distinct row of X to add to instead, see `group_sums`: the caller
        adds them to the others in the end. None to do so here.
    """
    values: Any = block.values
    if into is None:
        into = BlockSums.zeros(design, values.shape[0])
        block_sums(block, design, weights, into)
        into.gather(design)
        return into
    samples = block.samples
    if design.by_group is not None:
        _add_by_group(values, samples, design.by_group, weights, into)
        return into
    here = None if weights is None else weights[samples]
    with np.errstate(over="ignore", invalid="ignore"):
        if sp.issparse(values):
            _add_sparse(values, samples, design, here, into, groups)
        else:
            _add_dense(values, samples, design, here, into)
    return into


def _add_dense(
    values: FloatArray,
    samples: slice | IntArray,
    design: DesignColumns,
    weights: FloatArray | None,
    into: BlockSums,
) -> None:
    weighted = values if weights is None else values * weights
    if isinstance(design.X, CompactMatrix):
        into.XY[:] += design.X.transposed_times(samples, weighted.T)
    else:
        into.XY[:] += (weighted @ design.X[samples]).T
    Z = design.transposed_Z_of(samples)
    # What is copied, the transposed and the squares, stays in the processor's cache.
    step = max(16, _CACHED // max(values.shape[1], 1))
    for start in range(0, values.shape[0], step):
        slots = slice(start, start + step)
        some = weighted[slots]
        into.ZY[:, slots] += np.asarray(Z @ some.T)
        into.yy[slots] += (some * values[slots]).sum(axis=1)


def _add_by_group(
    values: Any,
    samples: slice | IntArray,
    groups: GroupColumns,
    weights: FloatArray | None,
    into: BlockSums,
) -> None:
    """Add the sums of each group's samples to its own."""
    codes, place = groups.codes[samples], groups.place[samples]
    if sp.issparse(values):
        values = sp.csc_array(values)
    if (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        values, codes, place = values[:, order], codes[order], place[order]
    edges = np.append(np.flatnonzero(np.diff(codes, prepend=-1)), codes.size)
    for start, stop in pairwise(edges.tolist()):
        group = int(codes[start])
        part = _columns_between(values, start, stop)
        precision = None if weights is None else weights[groups.rows[group]]
        here = Block(slice(None), place[start:stop], part)
        block_sums(here, groups.parts[group], precision, into.parts[group])


def _columns_between(values: Any, start: int, stop: int) -> Any:
    """Successive samples of a block, dense or csc, without a copy."""
    if not sp.issparse(values):
        return values[:, start:stop]
    low, high = int(values.indptr[start]), int(values.indptr[stop])
    parts = values.data[low:high], values.indices[low:high], values.indptr[start : stop + 1] - low
    return sp.csc_array(parts, shape=(values.shape[0], stop - start))


def _add_sparse(
    values: Any,
    samples: slice | IntArray,
    design: DesignColumns,
    weights: FloatArray | None,
    into: BlockSums,
    groups: FloatArray | None,
) -> None:
    squares = with_data(values, values.data * values.data)
    if weights is not None:
        each = per_element(values, weights)
        squares.data *= each
        values = with_data(values, values.data * each)
    if values.format == "csc":
        ends = np.array([0, values.indices.size])
        add_rows(ends, values.indices, squares.data, into.yy[None, :])
    else:
        into.yy[:] += squares @ np.ones(values.shape[1])
    parts = design.parts
    sums = group_sums(design, values.shape[0]) if groups is None else groups
    if parts.grouped is not None and sums is not None:
        _add_layer(values, parts.grouped, samples, sums)
        if groups is None:
            add_groups(design, sums, into)
    if parts.in_layers.size:
        rows = np.zeros((parts.in_layers.size, values.shape[0]))
        for layer in parts.layered.layers:
            _add_layer(values, layer, samples, rows)
        into.XY[parts.in_layers] += rows
    if parts.in_dense.size:
        products = np.zeros((values.shape[0], parts.in_dense.size))
        if values.format == "csc":
            add_products(values, parts.dense[samples], products)
        else:
            products += values @ parts.dense[samples]
        into.XY[parts.in_dense] += products.T
    for layer in design.layers:
        _add_layer(values, layer, samples, into.ZY)


def group_sums(design: DesignColumns, features: int) -> FloatArray | None:
    """Where sums by the distinct rows of the grouped columns of X begin; None without such."""
    grouped = design.parts.grouped
    return None if grouped is None else np.zeros((grouped.count, features))


def add_groups(design: DesignColumns, groups: FloatArray | None, into: BlockSums) -> None:
    """Add what sums by distinct row (count, f) say of X'Y'."""
    if groups is not None:
        parts = design.parts
        into.XY[parts.in_table] += sp.csr_array(parts.table.T) @ groups


def _add_layer(values: Any, layer: Layer, samples: slice | IntArray, into: FloatArray) -> None:
    """Add the weighted sums of the samples that share a code to ``into``, (codes, f)."""
    data = values.data
    if layer.weights is not None:
        data = data * per_element(values, layer.weights[samples])
    codes = layer.codes[samples]
    if values.format == "csr":
        # Samples become their codes; elements that now share a place are summed.
        by_code = np.zeros((values.shape[0], layer.count))
        columns = codes.astype(values.indices.dtype, copy=False)[values.indices]
        add_rows(values.indptr, columns, data, by_code)
        into += by_code.T
    elif codes.size and (codes[1:] >= codes[:-1]).all():
        # Samples with the same code follow each other: as if they were one.
        first, last = int(codes[0]), int(codes[-1])
        starts = np.searchsorted(codes, np.arange(first, last + 2))
        add_rows(values.indptr[starts], values.indices, data, into[first : last + 1])
    else:
        rows = np.repeat(codes, np.diff(values.indptr))
        add_by_row(rows, values.indices, data, into)
