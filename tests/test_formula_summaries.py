"""What an expression takes from all samples, x.mean(), is that of the fit, for new data too."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text

N = 24
RNG = np.random.default_rng(3)
DATA = pd.DataFrame(
    {
        "x": RNG.normal(3.0, 1.0, N),
        "my x": RNG.normal(2.0, 1.0, N),
        "k": RNG.integers(1, 9, N),
        "f": list("abc") * 8,
        "b": RNG.random(N) > 0.5,
        "g": [f"s{i // 4}" for i in range(N)],
    }
)
CONTEXT = {"middle": lambda v: float(np.median(v)), "own": lambda v: v - np.mean(v)}
ROWS = [3, 7, 20]

# Each equals its rows of the fit for some of the samples, from the model and from a file.
KEPT = [
    "I(x - x.mean())",
    "I((x - np.mean(x)) / np.std(x))",
    "I((x - x.mean()) / x.std(ddof=0))",
    "I(x / x.max()) + I(x - min(x))",
    "I(k / len(k)) + I(k - k.min())",
    "I(`my x` - `my x`.mean())",
    "scale(x - x.mean()) + poly(x - x.median(), 2)",
    "I(x - np.quantile(x, 0.25)) + I(x - x.quantile(0.5))",
    "f:I(x - x.mean())",
    "I(x > x.median())",
    "C(np.where(x > x.mean(), 'high', 'low'))",
    "I(x - middle(x))",
    "I(x - np.mean(np.log(k)))",
    "log(x - x.min() + 1)",
    "{x - (x.min() + x.max()) / 2}",
    "I(x - x.mean()):I((k - k.mean())**2)",
    "np.where(b, x.mean(), x)",
]
# The same from the model; a file may not hold them.
KEPT_BY_THE_MODEL = [
    "I(x - x.iloc[0])",
    "I(x * x.shape[0])",
    "I(x - x[f == 'a'].mean())",
    "I(x - np.nanmean(x.values))",
    "I(f == f.mode()[0])",
    "x.sub(x.mean())",
]
ACROSS = [
    "I(x.rank())",
    "np.cumsum(x)",
    "own(x)",
    "I(x - x.groupby(f).transform('mean'))",
    "np.digitize(x, np.quantile(x, [0.3, 0.6]))",
    "I(x - x.rolling(2, min_periods=1).mean())",
    "C(x.rank() > 12)",
]
BY_ROWS = [
    "x.clip(0, 3)",
    "I(x * w)",
    "lag(x, 0)",
    "f.map({'a': 1.0, 'b': 2.0, 'c': 5.0})",
    "k.abs()",
]


def design(fixed: str, random: str = "(1 | g)"):
    return build_design(
        f"~ {fixed}", random, DATA, context={**CONTEXT, "w": np.arange(N, dtype=float)}
    ).design


@pytest.mark.parametrize("fixed", KEPT + KEPT_BY_THE_MODEL)
def test_summaries_are_those_of_the_fit(fixed):
    built = design(fixed)
    np.testing.assert_allclose(
        built.recipe.fixed_rows(DATA.iloc[ROWS]), built.X[ROWS], rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("fixed", KEPT)
def test_a_file_keeps_them(fixed):
    built = design(fixed)
    recipe = recipe_from_text(recipe_to_text(built.recipe))
    rows = recipe.fixed_rows(DATA.iloc[ROWS], CONTEXT)
    np.testing.assert_array_equal(rows, built.recipe.fixed_rows(DATA.iloc[ROWS]))
    again = recipe_from_text(recipe_to_text(recipe))
    np.testing.assert_array_equal(again.fixed_rows(DATA.iloc[ROWS], CONTEXT), rows)


@pytest.mark.parametrize("fixed", ACROSS)
def test_what_looks_at_other_samples_has_no_value_for_new_data(fixed):
    with pytest.raises(InputError, match=r"depends on the other samples\. Use center\(x\)"):
        design(fixed).recipe.fixed_rows(DATA.iloc[ROWS])


@pytest.mark.parametrize("fixed", BY_ROWS)
def test_what_looks_at_its_own_sample_has(fixed):
    built = design(fixed)
    rows = built.recipe.fixed_rows(DATA.iloc[ROWS], {"w": np.array(ROWS, dtype=float)})
    np.testing.assert_array_equal(rows, built.X[ROWS])


def test_random_effects_and_offsets():
    built = design("1 + offset(x - x.mean())", "(0 + I(x - x.mean()) | g)")
    some = DATA.iloc[ROWS]
    for recipe in (built.recipe, recipe_from_text(recipe_to_text(built.recipe))):
        np.testing.assert_allclose(recipe.offset_rows(some), built.offset[ROWS], rtol=1e-12)
        Z = recipe.random_rows(some, built.structure, known=True).Z.toarray()
        np.testing.assert_allclose(Z, built.Z.toarray()[ROWS], rtol=1e-12)


def test_a_function_of_many_samples_stays_refused_when_loaded():
    recipe = recipe_from_text(recipe_to_text(design("own(x)").recipe))
    with pytest.raises(InputError, match="depends on the other samples"):
        recipe.fixed_rows(DATA.iloc[ROWS], CONTEXT)


def test_predictions_and_means(tmp_path):
    """As with center(x), whatever rows are asked for, and from a file."""
    Y = RNG.normal(size=(2, N)) + DATA["x"].to_numpy()
    inside, outside = (
        fm.MultiLMM.from_formula(f"~ {x} + f + (1 | g)", data=DATA, Y=Y).fit()
        for x in ("I(x - x.mean())", "center(x)")
    )
    inside.save(tmp_path / "r.nc")
    for result in (inside, fm.MultiLMMResults.load(tmp_path / "r.nc")):
        np.testing.assert_allclose(
            result.predict(DATA.iloc[ROWS]), outside.predict(DATA.iloc[ROWS])
        )
        ours, theirs = (r.marginal_means("f", at={"x": 7.0}).effect for r in (result, outside))
        np.testing.assert_allclose(ours, theirs)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("x.mean()", float("nan"), "as 'x.mean"),
        ("x.mean()", [1.0], "as 'x.mean"),
        ("x.mean()", None, "as 'x.mean"),
        ("x.median()", 3.0, "calls 'x.mean'"),
    ],
)
def test_values_of_a_file_are_checked(part, value, message):
    values = json.loads(recipe_to_text(design("I(x - x.mean())").recipe))
    (state,) = [pair[1] for pair in values["fixed"]["transforms"]["value"]]
    if isinstance(value, float) and np.isnan(value):
        value = {"__flashmm__": "float", "value": "nan"}
    state["value"] = [[part, value]]
    with pytest.raises(InputError, match=message):
        recipe_from_text(json.dumps(values))


@pytest.mark.parametrize(
    "call", ["open('x')", "x.to_csv('x')", "np.load('x')", "print(x)", "x.mean.__class__()"]
)
def test_only_summaries_have_values_in_a_file(call):
    """What stands for a number is never computed, and is still one of a closed list."""
    text = recipe_to_text(design("I(x - x.mean())").recipe)
    with pytest.raises(InputError, match="which a formula of a file may not"):
        recipe_from_text(text.replace("x.mean()", call))
