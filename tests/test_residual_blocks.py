"""Residual variances by group: blocks of levels beside a border give what one matrix of Z gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.likelihood import make_likelihood, project_any
from flashmm.likelihood.residual_groups import block_sums, groups
from flashmm.likelihood.residual_groups.blocks import BlockAt
from flashmm.stats.groups import with_residual_groups

# Of each model: columns of a block, blocks, and columns of Z in the border.
DESIGNS = {
    "(1 + x | g)": (2, 9, 0),
    "(1 | g) + (1 | h)": (1, 9, 4),
    "(1 + x | g) + (1 + x | h)": (2, 9, 8),
    "(1 | g) + (0 + x | g) + (1 | h)": (2, 9, 4),
    "(1 | g/c)": (1, 27, 9),
    "cs(0 + c | g)": (3, 9, 0),
    "ar1(t | g)": (4, 9, 0),
    "exp(t | g) + (1 | h)": (4, 9, 4),
    "(1 | h)": (1, 4, 0),
}


def likelihood(random, method):
    """Of two features, and its dense twin."""
    rng = np.random.default_rng(4)
    n = 120
    data = pd.DataFrame({"x": rng.normal(size=n), "t": np.tile(range(4), 30)})
    for name, levels in (("g", 9), ("h", 4), ("c", 3), ("batch", 3)):
        data[name] = pd.Categorical([f"{name} {i}" for i in rng.integers(0, levels, n)])
    Y = rng.normal(size=(2, n)) + 5.0
    model = fm.MultiLMM.from_formula(f"~ x + {random}", data=data, Y=Y, sums_by="batch")
    found = make_likelihood(project_any(with_residual_groups(model.stats, "batch")), method)
    twin = replace(found)
    twin.__dict__["blocks"] = block_sums.BlockSums.make(
        found.S, found.n, found.projection.structure, dense=True
    )
    twin.__dict__["diagonal"] = found.__dict__["diagonal"] = None
    return found, twin


def thetas(likelihood):
    """In internal units: inside the cone, with variances of zero, with negative ones, outside."""
    structure = likelihood.projection.structure
    variance = structure.is_variance
    theta = np.where(variance, 0.5, 0.2) * np.ones((5, 1))
    theta[:, -3:] = np.array([0.7, 1.3, 2.1])
    D = np.arange(theta.shape[1]) < theta.shape[1] - 3
    theta[1, D] = 0.0
    theta[2, D] = np.where(variance[D], 0.4, 0.4)  # of rank one where there are covariances
    theta[3, D] = np.where(variance[D], -0.004, 0.0)
    theta[4, D] = np.where(variance[D], -9.0, 0.0)
    return theta


def everything(likelihood, theta):
    features, L = np.zeros(len(theta), dtype=int), np.array([[[1.0, 0.0]], [[0.5, -2.0]]])
    at = likelihood.evaluate(theta, features)
    found = {name: getattr(at, name) for name in at.__match_args__}
    inside = np.isfinite(at.loglik)
    theta, features = theta[inside], features[inside]
    found["beta"], found["variance"] = likelihood.fixed_effects(theta, features)
    found["covariance"] = likelihood.covariance(theta, features)
    for se in ("conditional", "prediction"):
        effects = likelihood.random_effects(theta, features, se)
        found["blup"], found[se] = effects.blup, effects.se
    q = likelihood.projection.structure.q
    rows = np.random.default_rng(1).normal(size=(len(theta), 3, q))
    found["T"] = likelihood.apply_T(theta, rows)
    moments = likelihood.contrast_moments(theta, L, adjustment=True)
    found |= {name: getattr(moments, name) for name in moments.__match_args__}
    found["distance"] = likelihood.distance_to_edge(theta)
    return found


def assert_same(got, truth):
    for name, values in truth.items():
        known = np.isfinite(values)
        assert (np.isfinite(got[name]) == known).all(), name
        assert_allclose(
            got[name][known], values[known], rtol=1e-8, atol=1e-10 * np.abs(values[known]).max()
        )


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("random", DESIGNS)
def test_blocks_equal_one_matrix(random, method):
    """Every number that the likelihood gives; n x n matrices are in test_residual_groups."""
    mine, dense = likelihood(random, method)
    s, L, b = DESIGNS[random]
    assert (mine.blocks.s, mine.blocks.L, mine.blocks.b) == (s, L, b)
    assert dense.blocks.L == 0
    theta = thetas(mine)
    got, truth = everything(mine, theta), everything(dense, theta)
    assert np.isfinite(truth["loglik"]).tolist() == [True, True, True, True, False]
    assert_same(got, truth)


def test_least_squares():
    """Of each group on its Z and X; a group that these explain whatever the data is told."""
    mine, _ = likelihood("(1 + x | g) + (1 | h)", "REML")
    rss = mine.blocks.least_squares(mine.s, mine.yy)
    for h in range(3):
        values, vectors = np.linalg.eigh(mine.S[h])
        held = values > 1e-10 * values[-1]
        along = mine.s[:, h] @ (vectors[:, held] / np.sqrt(values[held]))
        assert held.sum() < mine.n[h]
        assert_allclose(rss[:, h], mine.yy[:, h] - (along**2).sum(axis=1), rtol=1e-9)
    few = replace(mine.blocks, n=np.array([5.0, 100.0, 100.0]))
    assert np.isinf(few.least_squares(mine.s, mine.yy)).tolist() == [[True, False, False]] * 2


def test_what_blocks_cannot_tell(monkeypatch):
    """Blocks that are indefinite although V is definite."""
    monkeypatch.setattr(block_sums, "_work", lambda L, s, b: -b if L else 1)  # noqa: ARG005
    mine, dense = likelihood("(1 | g) + (1 | g:h)", "REML")
    assert (mine.blocks.L, mine.blocks.b) == (9, 34)
    theta = np.tile([-0.9, 9.0, 0.7, 1.3, 2.1], (3, 1))
    theta[1, :2] = 0.5, 0.5
    at = BlockAt.of(mine.blocks, theta)
    assert (at.least < 0).tolist() == [True, False, True]
    got, truth = everything(mine, theta), everything(dense, theta)
    assert np.isfinite(truth["loglik"]).all()
    assert_same(got, truth)


def test_a_border_that_cannot_help_is_not_tried(monkeypatch):
    """More directions below zero than the border has positive variances: outside, and cheap."""
    mine, _ = likelihood("(1 | g) + (1 | h)", "REML")
    assert (mine.blocks.L, mine.blocks.b) == (9, 4)
    theta = np.array([[-9.0, 0.5, 0.7, 1.3, 2.1]])
    at = BlockAt.of(mine.blocks, theta)
    assert at.negative[0] > 4
    monkeypatch.setattr(type(mine), "dense", property(lambda _: pytest.fail("tried")))
    assert mine.evaluate(theta, np.array([0])).loglik[0] == -np.inf


def test_sums_that_are_too_large_are_refused(monkeypatch):
    """Dense sums of all groups have a limit, told in GiB."""
    monkeypatch.setattr(groups, "_MOST_BYTES", 1000)
    with pytest.raises(fm.InputError, match="3 groups over 9 random effects take"):
        likelihood("(1 | g)", "REML")
