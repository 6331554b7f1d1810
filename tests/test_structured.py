"""Structures of the effects of a level: us, diag with one variance, compound symmetry."""

import numpy as np
import pandas as pd
import problems as pb
import pytest
import references
import scipy.optimize
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design

PROBLEMS = {kind: pb.random_problem(kind, 20261129) for kind in pb.STRUCTURED}
ENGINE_OF_KIND = [(kind, engine) for kind, p in PROBLEMS.items() for engine in pb.engines(p)]
methods = pytest.mark.parametrize("method", ["REML", "ML"])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(7)
    n = 150
    g = np.concatenate([np.repeat(np.arange(14), 4), rng.integers(0, 14, n - 56)])
    return pd.DataFrame(
        {
            "g": [f"g{i}" for i in rng.permutation(g)],
            "f": rng.choice(list("abc"), n),
            "x": rng.normal(size=n),
            "h": rng.choice(list("uvw"), n),
        }
    )


def draws(data, rho, seed=1, m=4):
    """Features with an effect of f in each g, of variance 2 and correlation rho."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(2.0 * ((1 - rho) * np.eye(3) + rho) + 1e-9 * np.eye(3))
    g, f = pd.factorize(data["g"], sort=True)[0], pd.factorize(data["f"], sort=True)[0]
    effects = rng.normal(size=(m, g.max() + 1, 3)) @ root.T
    Y = effects[:, g, f] + 0.3 * data["x"].to_numpy() + rng.normal(size=(m, len(data)))
    return pd.DataFrame(Y, index=[f"y{i}" for i in range(m)], columns=data.index)


@pytest.fixture(scope="module")
def Y(data):
    return draws(data, 0.5)


@pytest.fixture(scope="module")
def result(data, Y):
    return fm.MultiLMM.from_formula("~ x + cs(0 + f | g)", data=data, Y=Y).fit(
        parameter_space="psd"
    )


def natural(theta, s=3):
    """Variance, covariance and residual variance of theta (k,)."""
    mean, deviation = theta[0], theta[1]
    return (mean + (s - 1) * deviation) / s, (mean - deviation) / s, theta[-1]


def matrices(data, X_columns=("x",)):
    X = np.column_stack([np.ones(len(data)), *(data[name] for name in X_columns)])
    levels = sorted(set(data["g"]))
    Z = np.zeros((len(data), 3 * len(levels)))
    at = [levels.index(g) * 3 + "abc".index(f) for g, f in zip(data["g"], data["f"], strict=True)]
    Z[np.arange(len(data)), at] = 1.0
    return X, Z


def loglik(y, X, Z, v, c, sigma2):
    """REML log-likelihood of one feature, from n x n matrices."""
    D = np.kron(np.eye(Z.shape[1] // 3), (v - c) * np.eye(3) + c)
    V = Z @ D @ Z.T + sigma2 * np.eye(y.size)
    inverse = np.linalg.inv(V)
    A = X.T @ inverse @ X
    r = y - X @ np.linalg.solve(A, X.T @ inverse @ y)
    logs = np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1]
    return -0.5 * ((y.size - X.shape[1]) * np.log(2 * np.pi) + logs + r @ inverse @ r)


# ---- the likelihood ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["inside", "negative"])
@methods
@pytest.mark.parametrize(("kind", "engine"), ENGINE_OF_KIND)
def test_every_engine_equals_dense_matrices(kind, engine, method, where):
    """D here is that of the effects themselves; ours is diagonal in other columns of Z."""
    problem = PROBLEMS[kind]
    rng = np.random.default_rng(list(PROBLEMS).index(kind))
    theta = problem.theta(rng, where)
    y = problem.simulate(theta, 1, rng)[0]
    truth = pb.dense(problem, y, theta, method)
    found = problem.evaluate(y, theta, method, engine)
    unit = np.sqrt(np.diag(truth.expected))
    assert found.loglik[0] == pytest.approx(truth.loglik, abs=1e-9)
    assert_allclose(found.score[0] / unit, truth.score / unit, atol=1e-9)
    assert_allclose(
        found.expected[0] / np.outer(unit, unit), truth.expected / np.outer(unit, unit), atol=1e-9
    )
    assert_allclose(
        found.average[0] / np.outer(unit, unit), truth.average / np.outer(unit, unit), atol=1e-9
    )
    estimator = pb.estimator_of(problem.stats(y[None]), method, engine)
    internal = estimator.projection.to_internal(theta[None])
    assert_allclose(estimator.beta(internal, np.arange(1))[0], truth.beta, rtol=1e-8, atol=1e-9)
    effects = estimator.random_effects(internal, np.arange(1), None).blup[0]
    assert_allclose(effects @ problem.structure.turn(), truth.blup, atol=1e-8)


def test_every_engine_serves_some_structure():
    assert {engine for _, engine in ENGINE_OF_KIND} >= {
        "spectral",
        "bordered",
        "blocked",
        "general",
    }


# ---- nlme ----------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("pdCompSymm", "cs(0 + f | g)"),
        ("pdIdent", "diag(0 + f | g, hom=TRUE)"),
        ("pdDiag", "diag(0 + f | g)"),
    ],
)
def test_fits_equal_nlme(theirs, ours, method):
    """nlme stops at about seven digits of the log-likelihood's optimum, five of a variance."""
    table = references.structured_levels()
    expected = references.structured("nlme")[f"{theirs} {method}"]
    model = fm.MultiLMM.from_formula("~ x", ours, table, table["y"].to_numpy()[None])
    one = model.fit(method=method, parameter_space="psd").sel(0)
    assert one.llf == pytest.approx(expected["logLik"], abs=1e-7)
    assert_allclose(one.fe_params, expected["beta"], rtol=1e-5)
    assert_allclose(one.bse_fe, expected["se"], rtol=1e-5)
    assert_allclose(one.cov_re, expected["V"], rtol=2e-4, atol=1e-6)
    assert one.scale == pytest.approx(expected["sigma2"], rel=1e-4)
    assert_allclose(one.ranef()["g"].loc[["g1", "g2"]], expected["ranef"], atol=1e-3)


def test_compound_symmetry_of_residuals_is_a_random_intercept():
    """One sample per child and age: the deviations are the residuals, and cs says so."""
    expected = references.structured("orthodont_cs")["cs"]
    table = references.orthodont()
    table["fage"] = table["age"].astype(str)
    y = table["distance"].to_numpy()[None]
    one = fm.MultiLMM.from_formula("~ fage * female", "(1 | Subject)", table, y).fit().sel(0)
    assert one.llf == pytest.approx(expected["logLik"], abs=1e-6)
    between, within = one.theta
    assert_allclose([between + within, between], np.array(expected["V"])[0, :2], rtol=1e-5)
    with pytest.raises(InputError, match="cannot be told apart"):
        fm.MultiLMM.from_formula("~ fage * female", "cs(0 + fage | Subject)", table, y).fit()


# ---- fits ----------------------------------------------------------------------------------------


def test_a_negative_correlation_ends_at_the_bound_of_the_psd_space(data):
    """At rho = -1/2 the sum of the three effects of a level has no variance."""
    Y = draws(data, -0.5, seed=3, m=2)
    found = fm.MultiLMM.from_formula("~ x + cs(0 + f | g)", data=data, Y=Y).fit(
        parameter_space="psd"
    )
    X, Z = matrices(data)
    bound = 0
    for j in range(len(Y)):
        theta = found.ds["theta"].to_numpy()[j]
        v, c, sigma2 = natural(theta)
        y = Y.to_numpy()[j]
        value = loglik(y, X, Z, v, c, sigma2)
        assert found.llf.to_numpy()[j] == pytest.approx(value, abs=1e-9)
        bound += theta[0] == 0.0
        if theta[0] == 0.0:
            assert found.random_parameters()["estimate"][j, 1] == pytest.approx(-0.5)

        def worse(z, y=y):
            mean, deviation, residual = np.exp(z)
            return -loglik(y, X, Z, *natural([mean, deviation, residual]))

        best = scipy.optimize.minimize(worse, np.zeros(3), method="Nelder-Mead")
        assert found.llf.to_numpy()[j] >= -best.fun - 1e-6
    assert bound


@methods
def test_unconstrained_it_is_the_nested_model(data, Y, method):
    """D = c J + (v - c) I: an intercept of g and one of f in g; df do not depend on the writing."""
    cs, nested = (
        fm.MultiLMM.from_formula("~ x + f", random, data, Y).fit(method=method)
        for random in ("cs(0 + f | g)", "(1 | g) + (1 | g:f)")
    )
    assert_allclose(cs.llf, nested.llf, atol=1e-8)
    theta = cs.ds["theta"].to_numpy()
    assert_allclose((theta[:, 0] - theta[:, 1]) / 3, nested.theta["g"], rtol=1e-4, atol=1e-4)
    assert_allclose(theta[:, 1], nested.theta["g:f"], rtol=1e-4, atol=1e-4)
    for df in ("satterthwaite", "kenward-roger")[: 1 + (method == "REML")]:
        ours, theirs = (fit.t_test("f[T.b]", df=df) for fit in (cs, nested))
        assert_allclose(ours.df, theirs.df, rtol=1e-3)
        assert_allclose(ours.pvalue, theirs.pvalue, rtol=1e-3)


def test_us_is_an_alias_and_hom_of_two_effects_is_unstructured():
    table = pd.DataFrame({"x": [1.0, 2, 4, 3, 5, 7], "g": list("aabbcc")})

    def term(text):
        return build_design("~ 1", text, table).design.structure.terms

    assert term("us(x | g)") == term("(x | g)") == term("cs(x | g, hom=FALSE)")
    assert term("homdiag(x | g)") == term("diag(1 + x | g, hom = T)") == term("diag (x|g,hom=True)")
    assert term("cs(x | g)") == term("homcs(x | g)") == term("cs (x | g, hom=TRUE)")
    assert term("cs(1 | g)") == term("diag(1 | g, hom=TRUE)") == term("(1 | g)")
    assert term("diag(x | g, hom=FALSE)") == term("diag(x | g)") != term("homdiag(x | g)")
    design = build_design("~ x + cs(x | g) + diag(0 + x | g:x, hom=TRUE)", None, table).design
    assert design.random == "cs(1 + x | g) + diag(0 + x | g:x, hom=TRUE)"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("toep(0 + f | g)", r"toep\(\.\.\.\) is not available. Known are us"),
        ("ou(0 + f | g)", r"ou\(\.\.\.\) is not available. Known are us"),
        ("gau (f | g)", r"gau\(\.\.\.\) is not available. Known are us"),
        ("corAR1(0 + f | g)", "Known are us"),
        ("mine(0 + f | g)", r"mine\(\.\.\.\) is no covariance.*diag"),
        ("us(x | g, hom=TRUE)", r"us\(\.\.\.\) has no option hom=TRUE"),
        ("homdiag(x | g, hom=FALSE)", "no option hom=FALSE"),
        ("(x | g, hom=TRUE)", "a bar has no options"),
        ("cs(x | g, hom=1)", "one option is hom=TRUE"),
        ("cs(x | g, hom=TRUE, hom=TRUE)", "one option is hom=TRUE"),
        ("cs(x | g, TRUE)", "one option is hom=TRUE"),
        ("cs(x | g,)", "one option is hom=TRUE"),
        ("cs(x || g)", "must hold one bar"),
        ("ar1(f | g)", "these have no order in time or space"),
        ("cs(0 + f | g) + cs(0 + f | g)", "same effect more than once"),
    ],
)
def test_what_cannot_be_used_is_refused(data, text, match):
    with pytest.raises(InputError, match=match):
        build_design("~ x", text, data)
    if "mine" not in text:  # in a fixed formula that is a function
        with pytest.raises(InputError, match=match):
            build_design(f"~ x + {text}", None, data)


def test_a_known_covariance_of_the_levels_does_not_go_with_it(data, Y):
    K = pd.DataFrame(np.eye(14), *[sorted(set(data["g"]))] * 2)
    with pytest.raises(InputError, match=r"'g' has the structure cs\(...\)"):
        fm.MultiLMM.from_formula("~ x + cs(0 + f | g)", data=data, Y=Y, covariances={"g": K})


# ---- after the fit -------------------------------------------------------------------------------


def test_effects_are_those_of_the_levels(data, Y, result):
    X, Z = matrices(data)
    y, theta = Y.to_numpy()[1], result.ds["theta"].to_numpy()[1]
    v, c, sigma2 = natural(theta)
    order = [int(name[1:]) for name in result.stats.structure.terms[0].levels]
    of_level = {f"g{i}": k for k, i in enumerate(order)}
    levels = sorted(set(data["g"]))
    place = np.concatenate([3 * levels.index(g) + np.arange(3) for g in of_level])
    Z = Z[:, place]
    D = np.kron(np.eye(len(levels)), (v - c) * np.eye(3) + c)
    inverse = np.linalg.inv(Z @ D @ Z.T + sigma2 * np.eye(y.size))
    C = np.linalg.inv(X.T @ inverse @ X)
    P = inverse - inverse @ X @ C @ X.T @ inverse
    conditional = D - D @ Z.T @ inverse @ Z @ D
    one = result.sel("y1")
    prediction = result.blup(se="prediction", features=["y1"])
    assert_allclose(prediction["blup"][0], D @ Z.T @ P @ y, atol=1e-9)
    assert_allclose(prediction["se"][0], np.sqrt(np.diag(D - D @ Z.T @ P @ Z @ D)), rtol=1e-8)
    assert_allclose(result.blup(se=True)["se"][1], np.sqrt(np.diag(conditional)), rtol=1e-8)
    assert prediction["level"].values[1] == f"g[g{order[0]}]:f[b]"
    first = next(iter(one.random_effects_cov.values()))
    assert_allclose(first, conditional[:3, :3], atol=1e-9)
    assert_allclose(one.cov_re, D[:3, :3], atol=1e-12)
    assert_allclose(np.ravel(one.ranef()["g"]), prediction["blup"][0], atol=1e-12)
    assert_allclose(np.ravel(result.random_effects["g"][1]), prediction["blup"][0], atol=1e-12)
    beta = one.fe_params.to_numpy()
    fitted = X @ beta + Z @ prediction["blup"].to_numpy()[0]
    assert_allclose(
        result.predict(data, features=["y1"], level="conditional")[0], fitted, atol=1e-9
    )
    # By matrices: Z has the columns of the effects, in the order of the structure or by label.
    by_matrix = result.predict(X=X, Z=Z, features=["y1"], level="conditional")[0]
    assert_allclose(by_matrix, fitted, atol=1e-9)
    names = list(result.blup()["level"].values)
    labelled = pd.DataFrame(Z, columns=names)[names[::-1]]
    again = result.predict(X=X, Z=labelled, features=["y1"], level="conditional")[0]
    assert_allclose(again, fitted, atol=1e-9)
    # Of an unknown level the variance is v, whatever f is.
    new = data.iloc[:3].assign(g="new")
    wide = result.predict(
        new, features=["y1"], level="conditional", allow_new_levels=True, interval="prediction"
    )
    x = X[:3]
    half = (wide["upper"] - wide["lower"])[0] / 2
    variance = np.einsum("ij,jk,ik->i", x, C, x) + v + sigma2
    ratio = np.asarray(half) / np.sqrt(variance)
    assert_allclose(wide["prediction"][0], x @ beta, atol=1e-9)
    assert_allclose(ratio, ratio[0], rtol=5e-2)  # quantiles of t with df of their own
    assert (ratio > 1.95).all()


def test_parameters_and_their_limits(data, Y, result):
    """Profile limits: where the dense likelihood, maximised over the rest, has fallen by 1.92."""
    delta, profile = (result.random_parameters(method=m) for m in ("delta", "profile"))
    assert delta["param"].values.tolist() == ["g", "g[rho]", "Residual"]
    assert delta["kind"].values.tolist() == ["sd", "correlation", "sd"]
    theta = result.ds["theta"].to_numpy()
    v, c, sigma2 = natural(theta.T)
    assert_allclose(delta["estimate"], np.stack([np.sqrt(v), c / v, np.sqrt(sigma2)], 1))
    assert_allclose(profile["estimate"], delta["estimate"])
    # By finite differences of (sd, rho) in theta.
    covariance = result.fitted.on_request.theta_covariance(np.arange(4))
    h = 1e-6
    for j in range(4):
        J = np.zeros((2, 3))
        for i in range(3):
            up, down = (np.array(natural(theta[j] + s * h * np.eye(3)[i])) for s in (1, -1))
            J[:, i] = [
                (np.sqrt(up[0]) - np.sqrt(down[0])) / (2 * h),
                (up[1] / up[0] - down[1] / down[0]) / (2 * h),
            ]
        expected = np.sqrt(np.diag(J @ covariance[j] @ J.T))
        assert_allclose(delta["se"][j, :2], expected, rtol=1e-5)
    X, Z = matrices(data)
    y, top = Y.to_numpy()[2], float(result.llf.iloc[2])

    def profiled(at, held):
        def worse(z):
            v, rho = (np.exp(2 * at), np.tanh(z[0])) if held == "sd" else (np.exp(2 * z[0]), at)
            c = v * (rho if held != "sd" else (0.75 * rho + 0.25))  # from -1/2 to 1
            return -loglik(y, X, Z, v, c, np.exp(z[1]))

        options = {"xatol": 1e-5, "fatol": 1e-7}
        start = np.array([0.2, 0.0])
        return -scipy.optimize.minimize(worse, start, method="Nelder-Mead", options=options).fun

    limits = profile.isel(feature=2)
    for bound in ("lower", "upper"):
        sd, rho = float(limits[bound][0]), float(limits[bound][1])
        assert top - profiled(np.log(sd), "sd") == pytest.approx(1.9207, abs=2e-3)
        assert top - profiled(rho, "rho") == pytest.approx(1.9207, abs=2e-3)


def test_pages_shares_and_files(data, result, tmp_path):
    page = str(result.sel("y0").summary())
    assert "g Var" in page
    assert "g Cov" in page
    assert "g[rho]" in str(result.summary())
    v, _, sigma2 = natural(result.ds["theta"].to_numpy().T)
    assert_allclose(result.icc()["estimate"].sel(component="g"), v / (v + sigma2))
    assert result.variance_test()["component"].values.tolist() == ["g"]
    assert result.ranova()["component"].values.tolist() == ["g"]
    result.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    assert loaded.stats.structure == result.stats.structure
    assert_allclose(loaded.predict(data), result.predict(data))
    assert_allclose(loaded.blup(se=True)["se"], result.blup(se=True)["se"])
    assert_allclose(
        loaded.random_parameters(method="profile")["upper"],
        result.random_parameters(method="profile")["upper"],
    )


def test_unstructured_terms_beside_it(data, Y):
    random = "us(1 + x | h) + cs(0 + f | g) + diag(0 + x | g, hom=TRUE)"
    model = fm.MultiLMM.from_formula("~ x", random, data, Y)
    found = model.fit(parameter_space="psd").random_parameters()
    assert found["param"].values.tolist() == [
        *("h[Intercept]", "h[x]", "h[Intercept,x]"),
        *("g[f]", "g[f][rho]", "g[x]", "Residual"),
    ]


@pytest.mark.parametrize(
    "random", ["cs(0 + f | g)", "diag(1 + x | g, hom=TRUE) + (1 | h)", "cs(1 + x | g)"]
)
def test_rows_of_ones_own(data, Y, random):
    """Weights and missing values by feature: each feature as if alone."""
    rng = np.random.default_rng(5)
    weights = pd.DataFrame(rng.uniform(0.5, 2.0, Y.shape), index=Y.index, columns=Y.columns)
    holes = Y.mask(rng.uniform(size=Y.shape) < 0.1)
    own = fm.MultiLMM.from_formula(
        "~ x", random, data, holes, weights=weights, missing="feature"
    ).fit(parameter_space="psd")
    for name in ("y0", "y3"):
        there = holes.loc[name].notna()
        alone = fm.MultiLMM.from_formula(
            "~ x",
            random,
            data[there],
            holes.loc[[name], there],
            weights=weights.loc[name, there].to_numpy(),
        ).fit(parameter_space="psd")
        assert own.llf.loc[name].item() == pytest.approx(alone.llf.item(), abs=1e-7)
        assert_allclose(own.theta.loc[name], alone.theta.loc[name], rtol=1e-4, atol=1e-6)
        assert_allclose(
            own.random_parameters(features=[name])["lower"],
            alone.random_parameters()["lower"],
            rtol=1e-3,
            atol=1e-5,
        )
        for se in ("conditional", "prediction"):
            found = own.blup(se=se, features=[name])["se"]
            there = np.isin(found["level"], alone.blup()["level"])
            assert_allclose(found[:, there], alone.blup(se=se)["se"], rtol=1e-3, atol=1e-6)


def test_parts_of_the_samples_add_up(data, Y, result):
    parts = [
        fm.MultiLMM.from_formula(
            "~ x + cs(0 + f | g)", None, data.iloc[rows], Y.iloc[:, rows]
        ).stats
        for rows in (slice(0, 70), slice(70, None))
    ]
    both = fm.MultiLMM(parts[0] + parts[1]).fit(parameter_space="psd")
    assert_allclose(both.llf, result.llf, atol=1e-9)
    assert_allclose(both.theta, result.theta, rtol=1e-6)


def test_beside_residual_variances_by_group(data, Y):
    table = data.assign(half=np.where(np.arange(len(data)) % 2, "F", "M"))
    model = fm.MultiLMM.from_formula("~ x + cs(0 + f | g)", data=table, Y=Y, sums_by="half")
    found = model.fit(parameter_space="psd", residual_by="half")
    names = found.random_parameters()["param"].values.tolist()
    assert names[:2] == ["g", "g[rho]"]
    assert len(names) == 4
