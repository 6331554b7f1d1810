"""Structures that are not linear in their parameters: ar1, exp, cs with a variance per effect."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import references
import scipy.optimize
import test_every_method
from numpy.testing import assert_allclose
from stress.designs import draw
from stress.responses import responses

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.likelihood import ENGINES, make_likelihood
from flashmm.likelihood.own_parameters import OwnParameters
from flashmm.stats.stored import sums_to_dataset
from flashmm.storage.schema import check_file

methods = pytest.mark.parametrize("method", ["REML", "ML"])
# Times of each structure; the lags of ar1 have a gap, the places of exp are irregular.
TIMES = {"ar1": [0, 1, 2, 4], "exp": [0.0, 0.7, 1.1, 3.0], "csh": [0, 1, 2]}
TEXT = {"ar1": "ar1(t | g)", "exp": "exp(t | g)", "csh": "cs(0 + C(t) | g, hom=FALSE)"}
TRUE = {"ar1": [1.5, 0.6], "exp": [1.5, 0.5], "csh": [0.6, 1.1, 1.7, 0.5]}
kinds = pytest.mark.parametrize("kind", list(TIMES))


def covariance(kind, u):
    """Covariance matrix of a level's effects; of exp u is variance and correlation at 1 apart."""
    t = np.array(TIMES[kind], dtype=float)
    if kind == "csh":
        s = t.size
        return np.outer(u[:s], u[:s]) * ((1 - u[s]) * np.eye(s) + u[s])
    lag = np.abs(t[:, None] - t)
    return u[0] * np.where((lag % 2 == 1) & (u[1] < 0), -1.0, 1.0) * np.abs(u[1]) ** lag


def samples(kind, seed=4):
    rng, groups = np.random.default_rng(seed), 16 if kind == "csh" else 10
    rows = [
        (f"g{i}", t) for i in range(groups) for t in TIMES[kind] for _ in range(rng.integers(1, 3))
    ]
    data = pd.DataFrame(rows, columns=["g", "t"])
    data["x"], data["h"] = rng.normal(size=len(data)), rng.choice(list("uvw"), len(data))
    g, t = pd.factorize(data["g"])[0], np.searchsorted(TIMES[kind], data["t"])
    root = np.linalg.cholesky(covariance(kind, TRUE[kind]))
    effects = rng.normal(size=(4, groups, len(TIMES[kind]))) @ root.T
    Y = effects[:, g, t] + 0.3 * data["x"].to_numpy() + rng.normal(size=(4, len(data)))
    Y[2] = rng.normal(size=len(data))  # no effects
    return data, pd.DataFrame(Y, index=["a", "b", "none", "c"])


DATA = {kind: samples(kind) for kind in TIMES}


class Dense:
    """The model of one feature in n x n matrices, in own parameters and the residual variance."""

    def __init__(self, kind, method):
        data, Y = DATA[kind]
        self.kind, self.method, self.Y = kind, method, Y.to_numpy()
        self.X = np.column_stack([np.ones(len(data)), data["x"]])
        g, levels = pd.factorize(data["g"], sort=True)
        t = np.searchsorted(TIMES[kind], data["t"])
        self.Z = np.zeros((len(data), levels.size * len(TIMES[kind])))
        self.Z[np.arange(len(data)), g * len(TIMES[kind]) + t] = 1.0
        self.levels = levels.size

    def V(self, u):
        D = np.kron(np.eye(self.levels), covariance(self.kind, u[:-1]))
        return self.Z @ D @ self.Z.T + u[-1] * np.eye(self.X.shape[0])

    def loglik(self, u, y):
        try:
            L = np.linalg.cholesky(self.V(u))
        except np.linalg.LinAlgError:
            return -1e10
        X, y = np.linalg.solve(L, self.X), np.linalg.solve(L, y)
        A = X.T @ X
        e = y - X @ np.linalg.solve(A, X.T @ y)
        n, p = X.shape
        value = 2.0 * np.log(np.diag(L)).sum() + e @ e
        if self.method == "ML":
            return -0.5 * (n * np.log(2 * np.pi) + value)
        return -0.5 * ((n - p) * np.log(2 * np.pi) + value + np.linalg.slogdet(A)[1])

    def covariance(self, u):
        return np.linalg.inv(self.X.T @ np.linalg.solve(self.V(u), self.X))

    def highest(self, y):
        """The maximum, by scipy from several starts."""
        s = len(TIMES[self.kind])
        lowest = {"ar1": -1.0, "exp": 0.0, "csh": -1.0 / (s - 1)}[self.kind]
        sizes = s if self.kind == "csh" else 1
        bounds = [(0.0, None)] * sizes + [(lowest, 1.0), (1e-8, None)]
        best = -np.inf
        for rho in (-0.4, 0.3, 0.9):
            start = np.r_[np.ones(sizes), max(rho, lowest + 0.05), 1.0]
            found = scipy.optimize.minimize(
                lambda u: -self.loglik(u, y), start, bounds=bounds, method="L-BFGS-B",
                options={"ftol": 1e-15, "gtol": 1e-8},
            )  # fmt: skip
            best = max(best, -found.fun)
        return best


def own(result, kind):
    """Own parameters of each feature as `Dense` has them, (m, k)."""
    u = result.fitted.on_request.own_parameters(np.arange(4))[0]
    if kind == "exp":  # the closest two are 0.4 apart
        u[:, 1] **= 1 / 0.4
    return u


@pytest.fixture(scope="module")
def fits():
    return {
        (kind, method): fm.MultiLMM.from_formula("~ x", TEXT[kind], *DATA[kind]).fit(
            method, parameter_space="psd"
        )
        for kind in TIMES
        for method in ("REML", "ML")
    }


# ---- the likelihood and its maximum --------------------------------------------------------------


@methods
@kinds
def test_maxima_equal_those_of_dense_matrices(fits, kind, method):
    result, dense = fits[kind, method], Dense(kind, method)
    u = own(result, kind)
    for j, y in enumerate(dense.Y):
        at = np.where(np.isnan(u[j]), 0.0, u[j])
        assert result.llf.iloc[j] == pytest.approx(dense.loglik(at, y), abs=1e-9)
        assert result.llf.iloc[j] >= dense.highest(y) - 1e-8
        C = dense.covariance(at)
        assert_allclose(result.bse.iloc[j], np.sqrt(np.diag(C)), rtol=1e-7)


@methods
@pytest.mark.parametrize(
    "random",
    [
        "cs(0 + C(t) | g, hom=FALSE)",
        "ar1(t | g) + (1 | h)",
        "exp(t | g) + (1 + x | h)",
        "ar1(t | g) + (1 | g)",
        "cs(0 + C(t) | g, hom=FALSE) + (1 | g:h)",
    ],
)
def test_every_engine_and_every_derivative(random, method):
    """Engines agree with the general one, whose derivatives are those of its log-likelihood."""
    kind = next(k for k, text in TEXT.items() if text.split("(")[0] == random.split("(")[0])
    data, Y = DATA[kind]
    model = fm.MultiLMM.from_formula("~ x", random, data, Y)
    structure, every = model.stats.structure, np.arange(4)
    curved, rng = structure.curved, np.random.default_rng(1)
    u = 0.3 + rng.random((4, curved.k))
    u = np.where(np.isfinite(curved.bounds[1]), [[0.3], [-0.2], [0.7], [0.0]], u)
    u = np.where(["," in name for name in structure.own_names], 0.1, u)
    if kind == "exp":
        u = np.maximum(u, 0.05)

    def likelihood(engine):
        return OwnParameters(make_likelihood(model.projection, method, engine), curved)

    general = likelihood("general")
    truth = general.evaluate(u, every)
    step = 1e-5 * np.eye(curved.k)
    ends = [[general.evaluate(u + side * h, every) for side in (1, -1)] for h in step]
    score = np.stack([(a.loglik - b.loglik) / 2e-5 for a, b in ends], axis=1)
    bend = np.stack([(b.score - a.score) / 2e-5 for a, b in ends], axis=2)
    assert_allclose(truth.score, score, atol=1e-5)
    assert_allclose(truth.observed, bend, rtol=1e-6, atol=1e-5)
    served = 0
    for engine in ENGINES:
        try:
            found = likelihood(engine).evaluate(u, every)
        except InputError:
            continue
        served += 1
        for name in ("loglik", "score", "expected", "average"):
            assert_allclose(getattr(found, name), getattr(truth, name), rtol=1e-8, atol=1e-9)
    assert served >= 2


def test_equal_nlme():
    """gls with corExp and a nugget is exp(place | g) with one record each, as is ar1 if rho > 0.

    nlme stops at about seven digits of the log-likelihood's optimum.
    """
    expected = references.structured("nlme_own")
    data = references.structured_places()
    Y = data["y"].to_numpy()[None]
    for method in ("REML", "ML"):
        theirs = expected[f"corExp {method}"]
        for text in ["exp(place | g)", "ar1(place | g)"][: 2 if method == "REML" else 1]:
            model = fm.MultiLMM.from_formula("~ x", text, data, Y)
            result = model.fit(method, parameter_space="psd")
            assert result.llf.iloc[0] == pytest.approx(theirs["logLik"], abs=2e-7)
            assert_allclose(result.params.iloc[0], theirs["beta"], rtol=1e-5)
            n, p = len(data), 2
            scale = 1.0 if method == "REML" else (n - p) / n  # gls divides by n - p under ML too
            assert_allclose(result.bse.iloc[0] ** 2, np.square(theirs["se"]) * scale, rtol=1e-5)
            assert result.theta.iloc[0, 0] == pytest.approx(theirs["variance"], rel=1e-3)
            assert result.theta.iloc[0, -1] == pytest.approx(theirs["residual"], rel=5e-3)
            shown = result.random_parameters()["estimate"].values[0]
            own = theirs["range"] if text[0] == "e" else np.exp(-1 / theirs["range"])
            assert shown[1] == pytest.approx(own, rel=2e-3)
        # Without a nugget: no residual variance.
        theirs = expected[f"corAR1 {method}"]
        lags = theirs["variance"] * theirs["rho"] ** np.arange(8)
        found = model.loglike(np.r_[lags[:8], 1e-10], method)
        assert found.iloc[0] == pytest.approx(theirs["logLik"], abs=1e-6)


# ---- what follows from the fit -------------------------------------------------------------------


@methods
@kinds
def test_degrees_of_freedom_and_errors_by_differences(fits, kind, method):
    """Satterthwaite in own parameters, with the dense likelihood's curvature."""
    result, dense = fits[kind, method], Dense(kind, method)
    inside = [j for j in range(4) if result.status.iloc[j] == "converged"][:2]
    df = result.t_test(["x", "Intercept"], df="satterthwaite").ds["df"].values
    assert inside
    for j in inside:
        u, y = own(result, kind)[j], dense.Y[j]
        k = u.size
        h = 1e-4 * np.maximum(np.abs(u), 0.1)
        H, g = np.empty((k, k)), np.empty((k, 2))
        for a in range(k):
            e = h * (np.arange(k) == a)
            ends = [np.diag(dense.covariance(u + side * e)) for side in (1, -1)]
            g[a] = (ends[0] - ends[1])[[1, 0]] / (2 * h[a])
            for b in range(k):
                f = h * (np.arange(k) == b)
                four = [
                    dense.loglik(u + s * e + r * f, y) * s * r for s in (1, -1) for r in (1, -1)
                ]
                H[a, b] = -sum(four) / (4 * h[a] * h[b])
        C = np.diag(dense.covariance(u))[[1, 0]]
        expected = 2 * C**2 / np.einsum("ac,ab,bc->c", g, np.linalg.inv(H), g)
        assert_allclose(df[j], expected, rtol=1e-4)


def test_errors_of_own_parameters_are_of_the_expected_information(fits):
    """By the delta method from theta's own, which lies on the curve: covariance J E^-1 J'."""
    result = fits["ar1", "REML"]
    dense = Dense("ar1", "REML")
    u = own(result, "ar1")[0]
    V, h = dense.V(u), 1e-5
    W = np.linalg.inv(V)
    P = W - W @ dense.X @ np.linalg.solve(dense.X.T @ W @ dense.X, dense.X.T @ W)
    D = [(dense.V(u + h * e) - dense.V(u - h * e)) / (2 * h) for e in np.eye(3)]
    E = np.array([[0.5 * np.trace(P @ a @ P @ b) for b in D] for a in D])
    spread = np.linalg.inv(E)
    found = result.random_parameters(features=["a"])
    assert found["param"].values.tolist() == ["g", "g[rho]", "Residual"]
    assert found["kind"].values.tolist() == ["sd", "correlation", "sd"]
    expected = [np.sqrt(u[0]), u[1], np.sqrt(u[2])]
    assert_allclose(found["estimate"][0], expected, rtol=1e-9)
    errors = np.sqrt(np.diag(spread)) / [2 * np.sqrt(u[0]), 1.0, 2 * np.sqrt(u[2])]
    assert_allclose(found["se"][0], errors, rtol=1e-6)
    assert_allclose(result.bse_theta.loc["a", "g"], np.sqrt(spread[0, 0]), rtol=1e-6)
    z, half = np.arctanh(u[1]), 1.959964 * errors[1] / (1 - u[1] ** 2)
    limits = found.sel(param="g[rho]")
    assert_allclose([limits["lower"][0], limits["upper"][0]], np.tanh([z - half, z + half]), 1e-6)


@kinds
def test_predictions_of_effects(fits, kind):
    result, dense = fits[kind, "REML"], Dense(kind, "REML")
    u, y = own(result, kind)[0], dense.Y[0]
    W = np.linalg.inv(dense.V(u))
    r = y - dense.X @ result.params.iloc[0].to_numpy()
    D = np.kron(np.eye(dense.levels), covariance(kind, u[:-1]))
    ours = result.blup(se="prediction")
    assert_allclose(ours["blup"][0], D @ dense.Z.T @ W @ r, atol=1e-7)
    P = W - W @ dense.X @ dense.covariance(u) @ dense.X.T @ W
    error = np.sqrt(np.diag(D - D @ dense.Z.T @ P @ dense.Z @ D))
    assert_allclose(ours["se"][0], error, rtol=1e-6)
    data, _ = DATA[kind]
    new = data.iloc[[0, 5]]
    effects = dense.Z @ (D @ dense.Z.T @ W @ r) + dense.X @ result.params.iloc[0].to_numpy()
    found = result.predict(new, level="conditional", features=["a"])
    assert_allclose(np.asarray(found)[0], effects[[0, 5]], atol=1e-6)


def test_a_group_that_is_new_has_the_variance_of_its_effect(fits):
    result = fits["ar1", "REML"]
    data, _ = DATA["ar1"]
    new = pd.concat([data.iloc[[0]], data.iloc[[0]]]).assign(g=["g0", "new"])
    how = {"level": "conditional", "allow_new_levels": True, "features": ["a"]}
    known, unknown = np.asarray(result.predict(new, se=True, **how)["se"])[0]
    mean = np.asarray(result.predict(new, se=True, features=["a"])["se"])[0, 1]
    assert unknown**2 == pytest.approx(mean**2 + result.theta.loc["a", "g"], rel=1e-6)
    assert known < unknown


def test_parts_of_the_samples_add_up(fits):
    data, Y = DATA["exp"]
    half = data["g"].isin(["g0", "g1", "g2", "g3", "g4"]).to_numpy()
    parts = [
        fm.MultiLMM.from_formula("~ x", TEXT["exp"], data[rows], Y.loc[:, rows]).stats
        for rows in (half, ~half)
    ]
    both = fm.MultiLMM(parts[0] + parts[1]).fit(parameter_space="psd")
    assert_allclose(both.llf, fits["exp", "REML"].llf, atol=1e-9)


@kinds
def test_files_keep_structures(fits, kind, tmp_path):
    result = fits[kind, "REML"]
    result.save(tmp_path / "fit.nc")
    back = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    assert back.stats.structure == result.stats.structure
    assert_allclose(back.random_parameters()["lower"], result.random_parameters()["lower"])
    assert_allclose(back.t_test("x").ds["df"], result.t_test("x").ds["df"], rtol=1e-10)
    data, _ = DATA[kind]
    assert_allclose(back.predict(data.iloc[:4]), result.predict(data.iloc[:4]), rtol=1e-10)
    if kind != "ar1":
        return
    again = fm.MultiLMM(back.stats).fit(parameter_space="psd", theta0=back)
    assert_allclose(again.llf, result.llf, atol=1e-9)
    assert (again.n_iter <= 2).sum() >= 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda ds: ds.drop_vars("term_positions"), "has 0 times or places"),
        (
            lambda ds: ds.assign(term_positions=ds["term_positions"] * np.nan),
            "not ascending",
        ),
        (lambda ds: ds.assign(term_positions=-ds["term_positions"]), "not ascending"),
        (
            lambda ds: ds.assign(term_covariance=ds["term_covariance"].str.upper()),
            "covariance",
        ),
        (
            lambda ds: ds.assign(
                term_covariance=ds["term_covariance"].str.replace("ar1", "csh"),
                term_effects=ds["term_effects"] * 10,
            ),
            "too few or many",
        ),
    ],
)
def test_files_that_were_changed_are_refused(fits, change, match):
    ds = sums_to_dataset(fits["ar1", "REML"].stats)
    check_file(ds, "SummaryStats")
    with pytest.raises(InputError, match=match):
        check_file(change(ds), "SummaryStats")


@kinds
def test_features_with_samples_of_their_own(kind):
    data, Y = DATA[kind]
    Y = Y.loc[["a", "b"]].copy()
    Y.iloc[0, ::7] = np.nan
    result = fm.MultiLMM.from_formula("~ x", TEXT[kind], data, Y, missing="feature").fit(
        parameter_space="psd"
    )
    for name in Y.index:
        there = Y.loc[name].notna().to_numpy()
        alone = fm.MultiLMM.from_formula("~ x", TEXT[kind], data[there], Y.loc[[name], there]).fit(
            parameter_space="psd"
        )
        assert result.llf[name] == pytest.approx(alone.llf[name], abs=1e-8)
        assert_allclose(result.theta.loc[name], alone.theta.loc[name], rtol=1e-4, atol=1e-7)
        assert_allclose(
            result.random_parameters(features=[name])["se"],
            alone.random_parameters()["se"],
            rtol=1e-3,
        )


def test_of_one_feature_and_pages(fits):
    one = fits["exp", "REML"].sel("a")
    page = str(one.summary())
    assert "g Range" in page
    assert "distance" not in page
    assert one.cov_re.shape == (4, 4)
    page = str(fits["csh", "REML"].summary())
    assert "g[rho]" in page
    assert ",C(t)" not in page
    result = fits["ar1", "REML"]  # two coefficients, variance, correlation, residual variance
    assert_allclose(result.aic, -2 * result.llf + 2 * 5)
    shares = result.icc()["estimate"].sel(component="g")
    theta = result.theta
    assert_allclose(shares, theta["g"] / (theta["g"] + theta["Residual"]), rtol=1e-12)


def test_beside_other_residuals():
    data, Y = DATA["ar1"]
    data = data.assign(half=np.where(np.arange(len(data)) % 2, "F", "M"))
    model = fm.MultiLMM.from_formula("~ x", TEXT["ar1"], data, Y.iloc[:2], sums_by="half")
    by = model.fit(parameter_space="psd", residual_by="half")
    one = model.fit(parameter_space="psd")
    assert (by.llf >= one.llf - 1e-9).all()
    assert by.random_parameters()["param"].values.tolist()[:2] == ["g", "g[rho]"]
    known = model.fit(parameter_space="psd", residual_variance=one.theta["Residual"])
    assert_allclose(known.llf, one.llf, atol=1e-8)
    assert_allclose(known.theta["g"], one.theta["g"], rtol=1e-4)


# ---- what cannot be ------------------------------------------------------------------------------


def test_what_needs_linear_parameters_is_refused(fits):
    result = fits["ar1", "REML"]
    model = fm.MultiLMM(result.stats)
    for match, call in [
        ("pass parameter_space='psd'", model.fit),
        ("does not serve", lambda: model.fit(parameter_space="psd", solver="em")),
        ("Leave it out", lambda: model.fit(parameter_space="psd", device="cpu")),
        ("use df='satterthwaite'", lambda: result.t_test("x", df="kenward-roger")),
        ("linear in their parameters", result.variance_test),
        ("linear in their parameters", lambda: result.conf_int_theta(method="profile")),
        ("Use method='delta'", lambda: result.random_parameters(method="profile")),
        ("Integrated tests cover", lambda: result.t_test("x", df="integrated")),
    ]:
        with pytest.raises(InputError, match=match):
            call()


REFUSED = "linear in their|Integrated tests cover|delta|sums by group|Pass the samples|Pass `Y`"


def test_every_method_answers_or_says_why():
    """One feature never stops the others: with features that vary, and two that X explains."""
    data, Y = DATA["ar1"]
    bad = {"constant": np.full(len(data), 3.0), "in X": data["x"].to_numpy()}
    Y = pd.concat([Y, pd.DataFrame(bad, index=Y.columns).T])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        result = fm.MultiLMM.from_formula("~ x", TEXT["ar1"], data, Y).fit(parameter_space="psd")
    refused = set()
    for name, calls in test_every_method.CALLS.items():
        for options in calls or [None]:
            if name.startswith("marginal"):
                continue
            try:
                found = getattr(result, name)
                found if options is None else found(**options)
            except InputError as error:
                refused.add(name if re.search(REFUSED, str(error)) else f"{name}: {error}")
    assert refused == {
        "conf_int_theta", "learn_ratio_prior", "posterior_variances", "random_parameters", "ranova",
        "ratio_prior", "t_test", "variance_test",
    }  # fmt: skip
    assert result.random_parameters()["estimate"].sel(feature=list(bad)).isnull()[:, 1].all()
    limits = result.bootstrap(n=5, rng=1, features=["a"]).conf_int()
    assert np.isfinite(np.asarray(limits)).all()


def test_draws_have_the_covariance_of_the_structure(fits):
    """Of Z'y, from 20,000 draws, each entry to five of its standard errors."""
    result, n = fits["ar1", "REML"], 20_000
    dense = Dense("ar1", "REML")
    u = own(result, "ar1")[0]
    drawn = result.draw(n, rng=1, features=["a"])
    left = drawn.ZY - drawn.ZX @ result.params.loc["a"].to_numpy()[:, None]
    expected = dense.Z.T @ dense.V(u) @ dense.Z
    size = np.sqrt(np.diag(expected))
    assert_allclose(
        left @ left.T / n / np.outer(size, size),
        expected / np.outer(size, size),
        atol=5 * np.sqrt(2 / n),
    )


def test_models_that_differ_in_a_structure_are_not_tested(fits):
    data, Y = DATA["ar1"]
    plain = fm.MultiLMM.from_formula("~ x + (1 | g)", None, data, Y).fit(
        "ML", parameter_space="psd"
    )
    with pytest.raises(InputError, match="AIC or BIC"):
        fits["ar1", "ML"].compare_lr_test(plain)
    without = fm.MultiLMM.from_formula("~ 1", TEXT["ar1"], data, Y).fit("ML", parameter_space="psd")
    test = fits["ar1", "ML"].compare_lr_test(without)
    assert (test["df"] == 1).all() if "df" in test else True


@pytest.mark.parametrize(
    ("random", "changes", "match"),
    [
        ("ar1(t | g)", {"t": lambda d: d["t"] + 0.5}, "the times of ar1 are whole numbers"),
        ("ar1(t | g)", {"t": lambda d: d["t"].astype(str)}, "these have no order"),
        ("exp(t | g)", {"t": lambda d: d["t"].astype(str)}, "must hold numbers"),
        ("ar1(t | g)", {"t": lambda d: d["t"].astype(complex)}, "complex numbers"),
        (
            "ar1(t | g)",
            {"t": lambda d: pd.Categorical(d["t"].astype(str))},
            "have no order. Make it an ordered categorical",
        ),
        (
            "exp(t | g)",
            {"t": lambda d: pd.Categorical(d["t"], ordered=True)},
            "have no distances",
        ),
        ("ar1(t | g)", {"t": lambda _: 3}, r"one value, 3.*Write \(1 \| g\)"),
        ("ar1(t | g)", {"t": lambda d: d["t"].replace({1: 5, 4: 2})}, "no multiples of the small"),
        ("exp(t | g)", {"t": lambda d: np.sqrt(np.arange(len(d)))}, "up to 49 are possible"),
        ("ar1(t | g)", {"t": lambda d: d["t"].where(d["t"] > 0)}, "missing"),
        ("ar1(t + x | g)", {}, "needs the column of times"),
        ("ar1(1 | g)", {}, "needs the column of times"),
        ("exp(log(t) | g)", {}, "needs the column of positions"),
        ("ar1(`my t` | g)", {"my t": lambda d: d["t"]}, "rename the column 'my t'"),
        ("ar1(t || g)", {}, "must hold one bar"),
        ("ar1(t | g, hom=FALSE)", {}, "no option hom=FALSE"),
        ("toep(0 + t | g)", {}, r"Known are us.*ar1\(t \| g\).*exp\(pos \| g\)"),
        ("ar1(t | g) + ar1(t | g)", {}, "same effect more than once"),
    ],
)
def test_bad_input_is_refused(random, changes, match):
    data = DATA["ar1"][0].assign(**changes)
    with pytest.raises(InputError, match=match):
        build_design("~ x", random, data)


def test_ordered_categories_are_equal_steps():
    """Those without samples count: of a, b, c, e the last two are two steps apart."""
    data, _ = DATA["ar1"]
    names = dict(zip([0, 1, 2, 4], "abce", strict=True))
    times = pd.Categorical(data["t"].map(names), categories=list("abcde"), ordered=True)
    structure = build_design("~ x", "ar1(t | g)", data.assign(t=times)).design.structure
    assert structure.terms[0].effects == ("t[a]", "t[b]", "t[c]", "t[e]")
    assert structure.terms[0].positions == (0.0, 1.0, 2.0, 4.0)
    assert structure.param_names[:5] == ("g", *(f"g[lag {lag}]" for lag in (1, 2, 3, 4)))


def test_what_the_samples_do_not_tell_apart():
    data = DATA["ar1"][0].drop_duplicates(["g", "t"])
    two = data[data["t"] < 2]  # two times, one record each: variance and residual are one
    Y = np.random.default_rng(0).normal(size=(2, len(two)))
    with pytest.raises(InputError, match="cannot be told apart"):
        fm.MultiLMM.from_formula("~ x", "ar1(t | g)", two, Y).fit(parameter_space="psd")
    known = fm.Covariance(np.eye(10), levels=[f"g{i}" for i in range(10)])
    with pytest.raises(InputError, match="structure ar1"):
        fm.MultiLMM.from_formula("~ x", "ar1(t | g)", *DATA["ar1"], covariances={"g": known})


@pytest.mark.parametrize("random", ["ar1(t | g)", "exp(t | g)", "cs(0 + k | g, hom=FALSE)"])
def test_no_level_with_two_effects(random):
    """One occasion for each level leaves nothing for a correlation; one feature may have as few."""
    rng = np.random.default_rng(3)
    data = pd.DataFrame(
        {"g": np.repeat([f"g{i}" for i in range(12)], 6), "t": [0, 0, 1, 1, 2, 2] * 12}
    )
    data["k"] = np.array(list("abc"))[data["t"]]
    Y = rng.normal(size=(2, 72)) + rng.normal(size=(2, 12)).repeat(6, axis=1)
    once = data["t"] == np.arange(12).repeat(6) % 3
    with pytest.raises(fm.InputError, match="nothing about the correlation of 'g'"):
        fm.MultiLMM.from_formula("~ 1", random, data[once], Y[:, once]).fit(parameter_space="psd")
    Y[0, ~once] = np.nan
    model = fm.MultiLMM.from_formula("~ 1", random, data, Y, missing="feature")
    with pytest.warns(fm.ConvergenceWarning):
        result = model.fit(parameter_space="psd")
    assert result.status.iloc[0] == "not estimable"
    assert result.theta.iloc[1].notna().all()


def test_standard_deviations_next_to_zero_are_zero():
    """The likelihood depends on their squares, so steps towards zero grew ever shorter: 1e-11."""
    problem = draw(2912, 3_000_017)
    Y = responses(problem, np.random.default_rng([2912, 3_000_017, 1]))["noise alone"]
    result = fm.MultiLMM(problem.stats(Y[None])).fit("ML", parameter_space="psd")
    assert (result.theta.iloc[0, :6] == 0.0).all()
    assert result.status.tolist() == ["boundary"]
