#!/usr/bin/env bash
# statsmodels' one-step random-effects meta-analysis keeps a between-study variance below zero.
#
# Version: statsmodels 0.14.6 and 0.15.0.
# Guess before the run: studies more alike than their sampling variances allow give tau2 = 0 and the
# fixed-effect standard error, as DerSimonian and Laird (1986) cut it and as metafor does.
# Seen: `combine_effects(..., method_re="dl")` keeps tau2 = -0.03975 beside sampling variances of 0.04,
# and a random-effects standard error of 0.0071 where the fixed-effect one is 0.0894 (metafor 3.8,
# method "DL": tau2 0, standard error 0.0894). `method_re="iterated"` cuts at zero.
# What it means: the random-effects interval is 12.6 times narrower than the fixed-effect one, for
# whichever of thousands of features (voxels, proteins) has homogeneous studies.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/dl.py" <<'PYTHON'
import numpy as np
import statsmodels
from statsmodels.stats.meta_analysis import combine_effects

effects = np.array([0.10, 0.12, 0.11, 0.09, 0.13])
variances = np.full(5, 0.04)
one_step = combine_effects(effects, variances, method_re="dl")
iterated = combine_effects(effects, variances, method_re="iterated")
print(statsmodels.__version__, "tau2", one_step.tau2, "standard errors of the fixed and random model",
      one_step.sd_eff_w_fe, one_step.sd_eff_w_re)
assert one_step.tau2 < -0.039, "changed"
assert one_step.sd_eff_w_fe / one_step.sd_eff_w_re > 12, "changed"
assert iterated.tau2 == 0
assert np.isclose(iterated.sd_eff_w_re, iterated.sd_eff_w_fe)
PYTHON
for version in 0.14.6 0.15.0; do
  "${PYTHON:-python3}" -m venv "$work/$version"
  "$work/$version/bin/python" -m pip install --quiet --quiet "statsmodels==$version" "pandas<3"
  "$work/$version/bin/python" -W ignore "$work/dl.py"
done
