"""Sums over a dask array: each part is summed where its chunks are, and only sums come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.compact import CompactMatrix, Layer, LayeredMatrix
from flashmm.sources import Source
from flashmm.sources.dask_parts import Part, computed, fold, parts_of, shared
from flashmm.stats.block_sums import (
    BlockSums,
    DesignColumns,
    design_columns,
    grouped_columns,
)
from flashmm.stats.passes import PassSums
from flashmm.stats.shifts import sums_about
from flashmm.stats.streaming import sum_source

__all__ = ["sum_parts", "sum_parts_about"]


@dataclass(frozen=True)
class _Rows:
    """Rows of the design for one part, in few bytes.

    Parameters
    ----------
    X, Z
        As in `DesignColumns`, X without the table of its distinct rows, which all parts share.
    weights
        Precision of each sample, shape (n_b,); None for ones.
    codes, columns
        Group of each sample, shape (n_b,), and the columns of Z that each group has; None where
        sums are not kept by group.
    """

    X: CompactMatrix
    Z: LayeredMatrix
    weights: FloatArray | None
    codes: IntArray | None = None
    columns: tuple[IntArray, ...] = ()

    @classmethod
    def of(cls, design: DesignColumns, rows: IntArray, weights: FloatArray | None) -> _Rows:
        parts, n = design.parts, rows.size
        X = replace(
            parts,
            shape=(n, parts.shape[1]),
            grouped=None if parts.grouped is None else _taken(parts.grouped, rows),
            table=np.empty((0, 0)),
            layered=_rows_of(parts.layered.layers, parts.layered.shape[1], rows),
            dense=parts.dense[rows],
        )
        Z = _rows_of(design.layers, design.Z.shape[1], rows)
        precision = None if weights is None else weights[rows]
        if design.by_group is None:
            return cls(X, Z, precision)
        return cls(X, Z, precision, design.by_group.codes[rows], design.by_group.columns)

    def design(self, table: FloatArray) -> DesignColumns:
        """X and Z of these samples alone."""
        design = design_columns(replace(self.X, table=table), self.Z)
        if self.codes is None:
            return design
        return grouped_columns(design, self.codes, len(self.columns), self.columns)


def _rows_of(layers: tuple[Layer, ...], columns: int, rows: IntArray) -> LayeredMatrix:
    return LayeredMatrix(tuple(_taken(layer, rows) for layer in layers), (rows.size, columns))


def _taken(layer: Layer, rows: IntArray) -> Layer:
    weights = None if layer.weights is None else layer.weights[rows]
    return Layer(layer.codes[rows], layer.count, weights)


def sum_parts(
    source: Source,
    design: DesignColumns,
    weights: FloatArray | None = None,
    *,
    block_bytes: int,
    threads: int | None = None,
    progress: bool | None = None,
) -> PassSums:
    """Sum all parts of a dask array; as `flashmm.stats.streaming.sum_source` otherwise.

    The order of the additions depends on the parts alone, not on who makes them.

    Parameters
    ----------
    source
        Y, a dask array.
    design
        X and Z.
    weights
        Precision of each sample, shape (n,); None for ones.
    block_bytes
        Size of the parts.
    threads, progress
        See `flashmm.sources.dask_parts.computed`.
    """
    table = shared(design.parts.table)

    def task(part: Part) -> Any:
        rows = _Rows.of(design, part.rows, weights)
        return part.apply(partial(_sums_of_part, rows, block_bytes), table)

    sums = _folded(source, block_bytes, task, threads, progress)
    if sums is None:
        zeros = np.zeros(source.m)
        return PassSums(BlockSums.zeros(design, source.m), zeros, zeros.copy())
    return PassSums(_unflattened(sums[2:], design), sums[0], sums[1])


def sum_parts_about(
    a: FloatArray,
    features: IntArray,
    source: Source,
    design: DesignColumns,
    weights: FloatArray | None = None,
    *,
    block_bytes: int,
    threads: int | None = None,
) -> BlockSums:
    """Sums of y - X a for the features at some positions; see `flashmm.stats.shifts.sums_about`."""
    chosen = np.zeros(source.m, dtype=bool)
    chosen[features] = True
    table = shared(design.parts.table)
    shares: dict[int, Any] = {}

    def task(part: Part) -> Any:
        start = part.features.start
        if start not in shares:
            shares[start] = shared(a[:, part.features])
        rows = _Rows.of(design, part.rows, weights)
        return part.apply(partial(_sums_of_part_about, rows, block_bytes), table, shares[start])

    sums = _folded(source.taking(chosen), block_bytes, task, threads)
    if sums is None:
        return BlockSums.zeros(design, features.size)
    return _unflattened(sums, design)


def _flattened(sums: BlockSums) -> tuple[FloatArray, ...]:
    """The sums as arrays with the features along their last axis; groups stacked."""
    own = (sums.XY, sums.ZY, sums.yy)
    if not sums.parts:
        return own
    stacked = (
        np.concatenate([part.XY for part in sums.parts]),
        np.concatenate([part.ZY for part in sums.parts]),
        np.stack([part.yy for part in sums.parts]),
    )
    return (*own, *stacked)


def _unflattened(arrays: tuple[FloatArray, ...], design: DesignColumns) -> BlockSums:
    own_XY, own_ZY, own_yy, *stacked = arrays
    if design.by_group is None:
        return BlockSums(own_XY, own_ZY, own_yy)
    XY, ZY, yy = stacked
    ends = np.cumsum([columns.size for columns in design.by_group.columns])[:-1]
    k = len(design.by_group.columns)
    pieces = zip(np.split(XY, k), np.split(ZY, ends), yy, strict=True)
    return BlockSums(own_XY, own_ZY, own_yy, tuple(BlockSums(*piece) for piece in pieces))


def _folded(
    source: Source,
    block_bytes: int,
    task: Callable[[Part], Any],
    threads: int | None,
    progress: bool | None = None,
) -> tuple[FloatArray, ...] | None:
    """The sums of all parts, features along the last axis; None when there is no part."""
    groups: dict[int, list[Any]] = {}
    for part in parts_of(source, block_bytes):
        groups.setdefault(part.features.start, []).append(task(part))
    totals = [fold(_added, groups[start]) for start in sorted(groups)]
    found = computed(totals, threads=threads, progress=progress)
    return tuple(np.concatenate(sums, axis=-1) for sums in zip(*found, strict=True)) or None


# ---- on the workers ----------------------------------------------------------------------


def _sums_of_part(
    rows: _Rows, block_bytes: int, source: Source, table: FloatArray
) -> tuple[FloatArray, ...]:
    found = sum_source(source, rows.design(table), weights=rows.weights, block_bytes=block_bytes)
    return found.totals, found.detected, *_flattened(found.sums)


def _sums_of_part_about(
    rows: _Rows, block_bytes: int, source: Source, table: FloatArray, a: FloatArray
) -> tuple[FloatArray, ...]:
    blocks = source.blocks(block_bytes, dense=True)
    found = sums_about(a, np.arange(source.m), blocks, rows.design(table), rows.weights)
    return _flattened(found)


def _added(parts: list[tuple[FloatArray, ...]]) -> tuple[FloatArray, ...]:
    with np.errstate(over="ignore", invalid="ignore"):
        return tuple(reduce(np.add, arrays) for arrays in zip(*parts, strict=True))
