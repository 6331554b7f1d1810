"""What sums by group give, beside lme4 and clubSandwich in the same run.

``python -m tests.benchmarks groups [--size medium]``: influence of 50 groups on 1,000 features,
sign flips and cluster-robust tests of 20,000 features; processor and wall time. Sizes other than
``full`` have fewer features, and targets in seconds are scaled down with them.
"""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flashmm as fm

from .own_rows import SCALE, timed
from .peers import _r_has
from .report import markdown

__all__ = ["groups_table", "measure_groups"]

GROUPS, EACH, FLIPS = 50, 10, 5000
FORMULA = "~ x + trt + (1 | g)"
# Per feature and group, R's start and one call before not counted.
INFLUENCE = """
suppressPackageStartupMessages(library(lme4))
fit <- lmer(y ~ x + trt + (1 | g), data)
seconds <- system.time(influence(fit, groups = "g"))[["elapsed"]] / nlevels(data$g)
"""
ROBUST = """
suppressPackageStartupMessages({library(lme4); library(clubSandwich)})
fit <- lmer(y ~ x + trt + (1 | g), data)
test <- function() coef_test(fit, vcov = "CR2")
invisible(test())
seconds <- system.time(test())[["elapsed"]]
"""


def in_r(code: str, data: pd.DataFrame, y: Any, packages: tuple[str, ...]) -> float | None:
    """Seconds that R measures; None without R or a package."""
    if not all(_r_has(package) for package in packages):
        return None
    with tempfile.TemporaryDirectory() as folder:
        data.assign(y=y).to_csv(Path(folder, "data.csv"), index=False)
        read = 'data <- read.csv("data.csv"); data$g <- factor(data$g)\n'
        Path(folder, "run.R").write_text(read + code + "cat(seconds)\n")
        done = subprocess.run(
            ["Rscript", "run.R"], cwd=folder, capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def measure_groups(level: str) -> list[dict[str, Any]]:
    """Run all cases at a size."""
    warnings.simplefilter("ignore")
    rng, scale = np.random.default_rng(17), SCALE[level]
    g = np.repeat(np.arange(GROUPS), EACH)
    data = pd.DataFrame({"x": rng.normal(size=g.size), "trt": g % 2, "g": g.astype(str)})
    rows: list[dict[str, Any]] = []

    def fitted(m: int) -> tuple[Any, Any]:
        Y = rng.normal(size=(m, g.size)) + 0.7 * rng.normal(size=(m, GROUPS))[:, g]
        model = fm.MultiLMM.from_formula(FORMULA, data=data, Y=Y, sums_by="g")
        return model.fit(parameter_space="psd"), Y

    def row(name: str, m: int, call: Any, units: int, peer: float | None, bound: float) -> None:
        _, cpu, wall = timed(call)
        one = {"case": name, "m": m, "cpu": cpu, "wall": wall, "each": 1e3 * cpu / units}
        one |= {"peer": None if peer is None else 1e3 * peer, "bound": bound, "met": wall <= bound}
        rows.append(one)

    fitted(5)[0].influence()  # imports
    few = max(20, int(1000 * scale))
    result, Y = fitted(few)
    row(
        f"influence, {few} features x {GROUPS} groups",
        few,
        result.influence,
        few * GROUPS,
        in_r(INFLUENCE, data, Y[0], ("lme4",)),
        5.0 * few / 1000,
    )
    many = max(100, int(20_000 * scale))
    result, Y = fitted(many)
    row(
        f"{FLIPS} sign flips x {many} features",
        many,
        lambda: result.flip_test("trt", n_flips=FLIPS, rng=1),
        many,
        None,
        20.0 * many / 20_000,
    )
    row(
        f"CR2, {many} features x 3 coefficients",
        many,
        lambda: result.t_test(cov="CR2"),
        many,
        in_r(ROBUST, data, Y[0], ("lme4", "clubSandwich")),
        20.0 * many / 20_000,
    )
    return rows


def groups_table(measured: Mapping[str, Any]) -> str:
    """Times, and targets in seconds of wall time."""
    rows = [["case", "cpu s", "wall s", "target s", "met", "ms each", "R, ms each", "times faster"]]
    for case in measured["groups"]:
        peer = case["peer"]
        rows.append(
            [
                case["case"],
                *(f"{case[name]:.2f}" for name in ("cpu", "wall", "bound")),
                "yes" if case["met"] else "no",
                f"{case['each']:.3f}",
                "–" if peer is None else f"{peer:.1f}",
                "–" if peer is None else f"{peer / case['each']:.0f}",
            ]
        )
    return markdown(rows)
