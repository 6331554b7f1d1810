#!/usr/bin/env bash
# statsmodels' MixedLM: standard errors of fixed effects are not those of generalised least squares.
#
# Version: statsmodels 0.15.0 (seen with numpy 2.4, pandas 3.1, scipy 1.17).
# Guess before the run: `bse_fe` is the root of the diagonal of (X'V^-1X)^-1 at the estimates, as in lme4, nlme
# and SAS, to the digits of the optimizer.
# Seen: for 30 observations in six groups of unequal size the slope's standard error is 0.198, and (X'V^-1X)^-1
# at statsmodels' own estimates gives 0.158: `bse_fe` inverts the observed information of fixed effects and
# variances together, whose cross block vanishes in expectation, not at the estimates. In balanced designs
# both agree.
# What it means: z values of MixedLM and of lme4 differ in small unbalanced data (here by a quarter) though
# estimates agree, and a comparison of the two must not be made by standard errors.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet "statsmodels==0.15.0"
"$work/venv/bin/python" - <<'PYTHON'
import warnings

import numpy as np
import statsmodels.api as sm

warnings.simplefilter("ignore")


def errors(sizes, seed):
    """Standard errors of the slope: statsmodels', and generalised least squares' at its estimates."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    n = len(group)
    x = group + rng.normal(size=n) if len(set(sizes)) > 1 else np.tile(np.arange(sizes[0]), len(sizes))
    y = 1 + 0.5 * x + rng.normal(size=len(sizes))[group] + rng.normal(size=n)
    X = np.column_stack([np.ones(n), x])
    Z = np.eye(len(sizes))[group]
    fit = sm.MixedLM(y, X, group).fit()
    assert fit.converged
    V = fit.cov_re[0, 0] * Z @ Z.T + fit.scale * np.eye(n)
    return fit.bse_fe[1], np.sqrt(np.linalg.inv(X.T @ np.linalg.solve(V, X))[1, 1])


theirs, gls = errors([1, 2, 3, 6, 8, 10], 26)
print(f"unequal groups: bse_fe {theirs:.4f}, (X'V^-1X)^-1 {gls:.4f}")
assert abs(theirs - 0.1985) < 1e-3 and abs(gls - 0.1579) < 1e-3, "changed"
theirs, gls = errors([5] * 6, 26)
print(f"equal groups, balanced x: bse_fe {theirs:.4f}, (X'V^-1X)^-1 {gls:.4f}")
assert abs(theirs / gls - 1) < 1e-4, "changed"
PYTHON
