#!/usr/bin/env bash
# FLASH-MM 0.1.0 (import flash_mm), `lmm` and `lmmfit`: the p-values are twice the two-sided ones.
#
# Versions: FLASH-MM 0.1.0, numpy 2.4.6, scipy 1.17.1, pandas 3.1.1 (seen on Python 3.11).
# Guess before the run, from reading lmm.py (`2 * sf(|t|) * 2`): the ratio is exactly 2, so p exceeds 1.
# Seen: the `p` of a fit over 2 P(T > |t|) is 2 for every feature and coefficient, and the largest p is
# above 1.9. `lmmtest` of the same fit has the right ones, so the two disagree by a factor of two. Its
# parameter `index`, documented as positions or names, fails: ValueError for a position, IndexError for a name.
# What it means: who takes `fit["p"]` at 5 % tests at 2.5 %; take `lmmtest(fit)`. Coefficients,
# standard errors, t and variances are right: they equal flashmm's (docs/benchmarks.md).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
# scipy is not among what FLASH-MM requires, and flash_mm imports it.
"$work/venv/bin/python" -m pip install --quiet --quiet "FLASH-MM==0.1.0" scipy
"$work/venv/bin/python" - <<'PYTHON'
import flash_mm
import numpy as np
from scipy import stats

rng = np.random.default_rng(0)
n, m, q = 600, 200, 20
X = np.column_stack([np.ones(n), np.arange(n) % 2.0])
group = np.arange(n) % q
Y = 0.5 * rng.normal(size=(m, q))[:, group] + rng.normal(size=(m, n))
fit = flash_mm.lmmfit(Y, X, np.eye(q)[group], d=[q])
right = 2 * stats.t.sf(np.abs(fit["t"].to_numpy()), fit["df"])
ratio = fit["p"].to_numpy() / right
print(f"p over 2 P(T > |t|): {ratio.min():.12g} to {ratio.max():.12g}; largest p {fit['p'].max().max():.4f}")
assert np.allclose(ratio, 2.0) and fit["p"].to_numpy().max() > 1.9, "changed"
tested = flash_mm.lmmtest(fit)[["X1_p", "X2_p"]].to_numpy().T
assert np.allclose(tested, right), "changed"
print("lmmtest of the same fit: right")
for index, error in ((0, ValueError), (["X1"], IndexError)):
    try:
        flash_mm.lmmtest(fit, index=index)
    except error as found:
        print(f"lmmtest(fit, index={index!r}): {type(found).__name__}")
    else:
        raise SystemExit(f"changed: lmmtest took index={index!r}")
PYTHON
