"""Rates of integrated tests where few features teach the prior. Writes few-features.csv.

    python docs/calibration/few_features.py

Designs and features are those of few_subjects.py; so many of them at a time are fitted and tested,
as a panel of proteins would be.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import flashmm as fm

sys.path.insert(0, str(Path(__file__).parent))
import few_subjects as study

SETTINGS = (
    study.Setting(4, False, 1, 0.02, "spread"),
    study.Setting(4, True, 1, 0.3, "spread"),
    study.Setting(8, True, 1, 0.3, "half zero"),
    study.Setting(4, False, 2, 0.3, "spread"),
)
# Features fitted together, and how often.
FITS = {1: 400, 2: 400, 5: 300, 20: 150, 50: 100, 100: 80, 200: 60, 1000: 20}
LEVELS = (0.05, 0.01, 1e-3)


def rates(setting: study.Setting, size: int, fits: int, seed: int) -> list[dict[str, Any]]:
    """One row per effect."""
    rng = np.random.default_rng([seed, size])
    statistics = study.simulate(setting, size * fits, rng)
    found = []
    for first in range(0, size * fits, size):
        model = fm.MultiLMM(statistics.take(np.arange(first, first + size)))
        fit = model.fit(parameter_space="psd", max_iter=3)  # the tests use no estimate of it
        found.append(fit.t_test(list(study.EFFECTS.values()), df="integrated").pvalue.to_numpy())
    p = np.concatenate(found)
    rows = []
    for position, effect in enumerate(study.EFFECTS):
        row = {**study.design_of(setting), "effect": effect, "size": size, "tests": len(p)}
        row.update({f"rejected {x:g}": int((p[:, position] < x).sum()) for x in LEVELS})
        rows.append(row)
    return rows


def main() -> None:
    """Every design and number of features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "few-features.csv")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", fm.ConvergenceWarning)
    arguments.out.unlink(missing_ok=True)
    for setting in SETTINGS:
        for size, fits in FITS.items():
            study.append(arguments.out, rates(setting, size, fits, arguments.seed))
        print(setting, flush=True)


if __name__ == "__main__":
    main()
