"""Designs of many samples, made and kept in parts, are the designs made at once."""

from __future__ import annotations

import gc
import json
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmm import MultiLMM
from flashmm.designs import compact
from flashmm.designs.compact import CompactMatrix, LayeredMatrix, LayerStack, compacted
from flashmm.exceptions import InputError, MissingSamplesWarning
from flashmm.formulas.bars import parse_formula
from flashmm.formulas.build import build_design
from flashmm.formulas.recipe_text import recipe_to_text
from flashmm.formulas.rows_in_chunks import formula_rows
from flashmm.formulas.sample_table import Columns

N = 240


def samples(n: int = N) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 4, n)
    kind[:40] = 2  # the first steps do not show all levels
    return pd.DataFrame(
        {
            "x": rng.normal(3.0, 2.0, n),
            "size": rng.gamma(4.0, 5.0, n),
            "count": rng.integers(0, 6, n),
            "kind": pd.Categorical.from_codes(kind, list("dcba"), ordered=False).add_categories(
                "e"
            ),
            "text": rng.choice(["no", "yes", "perhaps"], n),
            "flag": rng.random(n) < 0.3,
            "donor": rng.choice([f"d{i:02d}" for i in range(12)], n),
            "batch": rng.integers(0, 5, n),
            "age": pd.array(rng.integers(20, 24, n), dtype="Int64"),
        }
    )


FIXED = [
    "~ 1",
    "~ x + kind",
    "~ 0 + log(size) + kind + kind:flag",
    "~ kind * text * x",
    "~ 0 + text:x + I(x**2)",
    "~ scale(x) + center(size):kind",
    "~ poly(x, 3) + bs(size, df=5)",
    "~ cr(x, df=4) + standardize(size)",
    "~ C(count) + C(batch, contr.sum):x",
    "~ C(kind, levels=['a', 'b', 'c', 'd']) + C(text, Treatment('yes'))",
    "~ I(x - x.mean()) + lag(size, 0) + age",
    "~ own(x) + two(x) + C(own(count))",
    "~ hashed(text, levels=4) + x",
    "~ flag + Q('size') + `x`:flag + I(3 * x)",
    "~ 0 + kind:x + kind:size",
]
RANDOM = [
    "~ 0 + donor",
    "(1 | donor)",
    "(1 + x | donor) + (1 | batch)",
    "diag(1 + scale(x) | batch) + (1 | donor:kind)",
    "(1 | donor/kind)",
    "(0 + kind | batch)",
    "(x || donor)",
    ["~ 0 + C(batch)", "~ 0 + donor:x"],
]
CONTEXT = {
    "own": lambda x: x / 7.0,
    "two": lambda x: pd.DataFrame({"up": np.maximum(x, 0), "down": np.minimum(x, 0)}),
}


def both(monkeypatch, call):
    """What a call gives at once and in steps of a few samples."""
    at_once = call()
    with monkeypatch.context() as patch:
        patch.setattr(compact, "STEP", 17)
        return at_once, call()


def recipe(design):
    """What predictions are made with; formulaic's order of transforms varies."""
    values = json.loads(recipe_to_text(design.recipe))
    for formula in (values["fixed"], *(effects for _, effects, _ in values["terms"])):
        formula["transforms"]["value"].sort(key=repr)
        formula["encoders"].sort(key=repr)
    return values


def check_same(monkeypatch, fixed, random, data):
    one, many = both(monkeypatch, lambda: build_design(fixed, random, data, context=CONTEXT).design)
    assert isinstance(one.X, np.ndarray)
    assert isinstance(many.X, CompactMatrix)
    assert isinstance(many.Z, LayeredMatrix)
    assert many.coef_names == one.coef_names
    assert many.structure == one.structure
    assert recipe(many) == recipe(one)
    np.testing.assert_array_equal(many.X[:], one.X)
    np.testing.assert_array_equal(many.Z[:].toarray(), one.Z.toarray())
    assert many.Z[:].nnz == one.Z.nnz
    new = data.iloc[:30]
    np.testing.assert_array_equal(many.recipe.fixed_rows(new), one.recipe.fixed_rows(new))
    Z = [d.recipe.random_rows(new, d.structure, known=True).Z.toarray() for d in (many, one)]
    np.testing.assert_array_equal(*Z)


@pytest.mark.parametrize("fixed", FIXED)
def test_fixed_effects_are_the_same(monkeypatch, fixed):
    check_same(monkeypatch, fixed, "(1 | donor)", samples())


@pytest.mark.parametrize("random", RANDOM)
def test_random_effects_are_the_same(monkeypatch, random):
    check_same(monkeypatch, "~ x", random, samples())


@pytest.mark.parametrize("fixed", ["~ 0 + log(size) + kind + kind:flag", "~ 0 + kind:x + C(count)"])
@pytest.mark.parametrize(
    "form", ["dense", "by genes", "by cells", "labelled", "iterable", "shifted"]
)
def test_statistics_are_the_same(monkeypatch, fixed, form):
    data = samples()
    rng = np.random.default_rng(2)
    Y = rng.poisson(0.4, size=(9, N)).astype(float)
    given: dict[str, object] = {"weights": rng.gamma(3.0, size=N), "min_fraction": 0.1}
    if form == "by genes":
        Y = sp.csr_array(Y)
    elif form == "by cells":
        Y = sp.csc_array(Y)
    elif form == "labelled":
        data.index = pd.Index([f"s{i}" for i in range(N)])
        Y = pd.DataFrame(Y, columns=data.index).iloc[:, rng.permutation(N)]
        Y.iloc[3, 5] = np.nan
        data.loc["s7", "x"] = np.nan
        given["missing"] = "drop"
    elif form == "iterable":
        Y = [(np.arange(s, s + 60), Y[:, s : s + 60]) for s in range(0, N, 60)]
    else:
        Y = Y + (1e6 if form == "shifted" else 0.0)

    def call():
        dropping = "missing" in given
        with pytest.warns(MissingSamplesWarning) if dropping else nullcontext():
            return MultiLMM.from_formula(fixed, "(1 + x | donor)", data, Y, **given).stats

    one, many = both(monkeypatch, call)
    assert many.n == one.n == (N if form != "labelled" else N - 2)
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        a, b = getattr(one, name), getattr(many, name)
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12 * np.abs(a).max())
    assert (one.ZZ != many.ZZ).nnz == 0 or abs(one.ZZ - many.ZZ).max() < 1e-12 * one.ZZ.max()
    assert (one.shift is None) == (many.shift is None)
    if one.shift is not None:
        np.testing.assert_allclose(many.shift.yy, one.shift.yy, rtol=1e-6)


@pytest.mark.parametrize(
    ("fixed", "match"),
    [
        ("~ log(x - 3)", r"column 'log\(x - 3\)' is not finite in rows"),
        ("~ kind:log(count)", "is not finite in rows"),
        ("~ C(text, levels=['no', 'yes'])", "cannot be evaluated"),
        ("~ own(text)", "cannot be evaluated"),
    ],
)
def test_errors_are_the_same(monkeypatch, fixed, match):
    def call():
        with pytest.raises(InputError, match=match) as caught:
            build_design(fixed, "(1 | donor)", samples(), context=CONTEXT)
        return str(caught.value)

    one, many = both(monkeypatch, call)
    assert one == many


COLUMNS = st.sampled_from(["ones", "factor", "dummies", "numbers", "slopes", "rare", "zeros"])


@settings(deadline=None, max_examples=60)
@given(st.lists(COLUMNS, min_size=1, max_size=4), st.integers(1, 90), st.integers(0, 5))
def test_any_matrix_comes_back(kinds, n, seed):
    rng = np.random.default_rng(seed)
    dummies = np.eye(8)[rng.integers(0, 8, n)]
    parts = {
        "ones": np.ones((n, 1)),
        "factor": rng.integers(0, 3, (n, 1)).astype(float),
        "dummies": np.eye(9)[rng.integers(0, 9, n)],
        "numbers": rng.normal(size=(n, 2)),
        "slopes": dummies * rng.normal(size=(n, 1)),
        "rare": np.where(rng.random((n, 6)) < 0.05, rng.normal(size=(n, 6)), 0.0),
        "zeros": np.zeros((n, 2)),
    }
    X = np.hstack([parts[kind] for kind in kinds])
    step, compact.STEP = compact.STEP, 13
    try:
        made = compacted(X.__getitem__, n)
        stack = LayerStack(X.shape[1])
        for here in compact.steps(n):
            stack.add(sp.csr_array(X[here]))
    finally:
        compact.STEP = step
    Z = stack.together()
    some = rng.permutation(n)[: n // 2]
    for here in (slice(None), slice(n // 3, n), some):
        np.testing.assert_array_equal(made[here], X[here])
        np.testing.assert_array_equal(Z[here].toarray(), X[here])
        values = rng.normal(size=(len(X[here]), 3))
        np.testing.assert_allclose(
            made.transposed_times(here, values), X[here].T @ values, atol=1e-12
        )


def test_columns_are_kept_by_their_kind():
    rng = np.random.default_rng(3)
    kind = np.eye(8)[rng.integers(0, 8, 4000)]
    slopes = kind * rng.normal(size=(4000, 1))
    X = np.hstack([rng.normal(size=(4000, 1)), kind, slopes])
    made = compacted(X.__getitem__, 4000)
    assert made.in_dense.tolist() == [0]
    assert made.in_table.tolist() == list(range(1, 9))
    assert made.in_layers.tolist() == list(range(9, 17))
    assert made.grouped.count == 8
    assert len(made.layered.layers) == 1


def test_too_many_distinct_rows_are_kept_by_their_elements():
    rng = np.random.default_rng(4)
    X = np.hstack([np.eye(8)[rng.integers(0, 8, 3000)] for _ in range(5)])
    made = compacted(X.__getitem__, 3000)  # about 2,900 distinct rows
    assert made.grouped is None
    assert made.dense.size == 0
    assert len(made.layered.layers) == 5


def test_the_memory_of_a_sample_is_far_below_its_dense_row():
    peaks, p = [], 0
    for n in (40_000, 120_000):
        data = samples(n)[["x", "size", "kind", "flag", "count", "donor"]]
        data["donor"] = data["donor"].astype("category")
        tracemalloc.start()
        design = build_design(
            "~ 0 + log(size) + C(count) * kind * flag + kind:x", "(1 | donor)", data
        ).design
        gc.collect()
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        p = design.X.shape[1]
        peaks.append(np.array([held, peak]))
    each = (peaks[1] - peaks[0]) / 80_000
    assert 8 * p > 400
    assert each[0] < 49  # five numbers, the code of a row, and a level
    assert each[1] < 150


@pytest.mark.parametrize(
    ("formula", "numbers"),
    [
        ("0 + kind", 0),
        ("kind * flag", 0),
        ("0 + log(size) + x + kind + kind:flag", 2),
        ("poly(x, 2) + C(count, contr.sum)", 2),
        ("x + log(size)", None),  # nothing to look up
        ("0 + kind:x", None),  # slopes
        ("x:size + kind", None),
        ("{x > 0} + C(x)", None),  # as many levels as samples
    ],
)
def test_rows_are_looked_up_by_their_levels(monkeypatch, formula, numbers):
    monkeypatch.setattr(compact, "STEP", 64)
    data = samples()
    columns = Columns(data.reset_index(drop=True), {}, data.index)
    parsed = parse_formula(f"~ {formula}", "fixed")[0]
    made = formula_rows(columns, parsed, "the formula", "numpy")
    if numbers is None:
        assert made.coded is None
        return
    assert made.coded.numbers.shape == (N, numbers)
    assert made.coded.table.shape[0] < N / 4
    expected = np.asarray(columns.build(parsed, "the formula", "numpy")[0])
    np.testing.assert_array_equal(made.coded.compact()[:], expected)
    here = np.array([5, 3, 3, 90])
    np.testing.assert_array_equal(made.rows(here), expected[here])
    np.testing.assert_array_equal(made.coded.sparse(here).toarray(), expected[here])
