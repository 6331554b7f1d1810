#!/usr/bin/env bash
# The restricted log-likelihood of glimix-core's LMM is not that of statsmodels and lme4.
#
# Versions: glimix-core 3.1.14 beside statsmodels 0.15.0 (seen with numpy 2.4, scipy 1.17).
# Guess before the run: `LMM(..., restricted=True).lml()` equals statsmodels' REML `llf`, as the
# unrestricted one equals its ML `llf`.
# Seen: variances agree, ML log-likelihoods agree to 1e-6, and the restricted one is larger by half the log
# determinant of X'X: 3.84 here, 6.14 with the covariate in units ten times smaller. glimix-core's stays the
# same then; statsmodels' falls by log 10. The docstring of `lml` gives the formula of the unrestricted one.
# What it means: restricted log-likelihoods (and AIC) of the two must not be compared; statsmodels' (and lme4's)
# also depends on the units of covariates, glimix-core's does not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet "glimix-core==3.1.14" "statsmodels==0.15.0"
"$work/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import statsmodels.api as sm
from glimix_core.lmm import LMM
from numpy_sugar.linalg import economic_qs

warnings.simplefilter("ignore")
rng = np.random.default_rng(3)
group = np.repeat(np.arange(8), 5)
x = rng.normal(size=40)
y = 1 + 0.5 * x + rng.normal(size=8)[group] + rng.normal(size=40)
Z = np.eye(8)[group]
for unit in (1.0, 10.0):
    X = np.column_stack([np.ones(40), unit * x])
    seen, values = {}, {}
    for restricted in (False, True):
        lmm = LMM(y, X, economic_qs(Z @ Z.T), restricted=restricted)
        lmm.fit(verbose=False)
        mixed = sm.MixedLM(y, X, group).fit(reml=restricted)
        assert np.allclose([lmm.v0, lmm.v1], [mixed.cov_re[0, 0], mixed.scale], rtol=1e-4)
        seen[restricted] = lmm.lml() - mixed.llf
        values[restricted] = np.array([lmm.lml(), mixed.llf])
    half = np.linalg.slogdet(X.T @ X)[1] / 2
    print(f"unit {unit:g}: ML {seen[False]:+.6f}, REML {seen[True]:+.6f}, half log det X'X {half:.6f}")
    if unit == 1.0:
        first = values[True]
    assert abs(seen[False]) < 1e-6 and abs(seen[True] - half) < 1e-5, "changed"
glimix, statsmodels = values[True] - first
print(f"ten times the covariate: glimix-core {glimix:+.4f}, statsmodels {statsmodels:+.4f}")
assert abs(glimix) < 1e-6 and abs(statsmodels + np.log(10)) < 1e-6, "changed"
PYTHON
