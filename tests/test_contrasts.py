"""Contrasts: every accepted form, every spelling of a name, and every refusal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmm.exceptions import InputError
from flashmm.inference.contrasts import (
    Contrasts,
    contrast_matrix,
    parse_contrasts,
    r_name,
    resolve_names,
)

MONOCYTES = "cluster_id[CD14+ Monocytes]:group_id[T.stim]"
NAMES = [
    "Intercept",
    "log(libsize)",
    "cls[1]",
    "cls[11]",
    "cls[1]:trt[T.B]",
    "cls[2]:trt[T.B]",
    "AB",
    "ABC",
    MONOCYTES,
    "C(x)[T.a]",
    "poly(x, 2)[1]",
    "age.years",
]


def weights(contrast: object, names: list[str] = NAMES) -> dict[str, float]:
    """Return the weights of the only contrast, without zeros, by name."""
    parsed = parse_contrasts(contrast, names)
    assert parsed.matrix.shape == (1, len(names))
    (row,) = parsed.matrix
    return {names[i]: float(row[i]) for i in np.flatnonzero(row)}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("AB", {"AB": 1}),
        ("ABC - AB", {"ABC": 1, "AB": -1}),
        ("AB-ABC", {"AB": 1, "ABC": -1}),
        ("-(-AB)", {"AB": 1}),
        ("- -+AB", {"AB": 1}),
        ("(AB + ABC)/2 - log(libsize)", {"AB": 0.5, "ABC": 0.5, "log(libsize)": -1}),
        ("2*AB + AB*1e-3", {"AB": 2.001}),
        (".5*AB + 3.*ABC", {"AB": 0.5, "ABC": 3}),
        ("2*(3 - 1)*AB/8", {"AB": 0.5}),
        ("AB + AB - ABC*(1 - 1)", {"AB": 2}),
        ("(Intercept)", {"Intercept": 1}),
        ("(Intercept + cls1)/2", {"Intercept": 0.5, "cls[1]": 0.5}),
        ("(Intercept) - cls[1]", {"Intercept": 1, "cls[1]": -1}),
        ("cls1:trtB - cls[2]:trt[B]", {"cls[1]:trt[T.B]": 1, "cls[2]:trt[T.B]": -1}),
        ("cls1:trt[T.B] + cls[2]:trtB", {"cls[1]:trt[T.B]": 1, "cls[2]:trt[T.B]": 1}),
        ("trtB:cls1", {"cls[1]:trt[T.B]": 1}),
        ("trt[T.B]:cls[2]/2", {"cls[2]:trt[T.B]": 0.5}),
        ("cls11 - cls1", {"cls[11]": 1, "cls[1]": -1}),
        (f"{MONOCYTES} - AB", {MONOCYTES: 1, "AB": -1}),
        ("AB - cluster_idCD14+ Monocytes:group_idstim", {MONOCYTES: -1, "AB": 1}),
        ("C(x)a + C(x)[a]", {"C(x)[T.a]": 2}),
        ("2*poly(x, 2)1 + poly(x, 2)[1]", {"poly(x, 2)[1]": 3}),
        ("age.years/10", {"age.years": 0.1}),
        ('`AB` - "cls1:trtB"', {"AB": 1, "cls[1]:trt[T.B]": -1}),
        ("  AB\n+\tABC ", {"AB": 1, "ABC": 1}),
    ],
)
def test_an_expression_has_these_weights(expression: str, expected: dict[str, float]) -> None:
    assert weights(expression) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("expression", "expected", "value"),
    [
        ("AB = 0.5", {"AB": 1}, 0.5),
        ("AB = ABC", {"AB": 1, "ABC": -1}, 0.0),
        ("0.25 = AB", {"AB": -1}, -0.25),
        ("AB - 1 = 1e-3", {"AB": 1}, 1.001),
        ("AB = ABC + 2*(cls1 - 3)", {"AB": 1, "ABC": -1, "cls[1]": -2}, -6.0),
        ("(AB = 2)", {"AB": 1}, 2.0),
    ],
)
def test_an_equation_sets_the_hypothesised_value(
    expression: str, expected: dict[str, float], value: float
) -> None:
    assert weights(expression) == expected
    parsed = parse_contrasts(expression, NAMES)
    np.testing.assert_allclose(parsed.values, [value], rtol=1e-15)
    assert parsed.labels == (expression,)


def test_commas_separate_contrasts_but_not_inside_names() -> None:
    parsed = parse_contrasts("AB - ABC , poly(x, 2)[1] = 3,cls1", NAMES)
    assert parsed.labels == ("AB - ABC", "poly(x, 2)[1] = 3", "cls1")
    expected = np.zeros((3, len(NAMES)))
    expected[0, [6, 7]] = [1, -1]
    expected[1, 10] = 1
    expected[2, 2] = 1
    np.testing.assert_array_equal(parsed.matrix, expected)
    np.testing.assert_array_equal(parsed.values, [0, 3, 0])
    wrapped = parse_contrasts("(AB = ABC), (cls1 = 2)", NAMES)
    np.testing.assert_array_equal(wrapped.matrix, expected[[0, 2]])
    np.testing.assert_array_equal(wrapped.values, [0, 2])


def test_a_list_of_expressions_and_a_dict() -> None:
    listed = parse_contrasts(["AB", "ABC = 1, cls1"], NAMES)
    assert listed.labels == ("AB", "ABC = 1", "cls1")
    named = parse_contrasts({"x": "AB - ABC = 2", "y": np.eye(12)[3]}, NAMES)
    assert named.labels == ("x", "y")
    np.testing.assert_array_equal(named.values, [2, 0])
    assert named.matrix[0, 7] == -1
    np.testing.assert_array_equal(named.matrix[1], np.eye(12)[3])


def test_vectors_and_matrices() -> None:
    names = ["a", "b", "c"]
    vector = np.array([1.0, -0.5, 0.0])
    forms = [vector, vector.tolist(), tuple(vector), pd.Series(vector), vector[None, :]]
    for form in forms:
        parsed = parse_contrasts(form, names)
        np.testing.assert_array_equal(parsed.matrix, vector[None, :])
        assert parsed.labels == ("a - 0.5*b",)
    stacked = parse_contrasts([vector, [0, 0, 1]], names)
    np.testing.assert_array_equal(stacked.matrix, [vector, [0, 0, 1]])
    matrix = parse_contrasts(np.array([[0, -1, 1], [0, 0, 1], [0, 0, 1]]), names)
    assert matrix.labels == ("-b + c", "c", "contrast 3")
    assert matrix.matrix.dtype == float


def test_a_long_vector_is_numbered_and_the_arrays_are_read_only() -> None:
    parsed = parse_contrasts([1, 1, 1, 1], list("abcd"))
    assert parsed.labels == ("contrast 1",)
    with pytest.raises(ValueError, match="read-only"):
        parsed.matrix[0, 0] = 2


def test_none_means_every_coefficient() -> None:
    parsed = parse_contrasts(None, NAMES)
    np.testing.assert_array_equal(parsed.matrix, np.eye(len(NAMES)))
    assert parsed.labels == tuple(NAMES)


def test_series_and_tables_are_aligned_by_name() -> None:
    series = pd.Series({"trtB:cls1": -1.0, "AB": 1.0}, name="mine")
    assert weights(series) == {"AB": 1, "cls[1]:trt[T.B]": -1}
    assert parse_contrasts(series, NAMES).labels == ("mine",)
    assert parse_contrasts([series, "AB"], NAMES).labels == ("mine", "AB")
    assert weights({"x": series}) == {"AB": 1, "cls[1]:trt[T.B]": -1}

    table = contrast_matrix({"x": "AB - ABC", "y": "cls1"}, NAMES)
    expected = table.to_numpy().T
    shuffled = table.iloc[::-1]
    for form in (table, shuffled, shuffled.T, table.drop(index="Intercept")):
        parsed = parse_contrasts(form, NAMES)
        np.testing.assert_array_equal(parsed.matrix, expected)
        assert parsed.labels == ("x", "y")
    bare = parse_contrasts(pd.DataFrame(expected), NAMES)
    np.testing.assert_array_equal(bare.matrix, expected)


def test_contrasts_pass_through() -> None:
    parsed = parse_contrasts("AB = 0.5, cls1", NAMES)
    again = parse_contrasts(parsed, NAMES)
    assert isinstance(again, Contrasts)
    assert again.labels == parsed.labels
    np.testing.assert_array_equal(again.matrix, parsed.matrix)
    np.testing.assert_array_equal(again.values, parsed.values)


def test_contrast_matrix_has_names_by_contrasts() -> None:
    # The example of FLASHMM's contrast.matrix.
    table = contrast_matrix(
        {"AvsB": "A-B", "AvsC": "A-C", "AvsB.C.D": "A-(B+C+D)/3"}, ["A", "B", "C", "D"]
    )
    expected = pd.DataFrame(
        [[1, 1, 1], [-1, 0, -1 / 3], [0, -1, -1 / 3], [0, 0, -1 / 3]],
        index=list("ABCD"),
        columns=["AvsB", "AvsC", "AvsB.C.D"],
        dtype=float,
    )
    pd.testing.assert_frame_equal(table, expected, rtol=1e-15)
    assert list(contrast_matrix("A - B", ["A", "B"]).columns) == ["A - B"]
    with pytest.raises(InputError, match="'x' sets a hypothesised value"):
        contrast_matrix({"x": "A = 1"}, ["A", "B"])


@pytest.mark.parametrize(
    ("contrast", "message"),
    [
        ("ABD", "unknown coefficient 'ABD'. Did you mean 'AB'"),
        ("cls1:trtX", "unknown coefficient 'cls1:trtX'. Did you mean 'cls1:trtB'"),
        ("cls[1]:trt[X] - AB", r"unknown coefficient 'cls\[1\]:trt\[X\]'. Did you mean 'cls\[1\]:"),
        ("cls[Z - q] - AB", r"unknown coefficient 'cls\[Z - q\]'"),
        ("log(age, 2)", r"unknown coefficient 'log\(age, 2\)'"),
        ("`A B` - AB", "unknown coefficient 'A B'"),
        ("2AB", "unknown coefficient '2AB'"),
        ("AB & ABC", "'&' is no coefficient"),
        ("`AB - ABC", "a quote is opened and not closed"),
        ("AB ABC", "expected an operator before 'ABC'"),
        ("AB)", r"expected an operator before '\)'"),
        ("(AB", "not closed"),
        ("AB -", "expected a coefficient or a number at its end"),
        ("AB ** 2", r"expected a coefficient or a number before '\* 2'"),
        ("AB = ABC = 2", "more than one '='"),
        ("AB + 1", "adds a constant"),
        ("3", "adds a constant"),
        ("AB*ABC", "multiplies coefficients"),
        ("1/AB", "divides by a coefficient"),
        ("AB/(1 - 1)", "divides by zero"),
        ("1e999*AB", "the number 1e999 is too large"),
        ("1e308*10*AB", "numbers that are too large"),
        ("(" * 5000 + "AB" + ")" * 5000, "too deeply"),
        ("AB - AB", "'AB - AB' is zero for every coefficient"),
        ("(AB + ABC)/3*3 - AB - ABC", "is zero for every coefficient"),
        ("0.1*AB*10 - AB", "is zero for every coefficient"),
        ("cls1:trtB - trt[B]:cls[1]", "is zero for every coefficient"),
        ("1e-400*AB", "is zero for every coefficient"),
        ("1 = 0", "is zero for every coefficient"),
        ("AB,", "an expression is empty"),
        ("", "an expression is empty"),
        ("AB, AB", "contrasts occur more than once: 'AB'"),
        ([], "no contrast was given"),
        ({}, "no contrast was given"),
        ({"x": "AB, ABC"}, "'x' holds 2 expressions"),
        ({"x": 1}, "'x' is the number 1"),
        ({"x": None}, "'x' is not a vector of numbers"),
        ({"x": [1.0, 2.0]}, "'x' has 2 numbers, but there are 12 coefficients"),
        ([1, -1], "has 2 numbers, but there are 12 coefficients"),
        ([True] * 12, "not a vector of numbers"),
        (["AB", 3], "not a vector of numbers"),
        ([[1, 2], [3]], "has 2 numbers"),
        ([1.0] * 11 + [np.nan], "holds NaN"),
        (np.zeros(12), "is zero for every coefficient"),
        (np.eye(12)[:, :2], "transpose it"),
        (np.ones((2, 5)), r"shape \(2, 5\)"),
        (np.ones((2, 2, 2)), "not a matrix of numbers"),
        (np.array(1.0), "cannot read a contrast"),
        (7, "cannot read a contrast from 7"),
        (pd.Series({"ABD": 1.0}), "unknown coefficient 'ABD'"),
        (pd.Series({"cls1": 1.0, "cls[1]": -1.0}), "names a coefficient more than once"),
        (pd.DataFrame({"x": ["a"]}, index=["AB"]), "not a matrix of numbers"),
        (pd.DataFrame({"x": [1.0]}, index=["ABD"]), "unknown coefficient 'ABD'"),
    ],
)
def test_a_wrong_contrast_is_refused(contrast: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_contrasts(contrast, NAMES)


def test_an_ambiguous_alias_is_refused_only_when_it_is_used() -> None:
    names = ["cls[11]", "cls1[1]", "x"]
    assert weights("x - cls[11]", names) == {"x": 1, "cls[11]": -1}
    with pytest.raises(InputError, match=r"'cls11' may mean 'cls\[11\]', 'cls1\[1\]'"):
        parse_contrasts("x - cls11", names)
    both_orders = ["a[1]:b[1]", "b[1]:a[1]"]
    assert weights("b1:a1", both_orders) == {"b[1]:a[1]": 1}
    coded_twice = ["cls[1]:trt[T.B]", "cls[1]:trt[B]"]
    assert weights("cls[1]:trt[B]", coded_twice) == {"cls[1]:trt[B]": 1}
    with pytest.raises(InputError, match="write the full name"):
        parse_contrasts("trtB:cls1", coded_twice)


def test_an_exact_name_outranks_an_alias_and_the_longest_name_is_read() -> None:
    assert weights("cls1", ["cls[1]", "cls1"]) == {"cls1": 1}
    names = ["a", "b", "a-b", "2", "10 kb"]
    assert weights("a-b", names) == {"a-b": 1}
    assert weights("a - b", names) == {"a": 1, "b": -1}
    assert weights("2", names) == {"2": 1}
    assert weights("2*a - `2`", names) == {"a": 2, "2": -1}
    assert weights("10 kb - a", names) == {"10 kb": 1, "a": -1}


def test_names_from_r_are_understood_as_they_are() -> None:
    names = ["(Intercept)", "log(libsize)", "cls1:trtB"]
    assert weights("Intercept - trtB:cls1", names) == {"(Intercept)": 1, "cls1:trtB": -1}


def test_resolve_names() -> None:
    assert resolve_names(["cls1", 0, -1, np.int64(1), "trtB:cls2"], NAMES) == [2, 0, 11, 1, 5]
    assert resolve_names("(Intercept)", NAMES) == [0]
    assert resolve_names(3, NAMES) == [3]
    assert resolve_names(pd.Index(["`AB`", " ABC "]), NAMES) == [6, 7]
    assert resolve_names([], NAMES) == []


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        (["AB - ABC"], "unknown coefficient 'AB - ABC'"),
        ([12], "coefficient 12 is out of range: positions run from 0 to 11"),
        ([-13], "out of range"),
        ([True], "by its name or its position, not by True"),
        ([1.5], "by its name or its position"),
        (None, "by its name or its position"),
        (["cls9"], "Did you mean 'cls1'"),
    ],
)
def test_resolve_names_refuses(requested: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_names(requested, NAMES)


def test_repeated_coefficient_names_are_refused() -> None:
    with pytest.raises(InputError, match="occur more than once: 'a'"):
        parse_contrasts("a", ["a", "b", "a"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Intercept", "(Intercept)"),
        ("age", "age"),
        ("cls[1]:trt[T.B]", "cls1:trtB"),
        (MONOCYTES, "cluster_idCD14+ Monocytes:group_idstim"),
        ("C(x)[T.a]:log(libsize)", "C(x)a:log(libsize)"),
        ("g[a:b[c]]:x", "ga:b[c]:x"),
        ("poly(x, 2)[1]", "poly(x, 2)1"),
        ("C(x[0], contr.treatment)[T.a]", "C(x[0], contr.treatment)a"),
    ],
)
def test_r_name(name: str, expected: str) -> None:
    assert r_name(name) == expected
    assert resolve_names(expected, ["other", name]) == [1]


# Levels as users have them: operators, spaces, digits, dots, colons, commas.
LEVELS = st.text(alphabet="aB1+-*/.: ,_=", min_size=1, max_size=6).map(lambda s: f"L{s}e")


@given(
    levels=st.lists(LEVELS, min_size=3, max_size=5, unique=True),
    numbers=st.lists(st.integers(-9, 9).filter(bool), min_size=3, max_size=3),
)
def test_any_level_is_read_back_from_an_expression(levels: list[str], numbers: list[int]) -> None:
    names = ["Intercept", *(f"g[{level}]:trt[T.B]" for level in levels)]
    chosen = names[1:4]
    terms = zip(numbers, chosen, strict=True)
    expression = " + ".join(f"{number}*{name}/4" for number, name in terms)
    quarter = {name: number / 4 for number, name in zip(numbers, chosen, strict=True)}
    assert weights(expression, names) == quarter
    for name in chosen:
        assert resolve_names(r_name(name), names) == [names.index(name)]
