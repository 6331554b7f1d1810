"""Power of integrated tests beside limma on subjects' means, on the same draws. Writes power.csv.

    python docs/calibration/power.py

The designs of few_subjects.py where the two are closest. False discovery proportions of one draw differ
between methods, so power is also taken where both have the same: as far down each method's list as at
most 5 % (1 %) of it are false. "true prior" is the integrated test under the distribution that the
ratios were drawn from: what no learning can better. "pooled" is what would do better on average over
features: it compares a feature's t, by its posterior mean precision, with those that chance would give
all features. Effects are in proportion to each feature's own standard deviation, or of one size.
Rejections of true nulls are also counted in two halves: features whose ratio is zero, or less than
the median, and the others.
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
from flashmm.inference.integrated.integration import Part, integrate
from flashmm.inference.integrated.posterior import posterior
from flashmm.inference.integrated.student import student_cdf

sys.path.insert(0, str(Path(__file__).parent))
import few_subjects as study

FloatArray = NDArray[np.float64]

SETTINGS = tuple(
    (study.Setting(subjects, balanced, 1, ratio, kind), one_size)
    for ratio, kind, subjects, balanced, one_size in (
        (0.3, "half zero", 6, True, False),
        (0.3, "half zero", 8, True, False),
        (0.3, "half zero", 12, True, False),
        (0.02, "independent", 4, True, False),
        (0.02, "independent", 4, False, False),
        (0.02, "independent", 8, False, False),
        (0.3, "half zero", 8, True, True),
        (0.02, "half zero", 4, False, True),
    )
)
PROPORTIONS = (0.05, 0.01)
HALVES = (0.01, 0.001)


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


def pooled(fit: fm.MultiLMMResults, contrast: str, others: int = 1000) -> FloatArray:
    """P-values (m,): how often |t| of all features would be as large, their other data given.

    t is the estimate over 1 / root of its posterior mean precision; given the feature's error
    contrasts its chance of being large is the integrated one, and that is averaged over features.
    """
    prior, m = fit.ratio_prior, fit.fitted.stats.m
    everyone = np.arange(m)
    part = Part(fit.fitted.projection, everyone)
    sigma2 = prior.of_features(fit.fitted.names, None)
    where = integrate((part,), m, 2**30, prior.grid, prior.weights, sigma2, prior.following)
    design = where.shared[0]
    data = design.features(everyone)
    found = posterior(
        design.quadratic_forms(data),
        design.log_dets(data),
        design.degrees(data),
        sigma2.df,
        sigma2.variance / part.scale,
        where.priors(everyone),
    )
    functions = design.functions((np.array(fit.fitted.coefs) == contrast)[None].astype(float))
    estimates = design.estimates(functions, data)[:, 0]
    variance = design.covariance(functions, data)[0] * found.variance * part.scale[:, None]
    centre = found.mean(estimates)
    unit = 1.0 / np.sqrt(found.mean(1.0 / variance))
    some = everyone[:: max(1, m // others)]
    apart, root = (estimates - centre[:, None])[some], np.sqrt(variance[some])
    at = np.geomspace(0.02, 100.0, 120)
    tail = np.empty(at.size)
    for k, t in enumerate(at):
        end = t * unit[some][:, None]
        both = [student_cdf(found.df[some], (sign * apart - end) / root) for sign in (1.0, -1.0)]
        tail[k] = (found.weights[some] * (both[0] + both[1])).sum(axis=1).mean()
    t = np.clip(np.abs(centre) / unit, at[0], at[-1])
    return np.exp(np.interp(np.log(t), np.log(at), np.log(tail)))


def one(setting: study.Setting, one_size: bool, m: int, seed: int) -> list[dict[str, Any]]:
    """One row per method."""
    affected = int(study.SHARE * m)
    drawn = np.random.default_rng([seed, 99])
    statistics = study.simulate(setting, m, drawn, affected, one_size=one_size)
    # The same draws again, for the ratios that they began with.
    sigma2, terms = study.variances(setting, m, np.random.default_rng([seed, 99]))
    ratio = (terms[0] / sigma2)[affected:]
    low = ratio == 0 if setting.kind == "half zero" else ratio < np.median(ratio)
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
        "pooled": pooled(fit, contrast),
        study.LIMMA: study.limma_on_means(setting, statistics)["between"],
    }
    rows = []
    for method, p in found.items():
        called = fm.adjust_pvalues(p, "bh") < 0.05
        row = {**study.design_of(setting), "effects": "one size" if one_size else "own"}
        row.update(method=method, features=m, seed=seed)
        row["power"] = float(called[:affected].mean())
        row["fdp"] = float(called[affected:].sum() / max(called.sum(), 1))
        for proportion in PROPORTIONS:
            row[f"power at {proportion:g}"] = power_where(p, affected, proportion)
        null = p[affected:]
        for half, here in (("low", low), ("high", ~low)):
            row[half] = int(here.sum())
            row.update({f"{half}, {x:g}": int((null[here] < x).sum()) for x in HALVES})
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
    for setting, one_size in SETTINGS:
        for seed in range(arguments.seeds):
            rows += one(setting, one_size, arguments.features, seed)
        print(setting, one_size, flush=True)
    table = pd.DataFrame(rows).round(4)
    table.to_csv(arguments.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
