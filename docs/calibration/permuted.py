"""Real data with labels permuted, and simulated counts: rates of false positives. Writes permuted.csv.

    python docs/calibration/permuted.py

Nothing here is drawn from the model that is fitted. Tests of one repeat are of correlated genes, so the
errors of rates are those between repeats.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import flashmm as fm

FloatArray = NDArray[np.float64]

LEVELS = (0.05, 0.01, 1e-3)
METHODS = ("integrated", "satterthwaite", "kenward-roger")


def p_values(result: fm.MultiLMMResults, contrasts: Any) -> dict[str, FloatArray]:
    """P-values of each method."""
    return {
        method: result.t_test(contrasts, df=method).pvalue.to_numpy().ravel() for method in METHODS
    }


def fit(*arguments: Any, **options: Any) -> fm.MultiLMMResults:
    """A fit in the psd space."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return fm.MultiLMM.from_formula(*arguments, **options).fit(parameter_space="psd")


# ---- Kang et al. --------------------------------------------------------------------------------

KANG = ("~ 0 + log(libsize) + cluster_id + cluster_id:group_id", "~ 0 + sample_id")


def kang() -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Cells, counts, and the contrasts of interferon in five cell types."""
    data = fm.datasets.kang()
    cells, counts = data.data.copy(), data.Y
    kinds = cells["cluster_id"].unique()
    return cells, counts, [f"cluster_id[{name}]:group_id[T.stim]" for name in kinds]


def exchanged() -> dict[str, FloatArray]:
    """Interferon labels of one of two patients exchanged: 1,267 genes, five cell types.

    Within patients there are 2 x 2 ways to label: the truth and this, and both with the labels' names
    exchanged. So there is one permutation.
    """
    cells, counts, contrasts = kang()
    patient = cells["sample_id"].str.extract(r"(\d+)$", expand=False)
    swapped = patient == sorted(patient.unique())[0]
    other = cells["group_id"].map({"ctrl": "stim", "stim": "ctrl"})
    cells["group_id"] = cells["group_id"].where(~swapped, other)
    return p_values(fit(*KANG, cells, counts, transform="log2p1"), contrasts)


def between_samples() -> pd.DataFrame:
    """What four samples of a cell type differ by: squares over their variance from cells alone.

    The exchanged labels test the interaction; the two other contrasts are the error that it is
    compared with. Without differences between samples the mean is 1.
    """
    cells, counts, _ = kang()
    Y = np.log2(1.0 + counts.sparse.to_dense().to_numpy())
    stim = np.array([-0.5, -0.5, 0.5, 0.5])  # ctrl101, ctrl107, stim101, stim107
    patient = np.array([-0.5, 0.5, -0.5, 0.5])
    rows = {}
    for name in cells["cluster_id"].unique():
        here = (cells["cluster_id"] == name).to_numpy()
        samples = pd.get_dummies(cells["sample_id"][here])[sorted(cells["sample_id"].unique())]
        library = np.log(cells["libsize"][here].to_numpy())
        X = np.column_stack([samples.to_numpy(float), library - library.mean()])
        beta = np.linalg.lstsq(X, Y[:, here].T, rcond=None)[0]
        resid = Y[:, here].T - X @ beta
        sigma2 = (resid * resid).sum(axis=0) / (len(X) - 5)
        unit = np.linalg.inv(X.T @ X)[:4, :4]
        known = sigma2 > 1e-10
        rows[name] = {
            effect: float(((c @ beta[:4])[known] ** 2 / (sigma2[known] * (c @ unit @ c))).mean())
            for effect, c in (
                ("patient", patient),
                ("interferon", stim),
                ("interaction", 2 * stim * patient),
            )
        }
    return pd.DataFrame(rows).T


def redrawn(seed: int, ratio: float = 0.02) -> dict[str, FloatArray]:
    """Cells as they are, samples' effects drawn: residuals of cells about their samples' means, drawn
    anew from all cells of a type, with normal effects of samples added."""
    cells, counts, contrasts = kang()
    rng = np.random.default_rng(seed)
    Y = np.log2(1.0 + counts.sparse.to_dense().to_numpy())
    new = np.empty_like(Y)
    library = np.log(cells["libsize"].to_numpy())
    sigma2 = np.zeros(len(Y))
    for name in cells["cluster_id"].unique():
        here = np.flatnonzero(cells["cluster_id"] == name)
        samples = pd.get_dummies(cells["sample_id"].iloc[here]).to_numpy(float)
        X = np.column_stack([samples, library[here] - library[here].mean()])
        resid = Y[:, here] - (X @ np.linalg.lstsq(X, Y[:, here].T, rcond=None)[0]).T
        new[:, here] = resid[:, rng.integers(here.size, size=here.size)]
        sigma2 += (resid * resid).sum(axis=1) / Y.shape[1]
    tau = ratio * sigma2 * 8.0 / rng.chisquare(8.0, len(Y))
    codes, names = pd.factorize(cells["sample_id"])
    b = np.sqrt(tau)[:, None] * rng.normal(size=(len(Y), names.size))
    Y = pd.DataFrame(new + b[:, codes], index=counts.index, columns=cells.index)
    return p_values(fit(*KANG, cells, Y), contrasts)


# ---- varPart ------------------------------------------------------------------------------------


def varpart() -> tuple[pd.DataFrame, pd.DataFrame]:
    """variancePartition's example: 200 genes, 25 individuals of four samples, three tissues."""
    data = fm.datasets.varpart()
    return data.data, data.Y


def halves(seed: int, people: int | None = None) -> dict[str, FloatArray]:
    """A random half of the individuals, or of some of them, "treated"."""
    samples, expression = varpart()
    rng = np.random.default_rng(seed)
    everybody = rng.permutation(samples["Individual"].unique())[:people]
    samples = samples[samples["Individual"].isin(everybody)].copy()
    chosen = set(everybody[: everybody.size // 2])
    samples["half"] = [str(name in chosen) for name in samples["Individual"]]
    formula = "~ half + Tissue + (1 | Individual)"
    if people is None:
        formula = "~ half + (1 | Individual) + (1 | Tissue)"
    return p_values(fit(formula, None, samples, expression[samples.index]), ["half[T.True]"])


def within_people(seed: int) -> dict[str, FloatArray]:
    """Two random samples of the four of each individual "treated"."""
    samples, expression = varpart()
    order = np.random.default_rng(seed).permutation(len(samples))
    place = samples.iloc[order].groupby("Individual").cumcount().reindex(samples.index)
    samples["half"] = (place < 2).astype(str)
    formula = "~ half + (1 | Individual) + (1 | Tissue)"
    return p_values(fit(formula, None, samples, expression), ["half[T.True]"])


# ---- counts -------------------------------------------------------------------------------------


def counts(
    seed: int, n_samples: int, seen: tuple[float, float], thinned: float | None = None
) -> dict[str, FloatArray]:
    """Counts of simulate.rnaseq without effects, log2(1 + count).

    Of genes seen in this share of the cells; ``thinned``: of genes like Kang's, from this share of
    their reads.
    """
    rng = np.random.default_rng([seed, n_samples])
    reference = None
    if thinned is not None:
        reference = rng.binomial(kang()[1].sparse.to_dense().to_numpy(), thinned)
        reference = reference[reference.sum(axis=1) > 1]
    sim = fm.simulate.rnaseq(
        reference,
        n_genes=4000,
        n_cells=150 * n_samples,
        n_samples=n_samples,
        n_clusters=2,
        n_de_genes=0,
        rng=rng,
    )
    share = (sim.counts > 0).mean(axis=1)
    table = sim.counts[(share >= seen[0]) & (share < seen[1])]
    result = fit("~ log(libsize) + cls + trt", "~ 0 + sam", sim.metadata, table, transform="log2p1")
    return p_values(result, ["trt[T.B]"])


def studies() -> dict[str, tuple[int, Callable[[int], dict[str, FloatArray]]]]:
    """Repeats and what is done in each, by name."""
    found: dict[str, tuple[int, Callable[[int], dict[str, FloatArray]]]] = {
        "Kang, one patient's labels exchanged": (1, lambda _: exchanged()),
        "Kang, cells drawn again, 4 samples": (5, redrawn),
        "varPart, halves of 25 individuals": (25, halves),
        "varPart, halves of 6 individuals": (25, lambda seed: halves(seed, 6)),
        "varPart, within individuals": (25, within_people),
    }
    for n in (4, 8):
        found[f"counts, {n} samples, 40 to 100 % of cells"] = (
            5,
            lambda seed, n=n: counts(seed, n, (0.2, 1.01)),
        )
        for low, high in ((0.2, 1.01), (0.05, 0.2)):
            label = "20 to 100" if low == 0.2 else "5 to 20"
            found[f"counts like Kang's, {n} samples, {label} % of cells"] = (
                5,
                lambda seed, n=n, low=low, high=high: counts(seed, n, (low, high), 0.5),
            )
    return found


def summary(repeats: list[FloatArray]) -> dict[str, float]:
    """Tests and rejections by level; the standard error at 0.05 between repeats, over the level."""
    p = np.concatenate(repeats)
    row: dict[str, float] = {"repeats": len(repeats), "tests": int(np.isfinite(p).sum())}
    row |= {f"rejected {level:g}": int((p < level).sum()) for level in LEVELS}
    rate = [(each < 0.05).sum() / np.isfinite(each).sum() / 0.05 for each in repeats]
    if len(rate) > 1:
        row["error"] = round(float(np.std(rate, ddof=1) / np.sqrt(len(rate))), 3)
    return row


def main() -> None:
    """Every data set, one row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "permuted.csv")
    parser.add_argument("--only", default="", help="studies whose names have this in them")
    arguments = parser.parse_args()
    rows = []
    for data, (repeats, study) in studies().items():
        if arguments.only not in data:
            continue
        found = [study(seed) for seed in range(repeats)]
        for method in METHODS:
            rows.append(
                {"data": data, "method": method, **summary([each[method] for each in found])}
            )
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(arguments.out, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
