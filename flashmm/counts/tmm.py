"""Normalisation factors by the trimmed mean of M-values (Robinson & Oshlack 2010).

Genome Biology 11:R25. The computation is rnanorm's, an optional package; this module checks that it
is one of the versions whose factors equal edgeR's, and that the counts are of the kind for which
they do.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["tmm_factors"]

_ADVICE = "pip install 'multilmm[tmm]', or pass the factors of edgeR's calcNormFactors."


def tmm_factors(counts: FloatArray, samples: pd.Index) -> FloatArray:
    """TMM factors of samples, with a geometric mean of one.

    Parameters
    ----------
    counts
        Features x samples, shape (m, n), not negative, with something in every sample.
    samples
        Names for messages, n of them.

    Returns
    -------
    ndarray
        Shape (n,).

    Raises
    ------
    InputError
        If rnanorm is not installed or is another version; if the upper quartile of a sample is
        zero, where rnanorm's choice of the reference sample fails; if factors are not finite.
    """
    try:
        from rnanorm import TMM  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InputError(f"norm_factors='TMM' needs rnanorm: {_ADVICE}") from None
    version = metadata.version("rnanorm")
    if version.split(".")[:2] != ["2", "2"]:
        raise InputError(
            f"norm_factors='TMM' needs rnanorm 2.2, which equals edgeR; {version} is installed: "
            f"{_ADVICE}"
        )
    counted = counts[counts.sum(axis=1) > 0]
    zero = np.flatnonzero(np.quantile(counted, 0.75, axis=0) <= 0)
    if zero.size:
        raise InputError(
            f"In sample {samples[zero[0]]!r} at least three quarters of the features have no "
            f"count (so in {zero.size} of {len(samples)} samples), and rnanorm's TMM factors are "
            "wrong then. Leave out features with few counts, or pass the factors of edgeR's "
            "calcNormFactors as `norm_factors`."
        )
    factors = np.asarray(TMM().fit(counted.T).get_norm_factors(counted.T), dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(factors) & (factors > 0)))
    if bad.size:
        raise InputError(
            f"Sample {samples[bad[0]]!r} has no TMM factor: it shares too few features with the "
            "reference sample. Leave it out, or pass factors."
        )
    return factors
