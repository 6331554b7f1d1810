"""dream of variancePartition with its defaults, on cells whose statistics are given.

`few_subjects.py` draws features as summary statistics; dream fits the cells themselves. So cells
are drawn that have exactly these statistics: all methods see the same data.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import flashmm as fm
from flashmm.formulas.build import build_design

FloatArray = NDArray[np.float64]

SCRIPT = Path(__file__).parent / "dream_default.R"


def responses(
    table: pd.DataFrame, statistics: fm.SummaryStats, random: str, rng: np.random.Generator
) -> FloatArray:
    """Responses (m, n) that have the statistics, normal where these are of normal ones.

    What [X, Z] span of y is told by the statistics; the rest has a known length and, under the
    model, a direction that nothing prefers.
    """
    design = build_design("~ group + condition", random, table).design
    W = np.hstack([design.X, design.Z.toarray()])
    left, length, right = np.linalg.svd(W, full_matrices=False)
    rank = int((length > 1e-10 * length[0]).sum())
    left, root = left[:, :rank], length[:rank, None] * right[:rank]
    inside = np.linalg.lstsq(root.T, np.vstack([statistics.XY, statistics.ZY]), rcond=None)[0]
    rss = np.asarray(statistics.yy) - (inside * inside).sum(axis=0)
    outside = rng.normal(size=(W.shape[0], rss.size))
    outside -= left @ (left.T @ outside)
    outside *= np.sqrt(rss / (outside * outside).sum(axis=0))
    return np.asarray((left @ inside + outside).T)


def dream_p_values(
    table: pd.DataFrame, statistics: fm.SummaryStats, random: str, r_library: Sequence[str]
) -> FloatArray:
    """P-values (m, 2) of the group and the condition, of dream and eBayes with their defaults."""
    Y = responses(table, statistics, random, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table.to_csv(folder / "samples.csv", index=False)
        Y.astype("<f8").tofile(folder / "responses.bin")
        paths = os.pathsep.join(str(Path(path).resolve()) for path in r_library)
        subprocess.run(
            ["Rscript", str(SCRIPT), name, str(len(Y)), random],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "R_LIBS": paths} if paths else None,
        )
        return np.fromfile(folder / "p.bin", "<f8").reshape(2, len(Y)).T
