"""The calibration study: what it draws, and what its committed rates say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.formulas.build import build_design

FOLDER = Path(__file__).parents[1] / "docs" / "calibration"


def load():
    spec = importlib.util.spec_from_file_location("calibration_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = load()


@pytest.mark.parametrize("components", [1, 2])
def test_the_statistics_drawn_are_those_of_such_samples(components):
    setting = run.Setting(10, False, components)
    m = 40_000
    stats = run.simulate(setting, m, np.random.default_rng(1), effect=0.5)
    design = build_design(
        "~ group + condition", run.RANDOM[components], run.samples(setting)
    ).design
    X, Z = design.X, design.Z.toarray()
    like = fm.SummaryStats.from_arrays(np.zeros((1, len(X))), X, Z, components=design.structure)
    for name in ("n", "XX", "ZX"):
        assert_allclose(getattr(stats, name), getattr(like, name), atol=1e-12)
    assert_allclose(stats.ZZ.toarray(), like.ZZ.toarray(), atol=1e-12)
    # E(sigma2) = 8/6, given which W'y is normal with variance sigma2 W'VW.
    W = np.hstack([X, Z])
    variances = [run.INTERCEPT, run.SLOPE][: len(design.structure.terms)]
    D = np.concatenate(
        [np.full(t.n_columns, v) for t, v in zip(design.structure.terms, variances, strict=True)]
    )
    V = (Z * D) @ Z.T + np.eye(len(X))
    mean_sigma2 = run.PRIOR_DF / (run.PRIOR_DF - 2)
    expected = mean_sigma2 * W.T @ V @ W
    fixed = W.T @ X @ np.array([0.0, 0.5, 0.5])
    drawn = np.vstack([stats.XY, stats.ZY])
    unit = np.sqrt(np.diag(expected))
    root = np.sqrt(run.PRIOR_DF / np.random.default_rng(2).chisquare(run.PRIOR_DF, 10**6)).mean()
    assert_allclose(drawn.mean(axis=1) / unit, root * fixed / unit, atol=5 / np.sqrt(m))
    second = drawn @ drawn.T / m
    mean_square = expected + mean_sigma2 * np.outer(fixed, fixed)
    scale = np.sqrt(np.outer(np.diag(mean_square), np.diag(mean_square)))
    assert_allclose(second / scale, mean_square / scale, atol=0.04)
    square = mean_sigma2 * (np.trace(V) + 0.25 * np.sum((X[:, 1] + X[:, 2]) ** 2))
    assert_allclose(stats.yy.mean(), square, rtol=0.02)


def test_a_short_study_runs_and_repeats():
    rows = run.study(run.Setting(6, True, 1), 40, seed=1)
    table = pd.DataFrame(rows)
    assert set(table["method"]) == set(run.METHODS)
    assert set(table["space"]) == set(run.SPACES)
    assert (table["rejected"] <= table["tested"]).all()
    again = pd.DataFrame(run.study(run.Setting(6, True, 1), 40, seed=1))
    pd.testing.assert_frame_equal(table, again)


@pytest.fixture(scope="module")
def rates():
    table = pd.read_csv(FOLDER / "rates.csv")
    table["rate"] = table["rejected"] / table["tested"]
    table["error"] = np.sqrt(table["level"] * (1 - table["level"]) / table["tested"])
    return table


def test_the_committed_study_is_complete(rates):
    null = rates[rates["size"] == 0]
    assert (null["features"] == 20_000).all()
    assert set(null["level"]) == set(run.LEVELS)
    keys = ["subjects", "design", "components", "space", "effect", "method", "level"]
    assert not null.duplicated(keys).any()
    sizes = [null[key].nunique() for key in keys]
    assert sizes == [4, 2, 2, 2, 2, len(run.METHODS), 4]
    assert len(null) == np.prod(sizes)


def test_satterthwaite_and_kenward_roger_hold_their_level_from_25_subjects_on(rates):
    """Within 4 Monte Carlo errors at levels down to 0.001, whatever the space."""
    null = rates[(rates["size"] == 0) & (rates["subjects"] >= 25)]
    null = null[null["level"] >= 0.001]
    excess = (null["rate"] - null["level"]) / null["error"]
    held = null["method"].isin(["satterthwaite", "kenward-roger"])
    assert held.sum() == 2 * 2 * 2 * 2 * 2 * 3 * 2
    assert (excess[held].abs() < 4).all(), null[held & (excess.abs() >= 4)]
    residual = null["method"] == "residual"
    few = residual & (null["effect"] == "between") & (null["subjects"] == 25)
    assert (excess[few & (null["level"] < 0.05)] > 4).all()
