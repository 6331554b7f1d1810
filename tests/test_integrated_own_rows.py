"""Integrated tests of features with rows of their own: all together as pattern by pattern."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_own_rows import FIXED, RANDOM, data

import flashmm as fm
from flashmm.results import integrated

COLUMNS = "~ age + trt + I(age**2) + I(age**3) + np.sin(age) + np.exp(age)"


def model(random, fixed=FIXED, copies=3):
    """Features with weights of their own; one lacks samples, one is constant, ten are alike."""
    frame, Y, weights = data()
    rng = np.random.default_rng(9)
    Y = np.concatenate([Y.to_numpy() + rng.normal(size=Y.shape) for _ in range(copies)])
    weights = np.concatenate([weights.to_numpy()] * copies) * rng.lognormal(size=Y.shape)
    Y[13] += 1e6
    weights[1, 3:] = 0.0
    Y[2] = 3.0
    weights[6:16] = weights[6]
    return fm.MultiLMM.from_formula(fixed, RANDOM[random], frame, Y, weights=weights)


def everything(result, *, few):
    """What integrates over the ratios, as arrays; ``few``: what does not take long."""
    tests = result.t_test(df="integrated").ds
    joint = result.f_test(["age", "trt[T.b]"], df="integrated").ds
    prior = result.ratio_prior
    found = {
        "ratios": prior.ratios.to_numpy(),
        "weights": prior.weights,
        **{name: tests[name].to_numpy() for name in ("estimate", "se", "df", "p")},
        **{name: joint[name].to_numpy() for name in ("F", "df_denom")},
        "joint p": joint["p"].to_numpy(),
    }
    if few:
        return found
    variances = result.posterior_variances()
    found |= {name: variances[name].to_numpy() for name in ("mean", "lower", "upper", "share")}
    return found | {"limits": result.conf_int(df="integrated").to_numpy()}


CASES = [("one", FIXED), ("one", COLUMNS), ("crossed", FIXED), ("slopes", FIXED)]


@pytest.mark.parametrize(("random", "fixed"), CASES, ids=["one", "wide", "crossed", "slopes"])
def test_all_together_as_pattern_by_pattern(random, fixed, monkeypatch):
    copies = 3 if random == "one" else 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        results = [model(random, fixed, copies).fit(parameter_space="psd") for _ in range(2)]
    found = everything(results[0], few=random != "one")
    monkeypatch.setattr(
        integrated, "_own_parts", lambda fitted: integrated._parts_of_patterns(fitted.stats)
    )
    expected = everything(results[1], few=random != "one")
    for name, values in found.items():
        right = expected[name]
        assert_array_equal(np.isnan(values), np.isnan(right), err_msg=name)
        unit = np.abs(right) + 1e-9
        assert_allclose(values / unit, right / unit, atol=1e-6, err_msg=name)
    assert np.isnan(found["p"][:3]).any(axis=1).tolist() == [False, True, True]


def test_many_patterns_are_not_slow(monkeypatch):
    monkeypatch.setattr(integrated, "_MANY_PATTERNS", 2)
    frame, Y, weights = data()
    with warnings.catch_warnings():
        warnings.simplefilter("error", fm.SlowWarning)
        result = fm.MultiLMM.from_formula(
            FIXED, RANDOM["one"], frame, Y, weights=weights
        ).fit(parameter_space="psd")  # fmt: skip
        result.t_test("age", df="integrated")
        result.predict(frame.iloc[:3], df="integrated", interval="confidence")
    with pytest.warns(fm.SlowWarning, match=r"takes the \d+ patterns .* one after the other"):
        own = result.predict(
            frame.iloc[:3], df="integrated", interval="confidence", level="conditional"
        )
    assert np.isfinite(own["se"]).all()
