"""Matching the samples of Y to those of the design: by label where both sides carry labels."""

from __future__ import annotations

import numpy as np
import pandas as pd

from flashmm.arrays.labels import is_default
from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError, listing
from flashmm.sources.readers import Labelled

__all__ = ["match_samples"]


def match_samples(read: Labelled, samples: pd.Index | None, n: int) -> IntArray | None:
    """For each sample of Y its position in the design, None when they already agree.

    By label when both sides carry labels, else by position.
    """
    m, columns = read.reader.shape
    if not _both_labelled(read.samples, samples):
        if columns == n:
            return None
        if m == n:
            raise InputError(
                f"Y looks transposed: it must be features x samples with {n} samples, but its "
                f"shape is {(m, columns)}. Pass Y.T, or say rows='samples'."
            )
        raise InputError(
            f"Y has {columns} samples (columns), but the design has {n}. Y is features x samples."
        )
    assert read.samples is not None
    assert samples is not None
    return _match_labels(read.samples, samples, read.features)


def _both_labelled(labels: pd.Index | None, samples: pd.Index | None) -> bool:
    """Whether Y and data both carry labels.

    0, 1, 2, ... are labels only beside the same numbers in another order, as rows that were
    shuffled have them.
    """
    if labels is None or samples is None or (is_default(labels) and is_default(samples)):
        return False
    if is_default(labels) or is_default(samples):
        return labels.size == samples.size and bool(
            labels.isin(samples).all() and samples.isin(labels).all()
        )
    return True


def _match_labels(
    labels: pd.Index, samples: pd.Index, features: pd.Index | None
) -> IntArray | None:
    if not samples.is_unique:
        repeated = samples[samples.duplicated()].unique()
        raise InputError(
            f"The index of `data` has duplicate labels: {listing(repeated)}. Y is matched to "
            "`data` by label; make the labels unique, or reset the index to match by position."
        )
    if not labels.is_unique:
        repeated = labels[labels.duplicated()].unique()
        raise InputError(f"Y has duplicate sample labels: {listing(repeated)}.")
    position = labels.get_indexer(samples)
    absent = samples[position < 0]
    extra = labels[~labels.isin(samples)]
    if absent.size == 0 and extra.size == 0:
        if np.array_equal(position, np.arange(samples.size)):
            return None
        inverse = np.empty(samples.size, dtype=np.intp)
        inverse[position] = np.arange(samples.size)
        return inverse
    if features is not None and samples.isin(features).all():
        raise InputError(
            "Y is transposed: it must be features x samples, but its rows carry the labels of the "
            "samples. Pass Y.T."
        )
    parts = []
    if absent.size:
        parts.append(f"samples in `data` without a column in Y: {listing(absent)}")
    if extra.size:
        parts.append(f"columns of Y without a row in `data`: {listing(extra)}")
    alike = samples.astype(str).isin(labels.astype(str)).any() and absent.size == samples.size
    hint = (
        f" The labels look alike but are {labels.inferred_type} in Y and {samples.inferred_type} "
        "in `data`."
        if alike
        else ""
    )
    raise InputError(
        f"The samples of Y and `data` do not match by label; {'; '.join(parts)}.{hint} Make the "
        "labels agree, or pass Y without labels to match by position."
    )
