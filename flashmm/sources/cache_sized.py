"""A piece of sparse Y cut into portions that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.compiled import assembled, taken_columns
from flashmm.sources.source import RawBlock

__all__ = ["portions"]

# Arrays of so many elements stay in the cache from one operation to the next.
ELEMENTS = 2**20


def portions(
    raw: RawBlock, codes: NDArray[Any] | None, elements: int | None = None
) -> Iterator[RawBlock]:
    """The piece in portions of about a million stored elements.

    Parameters
    ----------
    raw
        A piece; one that is not stored sample by sample, or is small, stays whole.
    codes
        A code of each of its samples: samples of the same code are brought together. None to
        leave them in their order.
    elements
        Least number of elements of a portion.
    """
    elements = max(ELEMENTS, elements or 0)
    values = raw.values
    if not (sp.issparse(values) and values.format == "csc" and values.nnz > elements):
        yield raw
        return
    samples = raw.piece.samples
    if isinstance(samples, slice):
        samples = np.arange(samples.start, samples.stop)
    order = None
    if codes is not None and (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
    canonical = values.has_canonical_format
    sizes = np.diff(values.indptr)
    ends = np.cumsum(sizes if order is None else sizes[order])
    edges = np.searchsorted(ends, np.arange(elements, values.nnz, elements), side="right")
    edges = np.unique(np.concatenate([[0], edges, [samples.size]]))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        here: Any = slice(start, stop)
        if order is None:
            low, high = int(values.indptr[start]), int(values.indptr[stop])
            indptr = values.indptr[start : stop + 1] - values.indptr[start]
            parts = values.data[low:high], values.indices[low:high], indptr
            part = assembled(sp.csc_array, *parts, (values.shape[0], stop - start))
        else:
            here = order[here]
            part = taken_columns(values, here)
        if canonical:
            part.has_canonical_format = True
        yield replace(raw, piece=replace(raw.piece, samples=samples[here]), values=part)
