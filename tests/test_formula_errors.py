"""Formulas and tables that no design can be built from: each error names its culprit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from formulaic import Formula
from test_formula import SAMPLES, build

from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design


@pytest.mark.parametrize(
    ("fixed", "random", "message"),
    [
        ("y ~ x", "(1|g)", r"`fixed` = 'y ~ x' is two-sided.*one-sided because Y is given"),
        ("~ x", "y ~ (1|g)", "`random` = .* is two-sided"),
        (Formula("y ~ x"), "(1|g)", "one-sided because Y is given"),
        ("~ x", 3, "`random` must be a formula.*int"),
        (["x"], "(1|g)", "`fixed` must be a formula.*list"),
        ("~ xx", "(1|g)", "`fixed` = '~ xx' uses 'xx'.*Did you mean.*'x'"),
        ("~ log(xx + 1)", "(1|g)", r"`fixed` = '~ log\(xx \+ 1\)' uses 'xx'"),
        ("~ x", "(1|casks)", r"'\(1 \| casks\)' uses 'casks'.*Did you mean 'cask'"),
        ("~ x", "(xx|g)", "uses 'xx'"),
        ("~ x", "~ 0 + gg", "'~ 0 \\+ gg' uses 'gg'"),
        ("~ .", "(1|g)", "`.` is not supported"),
        ("~ x +", "(1|g)", "cannot be read"),
        ("~ (x", "(1|g)", "cannot be read"),
        ("~ 1 | g", None, r"outside parentheses.*\(effects \| group\)"),
        ("~ ((1 | g))", None, "too deep"),
        ("~ x * (1 | g)", None, r"write `\+` before \(1 \| g\)"),
        ("~ x - (1 | g)", None, r"write `\+` before \(1 \| g\)"),
        ("~ (1 | g) x", None, r"write `\+` after \(1 \| g\)"),
        ("~ (1 | g) +", None, r"ends with '\+'"),
        ("~ x", "(1 | g | f)", "one bar"),
        ("~ x", "diag(x || g)", "one bar"),
        ("~ x", "( | g)", "no effects"),
        ("~ x", "(0 | g)", "no effects"),
        ("~ x", "(1 | )", "column names joined"),
        ("~ x", "(1 | g + f)", r"column names joined with `:` or `/`.*\(1 \| a\) \+ \(1 \| b\)"),
        ("~ x", "(1 | C(g))", "column names joined.*store a computed group as a column"),
        ("~ x", "(1 | g:g)", "names a column twice"),
        ("~ x", "ar1(x | g)", "the times of ar1 are whole numbers"),
        ("~ x", "x + (1 | g)", "mixes bars with 'x'.*`fixed`"),
        ("~ x", "g", r"ambiguous.*\(1 \| g\).*~ 0 \+ g"),
        ("~ x", "(f || g)", r"'\(f \|\| g\)'.*correlations.*diag\(0 \+ f \| g\)"),
        ("~ x", "(x:f || g)", r"diag\(0 \+ x:f \| g\)"),
        ("~ x", "(poly(x, 2) || g)", r"2 columns.*diag\(0 \+ poly\(x, 2\) \| g\)"),
        ("~ x", "(1|g) + (1|g)", "same effect more than once: 'Intercept of g'"),
        ("~ x", "(x|g) + (0 + x|g)", "same effect more than once: 'x of g'"),
        ("~ x", ["~ 0 + g", "(1|g)"], "same effect more than once: 'Intercept of g'"),
        ("~ x", {1: "(1|g)"}, "component names are strings"),
        ("~ log(w)", "(1|g)", r"column 'log\(w\)' is not finite in rows '1'"),
        ("~ log(x)", "(1|g)", r"column 'log\(x\)' is not finite in rows '3'"),
        ("~ x", "(log(w)|g)", r"column 'log\(w\)' is not finite in rows '1'"),
        ("~ C(f, levels=['lo'])", "(1|g)", "cannot be evaluated: .*'hi'"),
        ("~ x:y", "(1|g)", "uses 'y'"),
    ],
)
def test_refused_formulas(fixed, random, message):
    with pytest.raises(InputError, match=message):
        build(fixed, random)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "`data` must be a table.*list"),
        ({"x": [1, 2], "g": ["a"]}, "does not form a table"),
        (SAMPLES.iloc[:0], "no rows"),
        (pd.concat([SAMPLES, SAMPLES[["w"]]], axis=1), "several columns called 'w'"),
        (SAMPLES.assign(x=np.inf), "'x' of `data` is infinite in rows '0'"),
        (SAMPLES.assign(x=np.nan), "6 in 'x'"),
        (
            SAMPLES.assign(x=pd.Timestamp("2020-01-01")),
            "'x' as numbers, but it holds dates",
        ),
        (SAMPLES.assign(x=pd.Series([1, "1"] * 3, dtype=object)), "'x'.*print alike"),
    ],
)
def test_refused_data(data, message):
    with pytest.raises(InputError, match=message):
        build("~ x", "(1 | g)", data)


def test_refused_options_and_names():
    with pytest.raises(InputError, match=r"Unknown missing='dropp'\. Did you mean 'drop'"):
        build("~ x", "(1 | g)", missing="dropp")
    with pytest.raises(InputError, match=r"Every row.*6 in 'x'"):
        build("~ x", "(1 | g)", SAMPLES.assign(x=np.nan), missing="drop")
    with pytest.raises(InputError, match="same name: 'x:w'"):
        build("~ x:w + `x:w`", "(1 | g)", SAMPLES.assign(**{"x:w": SAMPLES["w"]}))


def test_a_function_of_numpy_is_named_in_full():
    data = pd.DataFrame({"k": [1.0, 2.0, 3.0, 4.0], "g": list("aabb")})
    with pytest.raises(InputError, match=r"not a known function\. Write np\.sqrt\(\.\.\.\)"):
        build_design("~ sqrt(k)", "(1 | g)", data)
