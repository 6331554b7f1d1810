"""One pass over a source: blocks are read in turn, summed by several threads, added in order."""

from __future__ import annotations

import numpy as np

from flashmm.arrays.compiled import in_place
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import Design
from flashmm.exceptions import InputError
from flashmm.progress import progress_bar
from flashmm.sources.cache_sized import portions
from flashmm.sources.readers import BLOCK_BYTES
from flashmm.sources.source import RawBlock, Source
from flashmm.stats.block_sums import (
    BlockSums,
    DesignColumns,
    add_groups,
    block_sums,
    group_sums,
)
from flashmm.stats.fused import is_fused, sum_fused
from flashmm.stats.passes import PassSums, in_order

__all__ = ["passing", "suitable_block_bytes", "sum_source"]

# Sums by code, codes x features, that are larger than this are reached too slowly in any order:
# samples of the same code are brought together first.
_CACHE = 2**23


def sum_source(
    source: Source,
    columns: DesignColumns,
    *,
    weights: FloatArray | None = None,
    workers: int = 1,
    block_bytes: int,
    progress: bool | None = None,
    absent: BoolArray | None = None,
) -> PassSums:
    """Sum all blocks of a source; the order of the additions does not depend on ``workers``.

    Where values are missing is put into ``absent`` (m, n), if it is given.
    """
    if absent is None and is_fused(source, columns):
        return sum_fused(
            *(source, columns),
            weights=weights,
            workers=workers,
            block_bytes=block_bytes,
            progress=progress,
        )
    largest = max(columns.layers, key=lambda layer: layer.count, default=None)
    if largest is not None and 8 * largest.count * source.m <= _CACHE:
        largest = None
    # Where sums by distinct row are not added in place they must stay small beside the elements.
    groups = 0 if columns.parts.grouped is None else columns.parts.grouped.count
    least = 0 if in_place() else 2 * groups * source.m

    def zeros(m: int) -> PassSums:
        return PassSums(BlockSums.zeros(columns, m), np.zeros(m), np.zeros(m))

    total = zeros(source.m)
    # The sums of many groups are large: blocks add to them where they are.
    at_once = columns.by_group is not None
    if at_once:
        workers = 1

    def finish(raw: RawBlock) -> tuple[slice | IntArray, PassSums]:
        if at_once and isinstance(raw.slots, slice):
            slots = raw.slots
            part = PassSums(total.sums.at(slots), total.totals[slots], total.detected[slots])
        else:
            part = zeros(np.arange(source.m)[raw.slots].size)
        by_row = None if at_once else group_sums(columns, part.sums.yy.size)
        codes = None
        if columns.by_group is not None:
            codes = columns.by_group.codes[source.positions(raw.piece.samples)]
        elif largest is not None:
            codes = largest.codes[source.positions(raw.piece.samples)]
        for portion in portions(raw, codes, least):
            block = source.finish(portion)
            block_sums(block, columns, weights, into=part.sums, groups=by_row)
            if absent is not None and block.missing is not None:
                _put_block(absent, raw.slots, block.samples, block.missing)
            if block.totals is not None and block.detected is not None:
                part.totals[:] += block.totals
                part.detected[:] += block.detected
        with np.errstate(over="ignore", invalid="ignore"):
            add_groups(columns, by_row, part.sums)
        return raw.slots, part

    blocks = progress_bar(
        in_order(finish, source.raw_blocks(block_bytes), workers),
        lambda: source.count_blocks(block_bytes),
        show=progress,
    )
    with np.errstate(over="ignore", invalid="ignore"):
        for slots, part in blocks:
            if at_once and isinstance(slots, slice):
                continue
            total.sums.add(slots, part.sums)
            total.totals[slots] += part.totals
            total.detected[slots] += part.detected
    total.sums.gather(columns)
    return total


def _put_block(
    into: BoolArray, slots: slice | IntArray, samples: slice | IntArray, values: BoolArray
) -> None:
    if isinstance(slots, slice) or isinstance(samples, slice):
        into[slots, samples] = values
    else:
        into[np.ix_(slots, samples)] = values


def suitable_block_bytes(source: Source, design: Design) -> int:
    """Blocks a few times the size of their own sums, (p + q) x m, within limits."""
    if not source.is_sparse or source.densifies:
        return BLOCK_BYTES
    if not source.reader.whole_samples:
        return BLOCK_BYTES // 8
    sums = 8 * (design.X.shape[1] + design.Z.shape[1]) * source.m
    return int(np.clip(2 * sums, BLOCK_BYTES // 4, BLOCK_BYTES))


def passing(
    totals: FloatArray,
    detected: FloatArray,
    n: int,
    min_count: float | None,
    min_fraction: float | None,
) -> IntArray:
    """Positions of the features whose sum and fraction of non-zero samples reach the limits."""
    kept = np.ones(totals.size, dtype=bool)
    if min_count is not None:
        kept &= totals >= min_count
    if min_fraction is not None:
        if not 0 <= min_fraction <= 1:
            raise InputError(f"`min_fraction` must lie between 0 and 1, not {min_fraction!r}.")
        kept &= detected >= min_fraction * n
    return np.flatnonzero(kept)
