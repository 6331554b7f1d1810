"""Weights of each observation and covariates of each feature's own: as if fitted alone."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from references import REFERENCE

import flashmm as fm
from flashmm.exceptions import InputError, MissingSamplesWarning
from flashmm.likelihood import make_likelihood

WEIGHTS = REFERENCE / "weights"
FIXED = "~ age + trt"
RANDOM = {
    "one": "(1|subject)",
    "crossed": "(1|subject) + (1|batch)",
    "slopes": "(age|subject)",
    "uncorrelated": "(age||subject)",
    "nested": "(1|site/subject)",
    "columns": "~ 0 + age + batch",
}
N, M = 60, 8


def table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.normal(size=N),
            "trt": pd.Categorical(rng.choice(["a", "b"], N)),
            "subject": pd.Categorical([f"s{i // 4}" for i in range(N)]),
            "site": pd.Categorical([f"t{i // 20}" for i in range(N)]),
            "batch": pd.Categorical([f"b{i}" for i in rng.integers(0, 5, N)]),
        },
        index=[f"sample{i}" for i in range(N)],
    )


def data(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Samples, Y and weights; one feature has a huge mean."""
    frame, rng = table(seed), np.random.default_rng(seed + 1)
    subject, batch, site = (frame[name].cat.codes for name in ("subject", "batch", "site"))
    Y = 3 + rng.normal(size=(M, N)) + 0.9 * rng.normal(size=(M, 15))[:, subject]
    Y += rng.normal(size=(M, 15))[:, subject] * frame["age"].to_numpy() * 0.7
    Y += 0.6 * rng.normal(size=(M, 5))[:, batch] + 0.4 * rng.normal(size=(M, 3))[:, site]
    Y[5] += 1e7
    weights = rng.lognormal(sigma=0.7, size=(M, N)) * 10.0 ** rng.integers(-3, 4, size=(M, 1))
    weights[rng.random((M, N)) < 0.1] = 0.0
    names = [f"gene{j}" for j in range(M)]
    return frame, pd.DataFrame(Y, names, frame.index), pd.DataFrame(weights, names, frame.index)


def close(found, expected, unit=1.0, tolerance=1e-6) -> None:
    difference = np.abs(np.asarray(found, float) - np.asarray(expected, float)) / unit
    assert np.nanmax(difference, initial=0.0) < tolerance
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


def same_fit(result, name, alone, dfs=("residual", "satterthwaite")) -> None:
    """A feature of a fit beside the fit of that feature alone."""
    assert result.status[name] == alone.status.iloc[0]
    if result.status[name] in ("no maximum", "iteration limit", "stalled"):
        return
    assert result.df_resid[name] == np.ravel(alone.df_resid)[0]
    close(result.theta.loc[name], alone.theta.iloc[0], alone.bse_theta.iloc[0].fillna(np.inf))
    close(result.params.loc[name], alone.params.iloc[0], alone.bse.iloc[0])
    close(result.bse.loc[name] / alone.bse.iloc[0], 1.0 + 0.0 * alone.bse.iloc[0])
    close(result.llf[name], alone.llf.iloc[0])
    for df in dfs:
        mine, theirs = result.t_test(df=df), alone.t_test(df=df)
        close(mine.df.loc[name] / theirs.df.iloc[0], 1.0 + 0.0 * theirs.df.iloc[0], 1, 1e-5)
        close(mine.pvalue.loc[name], theirs.pvalue.iloc[0])


# ---- references ----------------------------------------------------------------------------


def relative(found, expected) -> float:
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    return float(np.max(np.abs(found / expected - 1.0)))


def test_kimma():
    """Sixty genes by lmerTest with voom weights: 46 in the interior, 14 on the boundary."""
    y = pd.read_csv(WEIGHTS / "kimma_log2cpm.csv.gz", index_col=0)
    weights = pd.read_csv(WEIGHTS / "kimma_weights.csv.gz", index_col=0).set_axis(y.columns, axis=1)
    samples = pd.read_csv(WEIGHTS / "kimma_targets.csv", index_col="libID")
    samples["virus"] = pd.Categorical(samples["virus"], ["none", "HRV"])
    reference = json.loads((WEIGHTS / "kimma_lmer_weighted.json").read_text())
    genes = [case["gene"] for case in reference]
    model = fm.MultiLMM.from_formula(
        "~ virus", "(1|ptID)", samples, y.loc[genes], weights=weights.iloc[::-1, ::-1]
    )
    result = model.fit(parameter_space="psd")
    tests = result.t_test(df="satterthwaite")
    compare(result, tests, reference, 1e-5)


def test_dreams_weights():
    y = pd.read_csv(WEIGHTS / "varpart_log2cpm.csv.gz", index_col=0)
    weights = pd.read_csv(WEIGHTS / "varpart_dream_weights.csv.gz", index_col=0)
    samples = pd.read_csv(WEIGHTS / "varpart_samples.csv", index_col="sample")
    samples["Disease"] = samples["Disease"].astype(str)
    reference = json.loads((WEIGHTS / "varpart_dream.json").read_text())["lmerTest_weighted"]
    result = fm.MultiLMM.from_formula(
        "~ Disease", "(1|Individual)", samples, y, weights=weights
    ).fit(parameter_space="psd")
    compare(result, result.t_test(df="satterthwaite"), reference, 1e-5)
    dream = pd.read_csv(WEIGHTS / "varpart_dream.csv", index_col="gene")
    assert_allclose(result.params.iloc[:, 1], dream["logFC"], rtol=1e-3, atol=1e-3)
    # dream scales the weights of each gene to a mean of one.
    sigma = np.sqrt(result.theta["Residual"] / weights.mean(axis=1))
    assert_allclose(sigma, dream["sigma"], rtol=1e-6)


def test_dreams_moderated_table():
    y = pd.read_csv(WEIGHTS / "varpart_log2cpm.csv.gz", index_col=0)
    weights = pd.read_csv(WEIGHTS / "varpart_dream_weights.csv.gz", index_col=0)
    samples = pd.read_csv(WEIGHTS / "varpart_samples.csv", index_col="sample")
    samples["Disease"] = samples["Disease"].astype(str)
    dream = pd.read_csv(WEIGHTS / "varpart_dream.csv", index_col="gene")
    prior = json.loads((WEIGHTS / "varpart_dream.json").read_text())
    result = fm.MultiLMM.from_formula(
        "~ Disease", "(1|Individual)", samples, y, weights=weights
    ).fit(parameter_space="psd")
    table = result.moderate(df="dream")
    assert_allclose(table["df"], dream["residual_df_for_moderation"], rtol=1e-5)
    assert_allclose(table.attrs["df_prior"], prior["df_prior"], rtol=1e-6)
    assert_allclose(table["sigma2_prior"], prior["s2_prior"], rtol=1e-6)
    test = result.t_test("Disease[T.1]", moderated=table)
    # lmer stopped a little short in two genes.
    assert_allclose(test.tvalue.iloc[:, 0], dream["t"], rtol=1e-5)
    assert_allclose(test.pvalue.iloc[:, 0], dream["p"], rtol=1e-4)
    top = test.top_table(n=None)
    assert_allclose(top["p_adjusted"], dream["adj_p"][top.index], rtol=1e-4)
    joint = result.f_test("Disease[T.1]", moderated=table)
    assert_allclose(joint.pvalue.iloc[:, 0], dream["p"], rtol=1e-4)
    with pytest.raises(InputError, match="Unknown df='dreams'"):
        result.moderate(df="dreams")


def compare(result, tests, reference, tolerance) -> None:
    interior = 0
    for case in reference:
        gene = case["gene"]
        assert relative(result.llf[gene], case["logLik"]) < tolerance
        assert relative(result.params.loc[gene], case["est"]) < tolerance
        assert relative(result.bse.loc[gene], case["se"]) < tolerance
        assert relative(tests.df.loc[gene], case["df"]) < tolerance
        assert relative(tests.pvalue.loc[gene], case["p"]) < tolerance
        if min(case["vc"]) > 1e-6:
            interior += 1
            assert relative(result.theta.loc[gene], case["vc"]) < tolerance
        else:
            assert result.theta.loc[gene].iloc[0] < 1e-6
            assert relative(result.theta.loc[gene].iloc[1], case["vc"][1]) < tolerance
    assert interior >= 5


# ---- identities ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("space", ["psd", "unconstrained"])
@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", RANDOM)
def test_weights_are_rows_times_their_root(kind, method, space):
    """A feature alone, with the weights that it has, of the samples that it has."""
    frame, Y, weights = data()
    options = {"method": method, "parameter_space": space}
    result = fm.MultiLMM.from_formula(FIXED, RANDOM[kind], frame, Y, weights=weights).fit(**options)
    dfs = ["residual", "satterthwaite"] + ["kenward-roger"] * (method == "REML")
    for name in Y.index[:: 3 if kind == "nested" else 2]:
        there = weights.loc[name] > 0
        alone = fm.MultiLMM.from_formula(
            FIXED,
            RANDOM[kind],
            frame[there],
            Y.loc[[name], there],
            weights=weights.loc[name, there],
        ).fit(**options)
        same_fit(result, name, alone, dfs)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", [kind for kind in RANDOM if kind != "columns"])
def test_elimination_is_the_dense_stack(kind, method):
    """Every number that the two give, at theta inside the psd space and with negative variances."""
    frame, Y, weights = data()
    model = fm.MultiLMM.from_formula(FIXED, RANDOM[kind], frame, Y, weights=weights)
    ours, dense = (
        make_likelihood(model.projection, method, engine).estimators[-1]
        for engine in ("auto", "general")
    )
    assert (type(ours).__name__, type(dense).__name__) == ("OwnRowsLikelihood", "StackedLikelihood")
    features, k = np.arange(ours.m), ours.n_params
    rng, structure = np.random.default_rng(1), model.stats.structure
    vectors = rng.normal(size=(ours.m, 2, structure.q))
    for sign in (1.0, 0.0, -0.02, -5.0):
        theta = np.where(structure.is_variance, rng.uniform(0.2, 2.0, (ours.m, k)), 0.1)
        theta[:, :-1] *= sign
        mine, theirs = ours.evaluate(theta, features), dense.evaluate(theta, features)
        inside = np.isfinite(theirs.loglik)
        np.testing.assert_array_equal(np.isfinite(mine.loglik), inside)
        assert inside.all() or sign < 0
        for name in ("loglik", "score", "expected", "average"):
            a, b = getattr(mine, name)[inside], getattr(theirs, name)[inside]
            assert_allclose(a, b, rtol=1e-7, atol=1e-8 * np.abs(b).max(initial=1.0))
        if not inside.all():
            continue
        for name in ("beta", "covariance"):
            a, b = (getattr(one, name)(theta, features) for one in (ours, dense))
            assert_allclose(a, b, rtol=1e-7, atol=1e-9 * np.abs(b).max())
        for se in ("conditional", "prediction"):
            a, b = (one.random_effects(theta, features, se) for one in (ours, dense))
            scale = np.abs(b.blup).max(initial=1e-12)
            assert_allclose(a.blup / scale, b.blup / scale, atol=1e-8)
            assert_allclose(a.se, b.se, atol=1e-6 * np.nanmax(b.se, initial=1e-12))
        a, b = (one.of(features) for one in (ours, dense))
        assert_allclose(
            a.apply_T(theta, vectors), b.apply_T(theta, vectors), atol=1e-8 * structure.q
        )
        np.testing.assert_array_equal(a.is_definite(theta), b.is_definite(theta))
    np.testing.assert_array_equal(ours.perfect_fit, dense.perfect_fit)


def test_kenward_roger_is_that_of_rows_times_their_root():
    """Also in the first gene of the reference, where pbkrtest, which ignores weights, has 1,441."""
    y = pd.read_csv(WEIGHTS / "varpart_log2cpm.csv.gz", index_col=0)
    weights = pd.read_csv(WEIGHTS / "varpart_dream_weights.csv.gz", index_col=0)
    samples = pd.read_csv(WEIGHTS / "varpart_samples.csv", index_col="sample")
    samples["Disease"] = samples["Disease"].astype(str)
    test = (
        fm.MultiLMM.from_formula("~ Disease", "(1|Individual)", samples, y, weights=weights)
        .fit(parameter_space="psd")
        .t_test("Disease[T.1]", df="kenward-roger")
    )
    assert abs(float(test.df.iloc[0, 0]) - 10.0) < 0.05
    for gene in y.index[:3]:
        root = np.sqrt(weights.loc[gene].to_numpy())[:, None]
        X = np.column_stack([np.ones(24), samples["Disease"] == "1"]) * root
        Z = pd.get_dummies(samples["Individual"]).to_numpy(float) * root
        alone = fm.MultiLMM.from_arrays(y.loc[gene].to_numpy() * root[:, 0], X, Z).fit(
            parameter_space="psd"
        )
        theirs = alone.t_test("x2", df="kenward-roger")
        assert_allclose(test.df.loc[gene], theirs.df.iloc[0], rtol=1e-5)
        assert_allclose(test.pvalue.loc[gene], theirs.pvalue.iloc[0], rtol=1e-5)


def test_predictions_and_everything_else():
    frame, Y, weights = data()
    options = {"method": "ML", "parameter_space": "psd"}
    model = fm.MultiLMM.from_formula(FIXED, RANDOM["crossed"], frame, Y, weights=weights)
    result = model.fit(**options)
    smaller = model.drop(random="batch", fixed="trt[T.b]").fit(**options)
    ratio, test = result.compare_lr_test(smaller), result.variance_test("batch")
    limits = result.conf_int_theta(method="profile", features=["gene1"])
    predicted = result.predict(frame.iloc[:3], interval="prediction")
    means = result.marginal_means("trt", at={"age": 0.5})
    blups = {se: result.blup(se=se) for se in ("conditional", "prediction")}
    joint = result.f_test(["age", "trt[T.b]"], df="satterthwaite")
    for name in ("gene1", "gene4", "gene5"):
        there = weights.loc[name] > 0
        y, w = Y.loc[[name], there], weights.loc[name, there]
        frame_j = frame[there]
        alone = fm.MultiLMM.from_formula(FIXED, RANDOM["crossed"], frame_j, y, weights=w).fit(
            **options
        )
        reduced = fm.MultiLMM.from_formula("~ age", "(1|subject)", frame_j, y, weights=w).fit(
            **options
        )
        theirs = alone.compare_lr_test(reduced)
        close(ratio.loc[[name], "statistic"], theirs["statistic"])
        close(test["p"].sel(feature=name), alone.variance_test("batch")["p"][0])
        close(
            joint.pvalue.loc[name],
            alone.f_test(["age", "trt[T.b]"], df="satterthwaite").pvalue.iloc[0],
        )
        size = float(Y.loc[name].std())
        marginal = alone.marginal_means("trt", at={"age": 0.5})
        close(means.effect.loc[name], marginal.effect.iloc[0], size)
        for bound in ("lower", "upper"):
            expected = alone.predict(frame.iloc[:3], interval="prediction", allow_new_levels=True)
            close(predicted[bound].sel(feature=name) / size, expected[bound][0] / size)
        for se, blup in blups.items():
            other = alone.blup(se=se)
            here = blup.isel(feature=list(Y.index).index(name)).sel(level=other["level"].to_numpy())
            close(here["blup"], other["blup"][0], size)
            close(here["se"], other["se"][0], size)
        if name == "gene1":
            expected = alone.conf_int_theta(method="profile")[0]
            close(limits.sel(feature=name), expected, float(np.nanmax(expected)), 1e-4)
    moderated = result.t_test("age", moderated=True)
    assert np.isfinite(moderated.pvalue).all().all()
    result.moderate(trend=True)


def test_weights_of_one_are_none_and_a_common_factor_is_the_residual_variances():
    frame, Y, _ = data()
    plain = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y)
    ones = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=np.ones((M, N)))
    assert isinstance(ones.stats, fm.SummaryStats)
    assert_allclose(ones.fit().theta, plain.fit().theta, rtol=1e-7)
    first, second = (
        plain.fit(),
        fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, Y, weights=np.full((M, N), 1e6)
        ).fit(),
    )
    assert_allclose(second.theta["Residual"], 1e6 * first.theta["Residual"], rtol=1e-6)
    assert_allclose(second.theta["subject"], first.theta["subject"], rtol=1e-6)
    assert_allclose(second.t_test().pvalue, first.t_test().pvalue, atol=1e-7)
    assert_allclose(second.llf, first.llf, atol=1e-6)


def test_weight_zero_is_a_missing_value_is_a_sample_removed():
    frame, Y, weights = data()
    ones = (weights > 0).astype(float)
    zero = fm.MultiLMM.from_formula(FIXED, RANDOM["crossed"], frame, Y, weights=ones)
    missing = fm.MultiLMM.from_formula(
        FIXED, RANDOM["crossed"], frame, Y.where(weights > 0), missing="feature"
    )
    for name in ("XX", "ZX", "ZZ", "n", "log_weights"):
        mine, theirs = (
            getattr(one.stats.designs, name)[one.stats.pattern] for one in (zero, missing)
        )
        assert_allclose(mine, theirs, atol=1e-12)
    both = fm.MultiLMM.from_formula(
        FIXED,
        RANDOM["crossed"],
        frame,
        Y.where(weights > 0),
        weights=weights + 1.0,
        missing="feature",
    )
    np.testing.assert_array_equal(both.stats.nobs, (weights > 0).sum(axis=1))
    # A missing value of weight zero needs no option.
    fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y.where(weights > 0), weights=weights)
    gone = weights.copy()
    gone.iloc[:, 3] = 0.0
    removed = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=gone)
    there = np.arange(N) != 3
    without = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame[there], Y.loc[:, there], weights=gone.loc[:, there]
    )
    assert_allclose(removed.fit().llf, without.fit().llf, rtol=1e-9)


def test_a_weight_of_two_is_the_sample_twice():
    frame, Y, _ = data()
    weights = np.ones((M, N))
    weights[:, 10:20] = 2.0
    weights[0] = 1.0
    stats = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights).stats
    twice = np.r_[0:N, 10:20]
    double = fm.MultiLMM.from_formula(
        FIXED,
        RANDOM["one"],
        frame.iloc[twice].reset_index(drop=True),
        Y.iloc[:, twice].to_numpy(),
    ).stats
    assert_allclose(stats.of_pattern(int(stats.pattern[1])).XX, double.XX, rtol=1e-12)
    assert_allclose(stats.sums.XY[:, 1:], double.XY[:, 1:], rtol=1e-12)
    assert stats.n_patterns == 2


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["one", "crossed", "slopes"]))
def test_alone_as_in_company(seed, kind):
    frame, Y, weights = data(seed)
    model = fm.MultiLMM.from_formula(FIXED, RANDOM[kind], frame, Y, weights=weights)
    together = model.fit(parameter_space="psd")
    for name in Y.index[:2]:
        alone = fm.MultiLMM.from_formula(
            FIXED, RANDOM[kind], frame, Y.loc[[name]], weights=weights.loc[[name]]
        ).fit(parameter_space="psd")
        close(together.llf[name], alone.llf.iloc[0])
        close(together.params.loc[name], alone.params.iloc[0], alone.bse.iloc[0])


# ---- kinds of tables -----------------------------------------------------------------------


def of_features(stats, name):
    return getattr(stats.designs, name)[stats.pattern]


def test_every_kind_of_weights(tmp_path):
    frame, Y, weights = data()
    expected = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights).stats
    np.save(tmp_path / "w.npy", weights.to_numpy())
    xarray = pytest.importorskip("xarray")
    kinds = {
        "array": weights.to_numpy(),
        "columns": np.asfortranarray(weights.to_numpy()),
        "shuffled": weights.iloc[::-1, ::-1],
        "sparse": sp.csr_array(weights.to_numpy()),
        "sparse by samples": sp.csc_array(weights.to_numpy()),
        "mapped": np.load(tmp_path / "w.npy", mmap_mode="r"),
        "DataArray": xarray.DataArray(
            weights.to_numpy()[:, ::-1].T,
            dims=("sample", "feature"),
            coords={"sample": frame.index[::-1], "feature": Y.index},
        ),
        "more features": pd.concat([weights, weights.rename(index=lambda name: name + "b")]),
    }
    dask = pytest.importorskip("dask.array")
    kinds["dask"] = dask.from_array(weights.to_numpy(), chunks=(3, 17))
    zarr = pytest.importorskip("zarr")
    kinds["zarr"] = zarr.array(weights.to_numpy(), chunks=(3, 17))
    h5py = pytest.importorskip("h5py")
    file = h5py.File(tmp_path / "w.h5", "w")
    kinds["HDF5"] = file.create_dataset("w", data=weights.to_numpy())
    sources = {
        "frame": Y,
        "by samples": np.asfortranarray(Y.to_numpy()),
        "sparse Y": sp.csc_array(Y.to_numpy()),
        "dask Y": dask.from_array(Y.to_numpy(), chunks=(5, 23)),
    }
    for kind, values in kinds.items():
        labelled = kind in ("shuffled", "DataArray", "more features")
        y = Y if labelled else Y.to_numpy()
        found = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, y, weights=values).stats
        assert_allclose(of_features(found, "XX"), of_features(expected, "XX"), rtol=1e-10)
        assert_allclose(found.sums.ZY, expected.sums.ZY, rtol=1e-9)
    for values in sources.values():
        found = fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, values, weights=weights.to_numpy()
        ).stats
        assert_allclose(
            found.designs.ZX[found.pattern],
            expected.designs.ZX[expected.pattern],
            rtol=1e-9,
            atol=1e-12,
        )
        assert_allclose(found.sums.XY, expected.sums.XY, rtol=1e-9)
    file.close()


def test_some_features_and_samples():
    frame, Y, weights = data()
    expected = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights).stats
    for values in (weights, weights.to_numpy()):
        some = fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, Y, weights=values, features=["gene6", "gene1"]
        ).stats
        assert some.feature_names.tolist() == ["gene1", "gene6"]
        assert_allclose(
            some.designs.XX[some.pattern], expected.designs.XX[expected.pattern][[1, 6]]
        )
    samples = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame, Y.T.to_numpy(), weights=weights.T.to_numpy(), rows="samples"
    ).stats
    assert_allclose(samples.sums.XY, expected.sums.XY, rtol=1e-10)
    broken = frame.copy()
    broken.iloc[7, 0] = np.nan
    with pytest.warns(MissingSamplesWarning):
        dropped = fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], broken, Y, weights=weights, missing="drop"
        ).stats
    kept = np.arange(N) != 7
    direct = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame[kept], Y.loc[:, kept], weights=weights.loc[:, kept]
    ).stats
    assert_allclose(dropped.sums.XY, direct.sums.XY, rtol=1e-10)


def test_integer_names_are_matched_as_names():
    frame, Y, weights = data()
    ids = np.array([7, 3, 1, 0, 2, 6, 5, 4])
    Y, weights = Y.set_axis(ids, axis=0), weights.set_axis(ids, axis=0)
    expected = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights).stats
    found = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame, Y, weights=weights.sort_index()
    ).stats
    assert_allclose(found.sums.XY, expected.sums.XY, rtol=1e-12)
    some = fm.MultiLMM.from_formula(
        FIXED, RANDOM["one"], frame, Y.iloc[2:5], weights=weights.sort_index()
    ).stats
    assert_allclose(some.sums.XY, expected.sums.XY[:, 2:5], rtol=1e-12)


def test_layers_of_anndata():
    anndata = pytest.importorskip("anndata")
    frame, Y, weights = data()
    adata = anndata.AnnData(
        Y.T.to_numpy(), frame, pd.DataFrame(index=Y.index), layers={"w": weights.T.to_numpy()}
    )
    expected = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights).stats
    for values in ("w", weights, weights.iloc[::-1]):
        found = fm.MultiLMM.from_anndata(adata, FIXED, RANDOM["one"], weights=values).stats
        assert_allclose(found.sums.XY, expected.sums.XY, rtol=1e-10)
    found = fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, adata, weights="w").stats
    assert_allclose(found.sums.XY, expected.sums.XY, rtol=1e-10)
    with pytest.raises(InputError, match="no layer 'v'"):
        fm.MultiLMM.from_anndata(adata, FIXED, RANDOM["one"], weights="v")


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_bad_weights_are_refused_by_name(value):
    frame, Y, weights = data()
    weights.iloc[4, 9] = value
    with pytest.raises(InputError, match=r"`weights` must be .*'gene4', sample 'sample9'"):
        fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights)


def test_tables_that_do_not_match_are_refused():
    frame, Y, weights = data()

    def build(weights, **options):
        fm.MultiLMM.from_formula(FIXED, RANDOM["one"], frame, Y, weights=weights, **options)

    with pytest.raises(InputError, match=r"`weights`.*without a row in `weights`: 'gene0'"):
        build(weights.iloc[1:])
    with pytest.raises(InputError, match="`weights` has 7 features"):
        build(weights.to_numpy()[1:])
    with pytest.raises(InputError, match=r"`weights`.*'sample0'"):
        build(weights.iloc[:, 1:])
    with pytest.raises(InputError, match="`weights` is transposed"):
        build(weights.T)
    with pytest.raises(InputError, match="`weights` must be numeric"):
        build(weights.astype(str))
    with pytest.raises(InputError, match="missing value"):
        fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, Y.where(weights > 0), weights=weights + 1.0
        )
    with pytest.raises(InputError, match="only once"):
        fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, iter([(np.arange(N), Y.to_numpy())]), weights=weights
        )


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
def test_statistics_are_kept(tmp_path, suffix):
    if suffix == "zarr":
        pytest.importorskip("zarr")
    frame, Y, weights = data()
    model = fm.MultiLMM.from_formula(
        "~ age * dosage",
        RANDOM["slopes"],
        frame,
        Y,
        weights=weights,
        feature_covariates={"dosage": np.random.default_rng(3).normal(size=(M, N))},
    )
    model.stats.save(tmp_path / f"stats.{suffix}")
    loaded = fm.PatternedStats.load(tmp_path / f"stats.{suffix}")
    assert loaded.own == model.stats.own
    again = fm.MultiLMM.from_summary_stats(loaded).fit(parameter_space="psd")
    np.testing.assert_array_equal(again.theta, model.fit(parameter_space="psd").theta)


def test_samples_are_added_and_taken_out():
    frame, Y, weights = data()
    dosage = pd.DataFrame(np.random.default_rng(3).normal(size=(M, N)), Y.index, frame.index)

    def stats(here, order=slice(None)):
        return fm.MultiLMM.from_formula(
            "~ age + trt * dosage",
            RANDOM["slopes"],
            frame[here],
            Y.iloc[order].loc[:, here],
            weights=weights.loc[:, here],
            feature_covariates={"dosage": dosage.loc[:, here]},
        ).stats

    whole = stats(np.ones(N, dtype=bool))
    half = np.arange(N) < 34  # one subject is in both
    total = stats(half) + stats(~half, slice(None, None, -1))
    expected = fm.MultiLMM.from_summary_stats(whole).fit(parameter_space="psd")
    found = fm.MultiLMM.from_summary_stats(total).fit(parameter_space="psd")
    assert total.sums.shift is not None
    close(found.llf, expected.llf)
    close(found.params, expected.params, expected.bse)
    np.testing.assert_array_equal(total.nobs, whole.nobs)
    calm = list(Y.index.drop("gene5"))
    left = total.take(calm) - stats(~half).take(calm)
    again = fm.MultiLMM.from_summary_stats(left).fit(parameter_space="psd")
    first = fm.MultiLMM.from_summary_stats(stats(half).take(calm)).fit(parameter_space="psd")
    close(again.llf, first.llf)
    Z = np.eye(15)[np.arange(N) // 4]
    y, w, g = Y.to_numpy(), weights.to_numpy(), dosage.to_numpy()
    plain = fm.MultiLMM.from_arrays(y, np.ones((N, 1)), Z, weights=w).stats
    own = fm.MultiLMM.from_arrays(y, np.ones((N, 0)), Z, feature_covariates={"x1": g}).stats
    with pytest.raises(InputError, match="different covariates"):
        plain + own


# ---- covariates of each feature's own ------------------------------------------------------


def test_own_covariates_as_if_alone():
    frame, Y, weights = data()
    rng = np.random.default_rng(9)
    dosage = pd.DataFrame(rng.integers(0, 3, (M, N)).astype(float), Y.index, frame.index)
    copies = pd.DataFrame(rng.normal(size=(M, N)), Y.index, frame.index)
    fixed = "~ trt * dosage + dosage:copies + age"
    for own in (None, weights):
        result = fm.MultiLMM.from_formula(
            fixed,
            RANDOM["one"],
            frame,
            Y,
            weights=own,
            feature_covariates={"dosage": dosage.iloc[::-1], "copies": copies},
        ).fit(parameter_space="psd")
        for name in ("gene0", "gene3", "gene5"):
            there = weights.loc[name] > 0 if own is not None else np.ones(N, dtype=bool)
            mine = frame.assign(dosage=dosage.loc[name], copies=copies.loc[name])[there]
            alone = fm.MultiLMM.from_formula(
                fixed,
                RANDOM["one"],
                mine,
                Y.loc[[name], there],
                weights=None if own is None else weights.loc[name, there],
            ).fit(parameter_space="psd")
            assert result.params.columns.tolist() == alone.params.columns.tolist()
            same_fit(result, name, alone, ("satterthwaite", "kenward-roger"))


def test_a_covariate_that_is_equal_for_all_features():
    frame, Y, _ = data()
    frame["dosage"] = np.random.default_rng(2).normal(size=N)
    expected = fm.MultiLMM.from_formula("~ trt * dosage", RANDOM["crossed"], frame, Y)
    own = np.tile(frame["dosage"].to_numpy(), (M, 1))
    found = fm.MultiLMM.from_formula(
        "~ trt * dosage",
        RANDOM["crossed"],
        frame.drop(columns="dosage"),
        Y,
        feature_covariates={"dosage": own},
    )
    mine, theirs = found.fit(), expected.fit()
    close(mine.params, theirs.params, theirs.bse)
    close(mine.llf, theirs.llf)


def test_covariates_with_missing_values_and_matrices():
    frame, Y, _ = data()
    dosage = np.random.default_rng(2).normal(size=(M, N))
    dosage[2, 5] = np.nan
    with pytest.raises(InputError, match=r"covariate 'dosage' has a missing value.*'gene2'"):
        fm.MultiLMM.from_formula(
            "~ dosage", RANDOM["one"], frame, Y, feature_covariates={"dosage": dosage}
        )
    model = fm.MultiLMM.from_formula(
        "~ dosage",
        RANDOM["one"],
        frame,
        Y,
        missing="feature",
        feature_covariates={"dosage": dosage},
    )
    np.testing.assert_array_equal(model.stats.nobs, [N, N, N - 1] + [N] * (M - 3))
    X, Z = np.ones((N, 1)), pd.get_dummies(frame["subject"]).to_numpy(float)
    matrices = fm.MultiLMM.from_arrays(
        Y.to_numpy(), X, Z, feature_covariates={"dosage": dosage}, missing="feature"
    )
    assert_allclose(matrices.stats.designs.XX, model.stats.designs.XX, rtol=1e-12)
    assert matrices.stats.coef_names[1] == "dosage"


def test_covariates_that_cannot_be_used():
    frame, Y, _ = data()
    dosage = np.random.default_rng(2).normal(size=(M, N))

    def build(fixed, random=RANDOM["one"], name="dosage", values=dosage):
        fm.MultiLMM.from_formula(fixed, random, frame, Y, feature_covariates={name: values})

    for fixed in (
        "~ I(dosage**2)",
        "~ exp(dosage)",
        "~ center(dosage)",
        "~ dosage + I(dosage - 1)",
    ):
        with pytest.raises(InputError, match="not in a function or a power"):
            build(fixed)
    with pytest.raises(InputError, match="stands in a random effect"):
        build("~ dosage", "(dosage | subject)")
    with pytest.raises(InputError, match="does not use the covariate 'dosage'"):
        build("~ age")
    with pytest.raises(InputError, match="a column of `data` too"):
        build("~ age", name="age")
    with pytest.raises(InputError, match="'dosage' is infinite"):
        build("~ dosage", values=np.where(dosage == dosage[1, 1], np.inf, dosage))
