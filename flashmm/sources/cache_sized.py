"""A piece of sparse Y cut into portions that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

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
    if codes is not None and (codes[1:] < codes[:-1]).any():
        order = np.argsort(codes, kind="stable")
        canonical = values.has_canonical_format
        values, samples = values[:, order], samples[order]
        values.has_canonical_format = canonical
    edges = np.searchsorted(values.indptr, np.arange(0, values.nnz, elements))
    edges = np.unique(np.append(edges, samples.size))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        low, high = int(values.indptr[start]), int(values.indptr[stop])
        part = sp.csc_array(
            (
                values.data[low:high],
                values.indices[low:high],
                values.indptr[start : stop + 1] - low,
            ),
            shape=(values.shape[0], stop - start),
        )
        piece = replace(raw.piece, samples=samples[start:stop])
        yield replace(raw, piece=piece, values=part)
