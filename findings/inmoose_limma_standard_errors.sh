#!/usr/bin/env bash
# inmoose's limma tables give every gene the same "standard error": the design's part of it alone.
#
# Versions: inmoose 0.9.1 (seen with numpy 2.4.6, pandas 2.3.3).
# Guess before the run: `lfcSE` is log2FoldChange / stat, the standard error that the moderated t divides
# by, as DESeq2's column of that name is.
# Seen: t, p and prior degrees of freedom equal limma's (R, 3.54) to every digit printed, but `lfcSE` is
# limma's stdev.unscaled: 0.7071 = sqrt(1/4 + 1/4) for all 50 genes of a 4 + 4 design, whose
# moderated standard deviations differ by a factor of 2.9. Printing the table (a subclass of DataFrame)
# fails with "pvalue missing from results table" (ValueError); its columns can be read one by one.
# What it means: limits or shrinkage made from log2FoldChange and lfcSE are wrong for every gene.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet "inmoose==0.9.1" "pandas==2.3.3" "numpy==2.4.6"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import pandas as pd
import patsy
from inmoose import limma

rng = np.random.default_rng(4)
spread = np.sqrt(4 / rng.chisquare(4, 50))
genes = pd.DataFrame(rng.normal(size=(50, 8)) * spread[:, None])
design = patsy.dmatrix("~ group", pd.DataFrame({"group": ["a"] * 4 + ["b"] * 4}))
fit = limma.lmFit(genes, design)
table = limma.topTable(limma.eBayes(fit), coef="group[T.b]", number=50)
change, stat, error = (np.asarray(table[name]) for name in ("log2FoldChange", "stat", "lfcSE"))
print("lfcSE:", np.unique(error.round(6)), "change / t:", np.sort(np.abs(change / stat))[[0, -1]])
assert np.allclose(error, np.sqrt(0.5)), "changed"
moderated = np.abs(change / stat)
assert moderated.max() / moderated.min() > 2.5
try:
    repr(table)
except ValueError as error:
    print("printing:", error)
else:
    raise SystemExit("changed: the table prints")
PYTHON
