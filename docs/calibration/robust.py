"""Rates of false rejections where groups or residuals are not as the model says.

Null features of k groups with 6 samples each, a third of the groups treated, and one covariate that
varies within groups; 5,000 features for each row. Writes robust.csv; takes about a minute:

    python docs/calibration/robust.py
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flashmm as fm

EACH, M = 6, 5_000
LEVELS = (0.05, 0.01)


def responses(
    kind: str, treated: np.ndarray, codes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Null features (M, n) of one kind."""
    k, n = treated.size, codes.size
    groups, noise = rng.normal(size=(M, k)), rng.normal(size=(M, n))
    if kind == "treated groups vary more":
        sd = np.where(treated, 2.0, 1.0)
        return (sd * groups)[:, codes] + sd[codes] * noise
    if kind == "residuals follow the covariate":
        return 0.7 * groups[:, codes] + noise  # scaled by the caller
    if kind == "slopes differ, left out":
        return 0.7 * groups[:, codes] + noise
    if kind == "heavy tails":
        return rng.standard_t(3, size=(M, k))[:, codes] + rng.standard_t(3, size=(M, n))
    if kind == "skewed":
        return rng.exponential(size=(M, k))[:, codes] + rng.exponential(size=(M, n))
    return groups[:, codes] + noise


KINDS = (
    *("as the model says", "treated groups vary more", "residuals follow the covariate"),
    *("slopes differ, left out", "heavy tails", "skewed"),
)


def rows() -> Iterator[dict[str, Any]]:
    """The rate of rejections of each test, kind and number of groups."""
    for k in (12, 24, 48):
        codes = np.repeat(np.arange(k), EACH)
        treated = np.arange(k) < k // 3
        for number, kind in enumerate(KINDS):
            rng = np.random.default_rng([k, number])
            x = rng.normal(size=codes.size)
            Y = responses(kind, treated, codes, rng)
            if kind == "residuals follow the covariate":
                Y = Y + rng.normal(size=Y.shape) * np.abs(x) * 1.5
            if kind == "slopes differ, left out":
                Y = Y + rng.normal(size=(M, k))[:, codes] * x
            data = pd.DataFrame({"x": x, "trt": treated[codes].astype(float), "g": codes})
            data["g"] = data["g"].astype(str)
            model = fm.MultiLMM.from_formula("~ trt + x + (1 | g)", data=data, Y=Y, sums_by="g")
            result = model.fit(parameter_space="psd")
            for contrast in ("trt", "x"):
                tests = {
                    cov: result.t_test(contrast, cov=cov).pvalue
                    for cov in ("model", "CR0", "CR2", "CR3")
                }
                tests["flips"] = result.flip_test(contrast, n_flips=2000, rng=1).pvalue
                for name, p in tests.items():
                    rates = {level: float((p < level).to_numpy().mean()) for level in LEVELS}
                    yield {
                        "groups": k,
                        "responses": kind,
                        "coefficient": contrast,
                        "test": name,
                    } | {f"rate at {level}": round(rate, 4) for level, rate in rates.items()}


if __name__ == "__main__":
    found = list(rows())
    with (Path(__file__).parent / "robust.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
