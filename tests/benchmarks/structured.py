"""Structures of the effects of a level, beside the unstructured covariance in the same run.

``python -m tests.benchmarks structured [--size full]``: 50 groups with five times, two samples
each: us, cs, ar1, exp and cs with a standard deviation per time; ar1 of ten times. Each has so many
features (fewer in sizes other than ``full``) that it takes seconds.
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

__all__ = ["measure_structured", "structured_table"]

_GROUPS = 50
# Random effects, times and features.
_CASES = (
    ("us(0 + f | g)", 5, 400),
    ("cs(0 + f | g)", 5, 2000),
    ("cs(0 + f | g, hom=FALSE)", 5, 200),
    ("ar1(t | g)", 5, 500),
    ("exp(t | g)", 5, 500),
    ("ar1(t | g)", 10, 150),
)


def measure_structured(level: str) -> list[dict[str, Any]]:
    """Run all cases at a size, in the psd space."""
    warnings.simplefilter("ignore")
    rows = []
    for random, times, features in _CASES:
        m = max(20, int(features * SCALE[level]))
        rng = np.random.default_rng(29)
        g = np.repeat(np.arange(_GROUPS), 2 * times)
        t = np.tile(np.arange(times), 2 * _GROUPS)
        data = pd.DataFrame({"g": [f"g{i}" for i in g], "t": t, "x": rng.normal(size=t.size)})
        data["f"] = [f"f{i}" for i in t]
        lag = np.abs(np.subtract.outer(range(times), range(times)))
        root = np.linalg.cholesky(0.6**lag)
        effects = rng.normal(size=(m, _GROUPS, times)) @ root.T
        Y = rng.gamma(1.0, size=(m, 1)) * effects[:, g, t] + rng.normal(size=(m, t.size))
        model = fm.MultiLMM.from_formula("~ x", random, data, Y)
        result, cpu, wall = timed(lambda model=model: model.fit(parameter_space="psd"))
        good = int(result.converged.sum())
        rows.append(
            {"case": f"{random}, {times} times", "m": m, "cpu": cpu, "wall": wall, "good": good}
        )
    return rows


def structured_table(measured: Mapping[str, Any]) -> str:
    """Times of the fits, and how many features came to a maximum."""
    rows = [["case", "features", "wall s", "CPU ms a feature", "at a maximum"]]
    for case in measured["structured"]:
        each = 1e3 * case["cpu"] / case["m"]
        rows.append(
            [case["case"], str(case["m"]), f"{case['wall']:.2f}", f"{each:.1f}", str(case["good"])]
        )
    return markdown(rows)
