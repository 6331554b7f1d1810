"""A source and a design -> statistics: one pass, selection, and a second look where sums cancel."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.compact import CompactMatrix, steps
from flashmm.designs.design import CovarianceStructure, Design
from flashmm.exceptions import InputError
from flashmm.progress import progress_bar
from flashmm.sources import Block, Source
from flashmm.sources.dask_arrays import DaskReader
from flashmm.sources.scans import missing_values
from flashmm.stats import grouping as groups
from flashmm.stats.algebra import added, without_levels
from flashmm.stats.block_sums import (
    BlockSums,
    DesignColumns,
    block_sums,
    design_columns,
    grouped_columns,
)
from flashmm.stats.dask import sum_parts, sum_parts_about
from flashmm.stats.design_products import design_products
from flashmm.stats.fields import AnySums, GroupSums
from flashmm.stats.grouping import Grouping, check_room
from flashmm.stats.passes import PassSums, worker_count
from flashmm.stats.root import near_collinear, root_of_rows
from flashmm.stats.shifts import shifted_sums, sums_about
from flashmm.stats.streaming import passing, suitable_block_bytes, sum_source

__all__ = [
    "columns_of",
    "first_sums",
    "levels_among",
    "second_sums",
    "statistics_of",
    "sum_design",
]

log = logging.getLogger("flashmm")


def sum_design(
    cls: type[AnySums],
    source: Source,
    design: Design,
    *,
    weights: FloatArray | None,
    min_count: float | None,
    min_fraction: float | None,
    workers: int | None,
    progress: bool | None,
    block_bytes: int | None,
    grouping: Grouping | None = None,
) -> AnySums:
    """The work of `SummaryStats.from_design`, whose class is ``cls``."""
    selecting = min_count is not None or min_fraction is not None
    source = replace(source, counting=selecting, offset=design.offset)
    block_bytes = block_bytes or suitable_block_bytes(source, design)
    log.info(
        "%s, %d features x %d samples: blocks of %.0f MiB, %d threads",
        *(source.reader.kind, source.m, source.n, block_bytes / 2**20, _threads(source, workers)),
    )
    if source.reader.one_pass:
        stats, totals, detected = _fold(cls, source, design, weights, progress, grouping)
        return stats.at(passing(totals, detected, stats.n, min_count, min_fraction))
    columns = columns_of(design_columns(design.X, design.Z), grouping, source.m, design.structure)
    total = first_sums(
        source, columns, weights, block_bytes=block_bytes, workers=workers, progress=progress
    )
    kept = passing(total.totals, total.detected, source.n, min_count, min_fraction)
    stats = statistics_of(cls, total.sums, columns, design, source, weights, grouping)
    if selecting:
        stats, source = stats.at(kept), source.at(kept)
    again = partial(second_sums, source, columns, weights, block_bytes, workers)
    return shifted_sums(stats, again)


def columns_of(
    columns: DesignColumns, grouping: Grouping | None, m: int, structure: CovarianceStructure
) -> DesignColumns:
    """The design, by group too where sums are kept by group."""
    if grouping is None:
        return columns
    levels = structure.level_of_columns
    columns = grouped_columns(columns, grouping.codes, grouping.k, levels=levels)
    assert columns.by_group is not None
    entries = sum(own.size for own in columns.by_group.columns)
    size = check_room(grouping, entries, columns.X.shape[1], m, groups.GROUP_BYTES)
    log.info("sums of %d groups of %r: %.0f MiB", grouping.k, grouping.name, size / 2**20)
    return columns


def first_sums(
    source: Source,
    columns: DesignColumns,
    weights: FloatArray | None,
    *,
    block_bytes: int,
    workers: int | None,
    progress: bool | None,
    absent: BoolArray | None = None,
) -> PassSums:
    """One pass over a source that can be read again, where its blocks are.

    Where values are missing is put into ``absent`` (m, n), if it is given.
    """
    if isinstance(source.reader, DaskReader):
        if absent is not None:
            absent[:] = missing_values(source, block_bytes)
        return sum_parts(
            source, columns, weights, block_bytes=block_bytes, threads=workers, progress=progress
        )
    return sum_source(
        source,
        columns,
        weights=weights,
        workers=_threads(source, workers),
        block_bytes=block_bytes,
        progress=progress,
        absent=absent,
    )


def second_sums(
    source: Source,
    columns: DesignColumns,
    weights: FloatArray | None,
    block_bytes: int,
    workers: int | None,
    a: FloatArray,
    features: IntArray,
) -> BlockSums:
    """One more pass, for the sums of y - X a; see `flashmm.stats.shifts.sums_about`."""
    if isinstance(source.reader, DaskReader):
        return sum_parts_about(
            *(a, features, source, columns, weights), block_bytes=block_bytes, threads=workers
        )
    blocks = source.blocks(block_bytes, features=features, dense=True)
    return sums_about(a, features, blocks, columns, weights)


def _threads(source: Source, workers: int | None) -> int:
    # Dense products are threaded by BLAS itself.
    return worker_count(workers) if source.is_sparse and not source.densifies else 1


def statistics_of(
    cls: type[AnySums],
    sums: BlockSums,
    columns: DesignColumns,
    design: Design,
    source: Source,
    weights: FloatArray | None,
    grouping: Grouping | None = None,
) -> AnySums:
    """Sums over Y and the cross-products of the design, labelled."""
    XX, ZX, ZZ = design_products(columns, weights)
    by_group = None
    if grouping is not None and columns.by_group is not None:
        rows = zip(columns.by_group.columns, columns.by_group.rows, strict=True)
        parts = zip(sums.parts, columns.by_group.parts, rows, strict=True)
        own = (
            statistics_of(
                cls,
                part,
                of_group,
                replace(design, structure=levels_among(design.structure, mine)),
                source,
                None if weights is None else weights[here],
            )
            for part, of_group, (mine, here) in parts
        )
        by_group = GroupSums(grouping.name, grouping.labels, tuple(own))
    root = None
    if near_collinear(XX):
        root = root_of_rows(_weighted_rows(columns.X, weights), XX.shape[0])
    return cls(
        n=columns.X.shape[0],
        XX=XX,
        XY=sums.XY,
        ZX=ZX,
        ZY=sums.ZY,
        ZZ=ZZ,
        yy=sums.yy,
        feature_names=source.feature_names,
        numbered=source.numbered,
        coef_names=design.coef_names,
        structure=design.structure,
        log_weights=0.0 if weights is None else float(np.log(weights).sum()),
        XX_root=root,
        groups=by_group,
    )


def levels_among(structure: CovarianceStructure, columns: IntArray) -> CovarianceStructure:
    """The structure with the levels that some columns of Z are of."""
    gone = np.ones(structure.q, dtype=bool)
    gone[columns] = False
    return without_levels(structure, gone)


def _weighted_rows(
    X: FloatArray | CompactMatrix, weights: FloatArray | None
) -> Iterator[FloatArray]:
    for here in steps(X.shape[0], 2**14):
        yield X[here] if weights is None else X[here] * np.sqrt(weights[here, None])


def _fold(
    cls: type[AnySums],
    source: Source,
    design: Design,
    weights: FloatArray | None,
    progress: bool | None,
    grouping: Grouping | None,
) -> tuple[AnySums, FloatArray, FloatArray]:
    """Statistics of blocks of samples that can be had only once, each with its own shift."""
    total: AnySums | None = None
    totals, detected = np.zeros(source.m), np.zeros(source.m)
    for block in progress_bar(source.blocks(), None, show=progress):
        columns = design_columns(design.X[block.samples], design.Z[block.samples])
        here_by = None if grouping is None else grouping.of(block.samples)
        columns = columns_of(columns, here_by, source.m, design.structure)
        here = replace(block, samples=slice(0, columns.X.shape[0]))
        part_weights = None if weights is None else weights[block.samples]
        sums = block_sums(here, columns, part_weights)
        part = statistics_of(cls, sums, columns, design, source, part_weights, here_by)
        again = partial(_sums_of_block_about, here, columns, part_weights)
        part = shifted_sums(part, again)
        total = part if total is None else added(total, part)
        if block.totals is not None and block.detected is not None:
            totals += block.totals
            detected += block.detected
    if total is None:
        raise InputError("Y has no blocks: there is nothing to sum.")
    return total, totals, detected


def _sums_of_block_about(
    block: Block,
    columns: DesignColumns,
    weights: FloatArray | None,
    a: FloatArray,
    features: IntArray,
) -> BlockSums:
    block = replace(block, features=features, values=block.values[features])
    return sums_about(a, features, [block], columns, weights)
