"""missing="feature": every feature as if fitted alone over the samples that it has."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.exceptions import ConvergenceWarning, InputError, MissingSamplesWarning
from flashmm.results.hypotheses import hypotheses
from flashmm.results.moderation import feature_means

FIXED = "~ age + trt"
RANDOM = {
    "one": "(1|subject)",
    "crossed": "(1|subject) + (1|batch)",
    "slopes": "(age|subject)",
}
N, M = 80, 24


def table(n: int = N, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.normal(size=n),
            "trt": pd.Categorical(rng.choice(["a", "b"], n)),
            "subject": pd.Categorical([f"s{i // 4}" for i in range(n)]),
            "batch": pd.Categorical([f"b{i}" for i in rng.integers(0, 5, n)]),
        },
        index=[f"sample{i}" for i in range(n)],
    )


def data(m: int = M, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Twelve features lack the same samples, the others each their own; one has a huge mean."""
    frame, rng = table(seed=seed), np.random.default_rng(seed + 1)
    subjects, batches = np.arange(N) // 4, frame["batch"].cat.codes
    Y = 3 + rng.normal(size=(m, N)) + 0.8 * rng.normal(size=(m, N // 4))[:, subjects]
    Y += rng.normal(size=(m, N // 4))[:, subjects] * frame["age"].to_numpy() * 0.7
    Y += 0.5 * rng.normal(size=(m, 5))[:, batches]
    Y[5] += 1e7
    missing = rng.random((m, N)) < 0.2
    missing[:12] = missing[0]
    missing[3] = False
    names = [f"protein{j}" for j in range(m)]
    return frame, pd.DataFrame(np.where(missing, np.nan, Y), names, frame.index)


def fit_alone(frame, Y, feature, random, **options):
    y = Y.loc[[feature]].dropna(axis=1)
    return fm.MultiLMM.from_formula(FIXED, random, frame.loc[y.columns], y).fit(**options)


def close(found, expected, unit=1.0, tolerance=1e-7) -> None:
    difference = np.abs(np.asarray(found, float) - np.asarray(expected, float)) / unit
    assert np.nanmax(difference, initial=0.0) < tolerance
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("space", ["psd", "unconstrained"])
@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", RANDOM)
def test_every_feature_as_if_alone(kind, method, space):
    frame, Y = data()
    options = {"method": method, "parameter_space": space}
    model = fm.MultiLMM.from_formula(FIXED, RANDOM[kind], frame, Y, missing="feature")
    result = model.fit(**options)
    assert {type(part).__name__ for part in result.fitted.likelihood.estimators} > {
        "OwnRowsLikelihood"
    }
    dfs = ["residual", "satterthwaite"] + ["kenward-roger"] * (method == "REML")
    tests = {df: result.t_test(df=df) for df in dfs}
    joint = {df: result.f_test(["age", "trt[T.b]"], df=df) for df in dfs}
    blups = {se: result.blup(se=se) for se in ("conditional", "prediction")}
    for j in range(0, M, 2):
        name = Y.index[j]
        alone = fit_alone(frame, Y, name, RANDOM[kind], **options)
        assert result.status[name] == alone.status.iloc[0]
        assert result.nobs[name] == alone.nobs
        assert result.df_resid[name] == alone.df_resid
        if result.status[name] in ("no maximum", "iteration limit", "stalled"):
            continue
        close(result.theta.loc[name], alone.theta.iloc[0], alone.bse_theta.iloc[0])
        close(result.params.loc[name], alone.params.iloc[0], alone.bse.iloc[0])
        close(result.bse.loc[name] / alone.bse.iloc[0], 1.0 + 0.0 * alone.bse.iloc[0])
        close(result.bse_theta.loc[name] / alone.bse_theta.iloc[0], np.ones(result.theta.shape[1]))
        for measure in ("llf", "aic", "bic"):
            close(getattr(result, measure)[name], getattr(alone, measure).iloc[0])
        for df in dfs:
            one, both = alone.t_test(df=df), alone.f_test(["age", "trt[T.b]"], df=df)
            close(tests[df].df.loc[name] / one.df.iloc[0], 1.0 + 0.0 * one.df.iloc[0], 1, 1e-6)
            close(tests[df].pvalue.loc[name], one.pvalue.iloc[0])
            close(joint[df].pvalue.loc[name], both.pvalue.iloc[0])
        scale = float(np.sqrt(alone.theta.iloc[0].abs().max()))
        for se, blup in blups.items():
            theirs = alone.blup(se=se)
            here = blup.isel(feature=j).sel(level=theirs["level"].to_numpy())
            close(here["blup"], theirs["blup"][0], scale)
            close(here["se"], theirs["se"][0], scale)


def test_levels_without_a_sample_are_drawn_from_their_variance():
    frame, Y = data()
    Y.loc["protein20", frame["subject"].to_numpy() == "s3"] = np.nan
    result = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature").fit(
        parameter_space="psd"
    )
    blup = result.blup(se="conditional").sel(feature="protein20")
    position = list(blup["group_level"].to_numpy()).index("s3")
    variance = result.theta.loc["protein20", "subject"]
    assert abs(float(blup["blup"][position])) < 1e-12
    assert_allclose(float(blup["se"][position]), np.sqrt(variance), rtol=1e-12)


def test_features_that_cannot_be_estimated_have_a_verdict():
    frame, Y = data()
    treated = frame["trt"].to_numpy() == "b"
    Y.loc["protein13"] = np.nan  # nothing there
    Y.loc["protein14", treated] = np.nan  # a coefficient without samples
    Y.iloc[15, 3:] = np.nan  # no more samples than coefficients
    first = ~frame["subject"].duplicated().to_numpy()
    Y.loc["protein16", ~first] = np.nan  # a sample per subject: variances cannot be told apart
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature")
    with pytest.warns(ConvergenceWarning, match="4 not estimable"):
        result = model.fit(parameter_space="psd")
    names = [f"protein{j}" for j in (13, 14, 15, 16)]
    assert (result.status[names] == "not estimable").all()
    assert result.params.loc[names].isna().all().all()
    assert result.theta.loc[names].isna().all().all()
    assert result.llf[names].isna().all()
    others = result.status.drop(names)
    assert others.isin(["converged", "boundary"]).all()
    table = result.t_test("age").top_table(n=None)
    assert table.loc[names, ["p", "p_adjusted"]].isna().all().all()


def test_a_common_pattern_that_cannot_be_estimated():
    frame, Y = data()
    Y.iloc[:12, :] = np.where(frame["trt"] == "b", np.nan, Y.iloc[:12])
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature")
    with pytest.warns(ConvergenceWarning, match="not estimable"):
        result = model.fit(parameter_space="psd")
    assert (result.status.iloc[:12] == "not estimable").sum() == 12
    assert result.converged.iloc[12:].all()


def test_nothing_estimable_at_all_is_refused():
    frame, Y = data()
    Y.loc[:, frame["trt"].to_numpy() == "b"] = np.nan
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature")
    with pytest.warns(ConvergenceWarning, match="24 not estimable"):
        result = model.fit()
    assert not result.converged.any()


def test_complete_data_are_an_ordinary_model():
    frame, Y = data()
    full = Y.iloc[[3]]
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, full, missing="feature")
    assert isinstance(model.stats, fm.SummaryStats)
    ordinary = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, full)
    np.testing.assert_array_equal(model.stats.XY, ordinary.stats.XY)


def test_moderated_tests():
    """Residual variances with their own degrees of freedom, shrunk across all features."""
    frame, Y = data()
    result = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature").fit(
        parameter_space="psd"
    )
    table = result.moderate()
    parts = [fit_alone(frame, Y, name, RANDOM["one"], parameter_space="psd") for name in Y.index]
    found = [hypotheses(part.fitted).residual_variances() for part in parts]
    variance, df = (np.concatenate([one[i][:, 0] for one in found]) for i in (0, 1))
    variance = variance * np.concatenate([part.fitted.projection.scale for part in parts])
    mine, mine_df = (one[:, 0] for one in hypotheses(result.fitted).residual_variances())
    assert_allclose(mine * result.fitted.projection.scale, variance, rtol=1e-7)
    assert_allclose(mine_df, df, rtol=1e-6)
    tests = result.t_test("age", moderated=True)
    assert np.isfinite(tests.pvalue).all().all()
    assert (table["df_moderated"] > mine_df).all()
    means = feature_means(result.fitted)
    assert_allclose(means, Y.mean(axis=1), rtol=1e-9)
    result.moderate(trend=True)


def test_variance_shares_likelihood_ratios_and_predictions():
    frame, Y = data()
    options = {"method": "ML", "parameter_space": "psd"}
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["crossed"], frame, Y, missing="feature")
    result = model.fit(**options)
    smaller = model.drop(random="batch", fixed="trt[T.b]").fit(**options)
    ratio = result.compare_lr_test(smaller)
    test = result.variance_test("batch")
    limits = result.conf_int_theta(method="profile", features=["protein0", "protein17"])
    fitted = result.fittedvalues(frame)
    resid = result.resid(Y, frame)
    predicted = result.predict(frame.iloc[:3], interval="prediction")
    means = result.marginal_means("trt", at={"age": 0.5})
    for name in ("protein0", "protein3", "protein5", "protein17"):
        alone = fit_alone(frame, Y, name, RANDOM["crossed"], **options)
        for shares, expected in (
            (result.icc(features=[name]), alone.icc()),
            (result.variance_fractions(features=[name]), alone.variance_fractions()),
        ):
            close(shares["estimate"], expected["estimate"], 1, 1e-6)
            close(shares["se"], expected["se"], 1, 1e-6)
        y = Y.loc[[name]].dropna(axis=1)
        there = frame.loc[y.columns]
        reduced = fm.MultiLMM.from_formula("~ age", "(1|subject)", there, y).fit(**options)
        theirs = alone.compare_lr_test(reduced)
        close(ratio.loc[[name], "statistic"], theirs["statistic"], 1, 1e-6)
        close(ratio.loc[[name], "p"], theirs["p"], 1, 1e-6)
        close(test["p"].sel(feature=name), alone.variance_test("batch")["p"][0], 1, 1e-6)
        size = float(Y.loc[name].std())
        marginal = alone.marginal_means("trt", at={"age": 0.5})
        close(means.effect.loc[name], marginal.effect.iloc[0], size)
        close(means.df.loc[name] / marginal.df.iloc[0], np.ones(2), 1, 1e-6)
        close(fitted.sel(feature=name, sample=y.columns), alone.fittedvalues(there)[0], size)
        close(resid.sel(feature=name, sample=y.columns), alone.resid(y, there)[0], size)
        assert int(np.isnan(resid.sel(feature=name)).sum()) == N - y.shape[1]
        for bound in ("lower", "upper"):
            expected = alone.predict(frame.iloc[:3], interval="prediction", allow_new_levels=True)
            close(predicted[bound].sel(feature=name), expected[bound][0], size, 1e-6)
    for name in ("protein0", "protein17"):
        alone = fit_alone(frame, Y, name, RANDOM["crossed"], **options)
        close(limits.sel(feature=name), alone.conf_int_theta(method="profile")[0], 1, 1e-4)


def test_one_feature_and_its_pattern(tmp_path):
    frame, Y = data()
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["crossed"], frame, Y, missing="feature")
    result = model.fit(parameter_space="psd")
    alone = fit_alone(frame, Y, "protein17", RANDOM["crossed"], parameter_space="psd")
    one, other = result.sel("protein17"), alone.sel("protein17")
    assert one.nobs == other.nobs
    assert str(one.summary()) == str(other.summary())
    assert_allclose(one.cov_params(), other.cov_params(), rtol=1e-7)
    for key, block in one.random_effects_cov.items():
        if key in other.random_effects_cov:
            assert_allclose(block, other.random_effects_cov[key], atol=1e-8)
    shared = result.of_pattern("protein0")
    assert shared.ds.sizes["feature"] == 11
    assert shared.draw(2, features=["protein0"], rng=0).m == 2
    assert result.draw(2, features=["protein17"], rng=0).nobs.tolist() == [one.nobs, one.nobs]
    assert f"{result.nobs.min()} to 80" in str(result.summary())
    result.save(tmp_path / "result.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "result.nc")
    assert_allclose(loaded.t_test().ds["p"], result.t_test().ds["p"], rtol=1e-12)
    assert loaded.nobs.equals(result.nobs)
    assert str(loaded.sel("protein17").summary()) == str(one.summary())


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_statistics_are_kept(tmp_path, suffix):
    if suffix == "zarr":
        pytest.importorskip("zarr")
    frame, Y = data()
    weights = np.random.default_rng(4).uniform(0.5, 2.0, N)
    model = fm.MultiLMM.from_formula(
        FIXED, RANDOM["slopes"], frame, Y, missing="feature", weights=weights
    )
    path = tmp_path / f"stats.{suffix}"
    model.stats.save(path)
    loaded = fm.PatternedStats.load(path)
    again = fm.MultiLMM.from_summary_stats(loaded).fit(parameter_space="psd")
    result = model.fit(parameter_space="psd")
    np.testing.assert_array_equal(again.theta, result.theta)
    alone = fm.MultiLMM.from_formula(
        FIXED, RANDOM["slopes"], frame, Y.iloc[[3]], weights=weights
    ).fit(parameter_space="psd")
    close(result.llf.iloc[3], alone.llf.iloc[0])
    with pytest.raises(InputError, match="holds PatternedStats, not SummaryStats"):
        fm.SummaryStats.load(path)


def test_smaller_models():
    frame, Y = data()
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["crossed"], frame, Y, missing="feature")
    smaller = model.drop(fixed="trt[T.b]", random="batch", features=["protein1", "protein2"])
    direct = fm.MultiLMM.from_formula(
        "~ age", RANDOM["one"], frame, Y.drop(["protein1", "protein2"]), missing="feature"
    )
    options = {"parameter_space": "psd"}
    mine, theirs = smaller.fit(**options), direct.fit(**options)
    close(mine.theta, theirs.theta, theirs.bse_theta)
    close(mine.llf, theirs.llf)
    kept = model.keep(features=["protein20", "protein0"]).fit(**options)
    assert kept.theta.index.tolist() == ["protein20", "protein0"]


def test_sources_and_matrices(tmp_path):
    frame, Y = data()
    expected = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature").stats
    X = np.column_stack([np.ones(N), frame["age"], frame["trt"] == "b"])
    Z = pd.get_dummies(frame["subject"]).to_numpy(float)
    for values in (Y.to_numpy(), np.asfortranarray(Y.to_numpy())):
        stats = fm.MultiLMM.from_arrays(values, X, Z, missing="feature").stats
        assert_allclose(stats.sums.XY, expected.sums.XY, rtol=1e-12)
        for name in ("XX", "ZX", "ZZ", "n", "signature"):
            mine, theirs = (getattr(part.designs, name) for part in (stats, expected))
            assert_allclose(mine[stats.pattern], theirs[expected.pattern], rtol=1e-12, atol=1e-12)
    sparse = fm.MultiLMM.from_arrays(sp.csr_array(Y.to_numpy()), X, Z, missing="feature").stats
    assert_allclose(sparse.sums.ZY.sum(), expected.sums.ZY.sum(), rtol=1e-9)
    np.testing.assert_array_equal(sparse.nobs, expected.nobs)
    with pytest.raises(InputError, match="reads Y more than once"):
        fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, iter([(np.arange(N), Y.to_numpy())]), missing="feature"
        )
    with pytest.raises(InputError, match="is infinite"):
        fm.MultiLMM.from_formula(
            FIXED,
            RANDOM["one"],
            frame,
            Y.replace(Y.iloc[0, 1], np.inf).fillna(np.inf),
            missing="feature",
        )
    with pytest.raises(InputError, match="Unknown missing='features'"):
        fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="features")


def test_missing_metadata_drops_the_sample_for_all():
    frame, Y = data()
    frame.iloc[4, 0] = np.nan
    with pytest.warns(MissingSamplesWarning, match="1 of 80 samples"):
        model = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature")
    assert model.stats.n == N - 1
    again = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame.drop("sample4"), Y.drop(columns="sample4"), missing="feature"
    )
    assert_allclose(model.stats.sums.XY, again.stats.sums.XY, rtol=1e-12)


def test_a_transform_does_not_bring_missing_values_back():
    frame, Y = data()
    counts = np.abs(Y) + 1.0
    model = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame, counts, transform=np.log, missing="feature"
    )
    logs = np.log(counts)
    direct = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, logs, missing="feature")
    assert_allclose(model.stats.sums.yy, direct.stats.sums.yy, rtol=1e-12)


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 9), st.floats(0.05, 0.5), st.booleans())
def test_small_designs(seed, groups, share, crossed):
    rng = np.random.default_rng(seed)
    n = groups * 4
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "g": pd.Categorical(np.arange(n) % groups),
            "h": pd.Categorical(rng.integers(0, 3, n)),
        }
    )
    Y = rng.normal(size=(4, n)) + rng.normal(size=(4, groups))[:, np.arange(n) % groups]
    Y[rng.random(Y.shape) < share] = np.nan
    random = "(1|g) + (1|h)" if crossed else "(1|g)"
    model = fm.MultiLMM.from_formula("~ x", random, frame, Y, missing="feature")
    result = model.fit(parameter_space="psd")
    for j in range(4):
        there = ~np.isnan(Y[j])
        try:
            alone = fm.MultiLMM.from_formula(
                "~ x", random, frame[there].reset_index(drop=True), Y[j : j + 1, there]
            ).fit(parameter_space="psd")
        except InputError:
            assert result.status.iloc[j] == "not estimable"
            continue
        assert result.status.iloc[j] == alone.status.iloc[0]
        close(result.llf.iloc[j], alone.llf.iloc[0])
        close(result.params.iloc[j], alone.params.iloc[0], alone.bse.iloc[0], 1e-6)


# ---- the data of the fit, given again ----------------------------------------------------


@pytest.mark.parametrize("names", ["named", "by position", "integers"])
def test_the_data_of_the_fit_are_welcome_again(names):
    frame, Y = data()
    options = {}
    if names == "integers":
        Y.index = np.random.default_rng(3).permutation(len(Y)) + 100
    elif names == "by position":
        options["feature_names"] = list(Y.index)
    given = Y.to_numpy() if names == "by position" else Y
    result = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame, given, missing="feature", **options
    ).fit(parameter_space="psd")
    whole = result.resid(given, frame)
    for position in (0, 13, 23):
        name = Y.index[position]
        one = result.sel(name)
        there = Y.loc[name].notna().to_numpy()
        assert there.sum() == one.nobs
        found = one.resid(given, frame)
        assert_allclose(found, whole.sel(feature=name), rtol=1e-10)
        np.testing.assert_array_equal(found.isna(), ~there)
        assert_allclose(one.fittedvalues(frame) + found, Y.loc[name], rtol=1e-10)
        pytest.importorskip("statsmodels")
        check = one.to_statsmodels(given, frame)
        assert check.largest_difference < 0.05
        assert check.fit.nobs == one.nobs
        alone = one.to_statsmodels(Y.loc[name], frame)
        assert_allclose(alone.table, check.table, rtol=1e-6)
        if names != "by position":
            shared = result.of_pattern(name).resid(given, frame, features=[name])
            assert_allclose(shared[0], found, rtol=1e-10)


@pytest.mark.parametrize("missing", ["feature", "drop"])
def test_dropped_samples_may_be_there_again(missing):
    frame, Y = data()
    frame.iloc[5, frame.columns.get_loc("age")] = np.nan
    with pytest.warns(fm.exceptions.MissingSamplesWarning):
        result = fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, Y.iloc[:3], missing=missing
        ).fit(parameter_space="psd")
    for found in (result.fittedvalues(frame), result.fittedvalues(frame, level="population")):
        np.testing.assert_array_equal(np.flatnonzero(found.isnull().all("feature")), [5])
    resid = result.resid(Y, frame)
    assert bool(resid[:, 5].isnull().all())
    lost = Y.iloc[:3].isna().to_numpy().copy()
    lost[:, 5] = True
    np.testing.assert_array_equal(resid.isnull(), lost)
    if missing == "feature":
        one = result.sel(Y.index[1])
        assert_allclose(one.resid(Y, frame), resid[1], rtol=1e-10)
        pytest.importorskip("statsmodels")
        assert one.to_statsmodels(Y, frame).fit.nobs == one.nobs


def test_a_complete_fit_still_refuses_what_is_missing():
    frame, Y = data()
    full = Y.fillna(0.0)
    result = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, full).fit()
    full.iloc[0, 0] = np.nan
    with pytest.raises(InputError, match="Y has a missing value"):
        result.resid(full, frame)
    frame.iloc[5, frame.columns.get_loc("age")] = np.nan
    with pytest.raises(InputError, match="is missing in rows"):
        result.fittedvalues(frame)


def test_other_data_than_those_of_the_fit_are_refused():
    pytest.importorskip("statsmodels")
    frame, Y = data()
    result = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, missing="feature").fit()
    with pytest.raises(InputError, match="but the model was fitted on"):
        result.sel(Y.index[0]).to_statsmodels(Y.fillna(0.0), frame)
