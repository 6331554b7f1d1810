"""One pass over sparse Y in which compiled loops read every stored element once.

The same sums as those of `flashmm.stats.streaming`, for designs without groups: blocks are looked
over, and added by threads that share the features, or two fixed halves of the samples, so that the
order of a sum does not depend on the number of threads. What the loops cannot take as it is goes
through `Source.finish`, which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.fused_loops import (
    DISORDER,
    FRACTIONS,
    LANES,
    add_features,
    add_samples,
    inspected,
)
from flashmm.arrays.jit import compiled, have_numba
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.progress import progress_bar
from flashmm.sources.cache_sized import portions
from flashmm.sources.readers import CompressedReader
from flashmm.sources.source import RawBlock, Source
from flashmm.sources.transforms import transformed_counts
from flashmm.stats.block_sums import BlockSums, DesignColumns, block_sums
from flashmm.stats.passes import PassSums, in_order

__all__ = ["is_fused", "sum_fused"]

# Stored elements from which on it pays to import numba.
LEAST = 2**22
# Several blocks are held at a time, and memory that was not used before costs more than reading.
_BLOCK_BYTES = 48 * 2**20
# Elements of these types are read as they are stored.
_NATIVE = ("float32", "float64", "int32", "int64")
_NOTHING = np.empty(0)
# Bytes of sums by row of which there may be two, and from which on a run is worth its sorting.
_SHARE = 2**24
_CACHE = 2**23
# Adding up a run takes as long as adding a few samples.
_SAMPLES_OF_A_RUN = 4


@dataclass(frozen=True)
class _Terms:
    """What an element is multiplied with, and where it is added.

    Parameters
    ----------
    numbers
        What is multiplied, shape (n, k): the squares', two columns of X (zero where there are
        none), the run's, other columns of X.
    runs
        Row of the sums that samples are brought together by, shape (n,).
    sorts
        Whether they are.
    codes, factors, unit
        Other layers of X and of Z: the row of the sums that a sample is added to, shape (l, n); its
        factor, shape (l, n), or (l, 0) if all are ones; which layers have ones, shape (l,).
    ends
        Where the rows of the distinct rows of X, of its layers and of Z end; a row that nobody
        reads comes after these.
    """

    numbers: FloatArray
    runs: IntArray
    sorts: bool
    codes: IntArray
    factors: FloatArray
    unit: BoolArray
    ends: tuple[int, int, int]

    def at(self, samples: slice | IntArray) -> tuple[Any, ...]:
        """What the loops take of some samples."""
        some = self.numbers[samples], self.runs[samples], self.codes[:, samples]
        factors = self.factors[:, samples] if self.factors.shape[1] else self.factors
        return (*map(np.ascontiguousarray, (*some, factors)), self.unit)

    def order(self, samples: slice | IntArray) -> IntArray:
        """The order of some samples in which a run's sums stay in the processor's cache."""
        runs = self.runs[samples]
        if self.ends[2] < 2**16:
            runs = runs.astype(np.uint16)  # sorted by its bytes
        order = np.argsort(runs, kind="stable") if self.sorts else np.arange(runs.size)
        return order.astype(np.int64, copy=False)


def _terms(design: DesignColumns, weights: FloatArray | None, m: int, together: float) -> _Terms:
    """Terms of a design and m features; ``together``: samples that a block brings together."""
    parts, n = design.parts, design.X.shape[0]
    grouped = () if parts.grouped is None else (parts.grouped,)
    first = sum(layer.count for layer in grouped)
    second = first + parts.in_layers.size
    third = second + design.Z.shape[1]
    placed = [
        *((layer, 0) for layer in grouped),
        *((layer, first) for layer in parts.layered.layers if parts.in_layers.size),
        *((layer, second) for layer in design.layers),
    ]
    numbers = np.zeros((n, max(LANES, 2 + parts.in_dense.size)))
    for place, column in zip(_places(parts.in_dense.size), parts.dense.T, strict=True):
        numbers[:, place] = column
    numbers[:, [0, 3]] = 1.0
    runs: IntArray = np.full(n, third, dtype=np.int32)
    counts = [layer.count for layer, _ in placed]
    most = max(counts, default=0)
    sorts = 8 * most * m > _CACHE and _SAMPLES_OF_A_RUN * most <= together
    if sorts:
        layer, start = placed.pop(int(np.argmax(counts)))
        runs[:] = layer.codes + start
        if layer.weights is not None:
            numbers[:, 3] = layer.weights
    if weights is not None:
        numbers *= weights[:, None]
    codes: IntArray = np.empty((len(placed), n), dtype=np.int32)
    unit = np.array([weights is None and layer.weights is None for layer, _ in placed], bool)
    factors = np.ones((len(placed), 0 if unit.all() else n))
    for k, (layer, start) in enumerate(placed):
        codes[k] = layer.codes + start
        if not unit[k]:
            factors[k] = 1.0 if layer.weights is None else layer.weights
            factors[k] *= 1.0 if weights is None else weights
    return _Terms(numbers, runs, sorts, codes, factors, unit, (first, second, third))


def _places(columns: int) -> list[int]:
    """Where some columns of X are among the numbers."""
    return [c + 1 if c < LANES - 2 else c + 2 for c in range(columns)]


@dataclass(frozen=True)
class _Ready:
    """A block that the loops can add, or the sums of one that they cannot.

    Parameters
    ----------
    slots
        Its features among those in use.
    values
        Its elements, csr_array or csc_array; None where ``sums`` holds their sums.
    table
        Values that stand for its whole numbers; empty if elements are added as they are.
    terms
        What its samples are multiplied with.
    order
        Order in which its samples are added.
    totals, detected
        See `flashmm.sources.source.Block`.
    """

    slots: slice | IntArray
    values: Any
    table: FloatArray = field(default_factory=lambda: _NOTHING)
    terms: tuple[Any, ...] = ()
    order: Any = None
    totals: FloatArray | None = None
    detected: FloatArray | None = None
    sums: BlockSums | None = None


def is_fused(source: Source, design: DesignColumns) -> bool:
    """Whether compiled loops sum this source."""
    return (
        _stored(source) >= LEAST
        and not source.densifies
        and not source.allow_missing
        and design.by_group is None
        and have_numba()
    )


def _stored(source: Source) -> int:
    """Stored elements of Y; -1 if it is not of a kind that says so."""
    reader = source.reader
    return int(reader.indices.shape[0]) if isinstance(reader, CompressedReader) else -1


def sum_fused(
    source: Source,
    design: DesignColumns,
    *,
    weights: FloatArray | None = None,
    workers: int = 1,
    block_bytes: int,
    progress: bool | None = None,
) -> PassSums:
    """Sum all blocks of a source; see `flashmm.stats.streaming.sum_source`."""
    block_bytes = min(block_bytes, _BLOCK_BYTES)
    per_sample = max(1.0, _stored(source) / max(1, source.n))
    terms = _terms(design, weights, source.m, block_bytes / 8 / per_sample)
    k, r, m = terms.numbers.shape[1], terms.ends[2] + 1, source.m
    # Threads share the samples where there is room for sums of each, else the features.
    shares = 2 if 8 * r * m <= _SHARE else 1
    columns, rows = np.zeros((shares, k, m)), np.zeros((shares, r, m))
    totals, detected = np.zeros((2, m))
    apart: list[_Ready] = []
    ready = partial(_ready, source, design, weights, terms)
    blocks = progress_bar(
        _all_ready(ready, _pieces(source, block_bytes), workers),
        lambda: source.count_blocks(block_bytes),
        show=progress,
    )
    with np.errstate(over="ignore", invalid="ignore"), _Threads(workers) as threads:
        for block in blocks:
            if block.sums is not None:
                apart.append(block)
            elif block.values.format == "csr":
                _add_csr(block, threads, (columns, rows))
            else:
                _add_csc(block, threads, (columns, rows))
            if block.totals is not None and block.detected is not None:
                totals[block.slots] += block.totals
                detected[block.slots] += block.detected
        threads.finish()
        sums = _gathered(
            design, terms, *(x[0] if shares == 1 else x.sum(0) for x in (columns, rows))
        )
        for block in apart:
            assert block.sums is not None
            sums.add(block.slots, block.sums)
    return PassSums(sums, totals, detected)


def _gathered(
    design: DesignColumns, terms: _Terms, columns: FloatArray, rows: FloatArray
) -> BlockSums:
    """X'Y', Z'Y' and the sums of squares, of the sums that the loops make."""
    parts, (first, second, third) = design.parts, terms.ends
    XY = np.empty((design.X.shape[1], rows.shape[1]))
    XY[parts.in_dense] = columns[_places(parts.in_dense.size)]
    if parts.grouped is not None:
        XY[parts.in_table] = sp.csr_array(parts.table.T) @ rows[:first]
    XY[parts.in_layers] = rows[first:second]
    return BlockSums(XY, rows[second:third], columns[0])


def _all_ready(
    ready: Callable[[RawBlock], _Ready], pieces: Iterator[RawBlock], workers: int
) -> Iterator[_Ready]:
    """Blocks ready to be added; several threads, and so more memory, where it is some work."""
    for raw in pieces:
        block = ready(raw)
        yield block
        if block.values is not raw.values:
            yield from in_order(ready, pieces, workers)


def _pieces(source: Source, block_bytes: int) -> Iterator[RawBlock]:
    """The pieces of Y; small ones where they are worked on before they are added."""
    for raw in source.raw_blocks(block_bytes):
        if _as_stored(source, raw):
            yield raw
        else:
            yield from portions(raw, None)


def _as_stored(source: Source, raw: RawBlock) -> bool:
    """Whether the elements are added as they are stored, or as a table has them."""
    untouched = (
        source.size_factors is None
        and source.target_sum is None
        and not source.counting
        and (source.transform is None or isinstance(source.transform, str))
        and (raw.features is None or raw.features.size == raw.values.shape[0])
        and raw.values.data.dtype.name in _NATIVE
    )
    return untouched and (
        source.position is None or bool((source.position[raw.piece.samples] >= 0).all())
    )


def _ready(
    source: Source,
    design: DesignColumns,
    weights: FloatArray | None,
    terms: _Terms,
    raw: RawBlock,
) -> _Ready:
    """Look a block over; finish it first where it is not to be added as it is stored."""
    if _as_stored(source, raw):
        table = transformed_counts(source.transform)
        found = _inspected(raw.values, table)
        if found == 0 or (found == FRACTIONS and not table.size):
            samples = source.positions(raw.piece.samples)
            here, order = terms.at(samples), terms.order(samples)
            return _Ready(raw.slots, raw.values, table, here, order)
    block = source.finish(raw)
    counted = block.totals, block.detected
    if _inspected(block.values, _NOTHING) & DISORDER:
        return _Ready(raw.slots, None, sums=block_sums(block, design, weights))
    here, order = terms.at(block.samples), terms.order(block.samples)
    return _Ready(raw.slots, block.values, _NOTHING, here, order, *counted)


def _inspected(values: Any, table: FloatArray) -> int:
    width = values.shape[0 if values.format == "csc" else 1]
    parts = (np.ascontiguousarray(x) for x in (values.data, values.indices))
    return int(compiled(inspected)(*parts, _pointer(values), width, table.size - 1))


def _pointer(values: Any) -> IntArray:
    return np.asarray(values.indptr, dtype=np.int64)


def _parts(values: Any) -> tuple[Any, Any, IntArray]:
    """Elements, unsigned indices and pointer of a block."""
    indices = np.ascontiguousarray(values.indices)
    unsigned = indices.view(np.dtype(f"u{indices.dtype.itemsize}"))
    return np.ascontiguousarray(values.data), unsigned, _pointer(values)


class _Threads:
    """Calls that run beside each other, and beside what their caller does next."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool = ThreadPoolExecutor(workers, "flashmm-sums") if workers > 1 else None
        self.running: list[Future[None]] = []

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def start(self, calls: Iterable[Any]) -> None:
        """Run some calls once those before them are done."""
        if self.pool is None:
            for call in calls:
                call()
            return
        self.finish()
        self.running = [self.pool.submit(call) for call in calls]

    def finish(self) -> None:
        """Wait for the calls that run."""
        for future in self.running:
            future.result()
        self.running = []


def _add_csc(block: _Ready, threads: _Threads, sums: tuple[FloatArray, ...]) -> None:
    f, shares = block.values.shape[0], sums[0].shape[0]
    whole = f == sums[0].shape[2]
    into = sums if whole else tuple(np.zeros((*x.shape[:2], f)) for x in sums)
    ranges = max(1, threads.workers // shares)
    edges = np.linspace(0, f, ranges + 1).astype(int).tolist()
    given, loop = _parts(block.values), compiled(add_samples)
    threads.start(
        partial(loop, *given, order, first, last, block.table, *block.terms, *(x[k] for x in into))
        for k, order in enumerate(np.array_split(block.order, shares))
        for first, last in pairwise(edges)
    )
    if not whole:
        threads.finish()
        for mine, theirs in zip(sums, into, strict=True):
            mine[:, :, block.slots] += theirs


def _add_csr(block: _Ready, threads: _Threads, sums: tuple[FloatArray, ...]) -> None:
    f = block.values.shape[0]
    into = tuple(np.zeros((f, x.shape[1])) for x in sums)
    data, indices, indptr = _parts(block.values)
    shares = np.linspace(0, indptr[-1], threads.workers + 1)[1:-1]
    edges = [0, *np.searchsorted(indptr, shares).tolist(), f]
    loop = compiled(add_features)
    threads.start(
        partial(loop, data, indices, indptr, first, last, block.table, *block.terms, *into)
        for first, last in pairwise(edges)
    )
    threads.finish()
    for mine, theirs in zip(sums, into, strict=True):
        mine[0][:, block.slots] += theirs.T
