"""What passes over a source have in common: threads, the order of results, and their sums."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from flashmm.arrays.types import FloatArray
from flashmm.stats.block_sums import BlockSums

__all__ = ["PassSums", "in_order", "worker_count"]

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
        Sum of each feature and number of samples in which it is not zero, shape (m,); zero
        unless the source counts.
    """

    sums: BlockSums
    totals: FloatArray
    detected: FloatArray
