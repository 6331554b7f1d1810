"""Columns of dates, durations, decimals and Arrow's types: accepted, or explained by name."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.exceptions import InputError

N = 24
BASE = np.tile([1, 2, 3, 4], N // 4)
WHEN = pd.to_datetime("2020-01-01") + pd.to_timedelta(BASE, "D")


def stats(formula, column, **options):
    data = pd.DataFrame({"when": column, "g": np.repeat(list("abcdef"), 4), "y": BASE + 0.5})
    return fm.MultiLMM.from_formula(
        formula, None, data, np.random.default_rng(0).normal(size=(2, N)), **options
    ).stats


NOT_NUMBERS = {
    "datetime": (lambda: WHEN, "dates or times"),
    "with a zone": (lambda: WHEN.tz_localize("UTC"), "dates or times"),
    "seconds": (lambda: WHEN.astype("datetime64[s]"), "dates or times"),
    "objects": (lambda: WHEN.date, "dates or times"),
    "durations": (lambda: pd.to_timedelta(BASE, "D"), "durations"),
    "duration objects": (
        lambda: pd.Series([datetime.timedelta(int(b)) for b in BASE], dtype=object),
        "durations",
    ),
    "periods": (lambda: WHEN.to_period("D"), "periods"),
    "intervals": (
        lambda: pd.arrays.IntervalArray.from_tuples([(b, b + 1) for b in BASE]),
        "intervals",
    ),
}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
def test_what_is_no_number_is_explained_and_may_be_a_level(kind):
    make, noun = NOT_NUMBERS[kind]
    for formula in ("~ when + (1 | g)", "~ y:when + (1 | g)", "~ 1 + (0 + when | g)"):
        with pytest.raises(InputError, match=rf"'when' as numbers, but it holds {noun}.*Convert"):
            stats(formula, make())
    for formula in ("~ scale(when) + (1 | g)", "~ I(when * 2.5) + (1 | g)"):
        with pytest.raises(InputError, match=f"it holds {noun}"):
            stats(formula, make())
    assert len(stats("~ 1 + (1 | when)", make()).structure.column_names) == 4


def test_years_of_dates_and_dates_as_levels():
    assert stats("~ I(when.dt.day) + (1 | g)", WHEN).coef_names == ("Intercept", "I(when.dt.day)")
    assert len(stats("~ C(when) + (1 | g)", WHEN).coef_names) == 4


def test_decimals_are_numbers():
    plain = stats("~ when + (1 | g)", BASE / 4)
    found = stats("~ when + (1 | g)", [decimal.Decimal(int(b)) / 4 for b in BASE])
    np.testing.assert_array_equal(found.XX, plain.XX)
    assert found.coef_names == plain.coef_names


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0]] * N, "'when' of `data` holds lists"),
        ([{"a": 1}] * N, "'when' of `data` holds lists"),
        (BASE * 1j, "'when' of `data` holds complex numbers"),
    ],
)
def test_what_is_neither_number_nor_level(column, message):
    for formula in ("~ when + (1 | g)", "~ 1 + (1 | when)"):
        with pytest.raises(InputError, match=message):
            stats(formula, column)


# ---- Arrow -------------------------------------------------------------------------------


@pytest.fixture
def pa():
    return pytest.importorskip("pyarrow")


def arrow(array):
    return pd.Series(array, dtype=pd.ArrowDtype(array.type))


def test_dictionaries_of_arrow_are_categories_in_their_order(pa):
    letters = pd.Categorical(np.array(list("zyxw"))[BASE - 1], categories=list("zyxw"))
    expected = stats("~ when + (1 | g)", letters)
    found = stats("~ when + (1 | g)", arrow(pa.array(letters)))
    assert (
        found.coef_names
        == expected.coef_names
        == (
            "Intercept",
            "when[T.y]",
            "when[T.x]",
            "when[T.w]",
        )
    )
    np.testing.assert_array_equal(found.XX, expected.XX)
    in_chunks = pa.chunked_array([pa.array(letters[:10]), pa.array(letters[10:])])
    found = stats("~ C(when) + (1 | g)", arrow(in_chunks))
    np.testing.assert_array_equal(found.XX, expected.XX)
    levels = stats("~ 1 + (1 | when)", arrow(pa.array(letters))).structure.terms[0].levels
    assert levels == ("z", "y", "x", "w")
    numbers = arrow(pa.array(BASE).dictionary_encode())
    assert len(stats("~ when + (1 | g)", numbers).coef_names) == 4


def test_missing_values_in_a_dictionary_of_arrow(pa):
    letters = [None, *("abc"[b % 3] for b in BASE[1:])]
    column = arrow(pa.array(letters).dictionary_encode())
    with pytest.raises(InputError, match=r"missing values.*'when'"):
        stats("~ when + (1 | g)", column)
    with pytest.warns(fm.exceptions.MissingSamplesWarning):
        assert stats("~ when + (1 | g)", column, missing="drop").n == N - 1


def test_other_types_of_arrow(pa):
    quarters = [decimal.Decimal(int(b)) / 4 for b in BASE]
    plain = stats("~ when + (1 | g)", BASE / 4)
    np.testing.assert_array_equal(stats("~ when + (1 | g)", arrow(pa.array(quarters))).XX, plain.XX)
    for array, noun in (
        (pa.array(WHEN), "dates or times"),
        (pa.array(WHEN.date), "dates or times"),
        (pa.array([datetime.time(int(b)) for b in BASE]), "dates or times"),
        (pa.array(pd.to_timedelta(BASE, "D")), "durations"),
    ):
        with pytest.raises(InputError, match=f"'when' as numbers, but it holds {noun}"):
            stats("~ when + (1 | g)", arrow(array))
        assert len(stats("~ C(when) + (1 | g)", arrow(array)).coef_names) == 4
    for array in (pa.array([[1]] * N), pa.array([{"a": 1}] * N), pa.array([b"x"] * N)):
        with pytest.raises(InputError, match="'when' of `data` is of Arrow's type"):
            stats("~ when + (1 | g)", arrow(array))


def test_columns_of_y():
    Y = pd.DataFrame({"s1": WHEN[:3], "s2": [1.0, 2.0, 3.0]})
    with pytest.raises(InputError, match="these columns are not: 's1'"):
        fm.sources.make_source(Y)
    decimals = pd.DataFrame([[decimal.Decimal(1), decimal.Decimal(2)]], dtype=object)
    (block,) = fm.sources.make_source(decimals).blocks()
    np.testing.assert_array_equal(block.values, [[1.0, 2.0]])


def test_frames_of_arrow_as_y(pa):
    values = pa.array([decimal.Decimal(1) / 4, None])
    Y = pd.DataFrame({"s1": arrow(values), "s2": [1.0, 2.0]})
    (block,) = fm.sources.Source.blocks(fm.sources.make_source(Y.iloc[:1]))
    np.testing.assert_array_equal(block.values, [[0.25, 1.0]])
    for array in (pa.array(WHEN[:2]), pa.array(["a", "b"]).dictionary_encode()):
        with pytest.raises(InputError, match="these columns are not: 's1'"):
            fm.sources.make_source(pd.DataFrame({"s1": arrow(array), "s2": [1.0, 2.0]}))


def test_new_data_may_have_another_wrapping(pa):
    letters = np.array(list("abcd"))[BASE - 1]
    data = pd.DataFrame({"when": pd.Categorical(letters), "g": np.repeat(list("abcdef"), 4)})
    Y = np.random.default_rng(0).normal(size=(2, N))
    result = fm.MultiLMM.from_formula("~ when + (1 | g)", None, data, Y).fit()
    new = pd.DataFrame({"when": arrow(pa.array(list("ba")).dictionary_encode())})
    expected = result.predict(pd.DataFrame({"when": ["b", "a"]}))
    np.testing.assert_array_equal(result.predict(new), expected)
