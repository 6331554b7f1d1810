"""statsmodels' MixedLM on small random problems: random intercepts, intercepts and slopes.

statsmodels keeps D positive semi-definite, so these are psd fits. A MixedLM is built afresh for
every fit (`fit` alters the model).
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import problems as pb
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
    return model.fit(method, parameter_space="psd", max_iter=200)


def theta_of(fitted):
    """Its variances, covariance and residual variance, in our order."""
    D = np.asarray(fitted.cov_re)
    return np.concatenate([np.diag(D), D[np.triu_indices(len(D), 1)], [fitted.scale]])


def compare(structure, seed, method):
    """Compare one fit; return whether statsmodels ended well enough to compare estimates."""
    data = draw(structure, seed)
    result = by_flashmm(structure, data, method)
    ours = result.sel(0)
    assert ours.converged
    try:
        theirs = by_statsmodels(structure, data, method)
    except np.linalg.LinAlgError:  # it gives up on a few
        return False
    there = pb.evaluate(result.stats, theta_of(theirs), method)
    # By the likelihood at its estimates; its own llf is off by up to 2e-6 where D is singular.
    assert ours.llf >= there.loglik[0] - 1e-8
    D = np.linalg.eigvalsh(theirs.cov_re)
    if D[0] <= 1e-2 * theirs.scale:  # on the boundary, or nearly
        return False
    assert there.loglik[0] == pytest.approx(theirs.llf, rel=0, abs=1e-8)
    assert ours.llf >= theirs.llf - 1e-6
    # Its flag is no proof: it says converged with the log-likelihood 0.02 short.
    unit = np.sqrt(np.diag(there.expected[0]))
    if not theirs.converged or np.abs(there.score[0] / unit).max() > 1e-5:
        return False
    assert ours.llf == pytest.approx(theirs.llf, rel=0, abs=1e-9)
    p = len(ours.fe_params)
    # bse_fe inverts the joint observed information of fixed effects and D, whose cross block is
    # zero in expectation only; the fixed effects' block alone is ours,
    # and never larger.
    hessian = theirs.model.hessian(theirs.params_object)[0]
    se = np.sqrt(np.diag(np.linalg.inv(-hessian[:p, :p])))
    assert_allclose(ours.bse_fe, se, rtol=1e-4)
    assert (theirs.bse_fe >= ours.bse_fe * (1 - 1e-6)).all()
    assert_allclose(ours.fe_params / se, theirs.fe_params / se, rtol=0, atol=1e-5)
    assert_allclose(ours.scale, theirs.scale, rtol=1e-4)
    cov_re = ours.cov_re
    size = np.sqrt(np.diag(theirs.cov_re))
    pairs = np.outer(size, size)
    assert_allclose(cov_re / pairs, theirs.cov_re / pairs, rtol=0, atol=1e-4)
    return True


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from(list(STRUCTURES)), st.sampled_from(["REML", "ML"]))
def test_random_problems(seed, structure, method):
    compare(structure, seed, method)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_estimates_were_compared_in_most_problems(structure, method):
    assert sum(compare(structure, seed, method) for seed in range(5)) >= 1
