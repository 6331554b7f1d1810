"""Joint tests: what they must not depend on, and Kenward and Roger's F near 2 denominator df."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.inference.degrees_of_freedom import scale_and_df

REFERENCE = Path(__file__).parent / "reference"


def fit(formula, data, Y):
    return fm.MultiLMM.from_formula(formula, data=data, Y=Y).fit(parameter_space="psd")


def factors():
    data = pd.read_csv(REFERENCE / "emmeans" / "factors.csv")
    return data, data["y"].to_numpy()[None]


def compared(one, other, rename=None):
    one, other = one.ds, other.ds
    order = [(rename or {}).get(str(name), str(name)) for name in one["contrast"].to_numpy()]
    by_label = other.assign_coords(contrast=[str(name) for name in other["contrast"].to_numpy()])
    for name in ("F", "df_num", "df_denom", "p"):
        np.testing.assert_allclose(
            one[name].to_numpy(), by_label[name].sel(contrast=order).to_numpy(), rtol=1e-6
        )


@pytest.mark.parametrize("df", ["satterthwaite", "kenward-roger", "residual"])
@pytest.mark.parametrize(
    ("without", "with_intercept"),
    [
        ("~ 0 + site + trt", "~ site + trt"),
        ("~ 0 + trt + site", "~ site + trt"),
        ("~ 0 + site * trt + age", "~ trt * site + age"),
        ("~ 0 + site + site:trt + age", "~ site + site:trt + age"),
        ("~ 0 + trt:site + age", "~ trt:site + age"),
        ("~ 0 + site + site:age", "~ site + site:age"),
        ("~ 0 + age + site", "~ age + site"),
    ],
)
def test_type_3_tests_without_an_intercept_are_those_with_one(without, with_intercept, df):
    data, Y = factors()
    tables = [fit(f"{f} + (1 | subject)", data, Y).anova(df=df) for f in (without, with_intercept)]
    rename = {"site:trt": "trt:site"} if "trt:site" in tables[1].contrasts else None
    compared(*tables, rename)


def test_type_3_tests_without_an_intercept_have_the_degrees_of_freedom_of_the_term():
    data, Y = factors()
    table = fit("~ 0 + site + trt + (1 | subject)", data, Y).anova()
    assert table.df_num.iloc[0].to_dict() == {"site": 2.0, "trt": 1.0}


@pytest.mark.parametrize("coding", ["contr.treatment(base='west')", "contr.sum", "contr.helmert"])
def test_type_3_satterthwaite_tests_do_not_depend_on_coding(coding):
    data, Y = factors()
    plain = fit("~ trt * site + site * age + (1 | subject)", data, Y).anova()
    C = f"C(site, {coding})"
    other = fit(f"~ trt * {C} + {C} * age + (1 | subject)", data, Y).anova()
    np.testing.assert_allclose(other.df_denom, plain.df_denom, rtol=1e-6)
    np.testing.assert_allclose(other.fvalue, plain.fvalue, rtol=1e-7)


@pytest.mark.parametrize("df", ["satterthwaite", "kenward-roger"])
def test_joint_tests_do_not_depend_on_how_the_hypothesis_is_written(df):
    """Unbalanced, so that the contrasts have different df; lmerTest's depend on it."""
    rng = np.random.default_rng(5)
    data = pd.DataFrame({"g": rng.integers(0, 9, size=40).astype(str), "x": rng.normal(size=40)})
    data["a"] = np.where(rng.random(40) < 0.6, data["g"], "0")
    data["a"] = pd.Categorical(data["a"].astype(int) % 3)
    Y = rng.normal(size=(4, 40)) + rng.normal(size=(4, 9))[:, data["g"].astype(int)]
    result = fit("~ 0 + a + x + (1 | g)", data, Y)
    writings = [
        "a[1] - a[0], a[2] - a[0]",
        "a[0] - a[1], a[2] - a[1]",
        "a[0] - a[2], a[1] - a[2]",
        "a[1] - a[0], a[0] - 2*a[1] + a[2]",
        "5*a[0] - 5*a[1], 0.01*a[2] - 0.01*a[0], a[1] - a[2]",
    ]
    tests = [result.f_test(text, df=df) for text in writings]
    for other in tests[1:]:
        np.testing.assert_allclose(other.df_denom, tests[0].df_denom, rtol=1e-8)
        np.testing.assert_allclose(other.fvalue, tests[0].fvalue, rtol=1e-8)
    shifted = [
        result.f_test("a[1] - a[0] = 1, a[2] - a[0] = 3", df=df),
        result.f_test("a[2] - a[1] = 2, a[1] - a[0] = 1", df=df),
    ]
    np.testing.assert_allclose(shifted[0].fvalue, shifted[1].fvalue, rtol=1e-8)


# ---- Kenward and Roger at 2 denominator df ---------------------------------------------------


def test_kenward_roger_of_the_beets():
    """pbkrtest's example: its F and p for the block."""
    beets = pd.read_csv(REFERENCE / "edges" / "beets.csv")
    table = fit(
        "~ block + sow + harvest + (1 | block:harvest)", beets, beets["sugpct"].to_numpy()[None]
    ).anova(df="kenward-roger")
    assert table.fvalue["block"].item() == pytest.approx(2.578947, abs=1e-6)
    assert table.df_denom["block"].item() == pytest.approx(2.0, abs=1e-8)
    assert table.pvalue["block"].item() == pytest.approx(0.2794118, abs=1e-7)


def plots(rng, m, *, lost=(), replicates=3):
    """3 blocks x 2 treatments, a plot each, and m features."""
    data = pd.DataFrame(
        [(b, t, f"{b}{t}") for b in "klm" for t in "ab" for _ in range(replicates)],
        columns=["block", "trt", "plot"],
    ).drop(list(lost))
    codes = data["plot"].factorize()[0]
    size = np.sqrt(10.0 ** rng.uniform(-2, 2, size=(m, 1)))
    return data, size * rng.normal(size=(m, 6))[:, codes] + rng.normal(size=(m, len(data)))


def test_kenward_roger_is_the_exact_f_test_of_a_balanced_split_plot():
    data, Y = plots(np.random.default_rng(0), 1000)
    result = fit("~ block + trt + (1 | plot)", data, Y)
    table = result.anova(df="kenward-roger")
    inside = (result.status == "converged").to_numpy()
    assert inside.sum() > 400
    means = Y.reshape(1000, 3, 2, 3).mean(axis=3)
    between = 2.0 * ((means.mean(axis=2) - means.mean(axis=(1, 2))[:, None]) ** 2).sum(axis=1)
    left = means - means.mean(axis=2, keepdims=True) - means.mean(axis=1, keepdims=True)
    left = ((left + means.mean(axis=(1, 2), keepdims=True)) ** 2).sum(axis=(1, 2))
    exact = (between / 2.0) / (left / 2.0)
    np.testing.assert_allclose(table.fvalue["block"][inside], exact[inside], rtol=1e-5)
    np.testing.assert_allclose(table.df_denom["block"][inside], 2.0, rtol=1e-6)


def test_kenward_roger_of_an_almost_balanced_design_is_close_to_it():
    """One observation lost of 18: with large plots as good as none. The formula itself gives 0."""
    rng = np.random.default_rng(1)
    data, Y = plots(rng, 200, lost=[0])
    Y = 30.0 * rng.normal(size=(200, 6))[:, data["plot"].factorize()[0]] + 0.1 * Y
    result = fit("~ block + trt + (1 | plot)", data, Y)
    table = result.anova(df="kenward-roger")
    plain = result.anova(df="residual")
    np.testing.assert_allclose(table.fvalue["block"], plain.fvalue["block"], rtol=1e-2)
    np.testing.assert_allclose(table.df_denom["block"], 2.0, rtol=1e-2)


@pytest.mark.parametrize("r", [2, 3, 5])
def test_scale_and_df_are_smooth_through_2_df(r):
    """Balanced: scale 1 and df 2 / x at every x; rounding in the spread makes no difference."""
    x = np.concatenate(
        [1.0 + 10.0 ** np.arange(-16, -1.0), 1.0 - 10.0 ** np.arange(-16, -1.0), [1]]
    )
    for spread in (0.0, 1e-25, 1e-15, 1e-10):
        found = scale_and_df(r * r * x, np.full(x.shape, spread), r)
        np.testing.assert_allclose(found.scale, 1.0, rtol=1e-6)
        np.testing.assert_allclose(found.df, 2.0 / x, rtol=1e-6)


def test_scale_and_df_are_kenward_and_rogers_formula_away_from_2_df():
    rng = np.random.default_rng(2)
    r = np.array([2, 3, 4])[rng.integers(0, 3, size=300)]
    A2 = r * rng.uniform(0.01, 0.6, size=300)
    A1 = A2 * r * rng.uniform(0.9, 1.0, size=300)
    for size in (2, 3, 4):
        here = r == size
        a1, a2 = A1[here], A2[here]
        B = (a1 + 6 * a2) / (2 * size)
        g = ((size + 1) * a1 - (size + 4) * a2) / ((size + 2) * a2)
        c = 3 * size + 2 * (1 - g)
        E = 1 / (1 - a2 / size)
        V1, V2 = 1 - (size - g) / c * B, 1 - (size + 2 - g) / c * B
        rho = (1 + g / c * B) / (V1**2 * V2) / (size * E**2)
        df = 4 + (size + 2) / (size * rho - 1)
        found = scale_and_df(a1, size * a2 - a1, size)
        np.testing.assert_allclose(found.df, df, rtol=1e-9)
        np.testing.assert_allclose(found.scale, df / (E * (df - 2)), rtol=1e-9)
