"""Ratios that follow the residual variance: the prior moved for each feature."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from problems import PROBLEMS
from scipy import stats

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.integrated.grid import RatioGrid, covering_grid
from flashmm.inference.integrated.scaling import (
    NOT_FOLLOWING,
    Following,
    learn_slope,
    moved_likelihood,
    moved_weights,
)

SUBJECTS, CELLS = 4, 40


def grids():
    one = RatioGrid(
        np.concatenate([[0.0], np.geomspace(0.01, 10.0, 39)])[:, None],
        np.zeros(40, int),
        np.full(40, 1 / 40),
    )
    two, block = PROBLEMS["crossed"].structure, PROBLEMS["correlated"].structure
    return {
        "one": one,
        "two": covering_grid(two, np.array([0.1, 0.2]), np.array([5.0, 50.0])),
        "rays": covering_grid(block, np.array([0.1, 0.2, 0.1]), np.array([5.0, 50.0, 9.0])),
    }


@pytest.mark.parametrize("name", ["one", "two", "rays"])
def test_moved_weights_keep_their_sum_and_what_is_zero(name):
    grid = grids()[name]
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.ones(grid.size))
    steps = np.array([0, 7, -11, 7, 400, -400])
    rows, which = moved_weights(grid, weights, steps)
    moved = rows[which]
    assert rows.shape[0] == 5
    assert_allclose(moved.sum(axis=1), 1.0)
    assert (moved >= 0).all()
    assert_allclose(moved[0], weights)
    zero = ~grid.ratios.any(axis=1)
    assert_allclose(moved[:, zero].sum(axis=1), weights[zero].sum())
    # What moves the likelihood is the transpose: either gives the same evidence.
    likelihood = rng.uniform(size=(6, grid.size))
    assert_allclose(
        (moved * likelihood).sum(axis=1), moved_likelihood(grid, likelihood, steps) @ weights
    )


@pytest.mark.parametrize("name", ["one", "two", "rays"])
def test_all_ratios_are_multiplied_by_one_factor(name):
    """Mean logarithms of ratios inside the grid move by the step, covariances included."""
    grid = grids()[name]
    line = grid.line == grid.line[-1]
    middle = np.flatnonzero(line)[line.sum() // 2]
    rows, _ = moved_weights(grid, np.eye(grid.size)[middle], np.array([3]))
    used = rows[0] > 0
    assert used.sum() <= 2 ** len(grid.ratios[0])
    start = grid.ratios[middle]
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(grid.ratios[used] / start)
    log = log[:, start != 0]
    inside = start[start != 0] * np.exp(0.15) <= grid.ratios.max(axis=0)[start != 0]
    assert inside.any()
    assert_allclose((rows[0][used] @ log)[inside], 0.15, rtol=1e-9)


# ---- learned ---------------------------------------------------------------------------------


def drawn(m, follows, seed=0, scale=1.0, effect=0.0):
    """Cells of four subjects; the variance between subjects follows the residual's, or does not.

    ``effect`` in standard deviations of a subject's mean.
    """
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(SUBJECTS), CELLS)
    sigma2 = 6 / rng.chisquare(6, m)
    tau = 0.1 * 12 / rng.chisquare(12, m) * (sigma2 if follows else 1.0)
    b = np.sqrt(tau)[:, None] * rng.normal(size=(m, SUBJECTS))
    b += effect * np.sqrt(tau + sigma2 / CELLS)[:, None] * (np.arange(SUBJECTS) % 2)
    Y = b[:, subject] + np.sqrt(sigma2)[:, None] * rng.normal(size=(m, subject.size))
    table = pd.DataFrame({"subject": subject.astype(str), "group": subject % 2})
    Y = pd.DataFrame(scale * Y, index=[f"g{j}" for j in range(m)])
    return fm.MultiLMM.from_formula("~ group + (1 | subject)", data=table, Y=Y)


@pytest.fixture(scope="module")
def alone():
    return drawn(1500, follows=False).fit(parameter_space="psd")


def test_variances_that_have_nothing_to_do_with_the_residual_are_found_out(alone):
    prior = alone.ratio_prior
    assert -1.25 <= prior.residual_slope <= -0.75
    assert "to the power" in repr(prior)
    follows = drawn(1500, follows=True).fit(parameter_space="psd").ratio_prior
    assert follows.residual_slope == 0.0
    assert "residual_slope" not in follows.ds


def test_few_features_tell_no_slope():
    assert drawn(150, follows=False).fit(parameter_space="psd").ratio_prior.residual_slope == 0.0


def test_equal_residual_variances_tell_no_slope():
    grid = grids()["one"]
    likelihood = np.random.default_rng(0).uniform(size=(300, grid.size))
    assert learn_slope(grid, [likelihood], np.ones(300), 10.0) == NOT_FOLLOWING
    assert learn_slope(grid, [likelihood], np.full(300, np.nan), 10.0) == NOT_FOLLOWING
    assert (Following(-1.0, 1.0).steps(np.array([np.nan, 1.0, 0.0])) == 0).all()


def test_the_prior_of_a_feature_is_that_at_its_residual_variance(alone):
    """A feature's p-value is that under the common prior with the ratios multiplied."""
    ds = alone.ratio_prior.ds
    plain = alone.t_test("group", df="integrated")
    variance = moderated(alone)
    for j in (3, int(np.argmax(variance)), int(np.argmin(variance))):
        steps = Following(float(ds["residual_slope"]), float(ds["residual_at"])).steps(
            variance[j : j + 1]
        )
        moved, _ = moved_weights(alone.ratio_prior.grid, ds["weight"].to_numpy(), steps)
        own = ds.assign(weight=("point", moved[0])).drop_vars(["residual_slope", "residual_at"])
        again = alone.sel(f"g{j}").t_test("group", df="integrated", prior=fm.RatioPrior(own))
        assert_allclose(again.pvalue.iloc[0, 0], plain.pvalue.iloc[j, 0], rtol=1e-10)
    assert np.ptp(variance) > 1  # so that these priors differ


def moderated(result):
    """Moderated residual variances about the subjects' means, by hand."""
    Y = result.stats.yy - (result.stats.ZY**2).sum(axis=0) / CELLS
    df = SUBJECTS * (CELLS - 1)
    prior = result.ratio_prior
    return (prior.df * prior.variance + Y) / (prior.df + df)


def test_units_change_nothing(alone):
    again = drawn(1500, follows=False, scale=1000.0).fit(parameter_space="psd")
    assert again.ratio_prior.residual_slope == alone.ratio_prior.residual_slope
    assert_allclose(
        again.t_test("group", df="integrated").pvalue,
        alone.t_test("group", df="integrated").pvalue,
        rtol=1e-6,
    )


def test_it_is_saved_and_lent(alone, tmp_path):
    prior = alone.ratio_prior
    prior.save(tmp_path / "prior.nc")
    again = fm.RatioPrior.load(tmp_path / "prior.nc")
    assert again.residual_slope == prior.residual_slope
    small = drawn(8, follows=False, seed=3).fit(parameter_space="psd")
    lent = small.t_test("group", df="integrated", prior=again).pvalue
    assert_allclose(lent, small.t_test("group", df="integrated", prior=prior).pvalue, rtol=1e-12)
    without = fm.RatioPrior(prior.ds.drop_vars(["residual_slope", "residual_at"]))
    assert (lent != small.t_test("group", df="integrated", prior=without).pvalue).any(axis=None)
    fm.RatioPrior(prior.ds.assign(residual_at=-1.0)).save(tmp_path / "bad.nc")
    with pytest.raises(InputError, match="slope"):
        fm.RatioPrior.load(tmp_path / "bad.nc")


def test_the_slope_finds_more_and_holds_the_level(alone):
    prior = alone.ratio_prior
    without = fm.RatioPrior(prior.ds.drop_vars(["residual_slope", "residual_at"]))
    affected = drawn(1500, follows=False, effect=6.0).fit(parameter_space="psd")
    found = {}
    for name, chosen in (("with", prior), ("without", without)):
        null = alone.t_test("group", df="integrated", prior=chosen).pvalue.to_numpy()
        assert stats.binomtest(int((null < 0.05).sum()), null.size, 0.05).pvalue > 1e-3
        tested = affected.t_test("group", df="integrated", prior=chosen).pvalue.to_numpy()
        found[name] = (tested < 1e-3).mean()
    assert found["with"] > found["without"] + 0.01
