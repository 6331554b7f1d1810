#!/usr/bin/env bash
# The standard errors that statsmodels' MixedLM prints beside variances are in the units of y, not y^2.
#
# Version: statsmodels 0.14.6 and 0.15.0 (seen with numpy 2.4, pandas 2.3, scipy 1.17).
# Guess before the run: y in units ten times smaller multiplies a variance and its standard error by 100.
# Seen: the variance ("g Var") grows 100 times, `bse_re` and the summary's "Std.Err." 10 times. What is
# shown is the standard error of the ratio variance / scale, multiplied by sqrt(scale). For these data
# 0.32 is printed; the curvature of the restricted likelihood in the variance itself gives 0.84.
# What it means: a variance over its printed standard error changes with the units of y.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/units.py" <<'PYTHON'
import numpy as np
import pandas as pd
import statsmodels
import statsmodels.formula.api as smf

rng = np.random.default_rng(1)
group = np.repeat(np.arange(40), 6)
y = 2 + 1.5 * rng.normal(size=40)[group] + 3 * rng.normal(size=240)
rows = []
for unit in (1, 10):
    data = pd.DataFrame({"y": unit * y, "g": group})
    fit = smf.mixedlm("y ~ 1", data, groups="g").fit(reml=True)
    printed = float(fit.summary().tables[1].loc["g Var", "Std.Err."])
    assert abs(printed - fit.bse_re.iloc[0]) < 6e-4, "the summary prints bse_re"
    rows.append((fit.cov_re.iloc[0, 0], fit.bse_re.iloc[0], np.sqrt(fit.scale)))
(variance, error, root), (variance_10, error_10, _) = rows
print(statsmodels.__version__, "variance x", variance_10 / variance, "error x", error_10 / error)
assert np.isclose(variance_10 / variance, 100, rtol=1e-4)
assert np.isclose(error_10 / error, 10, rtol=1e-3), "changed"

# The yardstick: curvature of the restricted likelihood in (variance, scale), by differences.
sizes = np.full(40, 6)
means = y.reshape(40, 6).mean(axis=1)
within = ((y.reshape(40, 6) - means[:, None]) ** 2).sum()


def loglike(t):
    level = t[1] + 6 * t[0]
    center = means.mean()
    between = 6 * ((means - center) ** 2).sum()
    return -0.5 * (200 * np.log(t[1]) + 40 * np.log(level) - np.log(level)
                   + within / t[1] + between / level)


at = np.array([variance, root**2])
step = 1e-4 * at
hessian = np.empty((2, 2))
for i in range(2):
    for j in range(2):
        a, b = np.eye(2)[i] * step, np.eye(2)[j] * step
        hessian[i, j] = (loglike(at + a + b) - loglike(at + a - b) - loglike(at - a + b)
                         + loglike(at - a - b)) / (4 * step[i] * step[j])
right = np.sqrt(np.linalg.inv(-hessian)[0, 0])
print("printed:", error, "from the curvature in the variance itself:", right)
assert abs(error / right - 1) > 0.5, "changed: the printed error is near the right one"
PYTHON
for version in 0.14.6 0.15.0; do
  "${PYTHON:-python3}" -m venv "$work/$version"
  "$work/$version/bin/python" -m pip install --quiet --quiet "statsmodels==$version" "pandas<3"
  "$work/$version/bin/python" -W ignore "$work/units.py"
done
