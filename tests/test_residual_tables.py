"""Residual variances by group, one component: the ways to sum over levels give the same numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.likelihood.residual_groups import groups
from flashmm.likelihood.residual_groups.level_evaluation import evaluated
from flashmm.likelihood.residual_groups.level_traces import typical_ratios
from flashmm.likelihood.residual_groups.levels import DiagonalAt, DiagonalSums
from flashmm.likelihood.residual_groups.tables import Packing, inverse_of_definite

DESIGNS = {
    "crossed": lambda rng: rng.integers(1, 30, (3, 12)),
    "nested": lambda rng: rng.integers(1, 30, 12) * (np.arange(12) % 3 == np.arange(3)[:, None]),
    "alike": lambda rng: rng.integers(1, 3, (2, 40)),
    "many": lambda rng: rng.integers(5, 30, (3, 40)),
    "a level of none": lambda rng: rng.integers(0, 2, (2, 12)) * np.r_[[0], np.ones(11, int)],
}


def sums(name, p, most):
    """Of random samples: a table of n_lh, and sums of p columns over them."""
    rng = np.random.default_rng(7)
    d = DESIGNS[name](rng)
    H, q = d.shape
    group, level = (np.repeat(index.ravel(), d.ravel()) for index in np.indices(d.shape))
    X = rng.normal(size=(group.size, p))
    y = rng.normal(size=(20, group.size)) + rng.normal(size=(20, q))[:, level]
    U, XX = np.zeros((H, q, p)), np.zeros((H, p, p))
    s, yy = np.zeros((20, H, q + p)), np.zeros((20, H))
    np.add.at(U, (group, level), X)
    for h in range(H):
        here = group == h
        XX[h] = X[here].T @ X[here]
        for j in range(20):
            s[j, h, :q] = np.bincount(level[here], y[j, here], q)
        s[:, h, q:], yy[:, h] = y[:, here] @ X[here], (y[:, here] ** 2).sum(axis=1)
    n = d.sum(axis=1).astype(float)
    return DiagonalSums.make(d.astype(float), U, XX, n, most), s, yy, (group, level, X, y)


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("p", [0, 1, 3])
@pytest.mark.parametrize("name", DESIGNS)
def test_tables_equal_level_by_level(name, p, reml):
    """Inside the cone, and with a variance below zero; some features outside the domain."""
    tables, s, yy, _ = sums(name, p, 2**25)
    levels = sums(name, p, -1)[0]
    assert tables.tables is not None
    assert levels.tables is None
    assert (name in ("alike", "a level of none")) == (tables.tables.k < tables.d.shape[1])
    rng = np.random.default_rng(1)
    theta = rng.uniform(0.1, 2.0, (20, 1 + tables.n.size))
    theta[:4, 0] = -0.4 * theta[:4, 1:].min(axis=1) / tables.d.sum(axis=0).max()
    theta[4, 0] = -50.0
    with np.errstate(all="ignore"):
        first, second = (
            evaluated(DiagonalAt.of(kind, theta), theta, s, yy, reml=reml)
            for kind in (tables, levels)
        )
    inside = np.arange(20) != 4
    for field in ("loglik", "score", "expected", "average"):
        mine, other = getattr(first, field)[inside], getattr(second, field)[inside]
        assert_allclose(mine, other, rtol=1e-9, atol=1e-11 * np.abs(other).max())
    assert DiagonalAt.of(tables, theta).lowest[4] < 0


@pytest.mark.parametrize("most", [2**25, -1])
def test_evaluations_on_the_way(most):
    """All but the expected information is exact, and that is to a few thousandths."""
    kind, s, yy, _ = sums("many", 4, most)
    ratios = typical_ratios(kind)
    assert ratios is not None
    assert typical_ratios(sums("crossed", 3, most)[0]) is None  # too few levels to gain by it
    theta = np.random.default_rng(1).uniform(0.1, 2.0, (20, 4))
    at = DiagonalAt.of(kind, theta)
    exact = evaluated(at, theta, s, yy, reml=True)
    rough = evaluated(at, theta, s, yy, reml=True, ratios=ratios)
    for field in ("loglik", "score", "average"):
        mine, other = getattr(rough, field), getattr(exact, field)
        assert_allclose(mine, other, rtol=1e-9, atol=1e-11 * np.abs(other).max())
    length = np.sqrt(np.diagonal(exact.expected, axis1=1, axis2=2))
    error = (rough.expected - exact.expected) / (length[:, :, None] * length[:, None])
    assert 0.0 < np.abs(error).max() < 5e-3


def test_what_a_search_ends_with_is_exact(monkeypatch):
    """Estimates and standard errors do not show that the way there was approximate."""
    rng = np.random.default_rng(3)
    g, h = np.repeat(np.arange(40), 30), rng.integers(0, 3, 1200)
    data = pd.DataFrame({"x": rng.normal(size=1200), "g": g.astype(str), "h": h.astype(str)})
    Y = np.array([0.7, 1.0, 1.4])[h] * rng.normal(size=(30, 1200))
    Y[:25] += 0.4 * rng.normal(size=(25, 40))[:, g]
    for space in ("psd", "unconstrained"):
        found = []
        for ratios in (typical_ratios, lambda _: None):
            calls = []
            monkeypatch.setattr(
                groups,
                "typical_ratios",
                lambda sums, of=ratios, calls=calls: calls.append(of(sums)) or calls[-1],
            )
            model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="h")
            found.append(model.fit(residual_by="h", parameter_space=space))
            assert (calls[0] is None) == (ratios is not typical_ratios)
        rough, exact = found
        for name in ("theta", "bse_theta", "llf"):
            assert_allclose(getattr(rough, name), getattr(exact, name), rtol=1e-7, atol=1e-9)


def test_least_squares_and_start():
    """Residual sums of squares of the groups by least squares, and variances near the truth."""
    tables, s, yy, (group, level, X, y) = sums("crossed", 3, 2**25)
    rss = tables.least_squares(s, yy)
    for h in range(3):
        here = group == h
        A = np.column_stack([X[here], np.eye(12)[level[here]]])
        left = y[:, here] - (A @ np.linalg.lstsq(A, y[:, here].T, rcond=None)[0]).T
        assert_allclose(rss[:, h], (left**2).sum(axis=1), rtol=1e-9)
    start = tables.moments(s, yy)
    assert (start[:, 0] >= 0).all()
    assert_allclose(start.mean(axis=0), 1.0, atol=0.25)


def test_inverses():
    rng = np.random.default_rng(3)
    roots = rng.normal(size=(5, 9, 12))
    matrices = roots @ roots.swapaxes(1, 2)
    matrices[2] -= 100.0 * np.eye(9)
    inverse, log_det = inverse_of_definite(matrices)
    good = np.arange(5) != 2
    assert np.isnan(log_det[2])
    assert_allclose(inverse[good], np.linalg.inv(matrices[good]), rtol=1e-8, atol=1e-12)
    assert_allclose(log_det[good], np.linalg.slogdet(matrices[good])[1], rtol=1e-12)
    packing = Packing.of(9)
    assert_allclose(packing.unpacked(packing.packed(matrices)), matrices)
