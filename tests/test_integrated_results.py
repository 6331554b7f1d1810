"""df="integrated" where users meet it: tests, limits, predictions, priors, files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats

import flashmm as fm
from flashmm.exceptions import InputError


def data(k=6, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(8, 16, size=k)
    subject = np.repeat([f"s{i}" for i in range(k)], counts)
    return pd.DataFrame(
        {
            "subject": subject,
            "group": np.where(np.isin(subject, [f"s{i}" for i in range(0, k, 2)]), "A", "B"),
            "cls": rng.choice(["u", "v", "w"], size=subject.size),
            "x": rng.normal(size=subject.size),
        }
    )


def responses(table, m, seed=1, ratio=0.3, scale=1.0):
    rng = np.random.default_rng(seed)
    codes, _ = pd.factorize(table["subject"])
    sigma = np.sqrt(8 / rng.chisquare(8, m))[:, None]
    b = rng.normal(size=(m, codes.max() + 1)) * np.sqrt(ratio)
    Y = sigma * (b[:, codes] + rng.normal(size=(m, codes.size))) * scale
    return pd.DataFrame(Y, index=[f"g{j}" for j in range(m)])


def fitted(table, Y, fixed="~ group + cls + x", random="(1 | subject)", **options):
    model = fm.MultiLMM.from_formula(f"{fixed} + {random}", data=table, Y=Y, **options)
    return model.fit(parameter_space="psd")


@pytest.fixture(scope="module")
def table():
    return data()


@pytest.fixture(scope="module")
def result(table):
    return fitted(table, responses(table, 120))


@pytest.fixture(scope="module")
def with_trend(result):
    return result.learn_ratio_prior(trend=True, robust=True)


def at_one_ratio(result, ratio):
    """A prior with all its mass at one ratio and no moderation."""
    ds = result.ratio_prior.ds
    nearest = int(np.abs(ds["ratio"].to_numpy()[:, 0] - ratio).argmin())
    ds = ds.isel(point=[nearest]).assign(
        ratio=(("point", "param"), [[ratio]]), weight=("point", [1.0]), sigma2_df=0.0
    )
    return fm.RatioPrior(ds)


# ---- tests and limits -------------------------------------------------------------------------


def test_a_prior_at_one_ratio_gives_the_exact_t_test(table):
    Y = responses(table, 5)
    result = fitted(table, Y)
    tests = result.t_test("group[T.B]", df="integrated", prior=at_one_ratio(result, 0.4))
    columns = [table["group"] == "B", table["cls"] == "v", table["cls"] == "w", table["x"]]
    X = np.column_stack([np.ones(len(table)), *columns]).astype(float)
    Z = pd.get_dummies(table["subject"]).to_numpy(float)
    P = np.linalg.inv(np.eye(len(table)) + 0.4 * Z @ Z.T)
    C = np.linalg.inv(X.T @ P @ X)
    beta = Y.to_numpy() @ P @ X @ C
    resid = Y.to_numpy() - beta @ X.T
    df = len(table) - 5
    s2 = ((resid @ P) * resid).sum(axis=1) / df
    se = np.sqrt(s2 * C[1, 1])
    assert_allclose(tests.effect.iloc[:, 0], beta[:, 1], rtol=1e-9)
    assert_allclose(tests.sd.iloc[:, 0], se, rtol=1e-8)
    assert_allclose(tests.df.iloc[:, 0], df, rtol=1e-9)
    assert_allclose(tests.pvalue.iloc[:, 0], 2 * stats.t.sf(np.abs(beta[:, 1] / se), df), rtol=1e-8)
    limits = tests.conf_int(0.1).to_numpy()[:, 0]
    assert_allclose(limits[:, 0], beta[:, 1] - stats.t.isf(0.05, df) * se, rtol=1e-8)


def test_every_test_takes_it(result):
    one = result.t_test("group[T.B]", df="integrated")
    assert one.df_method == "integrated"
    assert_allclose(one.tvalue, one.effect / one.sd)
    joint = result.f_test("group[T.B]", df="integrated")
    assert_allclose(joint.pvalue, one.pvalue, rtol=1e-7)
    assert_allclose(joint.fvalue, one.tvalue**2, rtol=1e-8)
    terms = result.anova(df="integrated")
    assert terms.contrasts == ["group", "cls", "x"]
    assert_allclose(terms.pvalue["group"], one.pvalue.iloc[:, 0], rtol=1e-7)
    two = result.f_test(["cls[T.v]", "cls[T.w]"], df="integrated")
    assert_allclose(terms.pvalue["cls"], two.pvalue.iloc[:, 0], rtol=1e-7)
    assert_allclose(
        result.wald_test("x", use_f=True, df="integrated").pvalue,
        result.t_test("x", df="integrated").pvalue,
        rtol=1e-7,
    )
    top = result.top_table("group[T.B]", df="integrated", n=5)
    assert list(top.columns) == ["estimate", "se", "t", "df", "p", "p_adjusted", "status"]
    assert (np.diff(top["p"]) >= 0).all()
    means = result.marginal_means("group", contrast="pairwise", df="integrated")
    assert_allclose(means.effect.iloc[:, 0], -one.effect.iloc[:, 0], rtol=1e-7, atol=1e-12)
    assert_allclose(means.pvalue.iloc[:, 0], one.pvalue.iloc[:, 0], rtol=1e-7)
    frame = result.to_frame(df="integrated")
    assert_allclose(frame.xs("group[T.B]", level="coef")["p"], one.pvalue.iloc[:, 0])


def test_one_sided_tests_and_values(result):
    greater = result.t_test("group[T.B] = 0.3", df="integrated", alternative="greater").pvalue
    less = result.t_test("group[T.B] = 0.3", df="integrated", alternative="less").pvalue
    assert_allclose(greater + less, 1.0)


def test_limits_belong_to_the_p_values(result):
    limits = result.conf_int(df="integrated").sel(coef="group[T.B]")
    tests = result.t_test("group[T.B]", df="integrated", alternative="greater")
    outside = limits.sel(bound="lower").to_numpy() > 0
    assert np.array_equal(outside, tests.pvalue.to_numpy()[:, 0] < 0.025)
    with pytest.raises(InputError, match="alpha"):
        tests.conf_int(1.5)


def test_one_feature_learns_from_all(result):
    all_of_them = result.t_test("group[T.B]", df="integrated").pvalue
    assert_allclose(
        result.sel("g7").t_test("group[T.B]", df="integrated").pvalue.iloc[0],
        all_of_them.loc["g7"],
    )
    some = result.t_test("group[T.B]", df="integrated", features=["g9", "g3"])
    assert_allclose(some.pvalue, all_of_them.loc[["g9", "g3"]])


def test_predictions(table, result):
    new = table.iloc[[0, 20]].copy()
    tests = result.marginal_means("group", df="integrated")  # anything that learns the prior
    assert tests.pvalue.notna().all().all()
    mean = result.predict(new, df="integrated")
    at = result.predict(new, df="integrated", interval="confidence", prior=result.ratio_prior)
    assert_allclose(at["prediction"], mean)
    wide = result.predict(new, df="integrated", interval="prediction")
    assert (wide["upper"] - wide["lower"] > at["upper"] - at["lower"]).all()
    own = result.predict(new, level="conditional", df="integrated", interval="prediction")
    assert (own["se"] < wide["se"]).all()
    assert own.attrs["df_method"] == "integrated"
    one = fm.RatioPrior(at_one_ratio(result, 0.4).ds)
    point = result.predict(new, df="integrated", interval="prediction", prior=one)
    middle = (point["lower"] + point["upper"]) / 2
    assert_allclose(middle, point["prediction"], rtol=1e-8)


def test_it_does_not_depend_on_how_the_model_was_fitted(table):
    Y = responses(table, 40)
    model = fm.MultiLMM.from_formula("~ group + (1 | subject)", data=table, Y=Y)
    p = [
        model.fit(method, parameter_space=space).t_test("group[T.B]", df="integrated").pvalue
        for method, space in (("REML", "psd"), ("ML", "psd"))
    ]
    assert_allclose(p[1], p[0], rtol=1e-12)


def test_wrong_options_are_refused_with_advice(result):
    with pytest.raises(InputError, match="learn_ratio_prior"):
        result.t_test("x", df="integrated", moderated=True)
    with pytest.raises(InputError, match="belongs to df='integrated'"):
        result.t_test("x", prior=result.ratio_prior)
    with pytest.raises(InputError, match="RatioPrior"):
        result.t_test("x", df="integrated", prior=3)
    with pytest.raises(InputError, match="belongs to df='integrated'"):
        result.predict(data(), interval="confidence", prior=result.ratio_prior)
    other = fitted(data(), responses(data(), 30), random="(1 | group:cls)")
    with pytest.raises(InputError, match="same random terms"):
        result.t_test("x", df="integrated", prior=other)


# ---- the prior --------------------------------------------------------------------------------


def test_the_prior_is_kept_and_can_be_saved(result, tmp_path):
    prior = result.ratio_prior
    assert prior is result.ratio_prior
    assert_allclose(prior.weights.sum(), 1.0)
    assert prior.params == ["subject"]
    assert (np.diff(prior.quantile([0.1, 0.5, 0.9]).to_numpy()) >= 0).all()
    prior.save(tmp_path / "prior.nc")
    again = fm.RatioPrior.load(tmp_path / "prior.nc")
    assert_allclose(
        result.t_test("x", df="integrated", prior=again).pvalue,
        result.t_test("x", df="integrated").pvalue,
        rtol=1e-12,
    )
    with pytest.raises(InputError, match="not MultiLMMResults"):
        fm.MultiLMMResults.load(tmp_path / "prior.nc")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", 3.0, "probabilities"),
        ("weight", np.nan, "probabilities"),
        ("base", np.inf, "probabilities"),
        ("ratio", 1e300, "grid of ratios"),
        ("ratio", np.nan, "grid of ratios"),
        ("sigma2_df", -1.0, "residual variance"),
        ("sigma2_df", np.nan, "residual variance"),
        ("sigma2_location", -1.0, "residual variance"),
        ("sigma2_location", np.inf, "residual variance"),
        ("trend", "else", "trend is"),
    ],
)
def test_damaged_priors_are_refused(result, tmp_path, name, value, message):
    """With a right checksum: ratios of 1e300 were a ValueError of scipy in t_test."""
    ds = result.ratio_prior.ds
    ds = ds.assign({name: ds[name] * 0.0 + value}) if name in ds else ds.assign_attrs({name: value})
    fm.RatioPrior(ds).save(tmp_path / "prior.nc")
    with pytest.raises(InputError, match=message):
        fm.RatioPrior.load(tmp_path / "prior.nc")


def test_priors_of_covariances_that_are_none_are_refused(result):
    ds = result.ratio_prior.ds
    negative = fm.RatioPrior(ds.assign(ratio=ds["ratio"] * 0.0 - 1.0))
    with pytest.raises(InputError, match=r"positive semi-definite|grid of ratios"):
        result.t_test("x", df="integrated", prior=negative)


def test_results_loaded_from_a_file_test_alike(result, tmp_path):
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    assert_allclose(
        again.t_test("group[T.B]", df="integrated").pvalue,
        result.t_test("group[T.B]", df="integrated").pvalue,
        rtol=1e-9,
    )


def test_a_small_panel_borrows_from_a_large_one(table):
    Y = responses(table, 300)
    large, small = fitted(table, Y), fitted(table, Y.iloc[:4])
    p = small.t_test("group[T.B]", df="integrated", prior=large).pvalue
    assert_allclose(p, large.t_test("group[T.B]", df="integrated").pvalue.iloc[:4], rtol=1e-9)


@pytest.mark.parametrize("robust", [False, True])
def test_trend_and_robust_priors(table, robust, tmp_path):
    rng = np.random.default_rng(5)
    Y = responses(table, 200)
    level = rng.uniform(0, 8, 200)
    Y = Y.mul(np.exp(0.3 * level), axis=0).add(30 * level, axis=0)
    Y.iloc[3] *= 20.0
    result = fitted(table, Y)
    prior = result.learn_ratio_prior(trend=True, robust=robust)
    p = result.t_test("group[T.B]", df="integrated", prior=prior).pvalue
    assert not np.allclose(p, result.t_test("group[T.B]", df="integrated").pvalue, rtol=1e-6)
    # s0^2 and d0 go with the names of the features, so their order is no matter
    order = rng.permutation(200)
    again = fitted(table, Y.iloc[order])
    other = again.t_test("group[T.B]", df="integrated", prior=prior).pvalue
    assert_allclose(other.loc[Y.index], p, rtol=1e-7)
    prior.save(tmp_path / "prior.nc")
    loaded = fm.RatioPrior.load(tmp_path / "prior.nc")
    assert_allclose(result.t_test("group[T.B]", df="integrated", prior=loaded).pvalue, p)
    # features of another name take the trend at their own means
    strangers = fitted(table, Y.rename(index=lambda name: f"h{name}"))
    assert strangers.t_test("x", df="integrated", prior=prior).pvalue.notna().all().all()


@pytest.mark.parametrize("unit", [1e3, 1e150, 1e-150])
@pytest.mark.parametrize("robust", [False, True])
def test_an_outlying_feature_does_not_stop_the_others(table, unit, robust):
    Y = pd.DataFrame(np.random.default_rng(1).normal(size=(40, len(table))))
    Y.index = [f"g{j}" for j in range(40)]
    Y.iloc[3] *= unit
    result = fitted(table, Y)
    prior = result.learn_ratio_prior(robust=robust)
    tests = result.t_test("group[T.B]", df="integrated", prior=prior)
    assert np.isfinite(tests.pvalue.to_numpy()).all()
    assert np.isfinite(result.posterior_variances(prior=prior)["share"]).all()
    if robust and unit > 1:  # winsorised: the others' prior is as it is without the outlier
        alone = fitted(table, Y.drop(index="g3"))
        p = alone.t_test("group[T.B]", df="integrated", prior=alone.learn_ratio_prior(robust=True))
        both = np.log([p.pvalue.to_numpy(), tests.pvalue.drop(index="g3").to_numpy()])
        assert_allclose(both[0], both[1], atol=0.15)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", lambda ds: {"weight": 0.0 * ds["weight"]}),
        ("weights", lambda ds: {"weight": 3.0 * ds["weight"]}),
        ("grid", lambda ds: {"ratio": -ds["ratio"]}),
        ("residual variance", lambda _: {"sigma2_df": -5.0}),
        ("residual variance", lambda _: {"sigma2_df": np.nan}),
        ("residual variance", lambda _: {"sigma2_location": -1.0}),
        ("residual variance", lambda _: {"sigma2_location": np.nan}),
        ("single features", lambda ds: {"feature_df": -ds["feature_df"]}),
        ("single features", lambda ds: {"feature_location": -ds["feature_location"]}),
        ("trend", lambda ds: {"trend_at": ds["trend_at"].copy(data=ds["trend_at"].values[::-1])}),
        ("trend", lambda ds: {"trend_location": -ds["trend_location"]}),
    ],
)
def test_a_prior_that_is_no_distribution_is_refused(result, with_trend, name, change, tmp_path):
    ds = with_trend.ds
    wrong = fm.RatioPrior(ds.assign(change(ds)))
    with pytest.raises(InputError, match=name):
        result.t_test("x", df="integrated", prior=wrong)
    wrong.save(tmp_path / "wrong.nc")
    with pytest.raises(InputError, match=f"wrong.nc.*{name}"):
        fm.RatioPrior.load(tmp_path / "wrong.nc")


def test_priors_of_correlated_effects_hold_negative_covariances(table, tmp_path):
    result = fitted(table, responses(table, 20), "~ x", "(0 + group | cls)")
    prior = result.ratio_prior
    assert (prior.ratios.to_numpy()[:, 2] < 0).any()
    prior.save(tmp_path / "prior.nc")
    again = fm.RatioPrior.load(tmp_path / "prior.nc")
    assert result.t_test("x", df="integrated", prior=again).pvalue.notna().all().all()


def test_posterior_variances(result):
    found = result.posterior_variances(0.1)
    mean = found["mean"].to_dataframe()["mean"].unstack()
    assert (found["lower"] <= found["mean"]).all()
    assert (found["mean"] <= found["upper"]).all()
    # shrunken: less spread than the estimates, about the same on average
    assert mean["subject"].std() < result.theta["subject"].std()
    assert (mean["subject"] > 0).all()
    assert_allclose(found["share"].sum("component"), 1.0)
    assert list(found["component"].to_numpy()) == ["subject", "Residual"]


def test_the_prior_can_be_drawn(result):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = result.ratio_prior.plot()
    assert axes.get_xlabel()


# ---- samples missing by feature ------------------------------------------------------------------


def test_features_that_miss_samples_share_one_prior(table):
    Y = responses(table, 60).to_numpy().copy()
    rng = np.random.default_rng(2)
    Y[30:50, 4] = np.nan
    Y[50:, rng.choice(len(table), 6, replace=False)] = np.nan
    names = [f"g{j}" for j in range(60)]
    result = fitted(table, pd.DataFrame(Y, index=names), missing="feature")
    p = result.t_test("group[T.B]", df="integrated").pvalue
    assert p.notna().all().all()
    # the same prior given to a fit of the features with one pattern alone
    keep = ~np.isnan(Y[30])
    alone = fitted(table[keep], pd.DataFrame(Y[30:50][:, keep], index=names[30:50]))
    same = alone.t_test("group[T.B]", df="integrated", prior=result.ratio_prior).pvalue
    assert_allclose(same, p.loc[names[30:50]], rtol=1e-7)
    assert_allclose(
        result.sel("g35").t_test("group[T.B]", df="integrated").pvalue.iloc[0], p.loc["g35"]
    )
    limits = result.conf_int(df="integrated").sel(coef="group[T.B]").to_numpy()
    assert (limits[:, 0] < limits[:, 1]).all()


# ---- what a user is told -------------------------------------------------------------------------


def test_doubtful_tests_say_so_once(result, caplog):
    tests = result.t_test("group[T.B]")
    with caplog.at_level("WARNING", logger="flashmm"):
        tests.top_table()
        tests.top_table()
        result.t_test("group[T.B]", df="integrated").top_table()
        result.t_test("x").top_table()  # within subjects: on many degrees of freedom
    assert len(caplog.messages) == 1
    assert "'subject' has 6 levels" in caplog.messages[0]
    assert "df='integrated'" in caplog.messages[0]
    assert "'subject' has 6 levels" in " ".join(str(result.summary()).split())
    kr = result.t_test("group[T.B]", df="kenward-roger").ds.attrs["note"]
    assert "reject too little" in kr


@pytest.mark.parametrize("missing", ["raise", "feature"])
def test_only_levels_that_carry_a_contrast_count(missing):
    """30 donors carry the group, 5 plates the machine, neither of them the rest."""
    rng = np.random.default_rng(0)
    donor, plate = np.repeat(np.arange(30), 10), np.tile(np.arange(5), 60)
    table = pd.DataFrame(
        {
            "donor": donor.astype(str),
            "plate": plate.astype(str),
            "group": np.where(donor % 2, "B", "A"),
            "machine": np.where(plate % 2, "B", "A"),
            "x": rng.normal(size=300),
        }
    )
    Y = rng.normal(size=(4, 300)) + rng.normal(size=(4, 30))[:, donor]
    Y[0, 0] = np.nan if missing == "feature" else 0.0
    random = ["(1 | donor)", "(1 | plate)"]
    model = fm.MultiLMM.from_formula(
        "~ group + machine + x", random, data=table, Y=Y, missing=missing
    )
    result = model.fit(parameter_space="psd")
    notes = {name: result.t_test(name).ds.attrs["note"] for name in result.params.columns[1:]}
    assert "'plate' has 5 levels" in notes["machine[T.B]"]
    assert notes["group[T.B]"] == notes["x"] == ""
    assert "'plate'" in " ".join(str(result.summary()).split())
    # The intercept, which nobody tests, is no reason.
    alone = fm.MultiLMM.from_formula("~ group + x", random, data=table, Y=Y, missing=missing)
    assert "fewer than" not in " ".join(str(alone.fit(parameter_space="psd").summary()).split())


def test_the_page_of_one_feature_says_so_too(table, result):
    page = " ".join(str(result.sel("g7").summary()).split())
    assert "'subject' has 6 levels" in page
    assert "df='integrated'" in page
    assert "of 120 features" not in page
    assert "(120 are few: with prior= of a larger fit" in page
    of_pattern = responses(table, 30)
    of_pattern.iloc[0, 3] = np.nan
    some = fitted(table, of_pattern, missing="feature").sel("g0").summary()
    assert "df='integrated'" in " ".join(str(some).split())


@pytest.mark.parametrize(
    ("space", "df", "said"),
    [
        ("psd", "satterthwaite", "parameter_space='unconstrained' if the design is balanced"),
        ("unconstrained", "satterthwaite", "hold their level in balanced designs only"),
        ("psd", "kenward-roger", "bootstrap_test"),
        ("unconstrained", "residual", "reject too often"),
    ],
)
def test_one_feature_alone_is_not_told_to_learn_from_others(table, space, df, said):
    model = fm.MultiLMM.from_formula("~ group + (1 | subject)", data=table, Y=responses(table, 1))
    note = model.fit(parameter_space=space).t_test("group[T.B]", df=df).ds.attrs["note"]
    assert said in note
    assert "integrated" not in note


def test_tests_with_many_subjects_are_not_doubted(caplog):
    table = data(24)
    result = fitted(table, responses(table, 20))
    with caplog.at_level("WARNING", logger="flashmm"):
        result.top_table("group[T.B]")
    assert not caplog.messages
    assert "levels" not in str(result.summary())


def test_a_fit_says_so_in_the_log(table, caplog):
    with caplog.at_level("INFO", logger="flashmm"):
        fitted(table, responses(table, 20))
    assert any("'subject' has 6 levels" in message for message in caplog.messages)


@pytest.mark.parametrize("m", [1, 2])
def test_one_or_two_features_are_tested_on_the_safe_side(table, m):
    """With one feature sigma2 has no prior, and the ratios have the one that says little."""
    result = fitted(table, responses(table, 300).iloc[:m])
    tests = result.t_test("group[T.B]", df="integrated")
    assert tests.pvalue.notna().all().all()
    assert (tests.df > 0).all().all()
    assert (result.ratio_prior.df == 0) == (m == 1)
    assert result.posterior_variances()["mean"].notnull().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_one_feature_whose_subjects_differ_a_lot_is_tested_as_its_means_are(weighted):
    """Its own estimate may be far below its ratio, beyond which the grid must go on.

    The grid once ended at twice the estimate: p-values down to a twelfth of those of the means.
    """
    subject, rng = np.repeat(np.arange(4), 12), np.random.default_rng(4)
    Y = 1.5 * rng.normal(size=(10, 4))[:, subject] + rng.normal(size=(10, 48))
    X = np.column_stack([np.ones(48), subject % 2])
    more = {"weights": np.ones((1, 48))} if weighted else {}
    p = np.empty(10)
    for j in range(10):
        model = fm.MultiLMM.from_arrays(Y[[j]], X, np.eye(4)[subject], **more)
        tests = model.fit(parameter_space="psd").t_test(np.array([0.0, 1.0]), df="integrated")
        p[j] = tests.pvalue.iloc[0, 0]
    means = Y.reshape(10, 4, 12).mean(axis=2)
    expected = stats.ttest_ind(means[:, 1::2], means[:, ::2], axis=1).pvalue
    assert_allclose(p / expected, 1.0, atol=0.25)


def test_features_without_any_fit_are_nan_not_an_error(table):
    Y = pd.DataFrame(np.zeros((2, len(table))), index=["a", "b"])
    with pytest.warns(fm.ConvergenceWarning):
        result = fitted(table, Y)
    assert result.t_test("group[T.B]", df="integrated").pvalue.isna().all().all()
    assert result.anova(df="integrated").pvalue.isna().all().all()
    assert np.isnan(result.conf_int(df="integrated")).all()


def test_features_with_weights_of_their_own(table):
    """Each design is factorised by itself; at one ratio the test is weighted least squares'."""
    rng = np.random.default_rng(4)
    Y = responses(table, 12)
    W = rng.uniform(0.3, 3.0, size=Y.shape)
    model = fm.MultiLMM.from_formula("~ group + (1 | subject)", data=table, Y=Y, weights=W)
    result = model.fit(parameter_space="psd")
    tests = result.t_test("group[T.B]", df="integrated", prior=at_one_ratio(result, 0.4))
    X = np.column_stack([np.ones(len(table)), table["group"] == "B"]).astype(float)
    Z = pd.get_dummies(table["subject"]).to_numpy(float)
    P = np.linalg.inv(np.diag(1 / W[7]) + 0.4 * Z @ Z.T)
    C = np.linalg.inv(X.T @ P @ X)
    y = Y.iloc[7].to_numpy()
    beta = C @ X.T @ P @ y
    s2 = (y - X @ beta) @ P @ (y - X @ beta) / (len(table) - 2)
    assert_allclose(tests.effect.iloc[7, 0], beta[1], rtol=1e-8)
    assert_allclose(tests.sd.iloc[7, 0], np.sqrt(s2 * C[1, 1]), rtol=1e-8)
