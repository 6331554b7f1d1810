"""Known covariances between levels, beside the same fits without them in the same run.

``python -m tests.benchmarks known [--size medium]``: a dense K of 5,000 levels with one sample
each, 1,000 traits; a K of 259 donors beside 11,600 features of 500,000 cells, alone and with 20
crossed batches. Sizes other than ``full`` have fewer of all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

import flashmm as fm

from .own_rows import SCALE, timed
from .report import markdown

__all__ = ["known_table", "measure_known"]


def relationship(names: list[str], rng: np.random.Generator) -> pd.DataFrame:
    """A relationship matrix of unrelated markers, twice as many as individuals."""
    G = rng.normal(size=(len(names), 2 * len(names))).astype(np.float32)
    return pd.DataFrame((G @ G.T / G.shape[1]).astype(np.float64), names, names)


def measure_known(level: str) -> list[dict[str, Any]]:
    """Run all cases at a size."""
    warnings.simplefilter("ignore")
    rng, scale = np.random.default_rng(23), SCALE[level]
    rows: list[dict[str, Any]] = []

    def seconds(random: str, data: pd.DataFrame, Y: Any, K: pd.DataFrame | None) -> float:
        def call() -> Any:
            known = None if K is None else {"g": K}
            model = fm.MultiLMM.from_formula(
                "~ x + c",
                random,
                data,
                Y,
                transform="log1p" if sp.issparse(Y) else None,
                covariances=known,
            )
            return model.fit(parameter_space="psd")

        return float(timed(call)[2])

    def row(case: str, wall: float, plain: float | None, bound: float) -> None:
        measured = wall if plain is None else wall / plain
        one = {"case": case, "wall": wall, "plain": plain, "bound": bound}
        rows.append(one | {"met": measured <= bound})

    def table(names: list[str], n: int) -> pd.DataFrame:
        g = names if n == len(names) else rng.choice(names, size=n)
        batch = rng.choice([f"b{i}" for i in range(20)], size=n)
        c = rng.choice(list("abcdef"), size=n)
        return pd.DataFrame({"g": g, "x": rng.normal(size=n), "c": c, "batch": batch})

    q, m = max(100, int(5000 * scale ** (1 / 3))), max(50, int(1000 * scale))
    names = [f"i{i}" for i in range(q)]
    K = relationship(names, rng)
    Y = rng.normal(size=(m, q)) @ np.linalg.cholesky(K).T + rng.normal(size=(m, q))
    row(
        f"{m} traits, dense K of {q}, one sample each",
        seconds("(1 | g)", table(names, q), Y, K),
        None,
        60.0,
    )
    n, m = max(5000, int(500_000 * scale)), max(100, int(11_600 * scale))
    names = [f"i{i}" for i in range(259)]
    data, K = table(names, n), relationship(names, rng)
    counts = sp.random(m, n, density=0.05, random_state=1, format="csr")
    counts.data = np.ceil(5.0 * counts.data)
    for random, bound in (("(1 | g)", 1.5), ("(1 | g) + (1 | batch)", 3.0)):
        plain = seconds(random, data, counts, None)
        row(
            f"{m} features, K of 259, {n} cells, {random}",
            seconds(random, data, counts, K),
            plain,
            bound,
        )
    return rows


def known_table(measured: Mapping[str, Any]) -> str:
    """Wall times; targets are seconds, or times of the fit without K."""
    rows = [["case", "wall s", "without K, s", "target", "met"]]
    for case in measured["known"]:
        plain = case["plain"]
        rows.append(
            [
                case["case"],
                f"{case['wall']:.2f}",
                "–" if plain is None else f"{plain:.2f}",
                f"{case['bound']:g} s" if plain is None else f"{case['bound']:g} times",
                "yes" if case["met"] else "no",
            ]
        )
    return markdown(rows)
