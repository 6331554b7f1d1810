"""X'Y', Z'Y' and sums of squares of one block, at a few nanoseconds per stored element.

Columns built from factors have few distinct rows, and an indicator has one element per row: the
elements of a sparse block are first summed by an integer code per sample, and only these small
sums are multiplied. Continuous columns are multiplied directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.sources.source import per_element
from flashmm.sources.transforms import with_data

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.sources import Block

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ["BlockSums", "DesignColumns", "block_sums", "design_columns"]

# Fewer factor-like columns than this cost less multiplied one by one than summed by code.
_FEW = 4
# Codes worth having: sums by code, codes x features, must stay small beside the block.
_MOST_CODES = 2048
_SAMPLE = 1024


@dataclass(frozen=True)
class Layer:
    """Columns with one element per sample: sample i has ``weights[i]`` in column ``codes[i]``.

    Parameters
    ----------
    codes
        Column of each sample, shape (n,).
    count
        Number of columns.
    weights
        The elements, shape (n,); None for ones.
    """

    codes: NDArray[Any]
    count: int
    weights: FloatArray | None = None


@dataclass(frozen=True)
class DesignColumns:
    """X and Z in the form in which sparse blocks are multiplied.

    Parameters
    ----------
    X, Z
        The design, shapes (n, p) and (n, q).
    continuous
        Columns of X that are multiplied directly, shape (c,).
    grouped
        Codes of the distinct rows of the other columns of X; None when there are none.
    table
        The distinct rows, shape (n_codes, p - c).
    layers
        Z as a sum of layers.
    """

    X: FloatArray
    Z: sp.csr_array
    continuous: IntArray
    grouped: Layer | None
    table: FloatArray
    layers: tuple[Layer, ...]

    @cached_property
    def transposed_Z(self) -> sp.csr_array:
        """Z', by rows."""
        return sp.csr_array(self.Z.T)

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


def design_columns(X: FloatArray, Z: sp.csr_array) -> DesignColumns:
    """Find the factor-like columns of X and split Z into layers."""
    p = X.shape[1]
    rows = X[:: max(1, X.shape[0] // _SAMPLE)]
    few = np.array([np.unique(rows[:, i]).size <= max(2, rows.shape[0] // 16) for i in range(p)])
    grouped, table = None, np.empty((0, 0))
    if few.sum() > _FEW:
        grouped, table = _distinct_rows(X[:, few])
    continuous = np.arange(p) if grouped is None else np.flatnonzero(~few)
    return DesignColumns(X, Z, continuous, grouped, table, _layers(Z))


def _distinct_rows(columns: FloatArray) -> tuple[Layer | None, FloatArray]:
    """Codes and distinct rows of a matrix; None where there are too many to be worth it."""
    # Equal rows have equal images under a fixed projection; that unequal ones differ is checked.
    image = columns @ np.random.default_rng(0).normal(size=columns.shape[1])
    _, first, codes = np.unique(image, return_index=True, return_inverse=True)
    if first.size > min(_MOST_CODES, max(1, columns.shape[0] // 4)):
        return None, np.empty((0, 0))
    table = columns[first]
    step = 4096
    for start in range(0, columns.shape[0], step):
        here = slice(start, start + step)
        if not np.array_equal(table[codes[here]], columns[here]):
            return None, np.empty((0, 0))
    return Layer(codes.astype(np.int32), first.size), table


def _layers(Z: sp.csr_array) -> tuple[Layer, ...]:
    """Z as layers: the first elements of all rows, the second ones, ...

    Rows with fewer elements than others have a zero in the layers that they lack.
    """
    counts = np.diff(Z.indptr)
    layers = []
    most = int(counts.max(initial=0))
    if (counts == most).all():  # as indicators have it: no copies
        for k in range(most):
            codes, weights = Z.indices[k::most], Z.data[k::most]
            layers.append(Layer(codes, Z.shape[1], None if (weights == 1.0).all() else weights))
        return tuple(layers)
    for k in range(most):
        present = counts > k
        element = Z.indptr[:-1][present] + k
        codes = np.zeros(counts.size, dtype=np.int32)
        codes[present] = Z.indices[element]
        weights = np.zeros(counts.size)
        weights[present] = Z.data[element]
        layers.append(Layer(codes, Z.shape[1], None if (weights == 1.0).all() else weights))
    return tuple(layers)


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
    p = design.X.shape[1]
    if design.grouped is not None:
        present, sums = _sums_by_code(values, design.grouped, samples)
        others = np.ones(p, dtype=bool)
        others[design.continuous] = False
        into.XY[others] += sp.csr_array(design.table[present].T) @ sums
    if design.continuous.size == p:
        into.XY[:] += (values @ design.X[samples]).T
    else:
        for column in design.continuous:
            into.XY[column] += values @ design.X[samples, column]
    for layer in design.layers:
        present, sums = _sums_by_code(values, layer, samples)
        if isinstance(present, slice):
            into.ZY[:] += sums
            continue
        for code, row in zip(present.tolist(), sums, strict=True):
            into.ZY[code] += row


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
