"""Adjusted p-values against scipy and statsmodels, with and without NaN."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import false_discovery_control
from statsmodels.stats.multitest import multipletests

from flashmm.exceptions import InputError
from flashmm.inference.multiplicity import adjust_pvalues

STATSMODELS = {
    "bh": "fdr_bh",
    "fdr_bh": "fdr_bh",
    "by": "fdr_by",
    "fdr_by": "fdr_by",
    "holm": "holm",
    "bonferroni": "bonferroni",
}


def pvalues(n_features: int = 60, n_coefficients: int = 4) -> np.ndarray:
    """Return p-values with ties, extremes and small ones."""
    p = np.random.default_rng(1).uniform(size=(n_features, n_coefficients)) ** 3
    p[3:7] = p[3]
    p[10], p[11], p[12] = 0.0, 1.0, 1e-300
    return p


@pytest.mark.parametrize("method", STATSMODELS)
def test_equals_statsmodels(method: str) -> None:
    p = pvalues()
    adjusted = adjust_pvalues(p, method)
    assert adjusted.shape == p.shape
    for column, raw in zip(adjusted.T, p.T, strict=True):
        assert_allclose(column, multipletests(raw, method=STATSMODELS[method])[1], rtol=1e-13)


@pytest.mark.parametrize("method", ["bh", "by"])
@pytest.mark.parametrize("axis", [0, 1, -1, None])
def test_equals_scipy_along_every_axis(method: str, axis: int | None) -> None:
    p = pvalues()
    expected = false_discovery_control(p, axis=axis, method=method)
    adjusted = adjust_pvalues(p, method, axis=axis)
    assert_allclose(adjusted, expected.reshape(p.shape), rtol=1e-13)


@pytest.mark.parametrize("method", STATSMODELS)
def test_nan_stays_nan_and_counts_for_nothing(method: str) -> None:
    p = pvalues()
    missing = np.random.default_rng(2).uniform(size=p.shape) < [0.0, 0.1, 0.5, 1.0]
    missing[:2, 2] = True
    p[missing] = np.nan
    kept = p.copy()
    adjusted = adjust_pvalues(p, method)
    assert_array_equal(p, kept)
    assert_array_equal(np.isnan(adjusted), missing)
    for k in range(3):
        present = ~missing[:, k]
        expected = multipletests(p[present, k], method=STATSMODELS[method])[1]
        assert_allclose(adjusted[present, k], expected, rtol=1e-13)
    everything = adjust_pvalues(p, method, axis=None)
    expected = multipletests(p[~missing], method=STATSMODELS[method])[1]
    assert_allclose(everything[~missing], expected, rtol=1e-13)


def test_none_changes_nothing_and_copies() -> None:
    p = pvalues()
    adjusted = adjust_pvalues(p, "none")
    assert_array_equal(adjusted, p)
    assert not np.shares_memory(adjusted, p)


@pytest.mark.parametrize("method", [*STATSMODELS, "none"])
def test_empty_and_scalar(method: str) -> None:
    assert adjust_pvalues(np.empty((0, 3)), method).shape == (0, 3)
    assert adjust_pvalues([], method).shape == (0,)
    assert adjust_pvalues(0.25, method) == 0.25
    assert adjust_pvalues(0.25, method).shape == ()
    assert_array_equal(adjust_pvalues([np.nan, 0.5], method), [np.nan, 0.5])


def test_three_dimensions_and_upper_case() -> None:
    p = np.stack([pvalues(), pvalues()[::-1]])
    adjusted = adjust_pvalues(p, "BH", axis=1)
    assert_allclose(adjusted[0], adjust_pvalues(p[0]), rtol=0)
    assert_allclose(adjusted[1], adjusted[0][::-1], rtol=0)


@pytest.mark.parametrize(
    ("p", "arguments", "message"),
    [
        ([0.5], {"method": "bhh"}, "unknown p-value adjustment 'bhh'. Did you mean 'bh'"),
        ([0.5], {"method": None}, "unknown p-value adjustment None"),
        ([0.5, 1.5, -0.1], {}, r"2 p-value\(s\) lie outside \[0, 1\], such as 1.5"),
        ([np.inf], {}, "lie outside"),
        ([0.5], {"axis": 1}, "axis 1 does not exist"),
        (["a"], {}, "not numbers"),
    ],
)
def test_wrong_input_is_refused(p: object, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adjust_pvalues(p, **arguments)
