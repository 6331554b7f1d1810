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
from numpy.typing import NDArray

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.compact import CompactMatrix, Layer, LayeredMatrix, compacted, layers_of
from flashmm.sources import Block
from flashmm.sources.source import per_element
from flashmm.sources.transforms import with_data

__all__ = ["BlockSums", "DesignColumns", "block_sums", "design_columns"]


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
    """
    values: Any = block.values
    if into is None:
        f, p, q = values.shape[0], design.X.shape[1], design.Z.shape[1]
        into = BlockSums(np.zeros((p, f)), np.zeros((q, f)), np.zeros(f))
    samples = block.samples
    here = None if weights is None else weights[samples]
    with np.errstate(over="ignore", invalid="ignore"):
        if sp.issparse(values):
            _add_sparse(values, samples, design, here, into)
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
) -> None:
    squares = with_data(values, values.data * values.data)
    if weights is not None:
        each = per_element(values, weights)
        squares.data *= each
        values = with_data(values, values.data * each)
    into.yy[:] += squares @ np.ones(values.shape[1])
    parts = design.parts
    if parts.grouped is not None:
        present, sums = _sums_by_code(values, parts.grouped, samples)
        into.XY[parts.in_table] += sp.csr_array(parts.table[present].T) @ sums
    for layer in parts.layered.layers:
        _add_layer(values, layer, samples, into.XY, parts.in_layers)
    if parts.in_dense.size == into.XY.shape[0]:
        into.XY[:] += (values @ parts.dense[samples]).T
    else:
        for position, column in enumerate(parts.in_dense):
            into.XY[column] += values @ parts.dense[samples, position]
    for layer in design.layers:
        _add_layer(values, layer, samples, into.ZY, None)


def _add_layer(
    values: Any,
    layer: Layer,
    samples: slice | IntArray,
    into: FloatArray,
    positions: IntArray | None,
) -> None:
    """Add the sums of a layer to the rows at the positions of its columns; None for all."""
    present, sums = _sums_by_code(values, layer, samples)
    if not isinstance(present, slice):
        rows = present if positions is None else positions[present]
        for code, row in zip(rows.tolist(), sums, strict=True):
            into[code] += row
    elif positions is None:
        into += sums
    else:
        into[positions] += sums


def _sums_by_code(
    values: Any, layer: Layer, samples: slice | IntArray
) -> tuple[slice | NDArray[Any], FloatArray]:
    """Weighted sums of the samples that share a code: codes, perhaps repeated, and (codes, f)."""
    data = values.data
    if layer.weights is not None:
        data = data * per_element(values, layer.weights[samples])
    codes = layer.codes[samples]
    if values.format == "csr":
        # Samples become their codes; elements that now share a place are summed.
        by_code = sp.csr_array(
            (data, codes[values.indices], values.indptr), shape=(values.shape[0], layer.count)
        )
        return slice(None), by_code.toarray().T
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    if starts.size <= layer.count:  # samples with the same code follow each other: one row a run
        indptr = np.append(values.indptr[starts], values.indptr[-1])
        by_run = sp.csr_array((data, values.indices, indptr), shape=(starts.size, values.shape[0]))
        return codes[starts], by_run.toarray()
    rows = np.repeat(codes, np.diff(values.indptr))
    by_code = sp.coo_array((data, (rows, values.indices)), shape=(layer.count, values.shape[0]))
    return slice(None), by_code.toarray()
