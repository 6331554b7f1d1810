"""Saving and loading statistics of features that miss different samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage.files import PATTERNED_FORMAT, set_format, stats_from_dataset, stats_to_dataset

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["any_from_dataset", "any_to_dataset"]


def any_to_dataset(stats: SummaryStats | PatternedStats) -> xr.Dataset:
    """Statistics of either kind as a Dataset."""
    if isinstance(stats, SummaryStats):
        return stats_to_dataset(stats)
    Z = stats.Z.tocoo()
    packed = np.packbits(stats.observed, axis=1).view(np.int8)
    ds = stats_to_dataset(stats.sums).assign(
        X=(("sample", "coef"), stats.X),
        Z_row=(("Z_nonzero",), Z.row.astype(np.int32)),
        Z_column=(("Z_nonzero",), Z.col.astype(np.int32)),
        Z_value=(("Z_nonzero",), Z.data),
        log_weight=(("sample",), stats.log_weight),
        observed=(("observed_pattern", "byte"), packed),
        pattern=(("feature",), stats.pattern.astype(np.int32)),
    )
    # Readers that do not know of patterns would take the sums for those of all samples.
    return set_format(ds, "PatternedStats", PATTERNED_FORMAT)


def any_from_dataset(ds: xr.Dataset) -> SummaryStats | PatternedStats:
    """The inverse of `any_to_dataset`."""
    sums = stats_from_dataset(ds)
    if "pattern" not in ds:
        return sums
    n = ds.sizes["sample"]
    entries: Any = (ds["Z_row"].to_numpy(), ds["Z_column"].to_numpy())
    packed = ds["observed"].to_numpy().astype(np.int8).view(np.uint8)
    return PatternedStats(
        sums,
        ds["X"].to_numpy(),
        sp.csr_array((ds["Z_value"].to_numpy(), entries), shape=(n, sums.q)),
        ds["log_weight"].to_numpy(),
        np.unpackbits(packed, axis=1, count=n).astype(bool),
        ds["pattern"].to_numpy().astype(np.intp),
    )
