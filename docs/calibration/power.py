"""Power of integrated tests beside limma on subjects' means, on the same draws. Writes power.csv.

    python docs/calibration/power.py

The designs of few_subjects.py where the two are closest. False discovery proportions of one draw differ
between methods, so power is also taken where both have the same: as far down each method's list as at
most 5 % (1 %) of it are false. "true prior" is the integrated test under the distribution that the
ratios were drawn from: what no learning can better.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

import flashmm as fm

sys.path.insert(0, str(Path(__file__).parent))
import few_subjects as study

FloatArray = NDArray[np.float64]

SETTINGS = tuple(
    study.Setting(subjects, balanced, 1, ratio, kind)
    for ratio, kind, subjects, balanced in (
        (0.3, "half zero", 6, True),
        (0.3, "half zero", 8, True),
        (0.3, "half zero", 12, True),
        (0.02, "independent", 4, True),
        (0.02, "independent", 4, False),
        (0.02, "independent", 8, False),
    )
)
PROPORTIONS = (0.05, 0.01)


def true_prior(learned: fm.RatioPrior, setting: study.Setting) -> fm.RatioPrior:
    """The distribution that ratios and residual variances are drawn from, on the grid."""
    ratio = learned.ratios.to_numpy()[:, 0]
    # Each point stands for the ratios that are closer to it than to the others, in logarithms.
    edges = np.sqrt(ratio[1:-1] * ratio[2:])
    below = stats.chi2.sf(study.PRIOR_DF * setting.ratio / edges, study.PRIOR_DF)
    weights = np.diff(np.concatenate([[0.0], below, [1.0]]))
    zero = 0.5 if setting.kind == "half zero" else 0.0
    ds = learned.ds.assign(
        weight=("point", np.concatenate([[zero], (1.0 - zero) * weights])),
        sigma2_df=study.PRIOR_DF,
        sigma2_location=1.0,
    )
    ds = ds.drop_vars(["residual_slope", "residual_at"], errors="ignore")
    if setting.kind == "independent":
        ds = ds.assign(residual_slope=-1.0, residual_at=1.0)
    return fm.RatioPrior(ds)


def power_where(p: FloatArray, affected: int, proportion: float) -> float:
    """Share of the affected that are found as far as this proportion of what is found is false."""
    true = np.cumsum(np.argsort(p, kind="stable") < affected)
    right = np.flatnonzero(1.0 - true / np.arange(1, p.size + 1) <= proportion)
    return float(true[right[-1]] / affected) if right.size else 0.0


def one(setting: study.Setting, m: int, seed: int) -> list[dict[str, Any]]:
    """One row per method."""
    affected = int(study.SHARE * m)
    statistics = study.simulate(setting, m, np.random.default_rng([seed, 99]), affected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        fit = fm.MultiLMM(statistics).fit(parameter_space="psd")
    contrast = study.EFFECTS["between"]

    def tested(prior: fm.RatioPrior) -> FloatArray:
        p = fit.t_test(contrast, df="integrated", prior=prior).pvalue
        return np.asarray(p.to_numpy()[:, 0])

    learned = fit.ratio_prior
    found = {
        "integrated": tested(learned),
        "integrated, true prior": tested(true_prior(learned, setting)),
        study.LIMMA: study.limma_on_means(setting, statistics)["between"],
    }
    rows = []
    for method, p in found.items():
        called = fm.adjust_pvalues(p, "bh") < 0.05
        row = {**study.design_of(setting), "method": method, "features": m, "seed": seed}
        row["power"] = float(called[:affected].mean())
        row["fdp"] = float(called[affected:].sum() / max(called.sum(), 1))
        for proportion in PROPORTIONS:
            row[f"power at {proportion:g}"] = power_where(p, affected, proportion)
        rows.append(row)
    return rows


def main() -> None:
    """Every design and seed, one row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "power.csv")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        for seed in range(arguments.seeds):
            rows += one(setting, arguments.features, seed)
        print(setting, flush=True)
    table = pd.DataFrame(rows).round(4)
    table.to_csv(arguments.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
