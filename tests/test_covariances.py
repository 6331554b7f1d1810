"""Known covariances between levels: against n x n matrices, in every container and method.

Largest differences from the dense likelihood over the designs here: 4e-12 in the log-likelihood,
2e-13 in estimates, predictions and their standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.draws import FeatureStreams, Sampler

LEVELS = [f"d{i}" for i in range(10)]
SEEN = LEVELS[1:8]


def kinship(rng, q=10, rank=13):
    root = rng.normal(size=(q, rank))
    K = root @ root.T
    length = np.sqrt(np.diag(K))
    return pd.DataFrame(K / np.outer(length, length), LEVELS[:q], LEVELS[:q])


@dataclass(frozen=True)
class Case:
    data: pd.DataFrame
    Y: np.ndarray
    K: pd.DataFrame


@cache
def case() -> Case:
    rng = np.random.default_rng(5)
    n, K = 70, kinship(rng)
    data = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "g": rng.choice(SEEN, size=n),
            "h": rng.choice(list("pqrs"), size=n),
        }
    )
    L = np.linalg.cholesky(K)
    u, s = (pd.DataFrame(1.2 * L @ rng.normal(size=(10, 3)), LEVELS) for _ in range(2))
    c = pd.DataFrame(rng.normal(size=(4, 3)), list("pqrs"))
    Y = u.loc[data.g].T.to_numpy() + c.loc[data.h].T.to_numpy() + rng.normal(size=(3, n))
    Y += (0.5 + s.loc[data.g].T.to_numpy()) * data.x.to_numpy()
    return Case(data, Y, K)


@cache
def fitted(random, method="REML", space="psd", engine="auto"):
    one = case()
    model = fm.MultiLMM.from_formula("~ x", random, one.data, one.Y, covariances={"g": one.K})
    return model, model.fit(method, parameter_space=space, engine=engine)


def dense_model(model, theta, K, data):
    """Z, D and V from indicators and Kronecker products alone."""
    blocks, covariances = [], []
    values = dict(zip(model.stats.structure.param_names, theta, strict=True))
    for term in model.stats.structure.terms:
        Z = (data[term.group].to_numpy()[:, None] == np.array(term.levels)).astype(float)
        columns = [np.ones(len(data)), data.x.to_numpy()][: len(term.effects)]
        Z = np.stack([Z * column[:, None] for column in columns], axis=2).reshape(len(data), -1)
        own = K.loc[list(term.levels), list(term.levels)] if term.root else np.eye(len(term.levels))
        if len(columns) == 1:
            T = np.array([[values[term.name]]])
        else:
            a, b, c = (values[f"g[{e}]"] for e in ("Intercept", "x", "Intercept,x"))
            T = np.array([[a, c], [c, b]])
        blocks.append(Z)
        covariances.append(np.kron(own, T))
    size = sum(len(D) for D in covariances)
    D, start = np.zeros((size, size)), 0
    for own in covariances:
        D[start : start + len(own), start : start + len(own)] = own
        start += len(own)
    Z = np.hstack(blocks)
    return Z, D, Z @ D @ Z.T + values["Residual"] * np.eye(len(data))


def dense_estimates(y, X, V, method):
    inverse = np.linalg.inv(V)
    C = np.linalg.inv(X.T @ inverse @ X)
    beta = C @ X.T @ inverse @ y
    r = y - X @ beta
    df = len(y) - (X.shape[1] if method == "REML" else 0)
    loglik = -0.5 * (df * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ inverse @ r)
    if method == "REML":
        loglik += 0.5 * np.linalg.slogdet(C)[1]
    return loglik, beta, C, inverse, r


RANDOMS = ["(1 | g)", "(1 | g) + (1 | h)", "(1 + x | g)", "(1 + x | g) + (1 | h)"]
ENGINES = [
    *(("(1 | g)", engine) for engine in ("spectral", "general")),
    *(("(1 | g) + (1 | h)", engine) for engine in ("bordered", "general", "blocked")),
    *((random, "general") for random in RANDOMS[2:]),
]


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize(("random", "engine"), ENGINES)
def test_fits_equal_those_of_the_dense_likelihood(random, engine, method):
    one = case()
    model, result = fitted(random, method, engine=engine)
    X = np.column_stack([np.ones(len(one.data)), one.data.x])
    given, predicted = result.blup(se="conditional"), result.blup(se="prediction")
    for j, theta in enumerate(result.ds["theta"].to_numpy()):
        Z, D, V = dense_model(model, theta, one.K, one.data)
        loglik, beta, C, inverse, r = dense_estimates(one.Y[j], X, V, method)
        assert result.llf.iloc[j] == pytest.approx(loglik, abs=1e-9)
        assert_allclose(result.params.iloc[j], beta, atol=1e-10)
        assert_allclose(result.bse.iloc[j], np.sqrt(np.diag(C)), atol=1e-10)
        assert_allclose(given["blup"][j], D @ Z.T @ inverse @ r, atol=1e-10)
        P = inverse - inverse @ X @ C @ X.T @ inverse
        for found, middle in ((given, inverse), (predicted, P)):
            variance = np.diag(D - D @ Z.T @ middle @ Z @ D)
            assert_allclose(found["se"][j], np.sqrt(variance), atol=1e-9)
    assert set(LEVELS) - set(SEEN) <= set(given["group_level"].to_numpy())


@pytest.mark.parametrize("random", RANDOMS[:3])
def test_the_maximum_is_that_of_the_dense_likelihood(random):
    # No small step in any direction of theta makes the dense likelihood larger.
    one = case()
    model, result = fitted(random, space="unconstrained")
    X = np.column_stack([np.ones(len(one.data)), one.data.x])
    assert result.converged.all()
    for y, theta, se in zip(
        one.Y, result.theta.to_numpy(), result.ds["se_theta"].to_numpy(), strict=True
    ):
        at = dense_estimates(y, X, dense_model(model, theta, one.K, one.data)[2], "REML")[0]
        for i in range(theta.size):
            for sign in (-1.0, 1.0):
                moved = theta.copy()
                moved[i] += sign * 1e-2 * se[i]
                V = dense_model(model, moved, one.K, one.data)[2]
                assert dense_estimates(y, X, V, "REML")[0] < at


def forms(K):
    """The same covariance in every form, with the K that it stands for."""
    dense, names = K.to_numpy(), list(K.index)
    shuffled = K.iloc[::-1, np.random.default_rng(0).permutation(len(K))]
    values, vectors = np.linalg.eigh(dense)
    wide = np.hstack([vectors * np.sqrt(values / 2)] * 2)
    return {
        "frame": K,
        "shuffled": shuffled,
        "DataArray": K.rename_axis("a").rename_axis("b", axis=1).stack().to_xarray(),
        "levels": fm.Covariance(dense, levels=names),
        "sparse": fm.Covariance(sp.csr_matrix(dense), levels=names),
        "root": fm.Covariance.from_root(pd.DataFrame(vectors * np.sqrt(values), K.index)),
        "wide root": fm.Covariance.from_root(wide, levels=names),
        "sparse root": fm.Covariance.from_root(sp.csr_array(wide), levels=names),
        "inverse": fm.Covariance.from_inverse(np.linalg.inv(dense), levels=names),
        "sparse inverse": fm.Covariance.from_inverse(
            sp.coo_array(np.linalg.inv(dense)), levels=pd.Index(names)
        ),
    }


@pytest.mark.parametrize("form", list(forms(case().K)))
def test_every_form_of_a_covariance_is_the_same_model(form):
    one, (_, expected) = case(), fitted("(1 | g)")
    K = forms(one.K)[form]
    result = fm.MultiLMM.from_formula("~ x", "(1 | g)", one.data, one.Y, covariances={"g": K}).fit(
        parameter_space="psd"
    )
    assert_allclose(result.theta, expected.theta, rtol=1e-6)
    assert_allclose(result.llf, expected.llf, atol=1e-9)
    level = expected.blup().coords["group_level"].to_numpy()
    found = result.blup(se="prediction")
    found = found.isel(level=pd.Index(found["group_level"].to_numpy()).get_indexer(level))
    assert_allclose(found["blup"], expected.blup(), atol=1e-6)
    assert_allclose(found["se"], expected.blup(se="prediction")["se"], atol=1e-6)


def test_families_stay_sparse_and_single_levels_too():
    rng = np.random.default_rng(2)
    family = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    blocks = (family, [[1.0]], family, [[1.5]], family)
    K = sp.block_diag([sp.coo_array(block) for block in blocks], format="csr")
    names = [f"i{k}" for k in range(K.shape[0])]
    g = np.tile(names, 3)
    Y = rng.normal(size=(4, g.size)) + rng.normal(size=(4, len(names)))[:, np.tile(range(11), 3)]
    results = [
        fm.MultiLMM.from_formula(
            "~ 1 + (1 | g)", data=pd.DataFrame({"g": g}), Y=Y, covariances={"g": given}
        ).fit()
        for given in (
            fm.Covariance(K, levels=names),
            fm.Covariance(K.toarray(), levels=names),
            fm.Covariance.from_inverse(sp.csr_array(np.linalg.inv(K.toarray())), levels=names),
        )
    ]
    for other in results[1:]:
        assert_allclose(other.theta, results[0].theta, rtol=1e-6, atol=1e-9)
        assert_allclose(other.blup(), results[0].blup(), atol=1e-7)


def test_semi_definite_covariances_are_fine():
    one = case()
    low = np.random.default_rng(1).normal(size=(10, 3))
    K = pd.DataFrame(low @ low.T / 3, LEVELS, LEVELS)
    K /= np.diag(K).mean()
    model = fm.MultiLMM.from_formula("~ x", "(1 | g)", one.data, one.Y, covariances={"g": K})
    result = model.fit(parameter_space="psd")
    X = np.column_stack([np.ones(len(one.data)), one.data.x])
    for j, theta in enumerate(result.theta.to_numpy()):
        Z, D, V = dense_model(model, theta, K, one.data)
        loglik, _, _, inverse, r = dense_estimates(one.Y[j], X, V, "REML")
        assert result.llf.iloc[j] == pytest.approx(loglik, abs=1e-9)
        assert_allclose(result.blup()[j], D @ Z.T @ inverse @ r, atol=1e-9)


@pytest.mark.parametrize(("scale", "told"), [(2000.0, "2000"), (0.5, "0.5")])
def test_another_scale_is_fitted_and_told(scale, told):
    one, (_, expected) = case(), fitted("(1 | g)")
    with pytest.warns(fm.CovarianceWarning, match=f"mean diagonal of {told}"):
        model = fm.MultiLMM.from_formula(
            "~ x", "(1 | g)", one.data, one.Y, covariances={"g": scale * one.K}
        )
    result = model.fit(parameter_space="psd")
    assert_allclose(result.theta["g"] * scale, expected.theta["g"], rtol=1e-6)
    assert_allclose(result.icc()["estimate"], expected.icc()["estimate"], rtol=1e-6)
    assert_allclose(result.blup(), expected.blup(), atol=1e-6)
    assert f"mean diagonal {told}" in " ".join(str(result.summary()).split())


def test_shares_of_the_variance_are_scaled_by_the_diagonal_over_the_samples():
    one, (_, result) = case(), fitted("(1 | g) + (1 | h)")
    mean = np.diag(one.K.loc[one.data.g, one.data.g]).mean()
    parts = result.theta.to_numpy() * [mean, 1.0, 1.0]
    assert_allclose(result.icc()["estimate"], parts / parts.sum(axis=1, keepdims=True), rtol=1e-10)


def test_several_covariances_of_one_factor():
    one = case()
    other = kinship(np.random.default_rng(9))
    model = fm.MultiLMM.from_formula(
        "~ x",
        {"additive": "(1 | g)", "dominance": "~ 0 + g", "home": "(1 | g)"},
        one.data,
        one.Y,
        covariances={"additive": one.K, "dominance": other},
    )
    result = model.fit(parameter_space="psd")
    assert list(result.theta.columns) == ["additive", "dominance", "home", "Residual"]
    assert result.blup().indexes["level"].is_unique
    X = np.column_stack([np.ones(len(one.data)), one.data.x])
    g = one.data.g
    for j, theta in enumerate(result.theta.to_numpy()):
        V = theta[0] * one.K.loc[g, g].to_numpy() + theta[1] * other.loc[g, g].to_numpy()
        V += theta[2] * (g.to_numpy()[:, None] == g.to_numpy()) + theta[3] * np.eye(len(g))
        loglik, beta, *_ = dense_estimates(one.Y[j], X, V, "REML")
        assert result.llf.iloc[j] == pytest.approx(loglik, abs=1e-9)
        assert_allclose(result.params.iloc[j], beta, atol=1e-10)
    total = result.coef()["g"]
    assert total.sizes["group_level"] == 10


# ---- ways in ---------------------------------------------------------------------------------


def test_matrices_and_summary_statistics_take_covariances_by_component():
    one, (model, expected) = case(), fitted("(1 | g)")
    X = np.column_stack([np.ones(len(one.data)), one.data.x])
    Z = pd.get_dummies(one.data.g).astype(float)
    labelled = fm.MultiLMM.from_arrays(one.Y, X, Z, covariances={"Z1": one.K})
    K = one.K.loc[list(Z.columns), list(Z.columns)].to_numpy()
    plain = fm.MultiLMM.from_arrays(
        one.Y, X, Z.to_numpy(), components={"g": Z.shape[1]}, covariances={"g": K}
    )
    stats = fm.SummaryStats.from_arrays(one.Y, X, Z)
    summed = fm.MultiLMM.from_summary_stats(stats, covariances={"Z1": one.K})
    for other in (labelled, plain, summed):
        result = other.fit(parameter_space="psd")
        assert_allclose(result.theta, expected.theta, rtol=1e-6)
        assert_allclose(result.llf, expected.llf, atol=1e-9)
    assert model.stats.q == labelled.stats.q == summed.stats.q == 10


def test_anndata_takes_covariances():
    anndata = pytest.importorskip("anndata")
    one, (_, expected) = case(), fitted("(1 | g)")
    obs = one.data.set_axis([f"c{i}" for i in range(len(one.data))])
    adata = anndata.AnnData(one.Y.T, obs=obs)
    model = fm.MultiLMM.from_anndata(adata, "~ x", "(1 | g)", covariances={"g": one.K})
    assert_allclose(model.fit(parameter_space="psd").theta, expected.theta, rtol=1e-6)


def test_statistics_with_covariances_add_up_and_come_apart():
    one, (model, _) = case(), fitted("(1 | g)")
    halves = [
        fm.MultiLMM.from_formula(
            "~ x", "(1 | g)", one.data[rows], one.Y[:, rows], covariances={"g": one.K}
        ).stats
        for rows in (one.data.x.to_numpy() < 0, one.data.x.to_numpy() >= 0)
    ]
    total = halves[0] + halves[1]
    expected = model.fit(parameter_space="psd")
    result = fm.MultiLMM.from_summary_stats(total).fit(parameter_space="psd")
    assert_allclose(result.theta, expected.theta, rtol=1e-6)
    back = total - halves[1]
    assert back.structure.terms[0].levels == total.structure.terms[0].levels
    other = fm.MultiLMM.from_formula(
        "~ x", "(1 | g)", one.data, one.Y, covariances={"g": kinship(np.random.default_rng(0))}
    ).stats
    with pytest.raises(InputError, match="different known covariances"):
        total + other
    plain = fm.MultiLMM.from_formula("~ x", "(1 | g)", one.data, one.Y).stats
    with pytest.raises(InputError, match="known covariance"):
        total + plain


def test_sums_by_group_of_a_factor_with_a_covariance():
    one = case()
    model = fm.MultiLMM.from_formula(
        "~ x", "(1 | g)", one.data, one.Y, covariances={"g": one.K}, sums_by="g"
    )
    rows = one.data.g != "d3"
    left = fm.MultiLMM.from_summary_stats(model.stats.without("d3")).fit(parameter_space="psd")
    alone = fm.MultiLMM.from_formula(
        "~ x", "(1 | g)", one.data[rows], one.Y[:, rows], covariances={"g": one.K}
    ).fit(parameter_space="psd")
    assert_allclose(left.theta, alone.theta, rtol=1e-5)
    assert model.fit(parameter_space="psd").influence() is not None
    with pytest.raises(InputError, match="independent of each other"):
        model.fit().t_test("x", cov="CR2")


@pytest.mark.parametrize("random", ["(1 | g)", "(1 + x | g) + (1 | h)"])
def test_features_with_samples_of_their_own(random):
    one = case()
    Y = one.Y.copy()
    Y[0, :5] = np.nan
    Y[2, 40:44] = np.nan
    model = fm.MultiLMM.from_formula(
        "~ x", random, one.data, Y, covariances={"g": one.K}, missing="feature"
    )
    result = model.fit(parameter_space="psd")
    for j in range(3):
        there = np.isfinite(Y[j])
        alone = fm.MultiLMM.from_formula(
            "~ x", random, one.data[there], Y[j, there], covariances={"g": one.K}
        ).fit(parameter_space="psd")
        assert_allclose(result.llf.iloc[j], alone.llf.iloc[0], atol=1e-8)
        assert_allclose(result.params.iloc[j], alone.params.iloc[0], atol=1e-5)
        for kind in ("conditional", "prediction"):
            mine, theirs = (r.blup(se=kind).to_dataframe().reset_index() for r in (result, alone))
            mine = mine[mine.feature == j].set_index("level")
            theirs = theirs.set_index("level").loc[mine.index]
            assert_allclose(mine.blup, theirs.blup, atol=1e-4)
            assert_allclose(mine.se, theirs.se, atol=1e-4)
        assert_allclose(result.icc()["estimate"][j], alone.icc()["estimate"][0], atol=1e-4)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, size=one.Y.shape)
    own = fm.MultiLMM.from_formula(
        "~ x", random, one.data, one.Y, covariances={"g": one.K}, weights=weights
    ).fit(parameter_space="psd")
    first = fm.MultiLMM.from_formula(
        "~ x", random, one.data, one.Y[:1], covariances={"g": one.K}, weights=weights[0]
    ).fit(parameter_space="psd")
    assert_allclose(own.llf.iloc[0], first.llf.iloc[0], atol=1e-8)


# ---- what follows from a fit -----------------------------------------------------------------


def test_saved_and_loaded(tmp_path):
    model, result = fitted("(1 + x | g) + (1 | h)")
    result.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    for kind in ("conditional", "prediction"):
        assert_allclose(loaded.blup(se=kind)["se"], result.blup(se=kind)["se"], atol=1e-12)
    assert_allclose(loaded.icc()["estimate"], result.icc()["estimate"], atol=1e-12)
    model.stats.save(tmp_path / "stats.nc")
    again = fm.MultiLMM.from_summary_stats(fm.SummaryStats.load(tmp_path / "stats.nc"))
    assert_allclose(again.fit(parameter_space="psd").theta, result.theta, rtol=1e-10)
    assert again.stats.structure == model.stats.structure


@pytest.mark.parametrize("random", ["(1 | g)", "(1 + x | g)"])
def test_predictions_of_known_levels_with_and_without_data(random):
    one = case()
    model, result = fitted(random)
    new = pd.DataFrame({"x": [0.3, -1.0, 2.0], "g": ["d2", "d9", "d0"]})
    found = result.predict(new, level="conditional", interval="prediction", df="normal")
    rows = np.column_stack([np.ones(3), new.x])
    X = np.column_stack([np.ones(len(one.data)), one.data.x])
    both = pd.concat([one.data.drop(columns="h"), new], ignore_index=True)
    for j, theta in enumerate(result.theta.to_numpy()):
        Z, D, V = dense_model(model, theta, one.K, both)
        n = len(one.data)
        Z, z, V = Z[:n], Z[n:], V[:n, :n]
        _, beta, C, inverse, r = dense_estimates(one.Y[j], X, V, "REML")
        assert_allclose(found["prediction"][j], rows @ beta + z @ D @ Z.T @ inverse @ r, atol=1e-9)
        w = rows - z @ D @ Z.T @ inverse @ X
        variance = np.diag(w @ C @ w.T + z @ (D - D @ Z.T @ inverse @ Z @ D) @ z.T) + theta[-1]
        assert_allclose(found["se"][j], np.sqrt(variance), atol=1e-9)
    unknown = new.assign(g="nobody")
    with pytest.raises(InputError, match="nobody"):
        result.predict(unknown, level="conditional")
    wide = result.predict(
        unknown, level="conditional", interval="prediction", allow_new_levels=True, df="normal"
    )
    assert (wide["se"] > found["se"]).all()


def test_one_feature_has_the_conditional_covariances_too():
    model, result = fitted("(1 + x | g)")
    one = case()
    Z, D, V = dense_model(model, result.theta.to_numpy()[1], one.K, one.data)
    whole = D - D @ Z.T @ np.linalg.inv(V) @ Z @ D
    blocks = result.sel(1).random_effects_cov
    for i, level in enumerate(model.stats.structure.terms[0].levels):
        here = slice(2 * i, 2 * i + 2)
        assert_allclose(blocks[level], whole[here, here], atol=1e-9)


def test_bootstrap_profile_and_tests():
    model, result = fitted("(1 | g)")
    drawn = result.bootstrap(40, rng=1)
    assert np.isfinite(drawn.se).all()
    assert np.isfinite(result.conf_int_theta(method="profile").sel(bound="upper")).all()
    smaller = model.drop(random="g").fit("REML", parameter_space="psd")
    assert (result.compare_lr_test(smaller)["p"] <= 1.0).all()
    for df in ("satterthwaite", "kenward-roger", "residual"):
        assert (result.t_test("x", df=df).pvalue <= 1.0).all().all()
    without = fm.MultiLMM.from_formula("~ x", "(1 | g)", case().data, case().Y).fit(
        parameter_space="psd"
    )
    with pytest.raises(InputError, match="not nested"):
        result.compare_lr_test(without)
    with pytest.raises(InputError, match="known covariance"):
        result.sel(0).to_statsmodels(case().Y[0], case().data)


def test_draws_have_the_covariance_of_the_model():
    one = case()
    model, result = fitted("(1 | g)")
    theta = result.theta.to_numpy()[:1]
    for at in (theta, theta * [-0.05, 1.0]):
        streams = FeatureStreams.spawn(np.random.default_rng(0), 1)
        drawn = Sampler(model.stats.at(np.arange(1))).draw(at, np.zeros((1, 2)), 4000, streams)
        Z, _, V = dense_model(model, at[0], one.K, one.data)
        expected = Z.T @ V @ Z
        found = drawn.ZY @ drawn.ZY.T / 4000
        unit = np.sqrt(np.outer(np.diag(expected), np.diag(expected))) + 1e-12
        assert np.abs((found - expected) / unit).max() < 0.12


# ---- bad input -------------------------------------------------------------------------------


def bad(K, **more):
    one = case()
    return fm.MultiLMM.from_formula(
        "~ x", more.pop("random", "(1 | g)"), one.data, one.Y, covariances=K, **more
    )


def test_bad_covariances_are_refused():
    K = case().K
    skew = K.copy()
    skew.iloc[0, 1] += 0.2
    negative = K - 0.9 * np.eye(10)
    smallest = np.linalg.eigvalsh(negative)[0]
    lacking = K.drop(index=["d3", "d5"], columns=["d3", "d5"])
    missing = K.copy()
    missing.iloc[2, 2] = np.nan
    for given, words in [
        (skew, "not symmetric: between 'd0' and 'd1'"),
        (negative, f"smallest eigenvalue is {smallest:.6g}"),
        (fm.Covariance.from_inverse(negative), f"smallest eigenvalue is {smallest:.6g}"),
        (fm.Covariance(sp.csr_array(negative.to_numpy()), LEVELS), "smallest eigenvalue"),
        (lacking, "no row for the levels 'd3', 'd5'|no row for the levels 'd5', 'd3'"),
        (missing, "missing or infinite"),
        (K.to_numpy(), "without names"),
        (K.iloc[:, :5], "different labels|square"),
        (K.set_axis([*LEVELS[:9], "d0"]), "[Dd]uplicate"),
        (K.astype(str), "numeric"),
        (0.0 * K, "zero everywhere"),
        ("kinship.csv", "numeric|must"),
    ]:
        with pytest.raises(InputError, match=words):
            bad({"g": given})
    with pytest.raises(InputError, match="'donor', which is no random term"):
        bad({"donor": K})
    with pytest.raises(InputError, match="covariances"):
        bad(K)
    with pytest.raises(InputError, match="levels"):
        fm.Covariance(K, levels=[f"e{i}" for i in range(10)])


# ---- pedigrees and files ---------------------------------------------------------------------

# Mrode, Linear Models for the Prediction of Animal Breeding Values (3rd edition): the pedigree of
# table 2.1 with its relationships, and example 3.1, pre-weaning gain of calves, h2 = 1/3.
MRODE_2_1 = pd.DataFrame({"id": [3, 4, 5, 6], "sire": [1, 1, 4, 5], "dam": [2, np.nan, 3, 2]})
MRODE_3_1 = pd.DataFrame(
    {"id": range(1, 9), "sire": [0, 0, 0, 1, 3, 1, 4, 3], "dam": [0, 0, 0, 0, 2, 2, 5, 6]}
)


def test_relationships_of_a_pedigree_are_the_published_ones():
    A = fm.relationship_matrix(MRODE_2_1)
    published = [
        [1.0, 0.0, 0.5, 0.5, 0.5, 0.25],
        [0.0, 1.0, 0.5, 0.0, 0.25, 0.625],
        [0.5, 0.5, 1.0, 0.25, 0.625, 0.5625],
        [0.5, 0.0, 0.25, 1.0, 0.625, 0.3125],
        [0.5, 0.25, 0.625, 0.625, 1.125, 0.6875],
        [0.25, 0.625, 0.5625, 0.3125, 0.6875, 1.125],
    ]
    names = [str(i) for i in range(1, 7)]
    assert_allclose(A.loc[names, names], published)
    found = fm.pedigree_covariance(MRODE_2_1.sample(frac=1.0, random_state=1))
    inverse = found.matrix.toarray()
    order = pd.Index(found.levels).get_indexer(A.index)
    assert_allclose(inverse[np.ix_(order, order)], np.linalg.inv(A), atol=1e-12)


def test_breeding_values_of_a_published_example():
    # Variances 20 and 40 are given there; predictions depend on their ratio alone.
    gain = np.array([4.5, 2.9, 3.9, 3.5, 5.0])
    calves = pd.DataFrame({"animal": [4, 5, 6, 7, 8], "sex": ["m", "f", "f", "m", "m"]})
    results = [
        fm.MultiLMM.from_formula(
            "~ 0 + sex", "(1 | animal)", calves, gain, covariances={"animal": known}
        ).fit(theta0=[20.0, 40.0], max_iter=1)
        for known in (fm.relationship_matrix(MRODE_3_1), fm.pedigree_covariance(MRODE_3_1))
    ]
    published = [0.098, -0.019, -0.041, -0.009, -0.186, 0.177, -0.249, 0.183]
    A = fm.relationship_matrix(MRODE_3_1)
    for result in results:
        # The same equations at the published variances, through the statistics' own likelihood.
        request = result.fitted.on_request
        theta = result.fitted.projection.to_internal(np.array([[20.0, 40.0]]))
        effects = request.likelihood.random_effects(theta, np.array([0]), None).blup
        animals = result.stats.structure.terms[0].levels
        values = pd.Series(result.fitted.projection.roots.to_levels(effects)[0], animals)
        assert_allclose(values[[str(i) for i in range(1, 9)]], published, atol=6e-4)
        beta = request.likelihood.beta(theta, np.array([0]))[0]
        assert_allclose(beta, [3.404, 4.358], atol=6e-4)
    assert set(A.index) == set(results[0].stats.structure.terms[0].levels)


def test_pedigrees_that_cannot_be():
    for table, words in [
        (pd.DataFrame({"id": ["a", "b"], "sire": ["b", "a"], "dam": ["", ""]}), "circle"),
        (pd.DataFrame({"id": ["a", "a"], "sire": ["", ""], "dam": ["", ""]}), "several rows"),
        (pd.DataFrame({"animal": ["a"], "sire": [""], "dam": [""]}), "no column 'id'"),
        (pd.DataFrame({"id": ["a", None], "sire": ["", ""], "dam": ["", ""]}), "no name"),
    ]:
        with pytest.raises(InputError, match=words):
            fm.relationship_matrix(table)


def write_grm(folder, K, text=False):
    lines = "".join(f"f{i // 2}\tone{i % 2}\n" for i in range(len(K)))
    (folder / "made.grm.id").write_text(lines, encoding="utf-8")
    rows, columns = np.tril_indices(len(K))
    if text:
        table = pd.DataFrame({"i": rows + 1, "j": columns + 1, "n": 1000, "v": K[rows, columns]})
        table.to_csv(folder / "made.grm.gz", sep="\t", header=False, index=False)
    else:
        K[rows, columns].astype("<f4").tofile(folder / "made.grm.bin")
    return folder / "made"


@pytest.mark.parametrize("text", [False, True])
def test_matrices_of_gcta_are_read(tmp_path, text):
    K = case().K.to_numpy()[:6, :6]
    prefix = write_grm(tmp_path, K, text)
    with pytest.raises(InputError, match="family:individual"):
        fm.read_grm(prefix)
    found = fm.read_grm(f"{prefix}.grm.id", labels="family:individual")
    assert list(found.index) == ["f0:one0", "f0:one1", "f1:one0", "f1:one1", "f2:one0", "f2:one1"]
    assert_allclose(found, K, atol=1e-7)
    data = pd.DataFrame({"f": np.repeat(["f0", "f1", "f2"], 8), "i": ["one0", "one1"] * 12})
    model = fm.MultiLMM.from_formula(
        "~ 1 + (1 | f:i)",
        data=data,
        Y=np.random.default_rng(0).normal(size=(2, 24)),
        covariances={"f:i": found},
    )
    assert model.fit().status.size == 2


def test_broken_files_of_relationships_are_refused(tmp_path):
    prefix = write_grm(tmp_path, case().K.to_numpy()[:4, :4])
    with (tmp_path / "made.grm.bin").open("ab") as file:
        file.write(b"0000")
    with pytest.raises(InputError, match=r"44 bytes.*40"):
        fm.read_grm(prefix, labels="family:individual")
    (tmp_path / "made.grm.bin").unlink()
    with pytest.raises(InputError, match="neither"):
        fm.read_grm(prefix, labels="family:individual")
    with pytest.raises(InputError, match="no file"):
        fm.read_grm(tmp_path / "other")
    (tmp_path / "bad.csv").write_text("x,a,b\na,1,0\nc,0,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="'b', 'c'"):
        fm.read_covariance(tmp_path / "bad.csv")


def test_tables_of_kinship_are_read(tmp_path):
    K = case().K
    for name, sep in (("a.csv", ","), ("a.tsv", "\t"), ("a.txt", " "), ("a.csv.gz", ",")):
        K.to_csv(tmp_path / name, sep=sep, index_label="donor")
        pd.testing.assert_frame_equal(fm.read_covariance(tmp_path / name), K)


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_kinship_equals_metafor(method):
    # Largest differences: log-likelihood 7e-12; variances 1.1e-6 relative, where metafor stopped.
    folder = Path(__file__).parent / "reference" / "known"
    data = pd.read_csv(folder / "expression.csv", index_col=0)
    table = pd.read_csv(folder / "metafor.csv")
    theirs = table[table["method"] == method].set_index("gene")
    Y = data.loc[:, theirs.index].T
    K = fm.read_covariance(folder / "kinship.csv")
    result = fm.MultiLMM.from_formula(
        "~ virus", "(1 | ptID)", data[["ptID", "virus"]], Y, covariances={"ptID": K}
    ).fit(method, parameter_space="psd", epsilon=1e-8)
    assert_allclose(result.llf, theirs["loglik"], atol=1e-9)
    assert_allclose(result.theta, theirs[["ptID", "residual"]], rtol=5e-6)
    assert_allclose(result.params, theirs[["intercept", "virusnone"]], atol=1e-7)
    assert_allclose(result.bse, theirs[["se_intercept", "se_virusnone"]], rtol=1e-6)


def test_other_residual_variances_beside_a_known_covariance():
    one = case()
    data = one.data.assign(sex=np.where(one.data.x > 0, "m", "f"))
    X = np.column_stack([np.ones(len(data)), data.x])
    K = one.K.loc[data.g, data.g].to_numpy()
    model = fm.MultiLMM.from_formula(
        "~ x", "(1 | g)", data, one.Y, covariances={"g": one.K}, sums_by="sex"
    )
    by_sex = model.fit(parameter_space="psd", residual_by="sex")
    known = model.fit(parameter_space="psd", residual_variance=1.0)
    for j, y in enumerate(one.Y):
        theta = by_sex.theta.iloc[j]
        V = theta["g"] * K + np.diag(theta[[f"Residual[{s}]" for s in data.sex]].to_numpy())
        loglik, beta, _, inverse, r = dense_estimates(y, X, V, "REML")
        assert by_sex.llf.iloc[j] == pytest.approx(loglik, abs=1e-9)
        assert_allclose(by_sex.params.iloc[j], beta, atol=1e-9)
        levels = model.stats.structure.terms[0].levels
        effects = theta["g"] * one.K.loc[list(levels), data.g].to_numpy() @ inverse @ r
        assert_allclose(by_sex.blup()[j], effects, atol=1e-9)
        V = known.theta.iloc[j]["g"] * K + np.eye(len(data))
        assert known.llf.iloc[j] == pytest.approx(dense_estimates(y, X, V, "REML")[0], abs=1e-9)


@pytest.mark.parametrize(("data_type", "label_type"), [(int, float), (float, int), (float, str)])
def test_whole_numbers_are_matched_however_they_are_written(data_type, label_type):
    """A column of whole numbers is one of floats where one was missing: 101.0 beside 101."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(7, 9))
    labels = np.arange(101, 108).astype(label_type)
    K = pd.DataFrame(root @ root.T / 9.0, labels, labels).iloc[::-1, ::-1]
    data = pd.DataFrame({"g": np.repeat(np.arange(101, 107), 5).astype(data_type)})
    Y = rng.normal(size=(2, 30)) + rng.normal(size=(2, 6)).repeat(5, axis=1)
    plain = fm.Covariance(root @ root.T / 9.0, levels=[f"d{i}" for i in range(101, 108)])
    named = data.assign(g=[f"d{level:.0f}" for level in data["g"]])
    results = [
        fm.MultiLMM.from_formula("~ 1", "(1 | g)", table, Y, covariances={"g": known}).fit(
            parameter_space="psd"
        )
        for table, known in ((data, K), (named, plain))
    ]
    np.testing.assert_allclose(results[0].llf, results[1].llf, rtol=1e-12)
    new = pd.DataFrame({"g": np.array([107]).astype(data_type)})
    expected = results[1].predict(pd.DataFrame({"g": ["d107"]}))
    np.testing.assert_allclose(results[0].predict(new), expected, rtol=1e-9)
