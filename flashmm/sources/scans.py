"""Passes over Y that come before the sums: where values are missing, and what samples add up to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.exceptions import InputError
from flashmm.sources.dask_arrays import DaskReader
from flashmm.sources.dask_parts import in_parts
from flashmm.sources.readers import BLOCK_BYTES
from flashmm.sources.source import Source, sample_sums, size_factors_of, without_missing

__all__ = ["missing_samples", "missing_values", "normalised", "sample_totals"]


def missing_samples(source: Source, block_bytes: int = BLOCK_BYTES) -> BoolArray:
    """Which samples in use have a missing value (NaN) in a feature in use, shape (n,)."""
    if source.reader.one_pass:
        raise InputError(
            "missing='drop' reads Y twice, but these blocks can be had only once. Drop the "
            "samples beforehand, or pass Y as an array or a file."
        )
    missing = np.zeros(source.n, dtype=bool)
    if isinstance(source.reader, DaskReader):
        for part, here in in_parts(source, missing_samples, block_bytes):
            missing[part.rows] |= here
        return missing
    for _, samples, values in source.untransformed(block_bytes):
        if sp.issparse(values):
            here = np.zeros(values.shape[1], dtype=bool)
            entries = values.tocoo()
            here[entries.col[np.isnan(entries.data)]] = True
        else:
            here = np.isnan(values).any(axis=0)
        missing[samples] |= here
    return missing


def missing_values(source: Source, block_bytes: int = BLOCK_BYTES) -> BoolArray:
    """Where features in use have no value (NaN), shape (m, n)."""
    missing = np.zeros((source.m, source.n), dtype=bool)
    features = np.arange(source.m)
    if isinstance(source.reader, DaskReader):
        for part, here in in_parts(source, missing_values, block_bytes):
            missing[part.features, part.rows] = here
        return missing
    for slots, samples, values in source.untransformed(block_bytes):
        _, here = without_missing(values)
        missing[np.ix_(features[slots], np.arange(source.n)[samples])] = here
    return missing


def sample_totals(source: Source, block_bytes: int = BLOCK_BYTES) -> FloatArray:
    """Sum over all features of each sample in use, before any transform, shape (n,)."""
    everything = replace(source, chosen=None, feature_names=np.arange(source.reader.shape[0]))
    totals = np.zeros(source.n)
    if isinstance(source.reader, DaskReader):
        for part, here in in_parts(everything, sample_totals, block_bytes):
            totals[part.rows] += here
        return totals
    for _, samples, values in everything.untransformed(block_bytes):
        totals[samples] += sample_sums(values)
    return totals


def normalised(source: Source, target_sum: float | None) -> Source:
    """The same source with samples that sum to ``target_sum``, their median if None.

    Totals are over all features of Y, in use or not; they take a pass of their own unless
    the target is given and blocks hold all features.
    """
    if target_sum is not None and not (np.isfinite(target_sum) and target_sum > 0):
        raise InputError(f"`target_sum` must be positive, not {target_sum!r}.")
    # A dask chunk may hold whole samples, but is itself read in pieces: of features, if csc.
    whole = source.reader.whole_samples and not isinstance(source.reader, DaskReader)
    if target_sum is not None and whole:
        return replace(source, target_sum=float(target_sum))
    if source.reader.one_pass:
        raise InputError(
            "size_factors='total' needs a `target_sum` here: the median total takes a pass of "
            "its own, but these blocks can be had only once."
        )
    totals = sample_totals(source)
    if target_sum is None:
        held = totals[totals > 0]
        target_sum = float(np.median(held)) if held.size else 1.0
    return replace(source, size_factors=size_factors_of(totals, target_sum))
