"""Tails of distributions equal scipy.stats', inside and outside their range."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flashmm.inference import tails

X = np.array([-np.inf, -1e10, -3.0, -1e-8, 0.0, 1e-10, 0.5, 2.0, 30.0, 1e5, 1e160, np.inf, np.nan])
DF = np.array([-1.0, 0.0, 0.3, 1.0, 2.5, 17.0, 1e4, 1e10, 1e300, np.inf, np.nan])
Q = np.array([1e-300, 1e-5, 0.025, 0.5, 0.7])[:, None]
GRID = X[:, None]


@pytest.mark.parametrize(
    ("ours", "scipys"),
    [
        (lambda: tails.t_sf(GRID, DF), lambda: stats.t.sf(GRID, DF)),
        (lambda: tails.t_sf(-GRID, DF), lambda: stats.t.cdf(GRID, DF)),
        (lambda: tails.t_isf(Q, DF), lambda: stats.t.isf(Q, DF)),
        (lambda: tails.chi2_sf(GRID, DF), lambda: stats.chi2.sf(GRID, DF)),
        (lambda: tails.norm_sf(X), lambda: stats.norm.sf(X)),
        (lambda: tails.norm_isf(Q), lambda: stats.norm.isf(Q)),
        (lambda: tails.norm_isf(Q / 2.0) ** 2, lambda: stats.chi2.isf(Q, 1)),
        *(
            (lambda d=d: tails.f_sf(GRID, d, DF[:-2]), lambda d=d: stats.f.sf(GRID, d, DF[:-2]))
            for d in (0.0, 1.0, 2.5, 7.0, np.nan)
        ),
    ],
)
def test_tails_equal_those_of_scipy_stats(ours, scipys):
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(ours(), scipys(), rtol=1e-13, atol=0)
