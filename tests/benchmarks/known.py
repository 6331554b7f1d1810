"""Known covariances between levels, beside the same fits without them in the same run.

``python -m tests.benchmarks known [--size medium]``: a dense K of 5,000 levels with one sample
each, 1,000 traits; a K of 259 donors beside 11,600 features of 500,000 cells, alone and with 20
crossed batches. Sizes other than ``full`` have fewer of all.
"""

from __future__ import annotations

import sys
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


def sparse_counts(m: int, n: int, each: int, rng: np.random.Generator) -> sp.csr_array:
    """Counts of m features, ``each`` of them positive, spread evenly over n samples."""
    width = n // each
    start = np.arange(0, each * width, width)
    indices = np.empty((m, each), dtype=np.int32)
    for row in indices:  # no array of the size of Y
        row[:] = start + rng.integers(0, width, each)
    values = rng.integers(1, 6, m * each).astype(np.float64)
    return sp.csr_array((values, indices.ravel(), np.arange(0, m * each + 1, each)), shape=(m, n))


def measure_known(level: str) -> list[dict[str, Any]]:
    """Run all cases at a size: processor time of the sums and of the fit, the better of two.

    The seconds of the first case are wall time of sums and fit.
    """
    warnings.simplefilter("ignore")
    rng, scale = np.random.default_rng(23), SCALE[level]
    rows: list[dict[str, Any]] = []

    def seconds(
        random: str, data: pd.DataFrame, Y: Any, K: pd.DataFrame | None
    ) -> tuple[float, float, float]:
        def build() -> fm.MultiLMM:
            known = None if K is None else {"g": K}
            transform: Any = "log1p" if sp.issparse(Y) else None
            return fm.MultiLMM.from_formula(
                "~ x + c", random, data, Y, transform=transform, covariances=known
            )

        model, sums, wall = timed(build)
        fits = [
            timed(lambda: fm.MultiLMM(model.stats).fit(parameter_space="psd"))[1:] for _ in range(2)
        ]
        cpu, fit_wall = (min(times) for times in zip(*fits, strict=True))
        return float(sums), float(cpu), float(wall + fit_wall)

    def row(
        case: str, found: tuple[float, ...], plain: tuple[float, ...] | None, bound: float
    ) -> None:
        measured = found[2] if plain is None else found[1] / plain[1]
        one = {"case": case, "sums": found[0], "fit": found[1], "bound": bound}
        one |= {"plain_sums": plain and plain[0], "plain_fit": plain and plain[1]}
        rows.append(one | {"value": measured, "met": measured <= bound})
        print(rows[-1], file=sys.stderr, flush=True)

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
    counts = sparse_counts(m, n, max(50, n // 100), rng)
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
    """Processor times; targets are wall seconds, or times of the fit without K."""
    rows = [["case", "sums s", "fit s", "without K: sums s", "fit s", "target", "measured", "met"]]
    for case in measured["known"]:
        alone = case["plain_fit"] is None
        rows.append(
            [
                case["case"],
                f"{case['sums']:.2f}",
                f"{case['fit']:.2f}",
                "–" if alone else f"{case['plain_sums']:.2f}",
                "–" if alone else f"{case['plain_fit']:.2f}",
                f"{case['bound']:g} s" if alone else f"{case['bound']:g} times the fit",
                f"{case['value']:.2f}",
                "yes" if case["met"] else "no",
            ]
        )
    return markdown(rows)
