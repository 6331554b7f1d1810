"""One pass over a source: blocks are read in turn, summed by several threads, added in order."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from flashmm.block_sums import BlockSums, DesignColumns, block_sums
from flashmm.sources.source import RawBlock, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["PassSums", "in_order", "sum_source", "worker_count"]

log = logging.getLogger("flashmm")

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(workers: int | None) -> int:
    """Threads to use: as many as asked for, else as this process may run on."""
    if workers is not None:
        return workers
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Results of a function in the order of its items, computed by several threads.

    The items are drawn by the caller's thread, and at most one more than there are workers is
    held at a time; what is left is dropped when the caller stops or an error comes.
    """
    if workers == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="flashmm")
    try:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class PassSums:
    """Sums of one pass over a source.

    Parameters
    ----------
    sums
        X'Y', Z'Y' and the sums of squares of all features in use.
    totals, detected
        Sum of each feature and number of samples in which it is not zero, shape (m,); None
        unless the source counts.
    """

    sums: BlockSums
    totals: FloatArray | None
    detected: FloatArray | None


def sum_source(
    source: Source,
    columns: DesignColumns,
    *,
    weights: FloatArray | None = None,
    workers: int = 1,
    block_bytes: int,
) -> PassSums:
    """Sum all blocks of a source; the order of the additions does not depend on ``workers``."""

    def finish(raw: RawBlock) -> tuple[RawBlock, BlockSums, FloatArray | None, FloatArray | None]:
        block = source.finish(raw)
        return raw, block_sums(block, columns, weights), block.totals, block.detected

    p, q = columns.X.shape[1], columns.Z.shape[1]
    XY, ZY, yy = np.zeros((p, source.m)), np.zeros((q, source.m)), np.zeros(source.m)
    totals, detected = (np.zeros(source.m) if source.counting else None for _ in range(2))
    with np.errstate(over="ignore", invalid="ignore"):
        for raw, sums, total, count in in_order(finish, source.raw_blocks(block_bytes), workers):
            XY[:, raw.slots] += sums.XY
            ZY[:, raw.slots] += sums.ZY
            yy[raw.slots] += sums.yy
            if (
                totals is not None
                and detected is not None
                and total is not None
                and count is not None
            ):
                totals[raw.slots] += total
                detected[raw.slots] += count
    return PassSums(BlockSums(XY, ZY, yy), totals, detected)
