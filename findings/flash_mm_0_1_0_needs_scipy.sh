#!/usr/bin/env bash
# FLASH-MM 0.1.0 cannot be imported after `pip install FLASH-MM` in a new environment.
#
# Versions: FLASH-MM 0.1.0 (seen on Python 3.11).
# Guess before the run: it imports, since its requirements are numpy and pandas.
# Seen: ModuleNotFoundError: No module named 'scipy'. lmm.py and lmmtest.py import scipy.stats, which
# neither FLASH-MM nor numpy or pandas requires.
# What it means: install scipy beside it. A test of a package in an environment that has more than its
# requirements does not see this; .ci/run installs flashmm's wheel alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --quiet "FLASH-MM==0.1.0"
if "$work/venv/bin/python" -c "import flash_mm" 2>"$work/error"; then
  echo "changed: flash_mm is imported without scipy"
  exit 1
fi
tail -n 1 "$work/error"
grep -q "No module named 'scipy'" "$work/error"
"$work/venv/bin/python" -m pip install --quiet --quiet scipy
"$work/venv/bin/python" -c "import flash_mm; print('with scipy: imported')"
