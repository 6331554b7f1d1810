"""What features with rows of their own cost: no threads of BLAS, few calls of the dense stack."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from threadpoolctl import threadpool_info, threadpool_limits

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.likelihood.own_rows.elimination import left_by_border
from flashmm.likelihood.own_rows.own_rows import OwnRowsLikelihood
from flashmm.likelihood.own_rows.sweep import planes, sweep, unplaned
from flashmm.stats import own_rows_sums

M, N, SUBJECTS = 120, 80, 20


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(5)
    samples = pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "subject": pd.Categorical(np.arange(N) * SUBJECTS // N),
            "batch": pd.Categorical(rng.integers(0, 4, N)),
        }
    )
    Y = rng.normal(size=(M, N)) + 2.0 * rng.normal(size=(M, SUBJECTS))[:, np.arange(N) // 4]
    Y[rng.random(Y.shape) < 0.1] = np.nan
    return samples, Y, rng.lognormal(size=Y.shape)


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_hold_blas_to_one_thread(given, weighted, monkeypatch):
    samples, Y, W = given
    seen, original = [], own_rows_sums.add_design_sums

    def watched(*args):
        seen.extend(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")
        original(*args)

    monkeypatch.setattr(own_rows_sums, "add_design_sums", watched)
    with threadpool_limits(2, user_api="blas"):
        before = {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}
        if before != {2}:
            pytest.skip("BLAS has no threads here")
        weights = {"weights": W} if weighted else {}
        fm.MultiLMM.from_formula("~ x", "(1|subject)", samples, Y, missing="feature", **weights)
    assert set(seen) == {1}


@pytest.mark.parametrize("random", ["(1|subject)", "(1|subject) + (1|batch)"])
def test_few_points_go_to_the_dense_stack(given, random, monkeypatch):
    """A first step often ends at a residual variance of zero: no likelihood, and no stack."""
    samples, Y, W = given
    model = fm.MultiLMM.from_formula("~ x", random, samples, Y, missing="feature", weights=W)
    handed, original = [], OwnRowsLikelihood.stack

    def counted(self, features):
        handed.append(features.size)
        return original(self, features)

    with monkeypatch.context() as patch:
        patch.setattr(OwnRowsLikelihood, "stack", counted)
        ours = model.fit(parameter_space="psd")
    stack = model.fit(parameter_space="psd", engine="general")
    assert sum(handed) <= M // 20
    assert ours.status.tolist() == stack.status.tolist()
    assert_allclose(ours.llf, stack.llf, rtol=1e-10)
    assert_allclose(ours.theta, stack.theta, rtol=1e-6, atol=1e-8)


def test_sweeping_inverts_pivot_by_pivot():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(70, 5, 9))
    A = np.matmul(root, np.swapaxes(root, 1, 2))
    whole = planes(A)
    pivots, safe = sweep(whole, range(5))
    assert safe.all()
    assert_allclose(-unplaned(whole), np.linalg.inv(A), rtol=1e-9, atol=1e-12)
    assert_allclose(np.log(pivots).sum(axis=0), np.linalg.slogdet(A)[1], rtol=1e-12)
    part = planes(A)
    sweep(part, range(2))
    rest = A[:, 2:, 2:] - A[:, 2:, :2] @ np.linalg.inv(A[:, :2, :2]) @ A[:, :2, 2:]
    assert_allclose(unplaned(part)[:, 2:, 2:], rest, rtol=1e-9, atol=1e-12)
    _, safe = sweep(planes(-A), range(5))
    assert not safe.any()


def test_dependent_columns_of_the_border_do_not_count():
    """Batches sum to the intercept, whatever else there is: rank and residual are lstsq's."""
    rng = np.random.default_rng(1)
    one = np.column_stack([np.eye(4)[rng.integers(0, 4, 30)], np.ones(30), rng.normal(size=30)])
    y = rng.normal(size=(3, 30))
    F = np.stack([np.column_stack([one, each]) for each in y])
    rss, rank = left_by_border(np.matmul(np.swapaxes(F, 1, 2), F), 1e-10)
    assert rank.tolist() == [5.0, 5.0, 5.0]
    left = y.T - one @ np.linalg.lstsq(one, y.T, rcond=None)[0]
    assert_allclose(rss, (left**2).sum(axis=0), rtol=1e-10)


def test_a_device_is_refused_with_what_to_do(given):
    samples, Y, _ = given
    model = fm.MultiLMM.from_formula("~ x", "(1|subject)", samples, Y[:9], missing="feature")
    with pytest.raises(InputError, match=r"differ by feature. Leave `device` out"):
        model.fit(device="cpu")


def test_a_search_that_runs_to_the_edge_ends_where_the_stacks_does():
    """V turns singular in the border: the elimination's domain ended at 1e-10, "stalled"."""
    rng = np.random.default_rng(326)
    subjects, each = int(rng.integers(4, 14)), int(rng.integers(2, 6))
    n = subjects * each
    batch = {"x": rng.normal(size=n), "g": np.repeat(range(subjects), each)}
    samples = pd.DataFrame(batch | {"b": rng.integers(0, int(rng.integers(2, 5)), n)})
    rng.integers(0, 2)
    Y = rng.normal(size=(12, n))
    Y[rng.random(Y.shape) < 0.15] = np.nan
    model = fm.MultiLMM.from_formula("~ x", "(1|g) + (1|b)", samples, Y[11:], missing="feature")
    with pytest.warns(fm.exceptions.ConvergenceWarning):
        ours, stack = (model.fit(method="ML", engine=engine) for engine in ("auto", "general"))
    assert ours.status.tolist() == stack.status.tolist() == ["no maximum"]
