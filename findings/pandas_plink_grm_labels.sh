#!/usr/bin/env bash
# pandas-plink labels a GCTA relationship matrix by the individual alone, so families share labels.
#
# Versions: pandas-plink 2.2.9 (seen with xarray 2026.9, pandas 2.3, numpy 2.4).
# Guess before the run: the rows of `read_grm` are labelled by family and individual, the two columns
# that GCTA's .grm.id needs to tell people apart.
# Seen: both dimensions are indexed by the individual alone (1 2 1 2 for two families that each count
# from 1); the family is a coordinate of the columns only. Selecting one person by label returns a 2 x 2
# matrix of two people, and reindexing to the phenotypes' order raises for repeated labels.
# What it means: a kinship matrix read this way must be relabelled by (fid, iid) before it is matched.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet "pandas-plink==2.2.9" "pandas<3"
"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import sys

import numpy as np
from pandas_plink import read_grm

stem = f"{sys.argv[1]}/two_families"
with open(f"{stem}.grm.id", "w") as ids:
    ids.write("A\t1\nA\t2\nB\t1\nB\t2\n")
np.array([1, 0.5, 1, 0, 0, 1, 0, 0, 0.25, 1], dtype="f4").tofile(f"{stem}.grm.bin")
np.full(10, 100, dtype="f4").tofile(f"{stem}.grm.N.bin")
matrix, _ = read_grm(f"{stem}.grm.bin")
rows, columns = matrix.dims
print(dict(matrix.sizes), list(matrix[rows].values), {k: v.dims for k, v in matrix.coords.items()})
assert [str(label) for label in matrix[rows].values] == ["1", "2", "1", "2"], "changed"
one = matrix[rows].values[0]
person = matrix.sel({rows: one, columns: one})
print("one person by label:", person.shape)
assert person.shape == (2, 2), "changed"
try:
    matrix.reindex({rows: matrix[rows].values[:2]})
except ValueError as error:
    print("reindex:", str(error)[:80])
else:
    raise SystemExit("changed: reindexing by individual works")
PYTHON
