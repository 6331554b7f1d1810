"""statsmodels' MixedLM on small random problems: random intercepts, intercepts and slopes.

statsmodels keeps D positive semi-definite, so these are psd fits. A MixedLM is built afresh for
every fit (`fit` alters the model). Where statsmodels converged away from the boundary the results
agree to its own tolerance: measured, log-likelihoods to 2e-9 and estimates to 2e-5 of their errors.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from statsmodels.regression.mixed_linear_model import MixedLM

import flashmm as fm

STRUCTURES = {"intercept": "(1 | g)", "intercept and slope": "(1 + x | g)"}


def draw(structure, seed):
    """Draw samples, 8 to 14 groups of 3 to 8, and y with effects of any size, none included."""
    rng = np.random.default_rng([seed, len(structure)])
    sizes = rng.integers(3, 9, size=rng.integers(8, 15))
    data = pd.DataFrame({"g": np.repeat([f"g{i}" for i in range(sizes.size)], sizes)})
    data["x"] = rng.normal(size=len(data))
    root = rng.normal(size=(2, 2)) * rng.choice([0.0, 0.3, 1.0])
    effects = (rng.normal(size=(sizes.size, 2)) @ root.T)[np.repeat(np.arange(sizes.size), sizes)]
    slope = effects[:, 1] * data["x"] if structure == "intercept and slope" else 0.0
    data["y"] = 1 + 0.5 * data["x"] + effects[:, 0] + slope + rng.normal(size=len(data))
    return data


def by_statsmodels(structure, data, method):
    exog = np.column_stack([np.ones(len(data)), data["x"]])
    re = exog if structure == "intercept and slope" else np.ones((len(data), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every boundary and missed gradient
        model = MixedLM(data["y"].to_numpy(), exog, groups=data["g"].to_numpy(), exog_re=re)
        return model.fit(reml=method == "REML", method=["bfgs", "lbfgs"], gtol=1e-8)


def by_flashmm(structure, data, method):
    model = fm.MultiLMM.from_formula("~ x", STRUCTURES[structure], data, data["y"].to_numpy())
    return model.fit(method, parameter_space="psd", max_iter=200).sel(0)


def interior(fitted):
    """Whether statsmodels converged with every eigenvalue of D well above zero."""
    return fitted.converged and np.linalg.eigvalsh(fitted.cov_re)[0] > 1e-2 * fitted.scale


def compare(structure, seed, method):
    """Compare one fit; return whether statsmodels' was good enough to compare estimates."""
    data = draw(structure, seed)
    ours = by_flashmm(structure, data, method)
    assert ours.converged
    theirs = by_statsmodels(structure, data, method)
    assert ours.llf >= theirs.llf - 1e-6
    if not interior(theirs):
        return False
    assert ours.llf == pytest.approx(theirs.llf, rel=0, abs=1e-6)
    se = theirs.bse_fe
    assert_allclose(ours.fe_params / se, theirs.fe_params / se, rtol=0, atol=1e-3)
    assert_allclose(ours.bse_fe, se, rtol=1e-3)
    assert_allclose(ours.scale, theirs.scale, rtol=1e-3)
    (cov_re,) = ours.cov_re.values()
    size = np.sqrt(np.diag(theirs.cov_re))
    pairs = np.outer(size, size)
    assert_allclose(cov_re / pairs, theirs.cov_re / pairs, rtol=0, atol=5e-3)
    return True


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(list(STRUCTURES)), st.sampled_from(["REML", "ML"]))
def test_random_problems(seed, structure, method):
    compare(structure, seed, method)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_estimates_were_compared_in_most_problems(structure, method):
    assert sum(compare(structure, seed, method) for seed in range(6)) >= 2
