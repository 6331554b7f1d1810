"""Residual variances by group, beside the same fits with one residual variance in the same run.

``python -m tests.benchmarks residual-by [--size full]``: 10,000 features, 3 groups, one component
of 100 levels, groups crossed with the levels or nested in them; then 1,000 features with slopes,
and with 20 levels crossed with the 100. Processor time, the least of five.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

import flashmm as fm

from .own_rows import SCALE, timed
from .report import markdown

__all__ = ["measure_residual_by", "residual_by_table"]

_BOUND = 4.0


def measure_residual_by(level: str) -> list[dict[str, Any]]:
    """Run all cases at a size."""
    warnings.simplefilter("ignore")
    rows = []
    for nested in (False, True):
        for p in (2, 4, 10):
            m = max(200, int(10_000 * SCALE[level]))
            model = _model(m, p, np.random.default_rng(5), nested=nested)
            for space in ("psd", "unconstrained"):
                one, by = _times(model, space)
                where = "nested in" if nested else "crossed with"
                rows.append(_row(f"{m} features, p = {p}, groups {where} levels, {space}", one, by))
    m = max(50, int(1_000 * SCALE[level]))
    for random in ("(1 + x1 | g)", "(1 | g) + (1 | b)"):
        model = _model(m, 2, np.random.default_rng(5), nested=False, random=random)
        rows.append(_row(f"{m} features, {random}, psd", *_times(model, "psd")))
    return rows


def _row(case: str, one: float, by: float) -> dict[str, Any]:
    return {"case": case, "one": one, "by": by, "ratio": by / one, "met": by <= _BOUND * one}


def _model(
    m: int, p: int, rng: np.random.Generator, *, nested: bool, random: str = "(1 | g)"
) -> fm.MultiLMM:
    n, q, H = 5000, 100, 3
    g = rng.integers(0, q, n)
    h = g % H if nested else rng.integers(0, H, n)
    data = pd.DataFrame({f"x{i}": rng.normal(size=n) for i in range(1, p)})
    data["g"] = pd.Categorical([f"g{i:02d}" for i in g])
    data["b"] = rng.choice([f"b{i:02d}" for i in range(20)], n)
    data["h"] = pd.Categorical.from_codes(h, list("uvw"))
    Y = np.array([0.7, 1.0, 1.4])[h] * rng.normal(size=(m, n))
    Y += np.sqrt(rng.uniform(0.0, 0.3, (m, 1))) * rng.normal(size=(m, q))[:, g]
    fixed = " + ".join(f"x{i}" for i in range(1, p))
    return fm.MultiLMM.from_formula(f"~ {fixed} + {random}", data=data, Y=Y, sums_by="h")


def _times(model: fm.MultiLMM, space: Any) -> tuple[float, float]:
    """Processor seconds of a fit with one residual variance, and of one by group."""
    one, by = [], []
    for _ in range(5):
        fresh = fm.MultiLMM(model.stats)  # nothing projected yet
        one.append(timed(lambda fresh=fresh: fresh.fit(parameter_space=space))[1])
        by.append(timed(lambda fresh=fresh: fresh.fit(parameter_space=space, residual_by="h"))[1])
    return float(min(one)), float(min(by))


def residual_by_table(measured: Mapping[str, Any]) -> str:
    """Processor times and their ratios."""
    rows = [["case", "one variance, s", "by group, s", "ratio", f"at most {_BOUND:g}"]]
    for case in measured["residual_by"]:
        rows.append(
            [
                case["case"],
                f"{case['one']:.3f}",
                f"{case['by']:.3f}",
                f"{case['ratio']:.1f}",
                "yes" if case["met"] else "no",
            ]
        )
    return markdown(rows)
