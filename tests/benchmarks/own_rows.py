"""Features with rows of their own, beside the dense stack and the fit of one shared design.

``python -m tests.benchmarks own-rows [--size medium]``: processor time of the sums, the fit, and
the tests of one contrast, per feature. The yardsticks of missing values and weights are
``engine="general"``, the dense stack, in the same run on fewer features, and lme4's `lmer`, feature
by feature, where R has it; that of an own covariate is the fit without it.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flashmm as fm

from .peers import _r_has
from .report import markdown

__all__ = ["measure_own_rows", "own_rows_table"]

# Share of the features of the targets.
SCALE = {"quick": 0.02, "medium": 0.2, "full": 1.0}
FIXED = "~ age + group"
CROSSED = "(1 | subject) + (1 | batch)"
LMER = """
suppressPackageStartupMessages(library(lme4))
data <- read.csv("data.csv"); Y <- as.matrix(read.csv("Y.csv", header = FALSE))
data$subject <- factor(data$subject); data$batch <- factor(data$batch)
formula <- as.formula(commandArgs(TRUE)[1])
fit <- function(j) { data$y <- Y[j, ]; suppressMessages(lmer(formula, data)) }
invisible(fit(1))
cat(system.time(for (j in seq_len(nrow(Y))) fit(j))[["elapsed"]] / nrow(Y))
"""
Timed = tuple[Any, float, float]


def timed(function: Callable[[], Any]) -> Timed:
    """A result, and the processor time and wall time that it took, in seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def samples(n: int, subjects: int, batches: int, rng: np.random.Generator) -> pd.DataFrame:
    """Two covariates, subjects of equal size, and batches drawn at random."""
    return pd.DataFrame(
        {
            "age": rng.normal(size=n),
            "group": rng.integers(0, 2, n),
            "subject": pd.Categorical(np.arange(n) * subjects // n),
            "batch": pd.Categorical(rng.integers(0, batches, n)),
        }
    )


def responses(m: int, data: pd.DataFrame, missing: float, rng: np.random.Generator) -> Any:
    """Noise and effects of subjects and batches; a share of the values NaN."""
    n = len(data)
    subject, batch = data["subject"].cat.codes, data["batch"].cat.codes
    Y = rng.normal(size=(m, n)) + 0.7 * rng.normal(size=(m, subject.max() + 1))[:, subject]
    Y += 0.5 * rng.normal(size=(m, batch.max() + 1))[:, batch]
    Y[rng.random(Y.shape) < missing] = np.nan
    return Y


def lmer_ms(Y: Any, data: pd.DataFrame, random: str, features: int = 10) -> float | None:
    """Wall time of one ``lmer`` in ms, R's start not counted; None without R or lme4."""
    if not _r_has("lme4"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        data.to_csv(Path(folder, "data.csv"), index=False)
        np.savetxt(Path(folder, "Y.csv"), Y[:features], delimiter=",", fmt="%.17g")
        text = Path(folder, "Y.csv").read_text().replace("nan", "NA")
        Path(folder, "Y.csv").write_text(text)
        Path(folder, "fit.R").write_text(LMER)
        done = subprocess.run(
            ["Rscript", "fit.R", f"y {FIXED} + {random}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    return 1e3 * float(done.stdout)


def row(name: str, m: int, build: Callable[[], Any], **options: Any) -> dict[str, Any]:
    """Times of a case, in ms of processor time a feature; ``wall`` that of sums and fit."""
    model, sums, wall_sums = timed(build)
    result, fit, wall_fit = timed(lambda: model.fit(parameter_space="psd", **options))
    _, satterthwaite, _ = timed(lambda: result.t_test("age", df="satterthwaite").pvalue)
    _, kenward_roger, _ = timed(lambda: result.t_test("age", df="kenward-roger").pvalue)
    seconds = {
        "sums": sums,
        "fit": fit,
        "satterthwaite": satterthwaite,
        "kenward_roger": kenward_roger,
        "wall": wall_sums + wall_fit,
    }
    each: dict[str, Any] = {key: 1e3 * value / m for key, value in seconds.items()}
    return {"case": name, "m": m, **each, "targets": []}


def _target(measured: dict[str, Any], what: str, value: float, bound: float, *, most: bool) -> None:
    met = value <= bound if most else value >= bound
    entry = {"what": what, "value": value, "bound": bound, "most": most, "met": bool(met)}
    measured["targets"].append(entry)


def _whole(measured: dict[str, Any]) -> float:
    return float(measured["sums"] + measured["fit"])


def measure_own_rows(level: str) -> list[dict[str, Any]]:
    """Run all cases at a size; targets are meant for the full size."""
    warnings.simplefilter("ignore")
    rng, scale = np.random.default_rng(15), SCALE[level]
    rows: list[dict[str, Any]] = []

    def missing(Y: Any, data: pd.DataFrame, random: str, **more: Any) -> Callable[[], Any]:
        return lambda: fm.MultiLMM.from_formula(FIXED, random, data, Y, missing="feature", **more)

    some = samples(400, 100, 5, rng)
    first = missing(responses(9, some, 0.1, rng), some, "(1 | subject)")().fit()
    _ = first.t_test("age").pvalue  # what fits and tests import
    for name, n, subjects, random, m, times, few in (
        ("10 % missing, 400 x (1 | 100)", 400, 100, "(1 | subject)", 2000, 30.0, 60),
        ("10 % missing, 200 x (1 | 50) + (1 | 8)", 200, 50, CROSSED, 5000, 8.0, 60),
    ):
        data, count = samples(n, subjects, 8, rng), max(20, int(m * scale))
        Y = responses(count, data, 0.1, rng)
        ours = row(name, count, missing(Y, data, random))
        weights = rng.lognormal(size=Y.shape)
        weighted = row(f"{name}, weights", count, missing(Y, data, random, weights=weights))
        less = Y[: min(few, count)]
        stack = row(
            f"{name}, dense stack", len(less), missing(less, data, random), engine="general"
        )
        rows += [ours, weighted, stack]
        ratio = _whole(stack) / _whole(ours)
        _target(ours, "times faster than the dense stack", ratio, times, most=False)
        for test in ("satterthwaite", "kenward_roger"):
            _target(ours, f"{test} over the fit", ours[test] / ours["fit"], 0.5, most=True)
        ratio = _whole(weighted) / _whole(ours)
        _target(weighted, "over that without weights", ratio, 1.3, most=True)
        peer = lmer_ms(Y, data, random)
        if peer is not None:
            ours["lmer"] = peer
            if random != CROSSED:
                ratio = peer / ours["wall"]
                _target(ours, "times faster than lmer", ratio, 100.0, most=False)
    count, data = max(20, int(100_000 * scale)), samples(300, 100, 5, rng)
    image = row(
        "3 % missing, 300 x (1 | 100)",
        count,
        missing(responses(count, data, 0.03, rng), data, "(1 | subject)"),
    )
    _target(image, "s for all features", image["wall"] * count / 1e3, 60.0, most=True)
    count, data = max(20, int(10_000 * scale)), samples(200, 50, 8, rng)
    Y, dosage = responses(count, data, 0.0, rng), rng.normal(size=(count, 200))
    own = row(
        "own covariate, 200 x (1 | 50)",
        count,
        lambda: fm.MultiLMM.from_formula(
            f"{FIXED} + dosage", "(1 | subject)", data, Y, feature_covariates={"dosage": dosage}
        ),
    )
    plain = row(
        "without it", count, lambda: fm.MultiLMM.from_formula(FIXED, "(1 | subject)", data, Y)
    )
    _target(own, "over the fit without it", own["fit"] / plain["fit"], 3.0, most=True)
    return [*rows, image, own, plain, _dream(max(100, int(20_000 * scale)), rng)]


def _dream(genes: int, rng: np.random.Generator) -> dict[str, Any]:
    """voom, fit and moderated test of 24 samples of 12 subjects."""
    counts, table = rng.negative_binomial(5, 0.02, size=(genes, 24)), samples(24, 12, 3, rng)
    v, voom, wall_voom = timed(lambda: fm.voom(counts, "~ group", "(1 | subject)", table))

    def analysed() -> Any:
        model = fm.MultiLMM.from_formula(
            "~ group", "(1 | subject)", table, v.log2cpm, weights=v.weights
        )
        result = model.fit(parameter_space="psd")
        return result.t_test("group", moderated=result.moderate(df="dream")).top_table(n=None)

    _, cpu, wall = timed(analysed)
    found: dict[str, Any] = {"case": "voom + fit + moderated test, 24 x (1 | 12)", "m": genes}
    found |= {"sums": 1e3 * voom / genes, "fit": 1e3 * cpu / genes}
    found |= {"wall": 1e3 * (wall_voom + wall) / genes, "targets": []}
    _target(found, "s for all genes", wall_voom + wall, 5.0, most=True)
    return found


def own_rows_table(measured: Mapping[str, Any]) -> str:
    """The times in ms a feature, and what they are held to."""
    keys = ("sums", "fit", "satterthwaite", "kenward_roger", "wall", "lmer")
    rows: list[list[str]] = [["case", "features", *(key.replace("_", "-") for key in keys)]]
    targets = [["case", "measured", "target"]]
    for case in measured["own_rows"]:
        times = [f"{case[key]:.3g}" if key in case else "" for key in keys]
        rows.append([case["case"], f"{case['m']:,}", *times])
        for one in case["targets"]:
            sign = "at most" if one["most"] else "at least"
            text = f"{one['value']:.3g} {one['what']}"
            targets.append([case["case"], text, f"{sign} {one['bound']:g}"])
    return f"{markdown(rows)}\n\n{markdown(targets)}"
