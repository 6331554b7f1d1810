"""A dask array in parts: each is a source of its own, made and used where its chunks are.

What is done to a part is a task of dask, which runs it with whatever scheduler is active: threads
of this process, or the workers of a cluster. Its chunks stay there; only results come back.
"""

from __future__ import annotations

import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.sparse import UnsoundMatrixError
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.sources.dask_arrays import DaskReader, joined_chunks
from flashmm.sources.memory import array_reader, sparse_reader
from flashmm.sources.readers import DenseReader
from flashmm.sources.source import Source

__all__ = ["Part", "computed", "fold", "in_parts", "parts_of", "shared"]

# Results that one task adds up.
_FOLDED_AT_ONCE = 4
_NOTHING = DenseReader(np.empty((0, 0)))


@dataclass(frozen=True)
class _Samples:
    """The fields of a source that belong to the samples of one part."""

    n: int
    position: IntArray | None
    size_factors: FloatArray | None
    offset: FloatArray | None
    sample_names: Sequence[object] | None
    block: int


@dataclass(frozen=True)
class _Task:
    """A function of the source of one part, called with the part's chunks."""

    function: Callable[..., Any]
    samples: _Samples
    shape: tuple[int, int]
    transposed: bool

    def __call__(self, template: Source, chunks: list[list[Any]], *arguments: Any) -> Any:
        try:
            values = joined_chunks(chunks, self.shape, self.transposed)
        except UnsoundMatrixError as error:
            raise error.named(f"Block {self.samples.block} of Y") from None
        reader = sparse_reader(values) if sp.issparse(values) else array_reader(values)
        source = replace(
            template,
            reader=reader,
            n=self.samples.n,
            position=self.samples.position,
            size_factors=self.samples.size_factors,
            offset=self.samples.offset,
            sample_names=self.samples.sample_names,
            block=self.samples.block,
        )
        return self.function(source, *arguments)


@dataclass(frozen=True)
class Part:
    """Some features of some samples of a dask array.

    Parameters
    ----------
    features
        Positions among the features in use.
    rows
        Positions of its samples in the design, shape (n_b,).
    chunks, shape
        Its chunks, not computed, row by row, and what they make up.
    template
        The source with these features and no samples, a dask object that parts share.
    samples
        What the source knows of these samples.
    transposed
        Whether the chunks are samples x features.
    """

    features: slice
    rows: IntArray
    chunks: list[list[Any]]
    shape: tuple[int, int]
    template: Any
    samples: _Samples
    transposed: bool

    def apply(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(source, *arguments)`` as a dask object; see `shared` for the arguments."""
        import dask  # noqa: PLC0415  (an optional package, which made the array)

        task = dask.delayed(
            _Task(function, self.samples, self.shape, self.transposed),
            name=_key("part"),
            traverse=False,
        )
        return task(self.template, self.chunks, *arguments, dask_key_name=_key("part"))


def _key(what: str) -> str:
    return f"flashmm-{what}-{uuid.uuid4().hex}"


def shared(value: Any) -> Any:
    """A value as a dask object that is sent once to whoever needs it."""
    import dask  # noqa: PLC0415

    return dask.delayed(value, name=_key("shared"), traverse=False)


def parts_of(source: Source, block_bytes: int) -> list[Part]:
    """The parts of a source of a dask array that hold features and samples in use."""
    reader = source.reader
    assert isinstance(reader, DaskReader)
    chunks_of = reader.chunks()
    templates: dict[tuple[int, int], tuple[slice, Any]] = {}
    parts = []
    for number, (rows, columns) in enumerate(reader.runs(block_bytes)):
        features, samples = (columns, rows) if reader.transposed else (rows, columns)
        span = features.start, features.stop
        if span not in templates:
            slots, template = _of_features(source, features)
            templates[span] = slots, shared(template)
        slots, template = templates[span]
        here, known = _of_samples(source, samples, number)
        if slots.start == slots.stop or here.size == 0:
            continue
        chunks = chunks_of(rows, columns)
        shape = rows.stop - rows.start, columns.stop - columns.start
        parts.append(Part(slots, here, chunks, shape, template, known, reader.transposed))
    return parts


def _of_features(source: Source, features: slice) -> tuple[slice, Source]:
    """Positions among the features in use, and the source with these features and no samples."""
    slots, chosen = features, None
    if source.chosen is not None:
        slots = slice(*np.searchsorted(source.chosen, [features.start, features.stop]).tolist())
        chosen = source.chosen[slots] - features.start
    template = replace(
        source,
        reader=_NOTHING,
        feature_names=source.feature_names[slots],
        chosen=chosen,
        n=0,
        position=None,
        size_factors=None,
        offset=None,
        sample_names=None,
    )
    return slots, template


def _of_samples(source: Source, samples: slice, number: int) -> tuple[IntArray, _Samples]:
    """Positions in the design of samples of Y, and what the source knows of them."""
    here, position = np.arange(samples.start, samples.stop), None
    names: Sequence[object] = range(samples.start, samples.stop)
    if source.position is not None:
        here = source.position[samples]
        used = here >= 0
        if not used.all():
            position = np.where(used, np.cumsum(used) - 1, -1)
            here = here[used]
        names = here.tolist()
    if source.sample_names is not None:
        names = [source.sample_names[i] for i in here]
    factors = None if source.size_factors is None else source.size_factors[here]
    offset = None if source.offset is None else source.offset[here]
    return here, _Samples(int(here.size), position, factors, offset, names, number)


def in_parts(
    source: Source, function: Callable[[Source], Any], block_bytes: int
) -> Iterable[tuple[Part, Any]]:
    """A function of every part, beside the part."""
    parts = parts_of(source, block_bytes)
    return zip(parts, computed([part.apply(function) for part in parts]), strict=True)


def fold(add: Callable[[list[Any]], Any], values: list[Any]) -> Any:
    """Dask objects added a few at a time, in an order that depends on their number alone."""
    import dask  # noqa: PLC0415

    while len(values) > 1:
        values = [
            dask.delayed(add, pure=False)(values[i : i + _FOLDED_AT_ONCE])
            for i in range(0, len(values), _FOLDED_AT_ONCE)
        ]
    return values[0]


def computed(
    values: Sequence[Any], *, threads: int | None = None, progress: bool | None = None
) -> tuple[Any, ...]:
    """Dask objects, computed by the active scheduler.

    Parameters
    ----------
    values
        What to compute.
    threads
        Threads where this process does it; None for dask's own number.
    progress
        Show dask's progress bar on a terminal, where this process does it.
    """
    import dask  # noqa: PLC0415
    from dask.diagnostics import ProgressBar  # noqa: PLC0415

    settings = {} if threads is None else {"num_workers": threads}
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # The rows of X and Z go along in the graph, so that a part can be summed again elsewhere
        # when a worker is lost: there is nothing else to do about its size.
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        stack.enter_context(dask.config.set(settings))
        stack.enter_context(one_blas_thread())
        if progress and sys.stderr.isatty():
            stack.enter_context(ProgressBar(out=sys.stderr))
        result: tuple[Any, ...] = dask.compute(*values)
    return result
