"""X'Y', Z'Y' and sums of squares of one block, at a few nanoseconds per stored element.

Columns built from factors have few distinct rows, and an indicator has one element per row: the
elements of a sparse block are first summed by an integer code per sample, and only these small
sums are multiplied. Continuous columns are multiplied directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.compiled import add_by_row, add_products, add_rows
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.compact import CompactMatrix, Layer, LayeredMatrix, compacted, layers_of
from flashmm.sources import Block
from flashmm.sources.source import per_element
from flashmm.sources.transforms import with_data

__all__ = [
    "BlockSums",
    "DesignColumns",
    "add_groups",
    "block_sums",
    "design_columns",
    "group_sums",
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
    """

    X: FloatArray | CompactMatrix
    Z: sp.csr_array | LayeredMatrix
    parts: CompactMatrix
    layers: tuple[Layer, ...]

    @cached_property
    def transposed_Z(self) -> sp.csr_array:
        """Z', by rows."""
        return sp.csr_array(self.Z[:].T)

    def transposed_Z_of(self, samples: slice | IntArray) -> sp.csr_array:
        """The columns of Z' of some samples."""
        if isinstance(samples, slice) and samples == slice(0, self.X.shape[0]):
            return self.transposed_Z
        return sp.csr_array(self.Z[samples].T)


@dataclass(frozen=True)
class BlockSums:
    """Sums of one block.

    Parameters
    ----------
    XY, ZY, yy
        X'Y', Z'Y' and the sums of squares, shapes (p, f), (q, f), (f,).
    """

    XY: FloatArray
    ZY: FloatArray
    yy: FloatArray


def design_columns(X: FloatArray | CompactMatrix, Z: sp.csr_array | LayeredMatrix) -> DesignColumns:
    """Split X into its kinds of columns and Z into layers, where they are not."""
    parts = X if isinstance(X, CompactMatrix) else compacted(X.__getitem__, X.shape[0], X)
    return DesignColumns(X, Z, parts, Z.layers if isinstance(Z, LayeredMatrix) else layers_of(Z))


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
        Sums of the same features to add to; None to start from zero.
    groups
        Sums of sparse blocks by distinct row of X to add to instead, see `group_sums`: the caller
        adds them to the others in the end. None to do so here.
    """
    values: Any = block.values
    if into is None:
        f, p, q = values.shape[0], design.X.shape[1], design.Z.shape[1]
        into = BlockSums(np.zeros((p, f)), np.zeros((q, f)), np.zeros(f))
    samples = block.samples
    here = None if weights is None else weights[samples]
    with np.errstate(over="ignore", invalid="ignore"):
        if sp.issparse(values):
            _add_sparse(values, samples, design, here, into, groups)
        else:
            weighted = values if here is None else values * here
            if isinstance(design.X, CompactMatrix):
                into.XY[:] += design.X.transposed_times(samples, weighted.T)
            else:
                into.XY[:] += (weighted @ design.X[samples]).T
            into.ZY[:] += np.asarray(design.transposed_Z_of(samples) @ weighted.T)
            into.yy[:] += (weighted * values).sum(axis=1)
    return into


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
