"""Designs of many samples in few bytes each: distinct rows, elements by layers, and the rest.

Columns built from factors have few distinct rows, and an indicator has one element per row. A
design kept as the code of each sample's row takes a small part of its dense size, and the codes
are what sparse data are summed by (`flashmm.stats.block_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray, IntArray

Samples: TypeAlias = slice | IntArray

__all__ = [
    "FEW",
    "CompactMatrix",
    "Layer",
    "LayerStack",
    "LayeredMatrix",
    "compacted",
    "layers_of",
    "many",
    "steps",
]

# Fewer factor-like columns than this cost less multiplied one by one than summed by code.
FEW = 4
# Codes worth having: sums by code, codes x features, must stay small beside the data.
_MOST_CODES = 2048
# A column with a smaller share of elements is kept by its elements.
_SPARSE = 0.25
_SAMPLE = 1024
STEP = 2**15


def many(n: int) -> bool:
    """Whether so many samples are dealt with in steps."""
    return n > STEP


def steps(n: int, step: int | None = None) -> Iterator[slice]:
    """Slices of at most ``step`` (`STEP`) that cover range(n)."""
    step = STEP if step is None else step
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


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
class LayeredMatrix:
    """A sparse matrix as a sum of layers; indexed by samples it gives their rows.

    Parameters
    ----------
    layers
        Its elements; zero where a row has fewer than others.
    shape
        Samples and columns.
    """

    layers: tuple[Layer, ...]
    shape: tuple[int, int]

    def __getitem__(self, samples: Samples) -> sp.csr_array:
        codes = [layer.codes[samples] for layer in self.layers]
        count = codes[0].size if codes else np.arange(self.shape[0])[samples].size
        data, indices = np.ones((count, len(codes))), np.empty((count, len(codes)), np.int32)
        for k, (layer, code) in enumerate(zip(self.layers, codes, strict=True)):
            indices[:, k] = code
            if layer.weights is not None:
                data[:, k] = layer.weights[samples]
        starts = np.arange(count + 1) * len(codes)
        rows = sp.csr_array((data.ravel(), indices.ravel(), starts), shape=(count, self.shape[1]))
        if any(layer.weights is not None for layer in self.layers):
            rows.eliminate_zeros()
        return rows


@dataclass(frozen=True)
class CompactMatrix:
    """A dense matrix in parts, each of some columns; indexed by samples it gives their rows.

    Parameters
    ----------
    shape
        Samples and columns, (n, p).
    grouped, table, in_table
        Codes of the distinct rows of some columns, these rows, shape (n_codes, g), and the
        positions of the columns, shape (g,); None where there are none.
    layered, in_layers
        Columns with few elements, and their positions.
    dense, in_dense
        The other columns, shape (n, c), and their positions, shape (c,).
    """

    shape: tuple[int, int]
    grouped: Layer | None
    table: FloatArray
    in_table: IntArray
    layered: LayeredMatrix
    in_layers: IntArray
    dense: FloatArray
    in_dense: IntArray

    def __getitem__(self, samples: Samples) -> FloatArray:
        dense = self.dense[samples]
        if self.in_dense.size == self.shape[1]:
            return dense
        rows = np.empty((dense.shape[0], self.shape[1]))
        rows[:, self.in_dense] = dense
        if self.grouped is not None:
            rows[:, self.in_table] = self.table[self.grouped.codes[samples]]
        if self.in_layers.size:
            rows[:, self.in_layers] = self.layered[samples].toarray()
        return rows

    def transposed_times(self, samples: Samples, values: FloatArray) -> FloatArray:
        """X' v for the rows of some samples: ``values`` (n_b, f), result (p, f)."""
        result = np.empty((self.shape[1], values.shape[1]))
        result[self.in_dense] = self.dense[samples].T @ values
        if self.grouped is not None:
            rows = LayeredMatrix((self.grouped,), (self.shape[0], self.grouped.count))[samples]
            result[self.in_table] = self.table.T @ (rows.T @ values)
        if self.in_layers.size:
            result[self.in_layers] = self.layered[samples].T @ values
        return result


def layers_of(Z: sp.csr_array) -> tuple[Layer, ...]:
    """A sparse matrix as layers: the first elements of all rows, the second ones, ...

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


class LayerStack:
    """Sparse rows of successive samples, kept as layers while they come in.

    Parameters
    ----------
    columns
        Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.sizes: list[int] = []
        self.parts: list[tuple[Layer, ...]] = []

    def add(self, rows: sp.csr_array) -> None:
        """Take in the next rows."""
        self.sizes.append(rows.shape[0])
        self.parts.append(
            tuple(
                Layer(
                    layer.codes.astype(np.int32),  # a copy: it must not keep the rows alive
                    layer.count,
                    None if layer.weights is None else layer.weights.copy(),
                )
                for layer in layers_of(rows)
            )
        )

    def together(self) -> LayeredMatrix:
        """All rows."""
        most = max((len(part) for part in self.parts), default=0)
        layers = tuple(self._layer(k) for k in range(most))
        return LayeredMatrix(layers, (sum(self.sizes), self.columns))

    def _layer(self, k: int) -> Layer:
        codes, weights = [], []
        for size, part in zip(self.sizes, self.parts, strict=True):
            if k < len(part):
                codes.append(part[k].codes)
                weights.append(part[k].weights)
            else:
                codes.append(np.zeros(size, dtype=np.int32))
                weights.append(np.zeros(size))
        if all(part is None for part in weights):
            return Layer(np.concatenate(codes), self.columns)
        filled = [
            np.ones(size) if part is None else part
            for size, part in zip(self.sizes, weights, strict=True)
        ]
        return Layer(np.concatenate(codes), self.columns, np.concatenate(filled))


def compacted(
    rows: Callable[[Samples], FloatArray], n: int, whole: FloatArray | None = None
) -> CompactMatrix:
    """Keep a matrix in parts, made of some of its rows at a time.

    Parameters
    ----------
    rows
        Gives rows of the matrix, shape (n_b, p).
    n
        Number of rows.
    whole
        The matrix, when it is in memory anyway: one without other parts is then not copied.
    """
    sample = rows(np.arange(0, n, max(1, n // _SAMPLE)))
    for _ in range(2):
        few, sparse = _kinds(sample)
        parts = _Parts(n, few, sparse, whole)
        failed = next((here for here in steps(n) if not parts.add(here, rows(here))), None)
        if failed is None:
            return parts.together()
        sample = rows(failed)  # where more columns may show more values
    few, sparse = _kinds(sample)
    parts = _Parts(n, np.zeros_like(few), sparse, whole)
    for here in steps(n):
        parts.add(here, rows(here))
    return parts.together()


def _kinds(sample: FloatArray) -> tuple[BoolArray, BoolArray]:
    """Which columns take few values, and which are mostly zero, judged by some rows."""
    count = sample.shape[0]
    few, sparse = np.zeros((2, sample.shape[1]), dtype=bool)
    for i in range(sample.shape[1]):
        column = sample[:, i]
        values, elements = np.unique(column).size, np.count_nonzero(column)
        others = values - (elements < count)
        few[i] = values <= max(2, count // 16) and others <= max(1, elements // 4)
        sparse[i] = elements < _SPARSE * count
    return few, sparse


class _Parts:
    """The parts of a matrix while its rows come in.

    Parameters
    ----------
    n
        Number of rows.
    few, sparse
        Columns with few values and columns with few elements, shape (p,); the former go first.
    whole
        See `compacted`.
    """

    def __init__(self, n: int, few: BoolArray, sparse: BoolArray, whole: FloatArray | None) -> None:
        few = few if few.sum() > FEW else np.zeros_like(few)
        sparse = sparse & ~few
        sparse = sparse if sparse.sum() > FEW else np.zeros_like(sparse)
        self.shape = n, few.size
        self.in_table, self.in_layers = np.flatnonzero(few), np.flatnonzero(sparse)
        self.in_dense = np.flatnonzero(~few & ~sparse)
        self.copied = whole is None or self.in_dense.size < few.size
        self.dense: Any = np.empty((n, self.in_dense.size), order="F") if self.copied else whole
        self.layers = LayerStack(self.in_layers.size)
        self.codes = np.empty(n if few.any() else 0, dtype=np.int32)
        self.table = np.empty((0, self.in_table.size))
        # Equal rows have equal images under a fixed projection; that unequal ones differ is
        # checked.
        size = self.in_table.size
        self.projection = np.random.default_rng(0).normal(size=size) if size else np.empty(0)
        self.images, self.image_codes = np.empty(0), np.empty(0, dtype=np.int32)

    def add(self, here: slice, rows: FloatArray) -> bool:
        """Take in the next rows; False if the distinct ones are too many to be worth it."""
        if self.in_table.size and not self._coded(here, rows[:, self.in_table]):
            return False
        if self.copied:
            self.dense[here] = rows[:, self.in_dense]
        if self.in_layers.size:
            self.layers.add(sp.csr_array(rows[:, self.in_layers]))
        return True

    def _coded(self, here: slice, rows: FloatArray) -> bool:
        images, first, found = np.unique(
            rows @ self.projection, return_index=True, return_inverse=True
        )
        new = np.flatnonzero(~np.isin(images, self.images))
        if self.images.size + new.size > min(_MOST_CODES, max(1, self.shape[0] // 4)):
            return False
        codes = np.arange(self.images.size, self.images.size + new.size, dtype=np.int32)
        self.table = np.vstack([self.table, rows[first[new]]])
        self.images = np.append(self.images, images[new])
        self.image_codes = np.append(self.image_codes, codes)
        order = np.argsort(self.images)
        self.images, self.image_codes = self.images[order], self.image_codes[order]
        self.codes[here] = self.image_codes[np.searchsorted(self.images, images)][found]
        return all(
            np.array_equal(self.table[self.codes[here][part]], rows[part])
            for part in steps(rows.shape[0], 4096)
        )

    def together(self) -> CompactMatrix:
        """The matrix, once all rows are there."""
        return CompactMatrix(
            self.shape,
            Layer(self.codes, self.table.shape[0]) if self.in_table.size else None,
            self.table,
            self.in_table,
            self.layers.together(),
            self.in_layers,
            self.dense,
            self.in_dense,
        )
