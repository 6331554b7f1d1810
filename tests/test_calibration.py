"""The calibration study: what it draws, and what its committed rates say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import flashmm as fm
from flashmm.formulas.build import build_design

FOLDER = Path(__file__).parents[1] / "docs" / "calibration"


def load(name):
    spec = importlib.util.spec_from_file_location(f"calibration_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = load("run")


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


# ---- few subjects ------------------------------------------------------------------------------


few = load("few_subjects")


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_few_subjects_study_draws_such_samples(components, balanced):
    setting = few.Setting(6, balanced, components, 0.3, few.KINDS[components][0][1])
    table = few.samples(setting)
    assert table["subject"].nunique() == 6
    sizes = table.groupby("subject").size()
    assert sizes.nunique() == 1 if balanced else sizes.max() == 8 * sizes.min()
    statistics = few.simulate(setting, 30, np.random.default_rng(1), affected=3)
    design = build_design("~ group + condition", few.RANDOM[components], table).design
    assert_allclose(statistics.XX, design.X.T @ design.X)
    assert_allclose(statistics.ZZ.toarray(), (design.Z.T @ design.Z).toarray())
    assert statistics.n == len(table)


def test_limma_on_means_is_a_moderated_t_test_of_means():
    """Against the means, and the differences, of the samples themselves."""
    setting = few.Setting(8, True, 2, 0.3, "spread")
    table = few.samples(setting)
    rng = np.random.default_rng(3)
    Y = (
        rng.normal(size=(400, len(table)))
        + rng.normal(size=(400, 8))[:, table["subject"].str[1:].astype(int)]
    )
    design = build_design("~ group + condition", few.RANDOM[2], table).design
    statistics = fm.SummaryStats.from_arrays(
        Y, design.X, design.Z.toarray(), components=design.structure
    )
    found = few.limma_on_means(setting, statistics)
    means = pd.DataFrame(Y.T).groupby(table["subject"].to_numpy()).mean()
    X = np.column_stack([np.ones(8), np.arange(8) % 2])
    assert_allclose(found["between"], few._moderated_t(means.to_numpy(), X, 1))
    on = pd.DataFrame(Y.T)[table["condition"].to_numpy() > 0]
    off = pd.DataFrame(Y.T)[table["condition"].to_numpy() < 0]
    difference = [
        part.groupby(table["subject"].to_numpy()[part.index]).mean() for part in (on, off)
    ]
    expected = few._moderated_t((difference[0] - difference[1]).to_numpy(), np.ones((8, 1)), 0)
    assert_allclose(found["within"], expected)


def test_slopes_of_subjects_are_drawn_as_samples_have_them():
    """What [X, Z] tell of them is theirs; all of them have the moments of samples."""
    setting = few.Setting(6, False, 1, 0.3, "spread")
    table, rng = few.samples(setting), np.random.default_rng(5)
    design = build_design("~ group + condition", few.RANDOM[1], table).design
    Z, x = design.Z.toarray(), table["condition"].to_numpy()
    Y = rng.normal(size=(3000, len(table))) + rng.normal(size=(3000, 6)) @ Z.T
    statistics = fm.SummaryStats.from_arrays(Y, design.X, Z, components=design.structure)
    drawn, own = few.slopes(table, statistics), ((Y * x) @ Z).T
    assert_allclose(drawn.sum(axis=0), own.sum(axis=0), rtol=1e-8, atol=1e-8)
    assert np.abs(drawn - own).max() > 1.0
    unit = np.sqrt(np.outer(np.diag(np.cov(own)), np.diag(np.cov(own))))
    assert_allclose(np.cov(drawn) / unit, np.cov(own) / unit, atol=0.1)


def test_a_few_subjects_study_goes_on_where_it_was(tmp_path):
    """What the table has is neither run nor written again; methods and seeds join it."""
    out = tmp_path / "rates.csv"
    command = ["--subjects", "4", "--designs", "balanced", "--components", "1", "--ratios", "0.02"]
    command += ["--kinds", "spread", "--features", "40", "--out", str(out), "--methods"]
    few.main([*command, "limma on means"])
    first = out.read_text()
    few.main([*command, "limma on means", "satterthwaite"])
    both = out.read_text()
    assert both.startswith(first)
    few.main([*command, "limma on means", "satterthwaite"])
    assert out.read_text() == both
    few.main([*command, "satterthwaite", "--seed", "20260101", "7"])
    table = pd.read_csv(out)
    keys = ["method", "effect", "seed"]
    assert not table.duplicated(keys).any()
    assert table.groupby("seed")["method"].value_counts().to_dict() == {
        (7, "satterthwaite"): 2,
        (20260101, "limma on means"): 2,
        (20260101, "satterthwaite"): 2,
    }
    # Each method alone sees the data that it sees beside the others.
    again = few.study(few.Setting(4, True, 1, 0.02, "spread"), 40, 20260101, ["satterthwaite"])
    beside = table[(table["seed"] == 20260101) & (table["method"] == "satterthwaite")]
    assert [row["rejected 0.05"] for row in again] == beside["rejected 0.05"].tolist()


@pytest.mark.parametrize("components", [1, 2])
def test_the_cells_that_dream_fits_have_the_statistics(components):
    setting = few.Setting(6, False, components, 0.3, few.KINDS[components][0][1])
    statistics = few.simulate(setting, 5, np.random.default_rng(1), affected=2)
    table, random = few.samples(setting), few.RANDOM[components]
    Y = load("dream_default").responses(table, statistics, random, np.random.default_rng(2))
    design = build_design("~ group + condition", random, table).design
    assert_allclose(Y @ design.X, statistics.XY.T, rtol=1e-9, atol=1e-8)
    assert_allclose(Y @ design.Z.toarray(), statistics.ZY.T, rtol=1e-9, atol=1e-8)
    assert_allclose((Y * Y).sum(axis=1), statistics.yy, rtol=1e-10)


@pytest.fixture(scope="module")
def few_rates():
    return pd.read_csv(FOLDER / "few-subjects.csv")


def test_integrated_tests_hold_every_level_in_every_design(few_rates):
    """Rate over nominal within 1 -/+ (0.15 + 3 Monte Carlo errors), 4 subjects included."""
    null = few_rates[few_rates["method"] == "integrated"]
    keys = ["subjects", "design", "components", "ratio", "kind", "effect"]
    assert not null.duplicated(keys).any()
    assert len(null) == 2 * len(few.settings())
    assert (null.loc[null["components"] == 1, "features"] == 50_000).all()
    assert null["features"].min() >= 20_000
    assert (null["tested"] == null["features"]).all()
    for level in few.LEVELS:
        over = null[f"rejected {level:g}"] / null["features"] / level
        error = np.sqrt((1 - level) / (level * null["features"]))
        assert ((over - 1).abs() <= 0.15 + 3 * error).all(), null[(over - 1).abs() > 0.15 + error]


def test_every_method_ran_in_every_design(few_rates):
    keys = ["subjects", "design", "components", "ratio", "kind", "effect"]
    count = few_rates.groupby("method")[keys].size()
    for method in few.METHODS:
        of_one = method == few.UNCONSTRAINED  # of two most features have no such maximum
        expected = [x for x in few.settings() if not of_one or x.components == 1]
        assert count[method] == 2 * len(expected), method
    assert not few_rates.duplicated([*keys, "method"]).any()


def test_integrated_tests_have_the_power(few_rates):
    """Of limma on means but in one kind of design; of Satterthwaite where that is calibrated."""
    keys = ["subjects", "design", "components", "ratio", "kind", "effect"]
    power = few_rates.pivot_table(index=keys, columns="method", values="power")
    gain = (power["integrated"] - power["limma on means"]).dropna()
    less = [(8, "balanced", components, 0.3, "half zero", "between") for components in (1, 2)]
    assert (gain.drop(less) >= -0.001).all(), gain.min()
    assert gain.min() > -0.015
    assert gain.groupby("subjects").max().loc[4] > 0.2
    many = power[power.index.get_level_values("subjects") == 25]
    assert (many["integrated"] >= 0.97 * many["satterthwaite"]).all()
    # With effects that are not all found.
    table = pd.read_csv(FOLDER / "power-25.csv").query("effect == 'between'")
    many = table.pivot_table(index=keys, columns="method", values="power")
    assert len(many) == len([x for x in few.settings() if x.subjects == 25])
    assert (many["satterthwaite"] < 0.9).all()
    assert (many["integrated"] >= many["satterthwaite"]).all()
    assert (many["integrated"] >= many["limma on means"]).all()


def test_what_limma_on_means_finds_more_is_the_price_of_a_level_that_holds_by_feature():
    """On paired draws: one design of the closest, where the true prior does no better, and what
    is right only on average does. That rejects true nulls of variable features too often, and
    finds less with effects of one size or where fewer false discoveries are allowed."""
    table = pd.read_csv(FOLDER / "power.csv")
    keys = ["effects", "ratio", "kind", "subjects", "design"]
    wide = table.pivot_table(index=[*keys, "seed"], columns="method")
    gain = wide["power"]["integrated"] - wide["power"]["limma on means"]
    assert gain.groupby(level=keys).size().min() >= 10
    mean, error = (getattr(gain.groupby(level=keys), x)() for x in ("mean", "sem"))
    where = ("own", 0.3, "half zero", 8, "balanced")
    assert list(mean[mean < -2 * error].index) == [where]
    here = wide.xs(where, level=keys)
    power = here["power"].mean()
    assert power["integrated, true prior"] < power["integrated"] + 0.002
    assert power["pooled"] >= power["limma on means"]
    strict = here["power at 0.01"].mean()
    assert strict["integrated"] > strict["limma on means"]
    high = here["high, 0.01"].sum() / here["high"].sum() / 0.01
    assert abs(high["integrated"] - 1.0) < 0.15
    assert (high[["pooled", "limma on means"]] > 1.5).all()
    one_size = wide.xs(("one size", *where[1:]), level=keys)
    assert one_size["power"].mean().idxmax() in ("integrated", "pooled")
    assert one_size["power"]["integrated"].mean() > one_size["power"]["limma on means"].mean()
    assert (
        one_size["power at 0.01"]["integrated"].mean() > one_size["power at 0.01"]["pooled"].mean()
    )


def test_few_features_are_tested_on_the_safe_side():
    """No rate exceeds its level by 0.15 of it and what three normal errors allow, counted exactly
    since few rejections are expected; from one feature on."""
    table = pd.read_csv(FOLDER / "few-features.csv")
    module = load("few_features")
    assert len(table) == 2 * len(module.SETTINGS) * len(module.FITS)
    for level in module.LEVELS:
        as_many = stats.binom.sf(table[f"rejected {level:g}"] - 1, table["tests"], 1.15 * level)
        assert (as_many > stats.norm.sf(3)).all(), table[as_many <= stats.norm.sf(3)]


def test_integrated_tests_hold_their_level_on_data_that_the_model_did_not_draw():
    """At 0.05, within 0.15 and three standard errors between repeats; the one exchange of labels
    that Kang's two patients allow tests an interaction, and rejects too little."""
    table = pd.read_csv(FOLDER / "permuted.csv")
    table = table[table["method"] == "integrated"].set_index("data")
    rate = table["rejected 0.05"] / table["tests"] / 0.05
    several = table["repeats"] > 1
    assert several.sum() >= 10
    assert ((rate - 1).abs()[several] <= 0.15 + 3 * table["error"][several]).all(), rate
    assert (rate[~several] < 0.3).all()
    assert (table["rejected 0.001"] / table["tests"] / 0.001 < 1.3).all()


def test_the_one_exchange_of_labels_is_compared_with_real_effects():
    """Why Kang's row rejects too little; the studies are those of the table."""
    module = load("permuted")
    squares = module.between_samples()
    assert (squares["interaction"] < 2).all()
    assert squares.loc["CD14+ Monocytes", "interferon"] > 30
    assert (squares["interferon"] > squares["interaction"]).all()
    assert (squares["patient"] > squares["interaction"] - 0.1).all()
    table = pd.read_csv(FOLDER / "permuted.csv")
    assert list(table["data"].unique()) == list(module.studies())


def test_dream_with_its_defaults_rejects_too_often_with_few_subjects():
    """As the pages say; the integrated tests of the same features do not."""
    table = pd.read_csv(FOLDER / "few-subjects-dream.csv").query("effect == 'between'")
    keys = ["subjects", "design", "ratio", "kind"]
    assert len(table.drop_duplicates(keys)) >= 11
    assert (table.groupby(keys)["method"].nunique() == 4).all()
    rejected = table.query("subjects <= 6").groupby("method")[["rejected 0.01", "features"]].sum()
    features = int(rejected["features"].iloc[0])

    def chance(method):  # of so many or more
        k = int(rejected.loc[method, "rejected 0.01"])
        return stats.binomtest(k, features, 0.01, alternative="greater").pvalue

    assert chance("dream") < 1e-6
    assert chance("integrated") > 0.1
