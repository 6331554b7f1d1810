"""Features with rows of their own where few columns with several variances are left to the border.

The border's covariance is then no multiple of the identity, and its columns may span those of X.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.formulas.build import build_design
from flashmm.likelihood import make_likelihood

N, M = 72, 5
RANDOM = {
    "correlated": "(1|g) + (1 + x|h)",
    "uncorrelated": "(1|g) + (x||h)",
    "slopes": "(x||g) + (x||h)",
    "correlated slopes": "(1 + x|g) + (1 + x|h)",
    "crossed": "(1|g) + (1|h) + (1|k)",
    "nested": "(1|k/l/g)",
}


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(3)
    g = rng.permutation(np.arange(N) % 12)
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "g": [f"g{i}" for i in g],
            "h": rng.choice(list("uvw"), N),
            "k": [f"k{i % 2}" for i in g],
            "l": [f"l{i // 2 % 2}" for i in g],
        },
        index=[f"s{i}" for i in range(N)],
    )
    Y = rng.normal(size=(M, N)) + rng.normal(size=(M, 12))[:, g]
    for name, size in (("h", 0.7), ("k", 0.5)):
        codes = frame[name].astype("category").cat.codes
        Y += size * rng.normal(size=(M, 3))[:, codes]
        Y += size * rng.normal(size=(M, 3))[:, codes] * frame["x"].to_numpy()
    names = [f"f{j}" for j in range(M)]

    def table(values) -> pd.DataFrame:
        return pd.DataFrame(values, names, frame.index)

    return {
        "frame": frame,
        "Y": table(Y),
        "gaps": table(np.where(rng.random((M, N)) < 0.15, np.nan, Y)),
        "weights": table(rng.uniform(0.5, 2.0, (M, N))),
        "dose": table(rng.normal(size=(M, N))),
    }


def model_of(tables, kind, own="weights", feature=None):
    """All features, or one of them alone over the samples that it has."""
    frame, fixed, options = tables["frame"], "~ x", {}
    Y = tables["gaps" if own == "missing" else "Y"]
    if own == "covariate":
        fixed = "~ x + dose"
    if feature is None:
        if own == "weights":
            options["weights"] = tables["weights"]
        elif own == "missing":
            options["missing"] = "feature"
        else:
            options["feature_covariates"] = {"dose": tables["dose"]}
        return fm.MultiLMM.from_formula(fixed, RANDOM[kind], frame, Y, **options)
    Y = Y.loc[[feature]].dropna(axis=1)
    if own == "weights":
        options["weights"] = tables["weights"].loc[feature]
    frame = frame.assign(dose=tables["dose"].loc[feature]).loc[Y.columns]
    return fm.MultiLMM.from_formula(fixed, RANDOM[kind], frame, Y, **options)


def dense_loglik(tables, kind, theta, feature, method) -> float:
    """From V, n x n, in the units of Y."""
    design = build_design("~ x", RANDOM[kind], tables["frame"]).design
    X, Z, structure = np.asarray(design.X), design.Z.toarray(), design.structure
    D = structure.multiply(np.tile(theta, (structure.q, 1)), np.eye(structure.q))
    V = Z @ D @ Z.T + np.diag(theta[-1] / tables["weights"].loc[feature].to_numpy())
    y, (n, p) = tables["Y"].loc[feature].to_numpy(), X.shape
    Vi = np.linalg.inv(V)
    XVX = X.T @ Vi @ X
    r = y - X @ np.linalg.solve(XVX, X.T @ Vi @ y)
    value, df = np.linalg.slogdet(V)[1] + r @ Vi @ r, n
    if method == "REML":
        value, df = value + np.linalg.slogdet(XVX)[1], n - p
    return float(-0.5 * (value + df * np.log(2 * np.pi)))


def thetas(structure) -> list[np.ndarray]:
    """Unequal variances: within the psd space, one at zero, one below it."""
    variance = np.asarray(structure.is_variance)
    inside = np.where(variance, 0.3 + 0.37 * np.arange(variance.size), -0.12)
    last = np.flatnonzero(variance[:-1])[-1]
    edge, beyond = inside.copy(), inside.copy()
    for i, parameter in enumerate(structure.parameters):
        if not parameter.is_variance:
            edge[i] = beyond[i] = 0.0
    edge[last], beyond[last] = 0.0, -0.004
    return [inside, edge, beyond]


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("kind", RANDOM)
def test_border_of_several_variances(tables, kind, method):
    """Against V written out, and against the dense stack with all derivatives."""
    model = model_of(tables, kind)
    projection, features = model.projection, np.arange(M)
    ours, dense = (make_likelihood(projection, method, name) for name in ("auto", "general"))
    (own,) = ours.estimators
    assert type(own).__name__ == "OwnRowsLikelihood"
    layout = own.layout
    assert 1 < layout.q2 <= 6
    assert len(layout.border_params) > 1
    for natural in thetas(model.stats.structure):
        theta = projection.to_internal(np.tile(natural, (M, 1)))
        mine, theirs = ours.evaluate(theta, features), dense.evaluate(theta, features)
        found = projection.natural_loglik(mine.loglik, method)
        expected = [dense_loglik(tables, kind, natural, name, method) for name in tables["Y"].index]
        assert_allclose(found, expected, rtol=0, atol=1e-8)
        for name in ("loglik", "score", "expected", "average"):
            a, b = getattr(mine, name), getattr(theirs, name)
            assert_allclose(a, b, rtol=1e-7, atol=1e-8 * np.abs(b).max(initial=1.0))
        assert_allclose(ours.beta(theta, features), dense.beta(theta, features), atol=1e-9)
        a, b = (one.covariance(theta, features) for one in (ours, dense))
        assert_allclose(a, b, atol=1e-10 * np.abs(b).max())
        a, b = (one.random_effects(theta, features, "prediction") for one in (ours, dense))
        assert_allclose(a.blup, b.blup, atol=1e-8)
        assert_allclose(a.se, b.se, atol=1e-8)


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("kind", "own", "method", "space"),
    [
        ("correlated", "weights", "REML", "psd"),
        ("correlated", "missing", "ML", "psd"),
        ("uncorrelated", "weights", "ML", "unconstrained"),
        ("uncorrelated", "covariate", "REML", "psd"),
        ("slopes", "missing", "REML", "psd"),
        ("correlated slopes", "weights", "REML", "psd"),
        ("crossed", "covariate", "REML", "unconstrained"),
        ("nested", "missing", "REML", "psd"),
    ],
)
def test_fits_as_if_alone(tables, kind, own, method, space):
    options = {"method": method, "parameter_space": space}
    result = model_of(tables, kind, own).fit(**options)
    reached = 0
    for name in tables["Y"].index[:3]:
        alone = model_of(tables, kind, own, feature=name).fit(**options)
        status = result.status[name]
        assert status == alone.status.iloc[0]
        assert status not in ("stalled", "iteration limit")
        if status == "no maximum":
            continue
        reached += 1
        assert_allclose(result.llf[name], alone.llf.iloc[0], atol=1e-6)
        assert_allclose(result.theta.loc[name], alone.theta.iloc[0], atol=2e-4)
        se = alone.bse.iloc[0]
        assert_allclose((result.params.loc[name] - alone.params.iloc[0]) / se, 0.0, atol=1e-5)
        assert_allclose(result.bse.loc[name] / se, 1.0, atol=1e-4)
    assert reached
