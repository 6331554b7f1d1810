"""A small problem, correlated slopes and a crossed batch, for tests of what follows a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd

import flashmm as fm

COEFS = ["Intercept", "age", "trt[T.B]"]
PARAMS = ["donor[Intercept]", "donor[age]", "donor[Intercept,age]", "batch", "Residual"]
FEATURES = [f"gene {i}" for i in range(12)]
LEVELS = [f"d{i}" for i in range(8)]
N = 96


def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.normal(size=N),
            "trt": np.tile(["A", "B"], N // 2),
            "donor": np.repeat(LEVELS, N // 8),
            "batch": np.tile(list("uvwx"), N // 4),
        },
        index=[f"s{i}" for i in range(N)],
    )


def responses() -> pd.DataFrame:
    data, rng = samples(), np.random.default_rng(1)
    donor = pd.factorize(data["donor"])[0]
    x = data["age"].to_numpy()
    Y = rng.normal(size=(12, N)) + rng.normal(size=(12, 1)) * (data["trt"] == "B").to_numpy()
    Y += 1.5 * rng.normal(size=(12, 8))[:, donor] + rng.normal(size=(12, 8))[:, donor] * x
    return pd.DataFrame(Y, index=FEATURES, columns=data.index)


def model(random="(age | donor) + (1 | batch)", Y=None) -> fm.MultiLMM:
    return fm.MultiLMM.from_formula(
        "~ age + trt", random, samples(), responses() if Y is None else Y
    )
