"""Rates and power with few subjects and thousands of features. Writes few-subjects.csv.

    python docs/calibration/few_subjects.py                  # the study of docs/few-subjects.md
    python docs/calibration/few_subjects.py --features 1000 --out short.csv
    python docs/calibration/few_subjects.py --subjects 4 --kinds spread --seed 1 2 3 --out seeds.csv
    python docs/calibration/few_subjects.py --subjects 25 --effect 1.6 --features 10000 \\
        --methods integrated satterthwaite "limma on means" --out power-25.csv

What the table has already (design, features, seed, method) is not run again, and new rows are added at
its end: a run that was stopped goes on where it was, and further designs, seeds or methods join it.
dream of variancePartition fits every cell of every feature in R, which takes minutes per 1,000
features; it is run on request, with the library that R shall find it in:

    python docs/calibration/few_subjects.py --methods dream integrated --features 1000 \\
        --subjects 4 8 --kinds spread --r-library LIBRARY --out few-subjects-dream.csv

Cells of subjects in two groups, under two conditions; features as summary statistics, drawn as in
`run.py`. What differs from it: as many cells as in single-cell studies, small ratios that are
exactly zero in half of the features, heavy-tailed or unrelated to the residual variance, and what
comes beside the tests of a mixed model: limma on the subjects' means.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

import flashmm as fm
from flashmm.formulas.build import build_design
from flashmm.inference.moderation import moderate, variance_prior

sys.path.insert(0, str(Path(__file__).parent))
from dream_default import dream_p_values

FloatArray = NDArray[np.float64]

SUBJECTS = (4, 6, 8, 12, 25)
LEVELS = (0.05, 0.01, 1e-3, 1e-4)
RANDOM = {1: "(1 | subject)", 2: "(condition || subject)"}
# Typical ratio of a random term's variance to the residual's, and how features differ about it.
KINDS = {
    1: (
        (0.02, "spread"),
        (0.001, "half zero"),
        (0.02, "half zero"),
        (0.3, "half zero"),
        (0.02, "heavy tail"),
        (0.02, "independent"),
        (0.001, "spread"),
        (0.3, "spread"),
    ),
    2: (
        (0.02, "half zero"),
        (0.3, "spread"),
        (0.02, "independent"),
        (0.02, "heavy tail"),
        (0.02, "spread"),
        (0.001, "spread"),
        (0.3, "half zero"),
        (0.001, "half zero"),
    ),
}
# Features drawn by number of components.
FEATURES = {1: 50_000, 2: 20_000}
PRIOR_DF = 8.0
EFFECT = (
    6.0  # standard deviations of a subject's mean (or difference), in this share of the features:
)
SHARE = 0.1


@dataclass(frozen=True)
class Setting:
    """One design and distribution of ratios."""

    subjects: int
    balanced: bool
    components: int
    ratio: float
    kind: str

    @property
    def design(self) -> str:
        """For the table."""
        return "balanced" if self.balanced else "unbalanced"


def samples(setting: Setting) -> pd.DataFrame:
    """Balanced: 120 cells of each subject, half of them under the condition; groups alternate.

    Unbalanced: 30 to 240 cells (1 : 8), a third of the subjects (two at least) in one group and a
    third of the cells under the condition.
    """
    k = setting.subjects
    if setting.balanced:
        counts, group = np.full(k, 120), np.arange(k) % 2
    else:
        counts = np.random.default_rng(k).permutation(np.geomspace(30, 240, k)).astype(int)
        group = (np.arange(k) < max(2, k // 3)).astype(int)
    subject = np.repeat(np.arange(k), counts)
    within = np.arange(subject.size) - np.repeat(np.cumsum(counts) - counts, counts)
    on = within < counts[subject] // (2 if setting.balanced else 3)
    return pd.DataFrame(
        {
            "subject": [f"s{i:02d}" for i in subject],
            "group": np.where(group[subject] == 1, "B", "A"),
            "condition": np.where(on, 0.5, -0.5),
        }
    )


def variances(
    setting: Setting, m: int, rng: np.random.Generator
) -> tuple[FloatArray, list[FloatArray]]:
    """Residual variances (m,), and those of each random term."""
    sigma2 = PRIOR_DF / rng.chisquare(PRIOR_DF, m)
    terms = []
    for _ in range(setting.components):
        unit = np.ones(m) if setting.kind == "independent" else sigma2
        tail = 3.0 if setting.kind == "heavy tail" else PRIOR_DF
        tau = setting.ratio * unit * tail / rng.chisquare(tail, m)
        if setting.kind == "half zero":
            tau = tau * (rng.random(m) < 0.5)
        terms.append(tau)
    return sigma2, terms


def simulate(
    setting: Setting,
    m: int,
    rng: np.random.Generator,
    affected: int = 0,
    *,
    effect: float = EFFECT,
    one_size: bool = False,
) -> fm.SummaryStats:
    """Statistics of m features; the first ``affected`` have effects, up or down, between
    subjects and, where these respond differently, within.

    Effects are in standard deviations of a mean of the feature's own, or of the median feature.
    """
    design = build_design(
        "~ group + condition", RANDOM[setting.components], samples(setting)
    ).design
    X, Z = design.X, design.Z.toarray()
    n, p = X.shape
    _, length, right = np.linalg.svd(np.hstack([X, Z]), full_matrices=False)
    rank = int((length > 1e-10 * length[0]).sum())
    root = length[:rank, None] * right[:rank]
    sigma2, terms = variances(setting, m, rng)
    scale = np.concatenate(
        [
            np.tile(np.sqrt(tau), (term.n_columns, 1))
            for term, tau in zip(design.structure.terms, terms, strict=True)
        ]
    )
    inside = root[:, p:] @ (scale * rng.normal(size=scale.shape))
    inside += np.sqrt(sigma2) * rng.normal(size=(rank, m))
    each = n / setting.subjects
    size = np.zeros((p, m))
    signs = effect * rng.choice([-1.0, 1.0], size=affected)

    def unit(variance: FloatArray) -> FloatArray:
        found = np.sqrt(variance)
        return np.full(affected, np.median(found)) if one_size else found[:affected]

    size[1, :affected] = signs * unit(terms[0] + sigma2 / each)
    if len(terms) > 1:
        size[2, :affected] = signs * unit(terms[1] + 4.0 * sigma2 / each)
    inside += root[:, :p] @ size
    W_y = root.T @ inside
    return fm.SummaryStats(
        n=n,
        XX=X.T @ X,
        XY=W_y[:p],
        ZX=Z.T @ X,
        ZY=W_y[p:],
        ZZ=Z.T @ Z,
        yy=(inside * inside).sum(axis=0) + sigma2 * rng.chisquare(n - rank, m),
        coef_names=design.coef_names,
        structure=design.structure,
    )


def limma_on_means(setting: Setting, statistics: fm.SummaryStats) -> dict[str, FloatArray]:
    """Two-sided p-values (m,) of limma's moderated t on unweighted subject means or differences."""
    data = samples(setting)
    levels = statistics.structure.terms[0].levels
    order = pd.Index([level.split("[")[-1].rstrip("]") for level in levels])
    by = data.groupby("subject")
    count = by.size().reindex(order).to_numpy(float)
    group = (by["group"].first().reindex(order) == "B").to_numpy(float)
    k = order.size
    total = statistics.ZY[:k]
    on = by["condition"].apply(lambda x: (x > 0).sum()).reindex(order).to_numpy(float)
    # half of (sum on - sum off)
    slope = statistics.ZY[k:] if setting.components == 2 else slopes(data, statistics)
    sum_on = 0.5 * total + slope
    means = sum_on / on[:, None] - (total - sum_on) / (count - on)[:, None]
    return {
        "between": _moderated_t(total / count[:, None], np.column_stack([np.ones(k), group]), 1),
        "within": _moderated_t(means, np.ones((k, 1)), 0),
    }


def slopes(data: pd.DataFrame, statistics: fm.SummaryStats) -> FloatArray:
    """Sums of y times the condition by subject (k, m), where the model of one component has none.

    What [X, Z] span of y is told by the statistics; of the rest, whose length they tell, a part
    is drawn: under the model nothing prefers a direction of it.
    """
    design = build_design("~ group + condition", RANDOM[1], data).design
    W = np.hstack([design.X, design.Z.toarray()])
    wanted = design.Z.toarray() * data["condition"].to_numpy()[:, None]
    W_y = np.vstack([statistics.XY, statistics.ZY])
    into = np.linalg.pinv(W.T @ W)
    rank = np.linalg.matrix_rank(W)
    shown = wanted.T @ W @ into
    rest = wanted - W @ (into @ (W.T @ wanted))
    _, length, right = np.linalg.svd(rest, full_matrices=False)
    length = np.where(length > 1e-10 * length[0], length, 0.0)
    free = int((length > 0).sum())
    rng = np.random.default_rng(0)
    rss = np.asarray(statistics.yy) - (W_y * (into @ W_y)).sum(axis=0)
    z = rng.normal(size=(free, rss.size))
    whole = (z * z).sum(axis=0) + rng.chisquare(statistics.n - rank - free, rss.size)
    drawn = np.sqrt(rss / whole) * z
    return np.asarray(shown @ W_y + right[:free].T @ (length[:free, None] * drawn))


def _moderated_t(y: FloatArray, X: FloatArray, column: int) -> FloatArray:
    """y (k, m) on X (k, p)."""
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    df = X.shape[0] - X.shape[1]
    s2 = ((y - X @ beta) ** 2).sum(axis=0) / df
    freedom = np.full(s2.size, float(df))
    post = moderate(s2, freedom, variance_prior(s2, freedom))
    t = beta[column] / np.sqrt(post.variance * inverse[column, column])
    return np.asarray(2.0 * stats.t.sf(np.abs(t), post.df))


# Tests of the fit in the psd space; the others are run by functions of their own.
TESTS = {
    "integrated": {"df": "integrated"},
    "satterthwaite": {"df": "satterthwaite"},
    "kenward-roger": {"df": "kenward-roger"},
    "residual": {"df": "residual"},
    "moderated": {"df": "satterthwaite", "moderated": True},
}
UNCONSTRAINED, LIMMA, DREAM = "satterthwaite, unconstrained", "limma on means", "dream"
METHODS = (*TESTS, UNCONSTRAINED, LIMMA)
EFFECTS = {"between": "group[T.B]", "within": "condition"}


def p_values(
    setting: Setting,
    statistics: fm.SummaryStats,
    methods: Sequence[str] = METHODS,
    r_library: Sequence[str] = (),
) -> dict[tuple[str, str], FloatArray]:
    """Two-sided p-values (m,) by method and effect; fits in the psd space and, of one component,
    without constraint."""
    found: dict[tuple[str, str], FloatArray] = {}

    def add(method: str, p: FloatArray) -> None:
        for position, effect in enumerate(EFFECTS):
            found[method, effect] = p[:, position]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        engine = "auto" if setting.components == 1 else "blocked"
        model = fm.MultiLMM(statistics)
        fit = model.fit(parameter_space="psd", engine=engine)
        for method in methods:
            if method in TESTS:
                tests = fit.t_test(list(EFFECTS.values()), **TESTS[method])
                add(method, tests.pvalue.to_numpy())
        # Of two components most features have no maximum without a boundary.
        if UNCONSTRAINED in methods and setting.components == 1:
            free = model.fit(engine=engine)
            add(UNCONSTRAINED, free.t_test(list(EFFECTS.values())).pvalue.to_numpy())
    if LIMMA in methods:
        for effect, p in limma_on_means(setting, statistics).items():
            found[LIMMA, effect] = p
    if DREAM in methods:
        random = RANDOM[setting.components]
        add(DREAM, dream_p_values(samples(setting), statistics, random, r_library))
    return found


def study(
    setting: Setting,
    m: int,
    seed: int,
    methods: Sequence[str] = METHODS,
    r_library: Sequence[str] = (),
    size: float = EFFECT,
) -> list[dict[str, Any]]:
    """One row per method and effect: rejections of true nulls by level; power and FDP at 5 %."""
    kind = KINDS[setting.components].index((setting.ratio, setting.kind))
    rng = np.random.default_rng(
        [seed, setting.subjects, setting.balanced, setting.components, kind]
    )
    null = p_values(setting, simulate(setting, m, rng), methods, r_library)
    affected = int(SHARE * m)
    mixed = p_values(setting, simulate(setting, m, rng, affected, effect=size), methods, r_library)
    rows = []
    for (method, effect), p in null.items():
        row = {
            **design_of(setting),
            "effect": effect,
            "method": method,
            "features": m,
            "seed": seed,
            "tested": int(np.isfinite(p).sum()),
        }
        for level in LEVELS:
            row[f"rejected {level:g}"] = int((p < level).sum())
        found = fm.adjust_pvalues(mixed[method, effect], "bh") < 0.05
        row["power"] = round(float(found[:affected].mean()), 4)
        row["fdp"] = round(float(found[affected:].sum() / max(found.sum(), 1)), 4)
        rows.append(row)
    return rows


def design_of(setting: Setting) -> dict[str, Any]:
    """The columns of the table that name a design."""
    return {
        "subjects": setting.subjects,
        "design": setting.design,
        "components": setting.components,
        "ratio": setting.ratio,
        "kind": setting.kind,
    }


def todo(
    table: pd.DataFrame | None, setting: Setting, m: int, seed: int, methods: Sequence[str]
) -> list[str]:
    """The methods that a table has no rows of, for this design, number of features and seed."""
    wanted = [x for x in methods if x != UNCONSTRAINED or setting.components == 1]
    if table is None:
        return wanted
    key = {**design_of(setting), "features": m, "seed": seed}
    here = np.logical_and.reduce([table[name] == value for name, value in key.items()])
    done = set(table.loc[here, "method"])
    return [method for method in wanted if method not in done]


def settings() -> list[Setting]:
    """All of the study."""
    return [
        Setting(subjects, balanced, components, ratio, kind)
        for components, kinds in KINDS.items()
        for ratio, kind in kinds
        for balanced in (True, False)
        for subjects in SUBJECTS
    ]


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows at the end of a table, which is begun where there is none."""
    begun = path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if not begun:
            writer.writeheader()
        writer.writerows(rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = sorted({kind for each in KINDS.values() for _, kind in each})
    ratios = sorted({ratio for each in KINDS.values() for ratio, _ in each})
    choose = parser.add_argument_group("which designs; all where not given")
    choose.add_argument("--subjects", type=int, nargs="+", choices=SUBJECTS, default=SUBJECTS)
    choose.add_argument(
        "--designs",
        nargs="+",
        choices=("balanced", "unbalanced"),
        default=("balanced", "unbalanced"),
    )
    choose.add_argument("--components", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    choose.add_argument("--ratios", type=float, nargs="+", choices=ratios, default=ratios)
    choose.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--features", type=int, help=f"by components: {FEATURES}")
    parser.add_argument(
        "--effect", type=float, default=EFFECT, help="standard deviations; keep to one in a table"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=[20260101])
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, DREAM), default=METHODS)
    parser.add_argument(
        "--r-library", nargs="+", default=[], help="folders in which R finds variancePartition"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "few-subjects.csv")
    return parser.parse_args(arguments)


def chosen(arguments: argparse.Namespace) -> list[Setting]:
    """The designs that the command line asks for."""
    return [
        each
        for each in settings()
        if each.subjects in arguments.subjects
        and each.design in arguments.designs
        and each.components in arguments.components
        and each.ratio in arguments.ratios
        and each.kind in arguments.kinds
    ]


def main(command: Sequence[str] | None = None) -> None:
    """Run what the table lacks and write one row per design, seed, method and effect."""
    arguments = parse(command)
    out = arguments.out
    table = pd.read_csv(out) if out.exists() else None
    for seed in arguments.seed:
        for setting in chosen(arguments):
            m = arguments.features or FEATURES[setting.components]
            methods = todo(table, setting, m, seed, arguments.methods)
            if not methods:
                continue
            start = time.process_time()
            rows = study(setting, m, seed, methods, arguments.r_library, arguments.effect)
            append(out, rows)
            print(setting, seed, f"{time.process_time() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
