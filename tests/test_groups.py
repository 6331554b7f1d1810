"""Sums by group: those without a group are those of the data without its samples."""

from __future__ import annotations

from enum import Enum
from functools import cache

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import flashmm as fm
from flashmm.stats import grouping

N, M = 96, 5
FORMULAS = ["(1 | g)", "(1 | g) + (1 | item)", "(1 + x | g)"]


@cache
def table():
    rng = np.random.default_rng(3)
    data = pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "trt": np.tile(["A", "B", "B"], N // 3),
            "g": np.repeat([f"s{i}" for i in range(8)], N // 8),
            "item": np.tile(list("abcd"), N // 4),
            "w": rng.uniform(0.5, 2.0, N),
        }
    )
    Y = rng.normal(size=(M, N))
    Y[2] += 1e7  # the variation drowns in the raw sums
    order = rng.permutation(N)
    return data.iloc[order].reset_index(drop=True), Y[:, order]


def stats(random="(1 | g)", Y=None, keep=slice(None), **options):
    data, whole = table()
    Y = whole[:, keep] if Y is None else Y
    rows = data[keep].reset_index(drop=True)
    return fm.MultiLMM.from_formula("~ x + trt", random, rows, Y, **options).stats


def assert_same(found, expected, rtol=1e-9):
    """Equal statistics, and equal variation of the feature that is shifted."""
    assert found.n == expected.n
    assert found.structure == expected.structure
    for name in ("XX", "XY", "ZX", "ZY", "yy", "log_weights"):
        one, other = (np.asarray(getattr(s, name)) for s in (found, expected))
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * np.abs(other).max())
    np.testing.assert_allclose(found.ZZ.toarray(), expected.ZZ.toarray(), rtol=rtol, atol=1e-12)
    assert found.ZZ.nnz == expected.ZZ.nnz
    if expected.shift is not None:
        assert found.shift.features.tolist() == expected.shift.features.tolist()
        np.testing.assert_allclose(found.shift.yy, expected.shift.yy, rtol=1e-6)


def without(labels):
    return ~table()[0]["g"].isin(labels).to_numpy()


@pytest.mark.parametrize("weights", [None, "w"])
@pytest.mark.parametrize("random", FORMULAS)
def test_without_a_group_is_the_data_without_it(random, weights):
    by = stats(random, sums_by="g", weights=weights)
    assert_same(by, stats(random, weights=weights))
    for gone in ("s3", ["s0", "s6"]):
        names = [gone] if isinstance(gone, str) else gone
        expected = stats(random, keep=without(names), weights=weights)
        assert_same(by.without(gone), expected)
    assert_same(
        by.without("s0").without("s6"), stats(random, keep=without(["s0", "s6"]), weights=weights)
    )


def sources():
    _, Y = table()
    dask = pytest.importorskip("dask.array")
    return {
        "by samples": np.asfortranarray(Y),
        "csr": sp.csr_array(np.where(Y < 0.5, 0.0, Y)),
        "csc": sp.csc_array(np.where(Y < 0.5, 0.0, Y)),
        "dask": dask.from_array(Y, chunks=(2, 40)),
        "blocks": [(np.arange(i, i + 24), Y[:, i : i + 24]) for i in range(0, N, 24)],
    }


@pytest.mark.parametrize("kind", ["by samples", "csr", "csc", "dask", "blocks"])
def test_every_source(kind):
    Y = sources()[kind]
    dense = table()[1]
    if "cs" in kind:
        dense = Y.toarray()
    expected = stats(Y=dense, sums_by="g")
    made = stats(Y=iter(Y) if kind == "blocks" else Y, sums_by="g")
    assert set(made.groups.labels) == set(expected.groups.labels)
    assert_same(made.without("s5"), stats(Y=dense[:, without(["s5"])], keep=without(["s5"])), 1e-8)


def test_added_subtracted_updated_selected_and_saved(tmp_path):
    first, second = (
        stats("(1 | g) + (1 | item)", keep=part, sums_by="g")
        for part in (slice(0, 50), slice(50, None))
    )
    whole = stats("(1 | g) + (1 | item)", sums_by="g")
    total = first + second
    for label in ("s1", "s7"):
        for name in ("XX", "XY", "yy"):
            one, other = (getattr(s.without(label), name) for s in (total, whole))
            np.testing.assert_allclose(one, other, rtol=1e-9)
    back = total - second
    np.testing.assert_allclose(back.without("s1").XX, first.without("s1").XX, atol=1e-9)
    smaller = whole.keep(fixed=["Intercept", "x"], random="g").take([3, 1]).without("s2")
    expected = stats("(1 | g) + (1 | item)", keep=without(["s2"]))
    assert_same(smaller, expected.keep(fixed=["Intercept", "x"], random="g").take([3, 1]))
    for suffix in ("nc", "zarr"):
        whole.save(tmp_path / f"sums.{suffix}")
        again = fm.SummaryStats.load(tmp_path / f"sums.{suffix}")
        assert again.groups.name == "g"
        assert_same(again.without(["s4", "s5"]), whole.without(["s4", "s5"]))
    with pytest.raises(fm.InputError, match="sums_by"):
        whole + stats("(1 | g) + (1 | item)")
    with pytest.raises(fm.InputError, match="ungrouped"):
        whole - stats("(1 | g) + (1 | item)", keep=slice(0, 10))
    assert (whole.ungrouped() + stats("(1 | g) + (1 | item)")).groups is None
    renamed = fm.MultiLMM.from_summary_stats(whole, feature_names=list("vwxyz")).stats
    assert renamed.without("s1").feature_names.tolist() == list("vwxyz")


def test_matrices_and_blocks():
    rng = np.random.default_rng(0)
    X, Z = np.ones((12, 1)), np.kron(np.eye(4), np.ones((3, 1)))
    Y, by = rng.normal(size=(2, 12)), np.repeat([10, 9, 8, 7], 3)
    whole = fm.SummaryStats.from_arrays(Y, X, Z, sums_by=by)
    assert whole.groups.labels == ("7", "8", "9", "10")
    halves = [(Y[:, s], X[s], Z[s], by[s]) for s in (slice(0, 5), slice(5, 12))]
    for made in (
        fm.SummaryStats.from_blocks(halves),
        fm.SummaryStats.from_arrays(*halves[0][:3], sums_by=halves[0][3]).update(
            *halves[1][:3], sums_by=halves[1][3]
        ),
        fm.MultiLMM.from_arrays(Y, X, Z, sums_by=pd.Series(by, name="g")).stats,
    ):
        left = made.without(9)
        assert left.n == 9
        np.testing.assert_allclose(left.yy, (Y[:, by != 9] ** 2).sum(axis=1))


def test_nearly_collinear_columns_keep_their_digits():
    """X'X alone has too few digits: the root of what is left comes from those of the groups."""
    rng = np.random.default_rng(1)
    x = 2000.0 + rng.uniform(0, 10, 60)
    data = pd.DataFrame({"x": x, "g": np.repeat(list("abcdef"), 10)})
    Y = rng.normal(size=(2, 60)) + 0.1 * x
    fixed = "~ x + I(x**2) + (1 | g)"
    keep = (data["g"] != "c").to_numpy()
    whole = fm.MultiLMM.from_formula(fixed, data=data, Y=Y, sums_by="g")
    alone = fm.MultiLMM.from_formula(fixed, data=data[keep], Y=Y[:, keep])
    found = fm.MultiLMM.from_summary_stats(whole.stats.without("c").ungrouped())
    one, other = (model.fit(parameter_space="psd").params for model in (found, alone))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sums_by": "h"}, "no column"),
        ({"sums_by": np.zeros(3)}, "shape"),
        ({"sums_by": np.array([None, *"b" * (N - 1)], dtype=object)}, "missing for sample 0"),
        ({"sums_by": np.array([1, "1"] * (N // 2), dtype=object)}, "read the same"),
        ({"sums_by": np.zeros(3), "weights": np.ones((M, N))}, "shape"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(fm.InputError, match=message):
        stats(**options)


def test_unknown_groups_and_room(monkeypatch):
    by = stats(sums_by="g")
    with pytest.raises(fm.InputError, match="'s99'"):
        by.without("s99")
    with pytest.raises(fm.InputError, match="nothing is left"):
        by.without(list(by.groups.labels))
    with pytest.raises(fm.InputError, match="sums_by"):
        stats().without("s1")
    monkeypatch.setattr(grouping, "GROUP_BYTES", 100)
    with pytest.raises(fm.InputError, match="GiB"):
        stats(sums_by="g")


def test_missing_values_are_dropped_before_groups_are_kept():
    data, Y = table()
    Y = Y.copy()
    Y[1, 4] = np.nan
    labels = data["g"].astype(object).copy()
    labels[4] = None  # of a sample that is dropped anyway
    with pytest.warns(fm.MissingSamplesWarning):
        made = fm.MultiLMM.from_formula(
            "~ x", "(1 | g)", data, Y, missing="drop", sums_by=labels.to_numpy()
        ).stats
    keep = np.arange(N) != 4
    expected = fm.MultiLMM.from_formula("~ x", "(1 | g)", data[keep], Y[:, keep]).stats
    assert_same(made, expected)
    by = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, table()[1], sums_by="trt:item").stats
    assert by.groups.labels[0] == "A:a"
    assert sum(part.n for part in by.groups.parts) == N


class _Sex(Enum):
    F, M = 1, 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1], [2]], "type list"),
        ([{"a": 1}, {"a": 2}], "type dict"),
        ([_Sex.F, _Sex.M], None),
        ([1 + 2j, 2j], None),
    ],
)
def test_groups_that_have_no_order_or_cannot_be_told_apart(labels, message):
    data, Y = table()
    data = data.assign(by=pd.Series([labels[i % 2] for i in range(N)], dtype=object))
    plain = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, Y).fit()
    if message is None:
        made = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, Y, sums_by="by").stats
        assert sorted(made.groups.labels) == sorted(str(label) for label in labels)
        plain.check_residuals(Y, data, by="by")
        return
    for sums_by in ("by", data["by"]):
        with pytest.raises(fm.InputError, match=message):
            fm.MultiLMM.from_formula("~ x", "(1 | g)", data, Y, sums_by=sums_by)
    with pytest.raises(fm.InputError, match=message):
        plain.check_residuals(Y, data, by="by")
    with pytest.raises(fm.InputError, match="label for each sample"):
        plain.check_residuals(Y, data, by=np.zeros((N, 2)))
