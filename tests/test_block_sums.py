"""Sums of sparse blocks by code are the dense products, whatever X and Z look like."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

import flashmm.designs.compact as module
from flashmm.sources import Block
from flashmm.stats.block_sums import block_sums, design_columns

N, M = 400, 7


def factor(levels: int, seed: int) -> np.ndarray:
    return np.eye(levels)[np.random.default_rng(seed).integers(0, levels, N)]


RNG = np.random.default_rng(0)
X_KINDS = {
    "intercept": np.ones((N, 1)),
    "continuous": RNG.normal(size=(N, 7)),
    "factors": np.hstack([factor(5, 1), factor(4, 2)]),
    "factors and continuous": np.hstack([RNG.normal(size=(N, 1)), factor(6, 1), factor(3, 2)]),
    "interaction with a continuous one": np.hstack(
        [factor(8, 1), factor(8, 1) * RNG.normal(size=(N, 1))]
    ),
    "contrasts": np.hstack([np.ones((N, 1)), factor(9, 3) @ RNG.normal(size=(9, 6))]),
}
Z_KINDS = {
    "one factor": factor(12, 4),
    "two factors": np.hstack([factor(12, 4), factor(3, 5)]),
    "slopes": np.hstack([factor(6, 4), factor(6, 4) * RNG.normal(size=(N, 1))]),
    "rows without an element": factor(6, 4) * (RNG.random((N, 1)) < 0.5),
    "dense": RNG.normal(size=(N, 3)),
    "no elements": np.zeros((N, 2)),
}


def check(values, X, Z, samples=slice(0, N), weights=None, dense=None):
    dense = values.toarray() if dense is None else dense
    sums = block_sums(
        Block(slice(0, M), samples, values), design_columns(X, sp.csr_array(Z)), weights
    )
    w = np.ones(N) if weights is None else weights
    here, w = np.arange(N)[samples], w[samples]
    np.testing.assert_allclose(sums.XY, X[here].T @ (dense * w).T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums.ZY, Z[here].T @ (dense * w).T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums.yy, (dense**2 * w).sum(axis=1), rtol=1e-12)


def block(seed: int = 6, n: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(0.3, size=(M, n)).astype(float)


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array])
@pytest.mark.parametrize("Z", Z_KINDS)
@pytest.mark.parametrize("X", X_KINDS)
def test_sums_are_the_dense_products(X, Z, kind):
    check(kind(block()), X_KINDS[X], Z_KINDS[Z])


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array, np.asarray])
@pytest.mark.parametrize("weighted", [False, True])
def test_some_samples_in_any_order_with_weights(kind, weighted):
    weights = np.random.default_rng(7).gamma(2.0, size=N) if weighted else None
    X, Z = X_KINDS["factors and continuous"], Z_KINDS["slopes"]
    for samples in (slice(50, 170), np.random.default_rng(8).permutation(N)[:90]):
        values = block(n=len(np.arange(N)[samples]))
        check(kind(values), X, Z, samples, weights, dense=values)


def test_samples_sorted_by_group_take_the_short_way():
    order = np.argsort(Z_KINDS["one factor"].argmax(axis=1), kind="stable")
    X, Z = X_KINDS["factors"][order], Z_KINDS["one factor"][order]
    check(sp.csc_array(block()), X, Z)
    twice = np.concatenate([order[::2], order[1::2]])  # every group in two runs
    check(sp.csc_array(block()), X_KINDS["factors"][twice], Z_KINDS["one factor"][twice])


def test_factor_like_columns_are_found():
    columns = design_columns(X_KINDS["factors and continuous"], sp.csr_array(np.eye(N)))
    assert columns.parts.in_dense.tolist() == [0]
    distinct = np.unique(X_KINDS["factors and continuous"][:, 1:], axis=0)
    assert columns.parts.grouped.count == len(distinct)
    assert design_columns(X_KINDS["continuous"], sp.csr_array(np.eye(N))).parts.grouped is None


def test_rows_that_only_look_alike_are_told_apart(monkeypatch):
    """Different rows with the same image under the projection fall back to direct products."""
    X = X_KINDS["factors"]

    class Zero:
        def normal(self, size):
            return np.zeros(size)

    with monkeypatch.context() as patch:
        patch.setattr(module.np.random, "default_rng", lambda _: Zero())
        columns = design_columns(X, sp.csr_array(np.eye(N)))
    assert columns.parts.grouped is None
    np.testing.assert_array_equal(columns.parts[:], X)


def test_a_rare_value_that_the_first_look_misses_stays_right():
    X = np.hstack([np.ones((5000, 1)), np.eye(5)[np.arange(5000) % 5]])
    X[1234, 3] = 0.25  # the first look takes every fourth row
    Z = np.eye(3)[np.arange(5000) % 3]
    values = np.random.default_rng(1).poisson(0.3, size=(2, 5000)).astype(float)
    columns = design_columns(X, sp.csr_array(Z))
    sums = block_sums(Block(slice(0, 2), slice(0, 5000), sp.csc_array(values)), columns)
    np.testing.assert_allclose(sums.XY, X.T @ values.T, rtol=1e-12)
