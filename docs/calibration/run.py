"""How often do tests of fixed effects reject where nothing is there? Writes rates.csv.

    python docs/calibration/run.py              # the study of docs/calibration.md
    python docs/calibration/run.py --features 500 --out rates-short.csv

Subjects in two groups, several observations each under two conditions. Features are drawn as
summary statistics: y = X beta + Z b + e enters only through W'y and y'y with W = [X, Z], and in an
orthonormal basis of W's columns those are normal, plus a chi-square for what lies outside.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import flashmm as fm
from flashmm.formulas.build import build_design

FloatArray = NDArray[np.float64]

SUBJECTS = (6, 10, 25, 50)
LEVELS = (0.05, 0.01, 1e-3, 1e-4)
RANDOM = {1: "(1 | subject)", 2: "(condition || subject)"}
EFFECTS = {"between": "group[T.B]", "within": "condition"}
SPACES = ("unconstrained", "psd")
METHODS = {
    "residual": {"df": "residual"},
    "satterthwaite": {"df": "satterthwaite"},
    "kenward-roger": {"df": "kenward-roger"},
    "moderated": {"df": "satterthwaite", "moderated": True},
}
# Variances of the subjects' intercepts and of their responses to the condition, in residual
# variances; the residual variance itself is 1 / (a chi-square with 8 df / 8) in each feature.
INTERCEPT, SLOPE, PRIOR_DF = 0.5, 0.5, 8.0
EFFECT = 1.0  # of the alternative, in residual standard deviations


@dataclass(frozen=True)
class Setting:
    """One design: number of subjects, whether it is balanced, number of variance components."""

    subjects: int
    balanced: bool
    components: int

    @property
    def label(self) -> str:
        """For the table."""
        return "balanced" if self.balanced else "unbalanced"


def samples(setting: Setting) -> pd.DataFrame:
    """Balanced: groups of equal size (but for one subject), eight observations each.

    Unbalanced: a third of the subjects in group A, 3 to 13 observations each, the condition more
    often off than on. The condition is coded -1/2, 1/2.
    """
    N = setting.subjects
    if setting.balanced:
        in_a, counts = N // 2, np.full(N, 8)
    else:
        in_a = max(2, N // 3)
        counts = np.random.default_rng(N).integers(3, 14, size=N)
    rows = []
    for subject, count in enumerate(counts):
        on = count // 2 if setting.balanced else max(1, count // 3)
        for i in range(count):
            group = "A" if subject < in_a else "B"
            rows.append((f"s{subject:02d}", group, 0.5 if i < on else -0.5))
    return pd.DataFrame(rows, columns=["subject", "group", "condition"])


def simulate(
    setting: Setting, m: int, rng: np.random.Generator, effect: float = 0.0
) -> fm.SummaryStats:
    """Summary statistics of m features; ``effect`` on group and condition in each of them."""
    data = samples(setting)
    design = build_design("~ group + condition", RANDOM[setting.components], data).design
    X, Z = design.X, design.Z.toarray()
    n, p = X.shape
    _, length, right = np.linalg.svd(np.hstack([X, Z]), full_matrices=False)
    rank = int((length > 1e-10 * length[0]).sum())
    root = length[:rank, None] * right[:rank]  # U'[X, Z]
    sigma2 = PRIOR_DF / rng.chisquare(PRIOR_DF, size=m)
    scale = np.concatenate(
        [
            np.full(term.n_columns, np.sqrt(INTERCEPT if i == 0 else SLOPE))
            for i, term in enumerate(design.structure.terms)
        ]
    )
    b = scale[:, None] * rng.normal(size=(Z.shape[1], m))
    inside = root[:, p:] @ b + rng.normal(size=(rank, m))  # U'y
    beta = np.zeros(p)
    beta[1:] = effect
    inside = np.sqrt(sigma2) * (inside + (root[:, :p] @ beta)[:, None])
    outside = sigma2 * rng.chisquare(n - rank, size=m)
    W_y = root.T @ inside
    return fm.SummaryStats(
        n=n,
        XX=X.T @ X,
        XY=W_y[:p],
        ZX=Z.T @ X,
        ZY=W_y[p:],
        ZZ=Z.T @ Z,
        yy=(inside * inside).sum(axis=0) + outside,
        coef_names=design.coef_names,
        structure=design.structure,
    )


def p_values(results: Any) -> dict[tuple[str, str], FloatArray]:
    """Two-sided p-values by method and effect, each (m,)."""
    found = {}
    for method, options in METHODS.items():
        test = results.t_test(list(EFFECTS.values()), **options)
        for position, effect in enumerate(EFFECTS):
            found[method, effect] = test.pvalue.to_numpy()[:, position]
    return found


def study(setting: Setting, m: int, seed: int) -> list[dict[str, Any]]:
    """Rejections in one design, in both parameter spaces, without effects and with."""
    rows = []
    for effect, count in ((0.0, m), (EFFECT, m // 4)):
        key = [seed, setting.subjects, setting.balanced, setting.components, int(effect > 0)]
        stats = simulate(setting, count, np.random.default_rng(key), effect)
        for space in SPACES:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", fm.ConvergenceWarning)
                engine = "auto" if setting.components == 1 else "blocked"
                results = fm.MultiLMM(stats).fit(parameter_space=space, engine=engine)
            for (method, tested), p in p_values(results).items():
                known = np.isfinite(p)
                base = {
                    "subjects": setting.subjects,
                    "design": setting.label,
                    "components": setting.components,
                    "space": space,
                    "size": effect,
                    "effect": tested,
                    "method": method,
                    "features": count,
                    "tested": int(known.sum()),
                }
                for level in (0.05,) if effect else LEVELS:
                    rejected = int((p[known] < level).sum())
                    rows.append({**base, "level": level, "rejected": rejected})
    return rows


def main() -> None:
    """Run every design and write one row per rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "rates.csv")
    arguments = parser.parse_args()
    settings = [
        Setting(subjects, balanced, components)
        for components in RANDOM
        for balanced in (True, False)
        for subjects in SUBJECTS
    ]
    rows: list[dict[str, Any]] = []
    for setting in settings:
        start = time.process_time()
        rows += study(setting, arguments.features, arguments.seed)
        print(setting, f"{time.process_time() - start:.1f} s", flush=True)
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
