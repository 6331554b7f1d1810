#!/usr/bin/env bash
# anndata 0.12.6 may be installed beside pandas 3, and then cannot write the plainest AnnData.
#
# Versions: anndata 0.12.6, pandas 3.0.0 (seen on Python 3.12, numpy 2.5.5, h5py 3.16.0).
# Guess before the run: pip refuses the pair, or writing works, since `obs` holds text alone.
# Seen: pip installs the pair (0.12.6 sets no upper bound on pandas); AnnData made of a DataFrame with
# ordinary text labels; `write_h5ad` raises RuntimeError: pandas 3 holds text as its own string type,
# which anndata takes for nullable strings, whose writing 0.12.6 leaves off
# (`anndata.settings.allow_write_nullable_strings`). With the setting on the file is written and read.
# What it means: a lower bound of anndata below 0.12.7 lets a working environment turn into one that
# cannot save, at the next upgrade of pandas.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet "anndata==0.12.6" "pandas==3.0.0"
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys

import anndata
import numpy as np
import pandas as pd

obs = pd.DataFrame({"group": ["a", "b", "a"]}, index=["c1", "c2", "c3"])
adata = anndata.AnnData(np.eye(3), obs=obs)
path = f"{sys.argv[1]}/plain.h5ad"
try:
    adata.write_h5ad(path)
except RuntimeError as error:
    assert "allow_write_nullable_strings" in str(error), error
    print("refused:", str(error).splitlines()[0][:110])
else:
    raise SystemExit("changed: anndata 0.12.6 wrote beside pandas 3.0.0")
with anndata.settings.override(allow_write_nullable_strings=True):
    adata.write_h5ad(path)
back = anndata.read_h5ad(path)
assert list(back.obs["group"]) == ["a", "b", "a"]
print("with the setting on: written and read")
PYTHON
