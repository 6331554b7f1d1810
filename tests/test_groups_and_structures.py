"""Residual variances by group beside structures: numbers of n x n matrices, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.results import bootstrap, structured

LEVELS = [f"g{i}" for i in range(8)]
TEXT = {
    "cs": "cs(0 + C(t) | g)",
    "csh": "cs(0 + C(t) | g, hom=FALSE)",
    "ar1": "ar1(t | g)",
    "us": "(x | g)",
    "known": "(1 | g)",
}
kinds = pytest.mark.parametrize("kind", list(TEXT))


def samples():
    rng, n = np.random.default_rng(31), 120
    g, t = rng.integers(0, 8, n), rng.integers(0, 3, n)
    data = pd.DataFrame(
        {"g": [f"g{i}" for i in g], "t": t, "x": rng.normal(size=n), "b": rng.choice(list("pq"), n)}
    )
    data["site"] = rng.choice(["s 1", "s2", "s3"], n)
    noise = data["site"].map({"s 1": 0.5, "s2": 1.0, "s3": 1.6}).to_numpy()
    effects = rng.normal(size=(2, 8, 1)) + 0.7 * rng.normal(size=(2, 8, 3))
    Y = effects[:, g, t] + noise * rng.normal(size=(2, n))
    return data, pd.DataFrame(Y, index=["y0", "y1"])


DATA, Y = samples()
ROOT = np.random.default_rng(2).normal(size=(8, 12)) / 12**0.5
K = pd.DataFrame(ROOT @ ROOT.T, index=LEVELS, columns=LEVELS)


def fitted(kind, by="site", method="REML"):
    model = fm.MultiLMM.from_formula(
        f"~ x + {TEXT[kind]}",
        data=DATA,
        Y=Y,
        sums_by="site",
        covariances={"g": K} if kind == "known" else None,
    )
    return model, model.fit(method, residual_by=by, parameter_space="psd")


@pytest.fixture(scope="module")
def fits():
    return {kind: fitted(kind)[1] for kind in TEXT}


class Dense:
    """The fit of one feature in n x n matrices."""

    def __init__(self, kind, result, feature):
        one = result.sel(feature)
        g = np.array([LEVELS.index(level) for level in DATA["g"]])
        n, x = len(DATA), DATA["x"].to_numpy()
        s = {"us": 2, "known": 1}.get(kind, 3)
        self.X, self.Z = np.column_stack([np.ones(n), x]), np.zeros((n, 8 * s))
        rows = np.arange(n)
        if kind == "us":
            self.Z[rows, 2 * g], self.Z[rows, 2 * g + 1] = 1.0, x
        else:
            self.Z[rows, s * g + (0 if kind == "known" else DATA["t"].to_numpy())] = 1.0
        within = one.cov_re.to_numpy() if kind != "known" else np.eye(1) * one.theta["g"]
        self.D = np.kron(K.to_numpy() if kind == "known" else np.eye(8), within)
        self.R = DATA["site"].map(lambda s: one.theta[f"Residual[{s}]"]).to_numpy()
        self.mean_diagonal = np.diag(self.D).mean()
        self.W = np.linalg.inv(self.Z @ self.D @ self.Z.T + np.diag(self.R))
        self.C = np.linalg.inv(self.X.T @ self.W @ self.X)
        self.y = Y.loc[feature].to_numpy()
        self.beta = self.C @ self.X.T @ self.W @ self.y
        self.DZW = self.D @ self.Z.T @ self.W
        self.blup = self.DZW @ (self.y - self.X @ self.beta)
        self.given = self.D - self.DZW @ self.Z @ self.D


@kinds
def test_fits_of_three_groups(fits, kind):
    """Three groups beside a structure that is not linear ended in an error of numpy."""
    assert fits[kind].converged.all()
    truth = Dense(kind, fits[kind], "y1")
    assert_allclose(fits[kind].params.loc["y1"], truth.beta, rtol=1e-9)
    loglik = -0.5 * (
        118 * np.log(2 * np.pi)
        - np.linalg.slogdet(truth.W)[1]
        - np.linalg.slogdet(truth.C)[1]
        + truth.y @ truth.W @ (truth.y - truth.X @ truth.beta)
    )
    assert fits[kind].llf["y1"] == pytest.approx(loglik, abs=1e-8)


@kinds
def test_errors_of_predicted_effects(fits, kind):
    """Red: conditional ones took the last group's residual variance, or a formula of one."""
    result = fits[kind]
    truth = Dense(kind, result, "y1")
    P = truth.W - truth.W @ truth.X @ truth.C @ truth.X.T @ truth.W
    prediction = truth.D - truth.D @ truth.Z.T @ P @ truth.Z @ truth.D
    for errors, expected in (("conditional", truth.given), ("prediction", prediction)):
        found = result.blup(se=errors, features=["y1"])
        assert_allclose(found["blup"][0], truth.blup, rtol=1e-7, atol=1e-9)
        assert_allclose(found["se"][0] ** 2, np.diag(expected), rtol=1e-7)
    blocks = result.sel("y1").random_effects_cov
    s = truth.D.shape[0] // 8
    for i, level in enumerate(LEVELS):
        here = slice(s * i, s * i + s)
        assert_allclose(blocks[level], truth.given[here, here], rtol=1e-7, atol=1e-12)


@kinds
@pytest.mark.parametrize("level", ["population", "conditional"])
def test_predictions(fits, kind, level):
    """Those of known effects were refused; df by differences of the variance."""
    result, rows = fits[kind], [0, 7, 30]
    truth = Dense(kind, result, "y1")
    x, z = truth.X[rows], truth.Z[rows] * (level == "conditional")
    left = x - z @ truth.DZW @ truth.X
    variance = np.diag(left @ truth.C @ left.T + z @ truth.given @ z.T)
    mean = x @ truth.beta + z @ truth.blup
    own = truth.R[rows]
    if level == "population":
        own = own + np.diag(truth.Z[rows] @ truth.D @ truth.Z[rows].T)
        if kind == "known":  # of a new level: the mean diagonal of K
            own = truth.R[rows] + truth.mean_diagonal
    options = {"level": level, "features": ["y1"], "df": "normal"}
    found = result.predict(DATA.iloc[rows], interval="confidence", **options)
    assert_allclose(found["prediction"][0], mean, rtol=1e-9)
    assert_allclose(found["se"][0] ** 2, variance, rtol=1e-8)
    found = result.predict(DATA.iloc[rows], interval="prediction", **options)
    assert_allclose(found["se"][0] ** 2, variance + own, rtol=1e-8)


def test_satterthwaite_df_of_predictions(fits):
    """2 f^2 / (g'H^-1 g), H the observed information; g by differences."""
    result, row = fits["us"], 7
    options = {"level": "conditional", "features": ["y0"]}
    found = result.predict(DATA.iloc[[row]], interval="prediction", **options)
    theta, site = result.theta.loc["y0"].to_numpy(), list(result.theta.columns)
    g = np.array([LEVELS.index(level) for level in DATA["g"]])
    x, same = DATA["x"].to_numpy(), np.equal.outer(g, g)
    G = [same, same * np.outer(x, x), same * np.add.outer(x, x)]
    G += [np.diag(DATA["site"] == name[9:-1]) for name in site[3:]]
    X, y = np.column_stack([np.ones(len(x)), x]), Y.loc["y0"].to_numpy()

    def pieces(at):
        V = sum(t * part for t, part in zip(at, G, strict=True))
        return V, np.linalg.inv(V)

    def variance(at):
        V, W = pieces(at)
        noise = at[site.index(f"Residual[{DATA['site'][row]}]")]
        C = np.linalg.inv(X.T @ W @ X)
        c = V[row] - noise * (np.arange(len(x)) == row)  # covariance of z'b and y
        left = X[row] - c @ W @ X
        return left @ C @ left + c[row] - c @ W @ c + noise

    def score(at):
        _, W = pieces(at)
        P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
        Py = P @ y
        return np.array([0.5 * (Py @ part @ Py - np.trace(P @ part)) for part in G])

    steps = 1e-5 * np.eye(theta.size)
    slope = np.array([(variance(theta + h) - variance(theta - h)) / 2e-5 for h in steps])
    H = -np.array([(score(theta + h) - score(theta - h)) / 2e-5 for h in steps])
    f = variance(theta)
    assert_allclose(found["se"][0] ** 2, f, rtol=1e-9)
    assert_allclose(found["df"][0], 2 * f**2 / (slope @ np.linalg.solve(H, slope)), rtol=1e-5)


@kinds
def test_parameters_of_one_feature(fits, kind):
    """Red: ratios to the last group's variance, which no label said, and that one left out."""
    one, result = fits[kind].sel("y0"), fits[kind]
    theta = result.theta.loc["y0"]
    assert_allclose(one.params[theta.index], theta)
    assert_allclose(one.bse[theta.index], result.bse_theta.loc["y0"])
    assert_allclose(one.tvalues, one.params / one.bse)
    assert one.cov_params().shape == (one.params.size, one.params.size)
    assert one.conf_int().index.equals(one.params.index)
    assert one.bse_re.index.tolist() == [n for n in theta.index if "Residual" not in n]
    own = {"cs": 2, "csh": 4, "ar1": 2, "us": 3, "known": 1}[kind]
    assert one.df_modelwc == 2 + own
    assert one.aic == pytest.approx(-2 * one.llf + 2 * (2 + own + 3))
    with pytest.raises(fm.InputError, match="one for each group"):
        one.to_statsmodels(Y.loc["y0"], DATA)


def test_likelihood_ratio_of_nested_groups(tmp_path):
    """Red: coarser groups were refused; other groups of the same names were taken for the same."""
    formula, halves = "~ x + (1 | g)", np.where(DATA["x"] > 0, "up", "down")
    data = DATA.assign(half=halves)
    model = fm.MultiLMM.from_formula(formula, data=data, Y=Y, sums_by="site")

    def fit(by, model=model):
        return model.fit(residual_by=by, parameter_space="psd")

    finer, coarser = fit("site"), fit({"s 1": "a", "s2": "a", "s3": "b"})
    found = finer.compare_lr_test(coarser)
    assert found["df"].tolist() == [1, 1]
    assert found.attrs["null"] == "chi2_1"
    assert_allclose(found["statistic"], 2 * (finer.llf - coarser.llf))
    finer.save(tmp_path / "finer.nc")
    loaded = fm.load(tmp_path / "finer.nc")
    assert_allclose(loaded.compare_lr_test(coarser)["p"], found["p"])
    same_names = fit({"s 1": "a", "s2": "b", "s3": "b"})
    for one, other in ((coarser, finer), (coarser, same_names), (same_names, coarser)):
        with pytest.raises(fm.InputError, match=r"not nested.*no unions"):
            one.compare_lr_test(other)
    crossed = fm.MultiLMM.from_formula(formula, data=data, Y=Y, sums_by="site:half")
    found = fit("site:half", crossed).compare_lr_test(finer)  # of another model object
    assert found["df"].tolist() == [3, 3]
    assert fit("half", crossed).compare_lr_test(fit(None))["df"].tolist() == [1, 1]
    with pytest.raises(fm.InputError, match="not nested"):
        finer.compare_lr_test(fit("half", crossed))


# ---- formulas, labels and limits of structures ---------------------------------------------------


@pytest.mark.parametrize("text", ["tope(0 + f | g)", "AR1(t | g)", "toep(t | g)"])
@pytest.mark.parametrize("fixed", [True, False])
def test_unknown_structures_are_refused_with_the_list(text, fixed):
    """Red in `fixed`: "| acts on the bits of whole numbers"."""
    formula = (f"~ x + {text}",) if fixed else ("~ x", text)
    with pytest.raises(fm.InputError, match=r"Known are us\(x \| g\).*ar1\(t \| g\)"):
        fm.MultiLMM.from_formula(*formula, data=DATA, Y=Y)


@pytest.mark.parametrize("text", ["(ar1(t | g))", "log(cs(0 + t | g))"])
def test_structures_inside_of_something_else(text):
    with pytest.raises(fm.InputError, match="stand by themselves"):
        fm.MultiLMM.from_formula(f"~ x + {text}", data=DATA, Y=Y)


def test_a_slope_beside_a_correlation_of_the_same_times():
    """Red: nlme's commonest model, random = ~ t | g with corAR1(form = ~ t | g), was refused."""
    texts = "(t | g) + ar1(t | g)", "ar1(t | g) + (t | g)"
    fits = [
        fm.MultiLMM.from_formula(f"~ t + {text}", data=DATA, Y=Y).fit(parameter_space="psd")
        for text in texts
    ]
    assert {"g[t]", "g[Intercept,t]", "g[ar1(t)]", "g[ar1(t)][lag 1]"} <= set(fits[0].theta)
    assert "g[ar1(t)][rho]" in fits[0].random_parameters()["param"]
    assert_allclose(fits[0].llf, fits[1].llf, rtol=1e-9)
    alone = fm.MultiLMM.from_formula("~ t + ar1(t | g) + (1 | g)", data=DATA, Y=Y)
    assert "g[t][lag 1]" in alone.fit(parameter_space="psd").theta


@pytest.mark.parametrize("start", [1e6, 2.4e6])
def test_places_far_from_zero(start):
    """Red: differences of such numbers have rounding of their own, seen as further distances."""
    near = fm.MultiLMM.from_formula("~ x + exp(t | g)", data=DATA, Y=Y).fit(parameter_space="psd")
    data = DATA.assign(t=start + 0.001 * DATA["t"])
    far = fm.MultiLMM.from_formula("~ x + exp(t | g)", data=data, Y=Y).fit(parameter_space="psd")
    assert far.theta.shape == near.theta.shape
    assert_allclose(far.llf, near.llf, rtol=1e-8)
    ranges = [one.random_parameters()["estimate"][:, 1] for one in (far, near)]
    assert_allclose(1000 * ranges[0], ranges[1], rtol=1e-4)


def test_distances_that_print_alike():
    data = DATA.assign(t=DATA["t"].map({0: 0.0, 1: 1.0, 2: 2.000001}))
    theta = fm.MultiLMM.from_formula("~ x + exp(t | g)", data=data, Y=Y).fit(parameter_space="psd")
    assert [name for name in theta.theta if "1.000001" in name]


def test_limits_beyond_numbers():
    """Red: RuntimeWarnings of overflow, and NaN for a quantile of infinite ranges."""
    rng = np.random.default_rng(23)
    n = 24
    data = pd.DataFrame(
        {"g": rng.choice(list("abcdefgh"), n), "t": rng.integers(0, 3, n), "x": rng.normal(size=n)}
    )
    model = fm.MultiLMM.from_formula("~ x + exp(t | g)", data=data, Y=rng.normal(size=(12, n)))
    result = model.fit(parameter_space="psd")
    ranges = result.random_parameters()["estimate"][:, 1]
    assert np.isinf(ranges).sum() > 2
    row = next(line for line in str(result.summary()).splitlines() if "range" in line)
    assert row.split()[1:] == ["0", *row.split()[2:5], "inf"]
    assert "NaN" not in row
    wide = structured._log_limits(np.array([1e-8]), np.array([1.0]), 0.05)
    assert wide.tolist() == [[0.0, np.inf]]


# ---- residuals and shares of the variance --------------------------------------------------------


@pytest.mark.parametrize("kind", ["us", "ar1", "known"])
@pytest.mark.parametrize("level", ["conditional", "population"])
def test_residuals_over_their_standard_deviations(fits, kind, level):
    """Standardised ones were refused; pearson's were not divided by anything, unlike nlme's."""
    result, truth = fits[kind], Dense(kind, fits[kind], "y1")
    raw = truth.y - truth.X @ truth.beta
    if level == "conditional":
        raw = raw - truth.Z @ truth.blup
    options = {"level": level, "features": ["y1"]}
    found = result.resid(Y, DATA, kind="pearson", **options)
    assert_allclose(found[0], raw / np.sqrt(truth.R), rtol=1e-8)
    fixed = truth.X @ truth.C @ truth.X.T
    if level == "population":
        V = np.linalg.inv(truth.W)
        variance = np.diag(V) - np.diag(fixed)
    else:
        P = truth.W - truth.W @ fixed @ truth.W
        variance = truth.R**2 * np.diag(P)
    found = result.resid(Y, DATA, kind="standardized", **options)
    assert_allclose(found[0], raw / np.sqrt(variance), rtol=1e-6)


def test_checks_of_residuals(fits):
    checked = fits["us"].check_residuals(Y, DATA, by="site")
    pearson = fits["us"].resid(Y, DATA, kind="pearson").to_numpy()
    skewness = ((pearson - pearson.mean(1, keepdims=True)) ** 3).mean(1) / pearson.std(1) ** 3
    assert_allclose(checked["skewness"], skewness, rtol=1e-9)
    with pytest.raises(fm.InputError, match="groups of 'site'"):
        fits["us"].check_residuals(Y, DATA.drop(columns="site"))


def test_shares_are_of_the_mean_over_the_samples(fits):
    """They were refused: the residual part is the mean of the samples' residual variances."""
    result, truth = fits["ar1"], Dense("ar1", fits["ar1"], "y1")
    parts = np.array([np.diag(truth.Z @ truth.D @ truth.Z.T).mean(), truth.R.mean()])
    found = result.icc(features=["y1"])
    assert found["component"].values.tolist() == ["g", "Residual"]
    assert_allclose(found["estimate"][0], parts / parts.sum(), rtol=1e-10)
    assert (found["se"] > 0).all()
    fixed = np.var(truth.X @ truth.beta)
    shares = result.variance_fractions(features=["y1"])["estimate"][0]
    assert_allclose(shares, np.r_[fixed, parts] / (fixed + parts.sum()), rtol=1e-9)
    explained = result.r_squared(divisor="n", features=["y1"])
    assert_allclose(explained["marginal"], fixed / (fixed + parts.sum()), rtol=1e-9)
    assert_allclose(explained["residual"], truth.R.mean(), rtol=1e-10)


# ---- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["us", "ar1", "known"])
def test_draws_have_the_covariance_of_the_model(fits, kind):
    """They were refused. Sums of y over each group and level: mean, variance and total."""
    result, truth = fits[kind], Dense(kind, fits[kind], "y1")
    drawn = result.draw(4000, rng=5, features=["y1"])
    V = np.linalg.inv(truth.W)
    mean = truth.X @ truth.beta
    for part, label in zip(drawn.groups.parts, drawn.groups.labels, strict=True):
        inside = (DATA["site"] == label).to_numpy()
        names = list(part.structure.column_names)
        columns = np.array([list(drawn.structure.column_names).index(n) for n in names])
        most = int(part.ZZ.diagonal().argmax())
        for W, values in (
            (truth.X[:, 1] * inside, part.XY[1]),
            (truth.Z[:, columns[most]] * inside, part.ZY[most]),
        ):
            error = np.sqrt(W @ V @ W / 4000)
            assert abs(values.mean() - W @ mean) < 5 * error
            assert values.var() == pytest.approx(W @ V @ W, rel=0.12)
        squares = np.trace(V[np.ix_(inside, inside)]) + (mean[inside] ** 2).sum()
        assert part.yy.mean() == pytest.approx(squares, rel=0.05)
    for name in ("XY", "yy"):
        total = sum(getattr(part, name) for part in drawn.groups.parts)
        assert_allclose(getattr(drawn, name), total, rtol=1e-9)


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_bootstrap(space):
    model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=DATA, Y=Y, sums_by="site")
    result = model.fit(residual_by="site", parameter_space=space)
    if space == "unconstrained":  # where no effects with such a variance exist
        result.ds["theta"].loc["y1", "g"] = -0.005
    found = result.bootstrap(40, rng=3, features=["y1"])
    assert found.ds["statistic"].values.tolist()[-3:] == list(result.theta.columns[-3:])
    assert found.ds["replicates"].notnull().mean() > 0.9
    centre = found.ds["replicates"].median("replicate")[0]
    spread = found.ds["replicates"].std("replicate")[0]
    assert (abs(centre - found.ds["estimate"][0]) < spread).all()
    tested = result.bootstrap_test("x", n=40, rng=3, features=["y0"])
    assert abs(float(tested["p"][0]) - float(result.t_test("x").pvalue.iloc[0, 0])) < 0.3
    drawn = result.draw(2, rng=1, features=["y0"])
    again = fm.MultiLMM(drawn).fit(residual_by="site", parameter_space=space)
    assert again.theta.shape == (2, 4)
    if space == "psd":
        assert float(result.bootstrap_test(component="g", n=10, rng=3)["p"][0]) < 0.3


def test_restricted_fits_of_groups(fits):
    """What a bootstrap test draws from: the fit in which a contrast has its value."""
    result = fitted("us", method="ML")[1]
    theta, beta = bootstrap.restricted(result.fitted, np.arange(2), "x = 0.1")
    assert_allclose(beta[:, 1], 0.1)
    less = fm.MultiLMM.from_formula(
        "~ 1 + (x | g)", data=DATA, Y=Y - 0.1 * DATA["x"].to_numpy(), sums_by="site"
    ).fit("ML", residual_by="site", parameter_space="psd")
    assert_allclose(beta[:, 0], less.params["Intercept"], rtol=1e-5)
    assert_allclose(theta, less.theta, rtol=1e-3, atol=1e-5)


# ---- names of groups -----------------------------------------------------------------------------


def test_groups_of_new_samples_are_found():
    """Red: dates were other texts in new data, and 1.0 was no 1, in tables and mappings."""
    number = DATA["site"].map({"s 1": 1, "s2": 2, "s3": 3})
    day = pd.Timestamp("2024-03-01") + pd.to_timedelta(number, unit="D")
    data = DATA.assign(number=number, real=number.astype(float), day=day)
    expected, interval = None, {"interval": "prediction", "features": ["y0"]}
    for name, others in {"number": ["real"], "real": ["number"], "day": []}.items():
        model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by=name)
        result = model.fit(residual_by=name, parameter_space="psd")
        for other in [name, *others]:
            new = data.head(4).assign(**{name: data[other].head(4)})
            found = result.predict(new, **interval)["se"].to_numpy()
            expected = found if expected is None else expected
            assert_allclose(found, expected, rtol=1e-9)
        if name != "day":
            for keys in ((1, 2, 3), (1.0, 2.0, 3.0)):
                coarser = model.fit(residual_by=dict(zip(keys, "aab", strict=True)))
                assert coarser.theta.columns.tolist() == ["g", "Residual[a]", "Residual[b]"]
                assert np.isfinite(coarser.predict(data.head(4), **interval)["se"]).all()
        with pytest.raises(fm.InputError, match="No residual variance is known"):
            result.predict(data.head(2).assign(**{name: 7}), interval="prediction")


@pytest.mark.parametrize("missing", ["raise", "feature"])
def test_correlations_without_a_sign_are_positive(missing):
    """Red: rho of -1 where lags within levels are even, so that +1 is as likely."""
    g = np.array([LEVELS.index(level) for level in DATA["g"]])
    odd = DATA.assign(t=2 * (DATA["t"] > 0) + g % 2)
    values = Y.iloc[:1].copy()
    if missing == "feature":
        values.iloc[0, 3] = np.nan
    model = fm.MultiLMM.from_formula("~ x + ar1(t | g)", data=odd, Y=values, missing=missing)
    found = model.fit(parameter_space="psd").random_parameters()["estimate"]
    alike = fm.MultiLMM.from_formula("~ x + exp(t | g)", data=odd, Y=values, missing=missing)
    expected = alike.fit(parameter_space="psd").random_parameters()["estimate"]
    assert_allclose(found[:, 1], np.exp(-1 / expected[:, 1]), rtol=1e-4)
    negative = DATA.assign(t=DATA["t"])
    turned = Y + np.where(DATA["t"] == 1, -3.0, 3.0) * np.random.default_rng(1).normal(size=8)[g]
    model = fm.MultiLMM.from_formula("~ x + ar1(t | g)", data=negative, Y=turned)
    assert (model.fit(parameter_space="psd").random_parameters()["estimate"][:, 1] < -0.5).all()


def test_distances_that_a_feature_lacks():
    """Red: a feature whose samples have no pair at some lag was not estimable."""
    values, wide = Y.copy(), DATA.assign(t=DATA["t"].replace({2: 3}))
    some = (DATA["t"] < 2).to_numpy()
    values.iloc[0, ~some] = np.nan
    model = fm.MultiLMM.from_formula("~ x + ar1(t | g)", data=wide, Y=values, missing="feature")
    found = model.fit(parameter_space="psd")
    assert found.status["y0"] in ("converged", "boundary")
    alone = fm.MultiLMM.from_formula(
        "~ x + ar1(t | g)", data=wide[some], Y=values.loc[["y0"], some]
    ).fit(parameter_space="psd")
    assert_allclose(found.llf["y0"], alone.llf["y0"], atol=1e-7)
    assert_allclose(found.params.loc["y0"], alone.params.loc["y0"], rtol=1e-5)


def test_simpler_structures_are_nested():
    """Red: refused as not nested. nlme's anova of pdSymm, pdDiag, pdCompSymm and pdIdent."""
    effects = "0 + C(t) | g"
    texts = {
        "us": f"us({effects})",
        "diag": f"diag({effects})",
        "cs": f"cs({effects})",
        "one": f"diag({effects}, hom=TRUE)",
    }
    fits = {
        name: fm.MultiLMM.from_formula(f"~ x + {text} + (1 | b)", data=DATA, Y=Y).fit(
            parameter_space="psd"
        )
        for name, text in texts.items()
    }
    df = {"us diag": 3, "us cs": 4, "us one": 5, "diag one": 2, "cs one": 1}
    for pair, expected in df.items():
        large, small = (fits[name] for name in pair.split())
        found = large.compare_lr_test(small)
        assert found["df"].tolist() == [expected, expected]
        assert found.attrs["null"] == f"chi2_{expected}"
        assert_allclose(found["statistic"], 2 * (large.llf - small.llf), atol=1e-9)
        with pytest.raises(fm.InputError, match="not nested"):
            small.compare_lr_test(large)
    with pytest.raises(fm.InputError, match="not nested"):
        fits["diag"].compare_lr_test(fits["cs"])
    elsewhere = fm.MultiLMM.from_formula(
        f"~ x + {texts['one']} + (1 | b)", data=DATA, Y=Y + DATA["x"].to_numpy() ** 2
    ).fit(parameter_space="psd")
    with pytest.raises(fm.InputError, match="different data"):
        fits["us"].compare_lr_test(elsewhere)
    alone = fm.MultiLMM.from_formula(f"~ x + {texts['one']}", data=DATA, Y=Y)
    assert fits["cs"].compare_lr_test(alone.fit(parameter_space="psd")).attrs["null"] == (
        "0.5 chi2_1 + 0.5 chi2_2"
    )


def test_coarser_groups_are_told_with_one_feature():
    """Sums over the levels of random effects tell groups apart where the features are few."""
    rng = np.random.default_rng(8)
    data = pd.DataFrame(
        {name: rng.choice(list(letters), 240) for name, letters in (("s", "xyz"), ("k", "abcd"))}
    )
    data["g"] = rng.choice(list("pqrstuv"), 240)
    Y = rng.normal(size=(1, 240))
    model = fm.MultiLMM.from_formula("~ 1 + (1 | g)", data=data, Y=Y, sums_by="s:k")
    fine, coarse = (model.fit("ML", residual_by=by) for by in ("s:k", "s"))
    test = fine.compare_lr_test(coarse)
    assert test["df"].tolist() == [9]
    other = data.assign(s=rng.permutation(data["s"]))
    apart = fm.MultiLMM.from_formula("~ 1 + (1 | g)", data=other, Y=Y, sums_by="s")
    with pytest.raises(fm.InputError, match="unions"):
        fine.compare_lr_test(apart.fit("ML", residual_by="s"))


def test_texts_of_groups_are_no_numbers():
    """'01' is none of the groups '1' and '10', though they are numbers; a day needs no time."""
    rng = np.random.default_rng(9)
    data = pd.DataFrame({"s": rng.choice(["1", "10"], 60), "g": rng.choice(list("pqrst"), 60)})
    data["day"] = pd.to_datetime(data["s"].map({"1": "2020-01-01", "10": "2020-02-01"}))
    for by, good, wrong in (
        ("s", ["1"], ["01"]),
        ("day", [pd.Timestamp("2020-01-01").date()], ["2020-03-01"]),
    ):
        model = fm.MultiLMM.from_formula(
            "~ 1 + (1 | g)", data=data, Y=rng.normal(size=(2, 60)), sums_by=by
        )
        result = model.fit(residual_by=by)
        new = pd.DataFrame({"g": ["p"], by: good})
        assert result.predict(new, interval="prediction") is not None
        with pytest.raises(fm.InputError, match="No residual variance is known"):
            result.predict(pd.DataFrame({"g": ["p"], by: wrong}), interval="prediction")
