"""Formulas -> Design: the columns of X and Z, their labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from formulaic import Formula
from hypothesis import given
from hypothesis import strategies as st

from flashmm.designs.design import Design
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design

# In the caller's scope on purpose: formulas must not see them.
C = "not the transform"
log = 3
secret = np.arange(6.0)

SAMPLES = pd.DataFrame(
    {
        "x": [0.5, 1.0, 2.0, -1.0, 4.0, 3.0],
        "w": [1.0, 0.0, 2.0, 5.0, 1.0, 1.0],
        "my x": [1.0, 2.0, 3.0, 4.0, 5.0, 7.0],
        "f": ["lo", "hi", "lo", "hi", "lo", "hi"],
        "g": ["b", "a", "b", "c", "a", "c"],
        "batch": ["A", "A", "A", "B", "B", "B"],
        "cask": ["a", "b", "a", "a", "c", "c"],
        "id": [10, 9, 10, 2, 9, 2],
        "cell type": ["CD14+ Monocytes", "B cells"] * 3,
    }
)


def build(fixed: object = "~ 1", random: object = None, data: object = SAMPLES, **k: object):
    return build_design(fixed, random, data, **k).design  # type: ignore[arg-type]


def dense(design: Design) -> np.ndarray:
    assert isinstance(design.Z, sp.csr_array)
    assert design.Z.dtype == np.float64
    assert design.Z.shape == (design.n, design.structure.q)
    return design.Z.toarray()


def indicator(values: list[object], levels: list[object]) -> np.ndarray:
    return np.array([[float(value == level) for level in levels] for value in values])


# --- X ---------------------------------------------------------------------------------------


def test_fixed_columns_and_names():
    data = pd.DataFrame(
        {
            "libsize": [1.0, np.e, np.e**2, 1.0],
            "cls": ["1", "2", "1", "2"],
            "trt": ["A", "A", "B", "B"],
            "sam": ["s1", "s1", "s2", "s2"],
        }
    )
    design = build("~ 0+log(libsize) + cls +cls:trt", "~ 0 + sam", data)
    assert design.coef_names == (
        "log(libsize)",
        "cls[1]",
        "cls[2]",
        "cls[1]:trt[T.B]",
        "cls[2]:trt[T.B]",
    )
    expected = [[0, 1, 0, 0, 0], [1, 0, 1, 0, 0], [2, 1, 0, 1, 0], [0, 0, 1, 0, 1]]
    np.testing.assert_allclose(design.X, expected)
    assert isinstance(design.X, np.ndarray)
    assert design.X.dtype == np.float64
    assert design.fixed == "~ 0 + log(libsize) + cls + cls:trt"
    assert design.random == "~ 0 + sam"
    np.testing.assert_array_equal(dense(design), indicator(list(data["sam"]), ["s1", "s2"]))


@pytest.mark.parametrize(
    "fixed", ["~ x + f", "x + f", Formula("~ x + f"), "~ x + (1 | g) + f", "(1|g) + x + f"]
)
def test_the_forms_of_fixed(fixed):
    design = build(fixed, None if "|" in str(fixed) else "(1 | g)")
    assert design.coef_names == ("Intercept", "x", "f[T.lo]")
    np.testing.assert_array_equal(design.X[:, 2], [1, 0, 1, 0, 1, 0])
    assert design.fixed == "~ x + f"
    assert design.random == "(1 | g)"


def test_bars_alone_leave_the_intercept():
    design = build("~ (1 | g)")
    assert design.coef_names == ("Intercept",)
    assert design.fixed == "~ 1"
    assert build("~ (1 | g) - 1 + x").coef_names == ("x",)
    assert build("~ -1 + x + (1 | g)").coef_names == ("x",)


def test_bars_in_fixed_and_random_add_up():
    design = build("~ x + (1 | g)", "~ 0 + batch")
    assert [term.name for term in design.structure.terms] == ["g", "batch"]


def test_transforms_ignore_the_callers_scope():
    design = build("~ C(id) + log(w + 1) + np.log(w + 1) + poly(x, 2) + scale(x)", "(1|g)")
    assert design.coef_names[1:3] == ("C(id)[T.9]", "C(id)[T.10]")
    np.testing.assert_allclose(design.X[:, 3], np.log(SAMPLES["w"] + 1))
    np.testing.assert_array_equal(design.X[:, 3], design.X[:, 4])
    x = SAMPLES["x"].to_numpy()
    np.testing.assert_allclose(design.X[:, 7], (x - x.mean()) / x.std(ddof=1))
    with pytest.raises(InputError, match="'secret', which is not a column"):
        build("~ secret", "(1|g)")


def test_a_column_named_like_a_transform_does_not_hide_it():
    data = SAMPLES.assign(C=1.0, log=2.0, np=3.0)
    design = build("~ C(f) + log(w + 1) + np.sqrt(w)", "(1|g)", data)
    np.testing.assert_allclose(design.X[:, 2], np.log(SAMPLES["w"] + 1))
    assert build("~ log", "(1|g)", data).coef_names == ("Intercept", "log")
    with pytest.raises(InputError, match=r"calls the function 'C'.*Rename"):
        build("~ C(f) + C", "(1|g)", data)


def test_context_adds_names():
    design = build("~ double(x)", "(1|g)", context={"double": lambda v: 2 * v})
    np.testing.assert_array_equal(design.X[:, 1], 2 * SAMPLES["x"])
    with pytest.raises(InputError, match=r"calls 'double'.*context=\{'double': double\}"):
        build("~ double(x)", "(1|g)")


def test_backticks():
    design = build("~ `my x` + log(`my x`)", "(`my x` | `cell type`:g)")
    assert design.coef_names == ("Intercept", "my x", "log(`my x`)")
    assert design.structure.terms[0].group == "cell type:g"
    assert design.random == "(1 + `my x` | `cell type`:g)"
    with pytest.raises(InputError, match=r"needs backticks: `n\.cells`"):
        build("~ log(n.cells)", "(1|g)", SAMPLES.assign(**{"n.cells": 2.0}))


def test_the_spec_materialises_new_data():
    design = build("~ 0 + f + scale(x)", "(1|g)")
    new = pd.DataFrame({"f": ["hi"], "x": [2.5]})
    x = SAMPLES["x"].to_numpy()
    row = np.asarray(design.recipe.fixed_rows(new))
    np.testing.assert_allclose(row, [[1, 0, (2.5 - x.mean()) / x.std(ddof=1)]])


def test_unused_categories_make_no_columns():
    f = pd.Categorical(SAMPLES["f"], categories=["mid", "lo", "hi"])
    data = SAMPLES.assign(f=f)
    design = build("~ 0 + f", "(1 | f)", data)
    assert design.coef_names == ("f[lo]", "f[hi]")
    assert design.structure.terms[0].levels == ("lo", "hi")
    assert build("~ 1", "~ 0 + f", data).structure.terms[0].levels == ("lo", "hi")


@pytest.mark.parametrize("dtype", ["Int64", "Float32", "object", "uint8", "Sparse[int]"])
def test_number_types_mean_the_same(dtype):
    data = SAMPLES.assign(x=pd.Series([200, 100, 3, 4, 5, 6]).astype(dtype))
    data["y"] = data["x"]
    design = build("~ x + x:y", "(x | g)", data)
    np.testing.assert_array_equal(design.X[:, 1], [200, 100, 3, 4, 5, 6])
    np.testing.assert_array_equal(design.X[:, 2], [40000, 10000, 9, 16, 25, 36])


@pytest.mark.parametrize("dtype", ["string", "object", "category"])
def test_text_types_mean_the_same(dtype):
    design = build("~ f", "(1 | g)", SAMPLES.astype({"f": dtype, "g": dtype}))
    assert design.coef_names == ("Intercept", "f[T.lo]")
    assert design.structure.terms[0].levels == ("a", "b", "c")


# --- Z: bars ---------------------------------------------------------------------------------

BARS = [
    # bar, [(name, group, effects, covariance)], parameters of D, canonical text
    ("(1|g)", [("g", "g", ("Intercept",), "full")], ["g"], "(1 | g)"),
    (
        "(x|g)",
        [("g", "g", ("Intercept", "x"), "full")],
        ["g[Intercept]", "g[x]", "g[Intercept,x]"],
        "(1 + x | g)",
    ),
    (
        "~ (1 + x|g)",
        [("g", "g", ("Intercept", "x"), "full")],
        ["g[Intercept]", "g[x]", "g[Intercept,x]"],
        "(1 + x | g)",
    ),
    (
        "(x||g)",
        [("g", "g", ("Intercept",), "full"), ("g[x]", "g", ("x",), "full")],
        ["g", "g[x]"],
        "(1 | g) + (0 + x | g)",
    ),
    (
        "(0 + x + w || g)",
        [("g[x]", "g", ("x",), "full"), ("g[w]", "g", ("w",), "full")],
        ["g[x]", "g[w]"],
        "(0 + x | g) + (0 + w | g)",
    ),
    ("(0+x|g)", [("g", "g", ("x",), "full")], ["g[x]"], "(0 + x | g)"),
    (
        "(1|batch/cask)",
        [
            ("batch", "batch", ("Intercept",), "full"),
            ("batch:cask", "batch:cask", ("Intercept",), "full"),
        ],
        ["batch", "batch:cask"],
        "(1 | batch) + (1 | batch:cask)",
    ),
    (
        "(1|batch/cask/g)",
        [
            ("batch", "batch", ("Intercept",), "full"),
            ("batch:cask", "batch:cask", ("Intercept",), "full"),
            ("batch:cask:g", "batch:cask:g", ("Intercept",), "full"),
        ],
        ["batch", "batch:cask", "batch:cask:g"],
        "(1 | batch) + (1 | batch:cask) + (1 | batch:cask:g)",
    ),
    (
        "diag(f | g)",
        [("g", "g", ("Intercept", "f[T.lo]"), "diagonal")],
        ["g[Intercept]", "g[f[T.lo]]"],
        "diag(1 + f | g)",
    ),
    (
        "diag (0 + f | g) + (1 | batch)",
        [
            ("g", "g", ("f[hi]", "f[lo]"), "diagonal"),
            ("batch", "batch", ("Intercept",), "full"),
        ],
        ["g[f[hi]]", "g[f[lo]]", "batch"],
        "diag(0 + f | g) + (1 | batch)",
    ),
    (
        "diag(1 + x | g)",
        [("g", "g", ("Intercept", "x"), "diagonal")],
        ["g[Intercept]", "g[x]"],
        "diag(1 + x | g)",
    ),
]


@pytest.mark.parametrize(("bar", "terms", "parameters", "text"), BARS)
def test_the_table_of_bars(bar, terms, parameters, text):
    design = build("~ 1", bar)
    found = [(t.name, t.group, t.effects, t.covariance) for t in design.structure.terms]
    assert found == terms
    assert list(design.structure.param_names) == [*parameters, "Residual"]
    assert design.random == text
    # The canonical text means the same design.
    np.testing.assert_array_equal(dense(build("~ 1", design.random)), dense(design))


def test_columns_run_level_by_level():
    Z = dense(build("~ 1", "(1 + x | g) + (1 | batch)"))
    expected = [
        # a: 1, x; b: 1, x; c: 1, x; then A, B
        [0, 0, 1, 0.5, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 1, 0],
        [0, 0, 1, 2, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, -1, 0, 1],
        [1, 4, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 3, 0, 1],
    ]
    np.testing.assert_array_equal(Z, expected)


def test_nested_labels_reused_across_batches():
    # Cask "a" of batch A is not cask "a" of batch B, and A:c, B:b were never seen.
    design = build("~ 1", "(1 | batch/cask)")
    batch, cask = design.structure.terms
    assert batch.levels == ("A", "B")
    assert cask.levels == ("A:a", "A:b", "B:a", "B:c")
    both = [f"{a}:{b}" for a, b in zip(SAMPLES["batch"], SAMPLES["cask"], strict=True)]
    np.testing.assert_array_equal(dense(design)[:, 2:], indicator(both, list(cask.levels)))


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([10, 9, 10, 2, 9, 2], ("2", "9", "10")),
        ([10.0, 9.0, 10.0, 2.0, 9.0, 2.0], ("2", "9", "10")),
        ([1.5, 0.25, 1.5, 1.5, 1.5, 1.5], ("0.25", "1.5")),
        ([True, False] * 3, ("False", "True")),
        (list("bBaAbB"), ("A", "B", "a", "b")),
        (pd.Categorical(list("bacbac"), categories=list("cxab")), ("c", "a", "b")),
        (pd.Categorical([10, 9] * 3, categories=[10, 9]), ("10", "9")),
        (
            ["CD14+ Monocytes", "a:b", "naïve T", "β", "CD14+ Monocytes", "[x] "],
            ("CD14+ Monocytes", "[x] ", "a:b", "naïve T", "β"),
        ),
    ],
)
def test_levels_of_a_group(values, levels):
    design = build("~ 1", "(1 | k)", SAMPLES.assign(k=values))
    assert design.structure.terms[0].levels == levels
    labels = [str(int(v)) if isinstance(v, float) and v == int(v) else str(v) for v in values]
    np.testing.assert_array_equal(dense(design), indicator(labels, list(levels)))


def test_integers_join_with_a_colon_in_numeric_order():
    assert build("~ 1", "(1 | id:batch)").structure.terms[0].levels == (
        "2:B",
        "9:A",
        "9:B",
        "10:A",
    )


def test_levels_that_print_alike_are_refused():
    with pytest.raises(InputError, match=r"'k'.*print alike: '1'"):
        build("~ 1", "(1 | k)", SAMPLES.assign(k=pd.Series([1, "1"] * 3, dtype=object)))
    ambiguous = SAMPLES.assign(a=["p", "p:q"] * 3, b=["q:r", "r"] * 3)
    with pytest.raises(InputError, match="'a:b' print alike: 'p:q:r'"):
        build("~ 1", "(1 | a:b)", ambiguous)


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(-3, 3)),
        min_size=1,
        max_size=25,
    )
)
def test_slopes_equal_a_dense_construction(rows):
    names = ["z", "é", "A b", "a:1", "0"]
    data = pd.DataFrame({"k": [names[i] for i, _ in rows], "v": [float(v) for _, v in rows]})
    design = build("~ 1", "(1 + v | k)", data)
    levels = sorted(set(data["k"]))
    assert list(design.structure.terms[0].levels) == levels
    membership = indicator(list(data["k"]), levels)
    effects = np.column_stack([np.ones(len(rows)), data["v"]])
    expected = (membership[:, :, None] * effects[:, None, :]).reshape(len(rows), -1)
    np.testing.assert_array_equal(dense(design), expected)
    assert design.Z.nnz == np.count_nonzero(expected)


# --- Z: FLASHMM formulas, lists and dicts ----------------------------------------------------


def test_one_factor_is_labelled_by_its_levels():
    design = build("~ 1", "~ 0 + `cell type`")
    (term,) = design.structure.terms
    assert (term.name, term.group, term.effects) == ("cell type", "cell type", ("Intercept",))
    assert term.levels == ("B cells", "CD14+ Monocytes")
    assert term.covariance == "identity"
    np.testing.assert_array_equal(dense(design), indicator(list(SAMPLES["cell type"]), term.levels))
    assert build("~ 1", "~ 0 + C(id)").structure.terms[0].levels == ("2", "9", "10")


@pytest.mark.parametrize(
    ("formula", "group", "levels"),
    [
        ("~ 0 + g + x", "g + x", ("g[a]", "g[b]", "g[c]", "x")),
        ("0 + batch:f", "batch:f", ("batch[A]:f[hi]", "batch[B]:f[hi]", "batch[A]:f[lo]",
                                    "batch[B]:f[lo]")),
    ],
)  # fmt: skip
def test_general_flashmm_formulas(formula, group, levels):
    design = build("~ 1", formula)
    (term,) = design.structure.terms
    assert (term.name, term.group, term.covariance) == (group, group, "identity")
    assert term.levels == levels
    expected = np.asarray(Formula(formula).get_model_matrix(SAMPLES), dtype=float)
    np.testing.assert_array_equal(dense(design), expected)


def test_lists_and_dicts():
    design = build("~ 1", ["~ 0 + g", "(1 | batch) + (0 + x | batch)"])
    assert [term.name for term in design.structure.terms] == ["g", "batch", "batch[x]"]
    assert design.random == "~ 0 + g, (1 | batch), (0 + x | batch)"
    design = build("~ 1", {"people": "~ 0 + g", "where": "(1 | batch/cask)", "s": "(x || id)"})
    assert [term.name for term in design.structure.terms] == [
        "people",
        "where.batch",
        "where.batch:cask",
        "s.id",
        "s.id[x]",
    ]
    assert design.structure.param_names[:2] == ("people", "where.batch")
    assert [term.group for term in design.structure.terms][:2] == ["g", "batch"]


def test_an_integer_column_in_a_flashmm_formula():
    with pytest.raises(InputError, match=r"'id' holds integers.*C\(id\).*\(1 \| id\)"):
        build("~ 1", "~ 0 + id")
    assert build("~ 1", "~ 0 + x").structure.terms[0].levels == ("x",)


def test_many_rows_and_columns_stay_sparse():
    rng = np.random.default_rng(1)
    k = rng.integers(0, 2_000, 20_000)
    data = pd.DataFrame({"k": pd.Categorical(k), "a": (k % 40).astype(str), "b": k // 40})
    for random in ("~ 0 + k", "(1 | k)", "(1 | a:b)"):
        Z = build("~ 1", random, data).Z
        assert isinstance(Z, sp.csr_array)
        assert Z.shape == (20_000, np.unique(k).size)
        assert Z.nnz == 20_000


# --- Missing values, samples -----------------------------------------------------------------


def with_gaps() -> pd.DataFrame:
    data = SAMPLES.assign(unused=[np.nan] * 6)
    data.index = pd.Index(list("uvwxyz"))
    data.loc["v", "x"] = np.nan
    data.loc["x", "g"] = None
    return data


def test_missing_values_raise():
    with pytest.raises(
        InputError, match=r"1 in 'x' \(first rows 'v'\); 1 in 'g' \(first rows 'x'\)"
    ):
        build("~ x", "(1 | g)", with_gaps())


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA])
@pytest.mark.parametrize("random", ["(1 | g)", "(1 | batch:g)", "(1 | batch/g)", "~ 0 + g"])
def test_every_kind_of_gap_counts(gap, random):
    g = pd.Series(["a", gap, "b", "b", gap, "a"], dtype=object)
    with pytest.raises(InputError, match=r"2 in 'g' \(first rows '1', '4'\)"):
        build("~ 1", random, SAMPLES.assign(g=g))


def test_drop_computes_everything_on_the_kept_rows():
    built = build_design("~ scale(x)", "(x | g) + (1 | f)", with_gaps(), missing="drop")
    np.testing.assert_array_equal(built.dropped, [0, 1, 0, 1, 0, 0])
    design = built.design
    x = np.array([0.5, 2.0, 4.0, 3.0])
    np.testing.assert_allclose(design.X[:, 1], (x - x.mean()) / x.std(ddof=1))
    alone = build("~ scale(x)", "(x | g) + (1 | f)", with_gaps().loc[["u", "w", "y", "z"]])
    np.testing.assert_array_equal(dense(design), dense(alone))
    assert design.structure.terms[1].levels == ("hi", "lo")


def test_a_level_seen_only_in_dropped_rows_is_gone():
    data = SAMPLES.assign(f=["only", *SAMPLES["f"][1:]], x=[np.nan, *SAMPLES["x"][1:]])
    data["f"] = data["f"].astype("category")
    design = build("~ x + f", "(1 | f)", data, missing="drop")
    assert design.coef_names == ("Intercept", "x", "f[T.lo]")
    assert design.structure.terms[0].levels == ("hi", "lo")


def test_nothing_dropped():
    built = build_design("~ x", "(1 | g)", SAMPLES)
    assert built.dropped.dtype == bool
    assert built.dropped.tolist() == [False] * 6


def test_a_dict_of_columns_is_a_table():
    design = build("~ x", "(1 | g)", SAMPLES.to_dict("list"))
    np.testing.assert_array_equal(design.X, build("~ x", "(1 | g)").X)


def test_the_data_are_left_alone():
    data = with_gaps()
    before = data.copy(deep=True)
    build("~ scale(x)", "(1 | g)", data, missing="drop")
    pd.testing.assert_frame_equal(data, before)
