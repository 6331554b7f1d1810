"""Residual variances by group beside structures: numbers of n x n matrices, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm

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
