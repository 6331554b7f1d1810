"""Features with rows of their own, beside the dense stack and the fit of one shared design.

``python -m tests.benchmarks.own_rows [--scale 0.1]`` prints one line per case: processor time and
wall time of the sums, the fit, and the tests of one contrast, per feature. The yardstick of missing
values and weights is ``engine="general"``, the dense stack, in the same run on fewer features;
that of an own covariate is the fit without it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

import flashmm as fm

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


def line(name: str, m: int, build: Callable[[], Any], **options: Any) -> float:
    """Print the times of a case, and return those of sums and fit, in ms of CPU a feature."""
    model, sums, wall_sums = timed(build)
    result, fit, wall_fit = timed(lambda: model.fit(parameter_space="psd", **options))
    _, satterthwaite, _ = timed(lambda: result.t_test("age", df="satterthwaite").pvalue)
    _, kenward_roger, _ = timed(lambda: result.t_test("age", df="kenward-roger").pvalue)
    each = [1e3 * value / m for value in (sums, fit, satterthwaite, kenward_roger)]
    wall = 1e3 * (wall_sums + wall_fit) / m
    print(
        f"{name:42s} {m:7d} features | ms of CPU a feature: sums {each[0]:.3f}, fit {each[1]:.3f}, "
        f"Satterthwaite {each[2]:.3f}, Kenward-Roger {each[3]:.3f} | wall {wall:.3f}",
        flush=True,
    )
    return each[0] + each[1]


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the features")
    scale = parser.parse_args().scale
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(15)
    fixed = "~ age + group"

    def missing(m: int, data: pd.DataFrame, random: str, share: float, **more: Any) -> Any:
        Y = responses(m, data, share, rng)
        if more.pop("weighted", False):
            more["weights"] = rng.lognormal(size=Y.shape)
        return lambda: fm.MultiLMM.from_formula(fixed, random, data, Y, missing="feature", **more)

    some = samples(400, 100, 5, rng)
    missing(9, some, "(1 | subject)", 0.1)().fit(parameter_space="psd")  # imports
    for name, n, subjects, random, m in (
        ("10 % missing, 400 x (1 | 100)", 400, 100, "(1 | subject)", 2000),
        ("10 % missing, 200 x (1 | 50) + (1 | 8)", 200, 50, "(1 | subject) + (1 | batch)", 5000),
    ):
        data, count = samples(n, subjects, 8, rng), max(20, int(m * scale))
        ours = line(name, count, missing(count, data, random, 0.1))
        line("  with weights", count, missing(count, data, random, 0.1, weighted=True))
        few = 60
        stack = line("  dense stack", few, missing(few, data, random, 0.1), engine="general")
        print(f"  {stack / ours:.1f} times faster than the stack")
    count = max(20, int(100_000 * scale))
    line(
        "3 % missing, 300 x (1 | 100)",
        count,
        missing(count, samples(300, 100, 5, rng), "(1 | subject)", 0.03),
    )
    count, data = max(20, int(10_000 * scale)), samples(200, 50, 8, rng)
    Y, dosage = responses(count, data, 0.0, rng), rng.normal(size=(count, 200))
    line(
        "own covariate, 200 x (1 | 50)",
        count,
        lambda: fm.MultiLMM.from_formula(
            "~ age + group + dosage",
            "(1 | subject)",
            data,
            Y,
            feature_covariates={"dosage": dosage},
        ),
    )
    line(
        "  without it",
        count,
        lambda: fm.MultiLMM.from_formula(fixed, "(1 | subject)", data, Y),
    )
    genes = max(100, int(20_000 * scale))
    counts, table = rng.negative_binomial(5, 0.02, size=(genes, 24)), samples(24, 12, 3, rng)
    v, cpu, wall = timed(lambda: fm.voom(counts, "~ group", "(1 | subject)", table))
    print(f"voom, 24 x (1 | 12), {genes} genes: CPU {cpu:.2f} s, wall {wall:.2f} s")

    def analysed() -> Any:
        model = fm.MultiLMM.from_formula(
            "~ group", "(1 | subject)", table, v.log2cpm, weights=v.weights
        )
        result = model.fit(parameter_space="psd")
        return result.t_test("group", moderated=result.moderate(df="dream")).top_table(n=None)

    _, cpu, wall = timed(analysed)
    print(f"fit and moderated test of these: CPU {cpu:.2f} s, wall {wall:.2f} s")


if __name__ == "__main__":
    main()
