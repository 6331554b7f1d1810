"""Columns of X that nearly depend on each other: X'X has few digits there, its root has enough.

The yardstick is the same model in orthonormal coordinates: X = Q R gives beta = R^-1 gamma, and a
restricted log-likelihood that is lower by log |R|.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.exceptions import ConvergenceWarning, InputError, PrecisionWarning
from flashmm.stats.root import near_collinear, root_of_rows

YEARS = "~ year + I(year**2)"
RANDOM = {"spectral": "(1|g)", "bordered": "(1|g) + (1|h)", "blocked": "(1 + x|g)"}


def data(n: int = 240, seed: int = 0):
    rng = np.random.default_rng(seed)
    g, h = np.repeat(np.arange(n // 10), 10), rng.integers(0, 6, n)
    year = rng.integers(1995, 2021, n).astype(float)
    frame = pd.DataFrame(
        {
            "year": year,
            "x": (year - 2008) / 10,
            "g": pd.Categorical([f"g{i}" for i in g]),
            "h": pd.Categorical([f"h{i}" for i in h]),
        }
    )
    Y = rng.normal(size=(5, n)) + rng.normal(size=(5, n // 10))[:, g]
    Y += rng.normal(size=(5, 6))[:, h] + 0.01 * (year - 2008) ** 2
    return frame, Y


def design(frame: pd.DataFrame):
    return np.column_stack([np.ones(len(frame)), frame["year"], frame["year"] ** 2])


def assert_as_orthonormal(result, frame, Y, random, weights=None, tolerance=1e-7) -> None:
    """The fit equals the one with Q in place of X = Q R."""
    X = design(frame)
    Q, R = np.linalg.qr(X if weights is None else X * np.sqrt(weights)[:, None])
    X_whitened = X @ np.linalg.inv(R) if weights is not None else Q
    columns = {f"q{i}": X_whitened[:, i] for i in range(3)}
    model = fm.MultiLMM.from_formula(
        "~ 0 + q0 + q1 + q2", random, frame.assign(**columns), Y, weights=weights
    )
    method = result.method
    other = model.fit(method, parameter_space="psd", engine="general")
    inverse = np.linalg.inv(R)
    se = np.sqrt(np.diagonal(inverse @ other.cov_params().to_numpy() @ inverse.T, 0, 1, 2))
    beta = other.params.to_numpy() @ inverse.T
    assert (np.abs(result.params.to_numpy() - beta) < tolerance * se).all()
    assert_allclose(result.bse, se, rtol=tolerance)
    assert_allclose(result.theta, other.theta, rtol=10 * tolerance, atol=1e-8)
    lower = np.log(np.abs(np.diag(R))).sum() if method == "REML" else 0.0
    assert_allclose(result.llf, other.llf - lower, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("engine", RANDOM)
def test_raw_powers_of_a_year(engine, method):
    """Condition number 3e5: X'X keeps five digits (log-likelihoods off by 4e-4 without a root)."""
    frame, Y = data()
    X = design(frame)
    assert np.linalg.cond(X / np.linalg.norm(X, axis=0)) > 1e5
    model = fm.MultiLMM.from_formula(YEARS, RANDOM[engine], frame, Y)
    assert model.stats.XX_root is not None
    result = model.fit(method, parameter_space="psd", engine=engine)
    assert_as_orthonormal(result, frame, Y, RANDOM[engine])


def test_weights():
    frame, Y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(frame))
    model = fm.MultiLMM.from_formula(YEARS, "(1|g)", frame, Y, weights=weights)
    assert_as_orthonormal(model.fit(parameter_space="psd"), frame, Y, "(1|g)", weights=weights)


def test_blocks_in_any_order():
    """A source that can be read once: every block brings its root."""
    frame, Y = data()
    order = np.random.default_rng(2).permutation(len(frame))

    def blocks():
        for part in np.array_split(order, 5):
            yield part, Y[:, part]

    model = fm.MultiLMM.from_formula(YEARS, "(1|g)", frame, blocks())
    assert_as_orthonormal(model.fit(parameter_space="psd"), frame, Y, "(1|g)")


def parts(frame, Y, *cuts):
    whole = fm.MultiLMM.from_formula(YEARS, "(1|g)", frame, Y)
    pieces = [
        fm.MultiLMM.from_formula(YEARS, "(1|g)", frame.iloc[here], Y[:, here]).stats
        for here in (slice(*cut) for cut in cuts)
    ]
    return whole, pieces


def test_sites_add_up(tmp_path):
    frame, Y = data()
    whole, (first, second) = parts(frame, Y, (0, 100), (100, 240))
    first.save(tmp_path / "first.nc")
    total = fm.SummaryStats.load(tmp_path / "first.nc") + second
    root = total.XX_root
    assert_allclose(np.abs(root), np.abs(whole.stats.XX_root), rtol=1e-7)
    result = fm.MultiLMM.from_summary_stats(total).fit(parameter_space="psd")
    assert_as_orthonormal(result, frame, Y, "(1|g)")


def test_a_loaded_result_knows_the_root(tmp_path):
    frame, Y = data()
    result = fm.MultiLMM.from_formula(YEARS, "(1|g)", frame, Y).fit(parameter_space="psd")
    result.save(tmp_path / "result.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "result.nc")
    assert_allclose(loaded.t_test().ds["df"], result.t_test().ds["df"], rtol=1e-12)
    assert_allclose(loaded.cov_params(), result.cov_params(), rtol=1e-12)


def test_without_the_column_that_depends_no_root_is_left():
    frame, Y = data()
    model = fm.MultiLMM.from_formula("~ x + year + I(year**2)", "(1|g)", frame.assign(x=Y[0]), Y)
    assert model.stats.XX_root is not None
    fewer = model.drop(fixed="I(year ** 2)").drop(fixed="year")
    assert fewer.stats.XX_root is None
    both = model.drop(fixed="x")
    assert_as_orthonormal(both.fit(parameter_space="psd"), frame, Y, "(1|g)")


def test_statistics_without_a_root_warn():
    frame, Y = data()
    stats = fm.MultiLMM.from_formula(YEARS, "(1|g)", frame, Y).stats
    bare = {name: getattr(stats, name) for name in ("n", "XX", "XY", "ZX", "ZY", "ZZ", "yy")}
    with pytest.warns(PrecisionWarning, match=r"'x1', 'x2', 'x3' .*condition number of X 3e\+05"):
        fm.MultiLMM.from_summary_stats(bare).fit(parameter_space="psd")


def test_exact_dependence_is_still_refused():
    frame, Y = data()
    with pytest.raises(InputError, match=r"rank 3 but 4 columns: 'I\(2 \* year\)' is a linear"):
        fm.MultiLMM.from_formula("~ year + I(2 * year) + I(x**2)", "(1|h)", frame, Y).fit()
    near = frame.assign(again=frame["year"] + 1e-5 * frame["x"] ** 2)
    result = fm.MultiLMM.from_formula("~ year + again", "(1|h)", near, Y).fit(parameter_space="psd")
    assert result.converged.all()


def test_exact_fits_are_told():
    """What X and Z explain is told from rounding, though X'X has few digits."""
    frame, Y = data()
    X, levels = design(frame), frame["g"].cat.codes.to_numpy()
    exact = X @ [2008.0, -2.0, 0.001] + np.random.default_rng(3).normal(size=24)[levels]
    noisy = exact + 1e-3 * Y[0]
    model = fm.MultiLMM.from_formula(YEARS, "(1|g)", frame, np.stack([exact, X[:, 2], noisy]))
    with pytest.warns(ConvergenceWarning, match="1 zero variance, 1 perfect fit"):
        status = model.fit(parameter_space="psd").status.tolist()
    assert status == ["perfect fit", "zero variance", "converged"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 6))
def test_roots_add_up(seed, p, cuts):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(20, p)) @ np.diag(10.0 ** rng.integers(-3, 4, p))
    root = root_of_rows(np.array_split(X, cuts + 1), p)
    assert_allclose(root.T @ root, X.T @ X, rtol=1e-10, atol=1e-12 * np.abs(X.T @ X).max())
    assert (np.tril(root, -1) == 0).all()


def test_columns_of_zeros_do_not_count():
    X = np.column_stack([np.ones(6), np.arange(6.0), np.zeros(6)])
    assert not near_collinear(X.T @ X)
    X[:, 2] = X[:, 1] + 1e-6 * np.arange(6) ** 2
    assert near_collinear(X.T @ X)
