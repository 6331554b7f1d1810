"""Real data with labels permuted, and simulated counts: rates of false positives. Writes permuted.csv.

    python docs/calibration/permuted.py

Nothing here is drawn from the model that is fitted.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flashmm as fm

ROOT = Path(__file__).parents[2]
LEVELS = (0.05, 0.01, 1e-3)
METHODS = ("integrated", "satterthwaite", "kenward-roger")

sys.path.insert(0, str(ROOT / "examples"))


def rates(result: fm.MultiLMMResults, contrasts: Any) -> dict[str, list[float]]:
    """Tests, and rejections by level, of each method."""
    found = {}
    for method in METHODS:
        p = result.t_test(contrasts, df=method).pvalue.to_numpy()
        found[method] = [float(np.isfinite(p).sum())] + [float((p < a).sum()) for a in LEVELS]
    return found


def fit(*arguments: Any, **options: Any) -> fm.MultiLMMResults:
    """A fit in the psd space."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return fm.MultiLMM.from_formula(*arguments, **options).fit(parameter_space="psd")


def kang() -> dict[str, list[float]]:
    """Interferon labels of one of two patients exchanged: 1,267 genes, five cell types."""
    import quickstart  # noqa: PLC0415

    cells, counts = quickstart.load()
    patient = cells["sample_id"].str.extract(r"(\d+)$", expand=False)
    swapped = patient == sorted(patient.unique())[0]
    other = cells["group_id"].map({"ctrl": "stim", "stim": "ctrl"})
    cells["group_id"] = cells["group_id"].where(~swapped, other)
    result = fit(
        "~ 0 + log(libsize) + cluster_id + cluster_id:group_id",
        "~ 0 + sample_id",
        cells,
        counts,
        transform="log2p1",
    )
    names = [f"cluster_id[{name}]:group_id[T.stim]" for name in cells["cluster_id"].unique()]
    return rates(result, names)


def varpart(repeats: int = 25) -> dict[str, list[float]]:
    """variancePartition's example: 200 genes, 25 individuals, a random half of them "treated"."""
    folder = ROOT / "tests" / "reference" / "varpart"
    samples = pd.read_csv(folder / "samples.csv", index_col=0)
    expression = pd.read_csv(folder / "expression.csv.gz", index_col=0)
    people = samples["Individual"].unique()
    total: dict[str, Any] = {}
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        chosen = set(rng.permutation(people)[: people.size // 2])
        samples["half"] = [str(name in chosen) for name in samples["Individual"]]
        result = fit("~ half + (1 | Individual) + (1 | Tissue)", None, samples, expression)
        for method, found in rates(result, ["half[T.True]"]).items():
            total[method] = np.add(total.get(method, 0.0), found)
    return {method: list(found) for method, found in total.items()}


def counts(n_samples: int) -> dict[str, list[float]]:
    """Counts of simulate.rnaseq without effects, log2(1 + count), genes in a fifth of the cells."""
    sim = fm.simulate.rnaseq(
        n_genes=4000,
        n_cells=600 * n_samples // 4,
        n_samples=n_samples,
        n_clusters=2,
        n_de_genes=0,
        rng=n_samples,
    )
    table = sim.counts[(sim.counts > 0).mean(axis=1) >= 0.2]
    result = fit("~ log(libsize) + cls + trt", "~ 0 + sam", sim.metadata, table, transform="log2p1")
    return rates(result, ["trt[T.B]"])


def main() -> None:
    """Every data set, one row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "permuted.csv")
    arguments = parser.parse_args()
    studies = {
        "Kang, one patient's labels exchanged": kang,
        "varPart, halves of the individuals": varpart,
        "counts, 4 samples": lambda: counts(4),
        "counts, 8 samples": lambda: counts(8),
    }
    rows = []
    for data, study in studies.items():
        for method, found in study().items():
            row = [data, method, *(int(x) for x in found)]
            rows.append(row)
            print(
                row,
                [round(float(x / found[0] / a), 2) for x, a in zip(found[1:], LEVELS, strict=True)],
            )
    with arguments.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["data", "method", "tests", *(f"rejected {a:g}" for a in LEVELS)])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
