#!/usr/bin/env bash
# TMM factors of two Python packages beside edgeR's: one leaves when a sample is mostly zeros, one always.
#
# Versions: rnanorm 2.2.0, conorm 1.2.0, numpy 1.26.4; edgeR 3.40.2 (R 4.2.2) gave the factors below.
# Guess before the run: both equal edgeR to 1e-8, as both say that they follow it.
# Seen: rnanorm equals edgeR to 1e-8 on ordinary counts. Where three quarters of a sample are zeros (its
# upper quartile, by which the reference sample is chosen, is zero) it warns of a division by zero and
# takes another reference: a factor is 28 % off. conorm is 7 % off on the ordinary counts already
# (and beside numpy 2.4 its TMM raises TypeError, for an argument that numpy dropped).
# What it means: library sizes, and with them voom's weights, depend on which port is installed; flashmm
# takes rnanorm's factors only where no upper quartile is zero.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet \
  "rnanorm==2.2.0" "conorm==1.2.0" "numpy==1.26.4" "pandas==2.2.3"
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import conorm
import numpy as np
import pandas as pd
from rnanorm import TMM


def counts(holes):
    rng = np.random.default_rng(2)
    mean = rng.gamma(0.6, 100, size=400)
    spread = rng.gamma(5, 0.2, size=(400, 4))
    table = rng.poisson(mean[:, None] * spread * np.array([1, 2, 0.5, 3]))
    table[:80, 3] *= 4
    if holes:
        table[np.random.default_rng(101).random(400) < 0.8, 1] = 0
    return pd.DataFrame(table)


EDGER = {
    False: [1.08012640, 1.06686107, 1.17679033, 0.73742602],
    True: [0.77462501, 2.79536047, 0.85847104, 0.53795384],
}
off = {}
for holes in (False, True):
    table = counts(holes)
    rnanorm = np.ravel(TMM().fit(table.T).get_norm_factors(table.T))
    other = np.ravel(conorm.tmm_norm_factors(table).values)
    for name, factors in (("rnanorm", rnanorm), ("conorm", other)):
        off[name, holes] = np.abs(factors / EDGER[holes] - 1).max()
        print("holes" if holes else "plain", name, factors, "off by", off[name, holes])
assert off["rnanorm", False] < 1e-7, "changed"
assert off["rnanorm", True] > 0.2, "changed"
assert off["conorm", False] > 0.05, "changed"
PYTHON
