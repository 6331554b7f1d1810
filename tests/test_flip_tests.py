"""Tests by sign flips: their level, step-down, and the function that a user gives."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.inference.sign_flips import Contributions, flip_tests, sign_flips

K, EACH, M = 20, 5, 300


@cache
def fitted():
    """Heavy tails, features that depend on each other, and an effect in the first five."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(K), EACH)
    data = pd.DataFrame(
        {"x": rng.normal(size=K * EACH), "trt": (g % 2).astype(float), "g": g.astype(str)}
    )
    shared = rng.standard_t(4, size=(1, K * EACH))
    Y = rng.standard_t(4, size=(M, K * EACH)) + 0.7 * shared + rng.normal(size=(M, K))[:, g]
    Y[:5] += 4.0 * data["x"].to_numpy()
    model = fm.MultiLMM.from_formula("~ x + trt + (1 | g)", data=data, Y=Y, sums_by="g")
    return model.fit(parameter_space="psd")


def test_sum_of_contributions_is_the_estimate_and_its_test():
    tests = fitted().flip_test(["x", "trt"], n_flips=1000, rng=1)
    model = fitted().t_test(["x", "trt"])
    np.testing.assert_allclose(tests.effect, model.effect)
    assert (np.sign(tests.tvalue) == np.sign(model.tvalue)).all(axis=None)
    for name in ("x", "trt"):
        others = tests.tvalue[name].iloc[5:]
        assert others.corr(model.tvalue[name].iloc[5:], method="spearman") > 0.9
    assert (tests.pvalue_fwer["x"].iloc[:5] <= 0.05).all()
    assert (tests.pvalue_fwer["x"].iloc[5:] > 0.05).sum() >= M - 8
    assert (tests.pvalue_fwer >= tests.pvalue).all(axis=None)
    assert 0.02 < float((tests.pvalue["trt"] < 0.05).mean()) < 0.10


def test_reproducible_by_rng_and_one_sided():
    result = fitted()
    one, other = (result.flip_test("x", n_flips=200, rng=3).pvalue for _ in range(2))
    pd.testing.assert_frame_equal(one, other)
    up = result.flip_test("x", n_flips=200, rng=3, alternative="greater")
    down = result.flip_test("x", n_flips=200, rng=3, alternative="less")
    assert (up.pvalue["x"].iloc[:5] < 0.02).all()
    assert (down.pvalue["x"].iloc[:5] > 0.9).all()
    shifted = result.flip_test("x = 4", n_flips=200, rng=3)
    assert (shifted.pvalue.iloc[:5] > 0.05).all(axis=None)


def slow(found, signs):
    """Step-down max-T of absolute statistics, as Westfall and Young (1993) define it."""
    T = np.abs(signs @ found.score) / np.sqrt((found.score**2).sum(axis=0))
    left = found.variance - sum((signs @ part) ** 2 for part in found.nuisance)
    T = T / np.sqrt(left / found.variance)
    order = np.argsort(-T[0])
    adjusted, last = np.empty(order.size), 0.0
    for i, j in enumerate(order):
        largest = T[:, order[i:]].max(axis=1)
        last = max(last, float(np.mean(largest >= T[0, j] - 1e-9)))
        adjusted[j] = last
    return (T[0] - 1e-9 <= T).mean(axis=0), adjusted


def test_step_down_by_hand_over_all_flips():
    rng = np.random.default_rng(2)
    k, m = 7, 6
    found = Contributions(
        rng.normal(size=(k, m)), 0.2 * rng.normal(size=(1, k, m)), rng.uniform(6, 9, m)
    )
    signs = sign_flips(k, 100, rng, "two-sided")
    assert signs.shape == (64, 7)
    assert len({tuple(row) for row in signs}) == 64
    tests = flip_tests(found, signs, "two-sided")
    p, adjusted = slow(found, signs)
    np.testing.assert_allclose(tests.p, p)
    np.testing.assert_allclose(tests.adjusted, adjusted)
    assert sign_flips(3, 100, rng, "greater").shape == (8, 3)
    assert sign_flips(30, 100, rng, "greater").shape == (100, 30)


def test_family_wise_level():
    """120 families of 40 features that depend on each other: rate of any rejection at 0.05."""
    rng = np.random.default_rng(5)
    k, m, families = 12, 40, 120
    signs = sign_flips(k, 400, rng, "two-sided")
    any_rejected = 0
    for _ in range(families):
        score = rng.normal(size=(k, 1)) + rng.normal(size=(k, m))
        found = Contributions(score, np.zeros((0, k, m)), np.ones(m))
        any_rejected += bool((flip_tests(found, signs, "two-sided").adjusted <= 0.05).any())
    assert any_rejected <= 13  # 6 expected; 13 or fewer with probability 0.997


def test_a_neighbourhood_statistic_and_features_without_an_estimate():
    seen = []

    def smoothed(T):
        seen.append(T.shape)
        padded = np.pad(T, ((0, 0), (1, 1)))
        return (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3

    result = fitted()
    tests = result.flip_test("x", n_flips=100, rng=1, statistic=smoothed, features=slice(0, 40))
    plain = result.flip_test("x", n_flips=100, rng=1, features=slice(0, 40))
    t = plain.tvalue["x"].to_numpy()
    assert tests.tvalue["x"].iloc[2] == pytest.approx(t[1:4].mean())
    assert {shape[1] for shape in seen} == {40}
    for wrong, message in [(3, "function"), (lambda T: T[:, :1], "statistic")]:
        with pytest.raises(fm.InputError, match=message):
            result.flip_test("x", n_flips=10, statistic=wrong)
    with pytest.raises(fm.InputError, match="n_flips"):
        result.flip_test("x", n_flips=1)
    table = tests.top_table(n=3, sort_by="t")
    assert list(table.columns) == ["estimate", "t", "p", "p_fwer", "p_adjusted", "status"]
