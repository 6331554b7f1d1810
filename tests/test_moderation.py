"""Moderation of variances against limma (tests/reference/limma), and its edges."""

from __future__ import annotations

import json

import numpy as np
import pytest
import references

from flashmm.inference.lowess import lowess
from flashmm.inference.moderation import moderate, variance_prior

LIMMA = json.loads((references.REFERENCE / "limma" / "reference.json").read_text())
LEVEL = np.array(LIMMA["covariate"])
# limma finds d0 with uniroot(tol = 1e-8) on d0 / (1 + d0), and integrates in another variable.
ROBUST, PLAIN = 2e-6, 1e-9


def numbers(values):
    return np.array([float(value) for value in values])  # "Inf" is text in JSON


def label(case):
    return f"{case.get('set', 'fit')}-trend{case['trend']}-robust{case['robust']}"


@pytest.mark.parametrize("case", LIMMA["squeeze"], ids=label)
def test_given_variances_are_moderated_as_by_limma(case):
    given = LIMMA[case["set"]]
    s2, df = numbers(given["s2"]), numbers(given["df"])
    prior = variance_prior(
        s2, df, covariate=LEVEL if case["trend"] else None, robust=case["robust"]
    )
    rtol = ROBUST if case["robust"] else PLAIN
    np.testing.assert_allclose(prior.variance, numbers(case["s2_prior"]), rtol=rtol)
    np.testing.assert_allclose(prior.df, numbers(case["df_prior"]), rtol=rtol)
    np.testing.assert_allclose(
        moderate(s2, df, prior).variance, numbers(case["s2_post"]), rtol=rtol
    )


def test_lowess_equals_r():
    x, y = LEVEL, np.log(numbers(LIMMA["unequal"]["s2"]))
    np.testing.assert_allclose(
        np.sort(lowess(x, y, span=0.4)), np.sort(numbers(LIMMA["lowess"])), rtol=1e-10
    )
