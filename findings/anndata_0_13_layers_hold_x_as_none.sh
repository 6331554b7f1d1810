#!/usr/bin/env bash
# Since anndata 0.13 the layers of an AnnData hold X too, under the key None.
#
# Versions: anndata 0.12.7 and 0.13.4 (seen on Python 3.13; 0.13 needs 3.12, PYTHON names one).
# Guess before the run: `list(adata.layers)` is the names of the layers, text, in both.
# Seen: 0.12.7 lists ['w']; 0.13.4 lists ['w', None], and `adata.layers[None]` is X. Code that treats
# the keys as text (sorts them, looks for near names, writes a table of layers) fails or counts one
# layer too many.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/layers.py" <<'PYTHON'
import sys

import anndata
import numpy as np

adata = anndata.AnnData(np.eye(3), layers={"w": 2 * np.eye(3)})
keys = list(adata.layers)
print(anndata.__version__, keys)
assert keys == {"old": ["w"], "new": ["w", None]}[sys.argv[1]], "changed"
if sys.argv[1] == "new":
    assert (adata.layers[None] == adata.X).all()
PYTHON
for pair in old:0.12.7 new:0.13.4; do
  "${PYTHON:-python3}" -m venv "$work/${pair%%:*}"
  "$work/${pair%%:*}/bin/python" -m pip install --quiet --quiet "anndata==${pair##*:}"
  "$work/${pair%%:*}/bin/python" -W ignore "$work/layers.py" "${pair%%:*}"
done
