"""Every kind of Y gives the same sums; what does not fit is refused by name."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr

import flashmm as fm
from flashmm.designs.from_arrays import design_from_arrays
from flashmm.exceptions import InputError, MissingSamplesWarning
from flashmm.sources import make_source
from flashmm.stats.summary_stats import SummaryStats

M, N = 5, 24
FEATURES = ["gène 1", "g2", "g3", "g4", "g5"]
SAMPLES = [f"cell {i}" for i in range(N)]


def counts() -> np.ndarray:
    return np.random.default_rng(7).poisson(1.2, size=(M, N))


def samples() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    return pd.DataFrame(
        {"x": rng.normal(size=N), "g": np.tile(list("abcdef"), N // 6)}, index=SAMPLES
    )


def frame() -> pd.DataFrame:
    return pd.DataFrame(counts(), index=FEATURES, columns=SAMPLES)


def stats_of(Y, data=None, **options) -> SummaryStats:
    data = samples() if data is None else data
    return fm.MultiLMM.from_formula("~ x + (1 | g)", None, data, Y, **options).stats


def assert_same_sums(stats: SummaryStats, expected: SummaryStats) -> None:
    assert stats.n == expected.n
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        np.testing.assert_allclose(
            getattr(stats, name), getattr(expected, name), rtol=1e-13, atol=1e-12, err_msg=name
        )
    np.testing.assert_allclose(stats.ZZ.toarray(), expected.ZZ.toarray(), rtol=1e-13)


KINDS = {
    "int array": lambda Y: Y,
    "uint8": lambda Y: Y.astype(np.uint8),
    "float32": lambda Y: Y.astype(np.float32),
    "Fortran order": np.asfortranarray,
    "list": lambda Y: Y.tolist(),
    "objects": lambda Y: Y.astype(object),
    "masked, nothing masked": np.ma.masked_array,
    "csr_matrix": sp.csr_matrix,
    "csr_array": sp.csr_array,
    "csc_matrix": sp.csc_matrix,
    "csc_array float32": lambda Y: sp.csc_array(Y.astype(np.float32)),
    "coo_array": sp.coo_array,
    "lil": sp.lil_array,
    "dok": sp.dok_matrix,  # of a class that is a mapping too
    "DataFrame": lambda Y: pd.DataFrame(Y, FEATURES, SAMPLES),
    "DataFrame of objects": lambda Y: pd.DataFrame(Y, FEATURES, SAMPLES, dtype=object),
    "DataFrame Int64": lambda Y: pd.DataFrame(Y, FEATURES, SAMPLES).astype("Int64"),
    "DataFrame of mixed dtypes": lambda Y: pd.DataFrame(Y, FEATURES, SAMPLES).astype(
        {SAMPLES[0]: "Float32", SAMPLES[1]: "int8", SAMPLES[2]: float}
    ),
    "sparse DataFrame": lambda Y: pd.DataFrame.sparse.from_spmatrix(
        sp.csr_matrix(Y), FEATURES, SAMPLES
    ),
    "DataArray": lambda Y: xr.DataArray(Y, dims=("feature", "sample")),
    "DataArray, other order": lambda Y: xr.DataArray(Y.T, dims=("obs", "var")),
    "DataArray, one dim known": lambda Y: xr.DataArray(Y.T, dims=("cell", "protein")),
    "labelled DataArray": lambda Y: xr.DataArray(
        Y.T, dims=("cells", "genes"), coords={"cells": SAMPLES, "genes": FEATURES}
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", [None, "log2p1"])
def test_every_kind_of_y_gives_the_same_sums(kind, transform):
    stats = stats_of(KINDS[kind](counts()), transform=transform)
    expected = stats_of(counts().astype(np.float64), transform=transform)
    assert_same_sums(stats, expected)
    labelled = "DataFrame" in kind or "labelled" in kind
    assert list(stats.feature_names) == (FEATURES if labelled else list(range(M)))


def test_sums_are_those_of_the_definition():
    data, Y = samples(), np.log2(1.0 + counts())
    stats = stats_of(frame(), transform="log2p1")
    X = np.column_stack([np.ones(N), data["x"]])
    Z = (data["g"].to_numpy()[:, None] == np.array(list("abcdef"))).astype(float)
    np.testing.assert_allclose(stats.XY, X.T @ Y.T, rtol=1e-13)
    np.testing.assert_allclose(stats.ZY, Z.T @ Y.T, rtol=1e-13)
    np.testing.assert_allclose(stats.yy, (Y**2).sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(stats.ZX, Z.T @ X, rtol=1e-13)


@pytest.mark.parametrize(
    "make",
    [
        lambda Y: Y > 0,
        lambda Y: sp.csr_array(Y > 0),
        lambda Y: pd.DataFrame(Y > 0).astype("boolean"),
        lambda Y: xr.DataArray(Y > 0, dims=("feature", "sample")),
    ],
)
def test_truth_values_count_as_zero_and_one(make):
    assert_same_sums(stats_of(make(counts())), stats_of((counts() > 0).astype(float)))


@pytest.mark.parametrize("kind", ["array", "list", "Series", "DataArray", "sparse"])
def test_one_dimension_is_one_feature(kind):
    y = counts()[0]
    makers = {
        "array": y,
        "list": y.tolist(),
        "Series": pd.Series(y, index=SAMPLES, name="ISG15", dtype="Int64"),
        "DataArray": xr.DataArray(y, dims=("sample",)),
        "sparse": sp.coo_array(y),
    }
    stats = stats_of(makers[kind])
    assert_same_sums(stats, stats_of(counts()[:1]))
    assert list(stats.feature_names) == (["ISG15"] if kind == "Series" else [0])


def test_entries_of_a_sparse_matrix_stored_twice_are_summed_before_the_transform():
    Y = sp.coo_array(([1.0, 3.0, 2.0], ([0, 0, 1], [4, 4, 0])), shape=(2, N))  # (0, 4) holds 1 + 3
    direct = sp.csr_array((np.array([1.0, 3.0]), np.array([4, 4]), np.array([0, 2])), shape=(1, N))
    assert stats_of(Y, transform="log2p1").yy[0] == pytest.approx(np.log2(5.0) ** 2)
    assert stats_of(direct, transform="log2p1").yy[0] == pytest.approx(np.log2(5.0) ** 2)
    assert direct.nnz == 2  # the caller's matrix is left alone


# ---- labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [SAMPLES, [10 * i for i in range(N)]], ids=["text", "integers"])
def test_columns_are_matched_by_label_whatever_their_order(labels):
    data, Y = samples().set_axis(labels), frame().set_axis(labels, axis=1)
    shuffled = np.random.default_rng(3).permutation(N)
    expected = stats_of(Y, data)
    for kind in (
        Y.iloc[:, shuffled],
        xr.DataArray(
            Y.iloc[:, shuffled].to_numpy(),
            dims=("g", "sample"),
            coords={"sample": Y.columns[shuffled]},
        ),
        pd.DataFrame.sparse.from_spmatrix(sp.csr_matrix(Y), Y.index, Y.columns).iloc[:, shuffled],
    ):
        assert_same_sums(stats_of(kind, data), expected)
    assert_same_sums(stats_of(Y, data.iloc[shuffled]), expected)
    wrong = stats_of(Y.iloc[:, shuffled].to_numpy(), data)
    assert not np.allclose(wrong.ZY, expected.ZY)  # so that position would have been noticed


def test_a_series_is_matched_by_label():
    y = frame().iloc[0]
    assert_same_sums(stats_of(y.iloc[::-1]), stats_of(y))


def test_without_labels_on_one_side_position_decides():
    Y = frame()
    expected = stats_of(Y.to_numpy())
    assert_same_sums(stats_of(Y.iloc[:, ::-1].to_numpy()[:, ::-1]), expected)
    assert_same_sums(stats_of(Y.T.reset_index(drop=True).T), expected)
    assert_same_sums(stats_of(Y, samples().reset_index(drop=True)), expected)


def test_default_labels_count_beside_the_same_numbers_shuffled():
    data, Y = samples().reset_index(drop=True), pd.DataFrame(counts())
    shuffled = np.random.default_rng(3).permutation(N)
    expected = stats_of(Y, data)
    assert_same_sums(stats_of(Y.iloc[:, shuffled], data), expected)
    assert_same_sums(stats_of(Y, data.iloc[shuffled]), expected)
    assert_same_sums(stats_of(Y, data.iloc[::-1]), expected)


def test_rows_filtered_from_data_with_default_labels_go_by_position():
    data = samples().reset_index(drop=True)
    kept = data.iloc[[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13]]
    Y = counts()[:, kept.index]
    assert_same_sums(stats_of(pd.DataFrame(Y), kept), stats_of(Y, kept))


def test_labels_of_x_match_those_of_y_in_from_arrays():
    X = samples()[["x"]]
    Z = pd.get_dummies(samples()["g"])
    expected = SummaryStats.from_arrays(frame(), X, Z)
    assert_same_sums(SummaryStats.from_arrays(frame().iloc[:, ::-1], X, Z), expected)
    assert expected.coef_names == ("x",)
    assert expected.structure.column_names[0] == "Z1[a]"
    with pytest.raises(InputError, match="row 0 is 'cell 0' in X and 'cell 23' in Z"):
        SummaryStats.from_arrays(frame(), X, Z.iloc[::-1])


# ---- memory ------------------------------------------------------------------------------


def keeps_no_zero(values):
    return np.exp(-values)


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csc_array])
@pytest.mark.parametrize("transform", [None, "log1p", np.sqrt, keeps_no_zero])
def test_sparse_y_is_never_dense_as_a_whole(monkeypatch, transform, kind):
    rng = np.random.default_rng(1)
    Y = sp.csr_array(np.where(rng.random((40, 30)) < 0.2, rng.random((40, 30)), 0.0))
    design = design_from_arrays(np.ones((30, 1)), np.kron(np.eye(6), np.ones((5, 1))))
    expected = SummaryStats.from_design(make_source(Y.toarray(), transform=transform), design)
    shapes = []

    def watched(original):
        def toarray(self, *args, **kwargs):
            shapes.append(self.shape)
            return original(self, *args, **kwargs)

        return toarray

    for matrix in (sp.csr_array, sp.csc_array, sp.coo_array, sp.csr_matrix):
        for name in ("toarray", "todense"):
            monkeypatch.setattr(matrix, name, watched(getattr(matrix, name)))
    block_bytes = 8 * 30 * 10
    source = make_source(kind(Y), transform=transform)
    stats = SummaryStats.from_design(source, design, block_bytes=block_bytes, workers=1)
    assert_same_sums(stats, expected)
    assert all(8 * rows * columns <= block_bytes for rows, columns in shapes)
    if transform is not keeps_no_zero:  # only sums by the 6 groups are dense
        assert all(min(shape) <= 6 for shape in shapes)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, pd.DataFrame])
@pytest.mark.parametrize("transform", [None, "log2p1", keeps_no_zero])
def test_the_size_of_the_blocks_changes_nothing(make, transform):
    Y = counts().astype(float)
    Y[2] = 1e8 + Y[2]  # summed again after a shift, in blocks too
    source = make_source(make(Y), transform=None if transform == "log2p1" else transform)
    design = design_from_arrays(np.ones((N, 1)), np.kron(np.eye(6), np.ones((4, 1))))
    whole = SummaryStats.from_design(source, design)
    for size in (1, 8 * N, 8 * N * 2):
        parts = SummaryStats.from_design(source, design, block_bytes=size)
        assert_same_sums(parts, whole)
        if transform is not keeps_no_zero:
            np.testing.assert_allclose(parts.shift.yy, whole.shift.yy, rtol=1e-12)
    sizes = [b.values.shape[0] for b in make_source(np.zeros((5, 4))).blocks(8 * 4 * 2)]
    assert sizes == [2, 2, 1]


# ---- transforms --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transform", "function"),
    [
        ("log2p1", lambda v: np.log2(1.0 + v)),
        ("log1p", lambda v: np.log(1.0 + v)),
        (np.sqrt, np.sqrt),
        (np.cos, np.cos),  # a ufunc that does not keep zero
        (keeps_no_zero, keeps_no_zero),
        (lambda v: v > 0, lambda v: (v > 0) * 1.0),
        (lambda v: v / np.arange(1, N + 1), lambda v: v / np.arange(1, N + 1)),
    ],
)
@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, pd.DataFrame])
def test_transforms(make, transform, function):
    expected = stats_of(function(counts().astype(float)))
    assert_same_sums(stats_of(make(counts()), transform=transform), expected)


def test_a_transform_that_works_in_place_leaves_y_alone():
    def in_place(values):
        values += 1.0
        return values

    Y = counts().astype(float)
    before = Y.copy()
    assert_same_sums(stats_of(Y, transform=in_place), stats_of(before + 1.0))
    np.testing.assert_array_equal(Y, before)


def test_transforms_that_cannot_be_used():
    with pytest.raises(InputError, match=r"Unknown transform 'log2'. Did you mean 'log2p1'"):
        stats_of(counts(), transform="log2")
    with pytest.raises(InputError, match="a callable or None"):
        stats_of(counts(), transform=3)
    with pytest.raises(InputError, match=r"changed the shape of a block from \(5, 24\) to \(24,\)"):
        stats_of(counts(), transform=lambda v: v.sum(axis=0))
    with pytest.raises(InputError, match=r"failed on a block of Y: .*broadcast"):
        stats_of(counts(), transform=lambda v: v + np.ones(3))


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array, lambda Y: frame() * 0 + Y])
@pytest.mark.parametrize("transform", ["log2p1", "log1p", np.log1p])
def test_negative_counts_under_a_logarithm_are_named(make, transform):
    Y = counts()
    Y[1, 5] = -2
    with pytest.raises(InputError, match="turns -2 into a value that is not finite") as caught:
        stats_of(make(Y), transform=transform)
    assert "sample 'cell 5'" in str(caught.value)
    assert "Counts must not be negative" in str(caught.value)
    stats_of(make(Y))  # without the logarithm nothing is wrong


def test_a_transform_that_is_not_finite_at_zero_is_named():
    with pytest.raises(InputError, match=r"transform 'log' turns 0 into .*feature 0, sample"):
        stats_of(counts(), transform=np.log)


# ---- missing and infinite ----------------------------------------------------------------


def with_value(value, kind: str):
    Y = counts().astype(float)
    Y[3, 7] = value
    makers = {
        "array": lambda: Y,
        "csr": lambda: sp.csr_array(Y),
        "csc": lambda: sp.csc_array(Y),
        "Fortran order": lambda: np.asfortranarray(Y),
        "frame": lambda: pd.DataFrame(Y, FEATURES, SAMPLES),
        "nullable": lambda: pd.DataFrame(Y, FEATURES, SAMPLES).convert_dtypes(),
        "objects": lambda: np.where(np.isnan(Y), None, Y.astype(object)),
        "masked": lambda: np.ma.masked_invalid(Y),
    }
    return makers[kind]()


MISSING_KINDS = ["array", "csr", "csc", "Fortran order", "frame", "nullable", "objects", "masked"]


@pytest.mark.parametrize("kind", MISSING_KINDS)
def test_a_missing_value_of_y_is_named(kind):
    with pytest.raises(InputError, match="Y has a missing value") as caught:
        stats_of(with_value(np.nan, kind))
    feature = "'g4'" if kind in ("frame", "nullable") else "3"
    assert f"feature {feature}, sample 'cell 7'" in str(caught.value)
    assert "missing='drop'" in str(caught.value)


@pytest.mark.parametrize("missing", ["raise", "drop"])
@pytest.mark.parametrize("value", [np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["array", "csr", "csc", "Fortran order", "frame"])
def test_an_infinite_value_of_y_is_named_and_never_dropped(kind, value, missing):
    with pytest.raises(InputError, match=r"Y is infinite: feature .*sample 'cell 7'"):
        stats_of(with_value(value, kind), missing=missing)


@pytest.mark.parametrize("kind", MISSING_KINDS)
def test_drop_leaves_the_same_samples_out_everywhere(kind):
    data = samples().astype({"g": "category"})
    data.loc["cell 2", "x"] = np.nan
    data.loc[data["g"] == "f", "g"] = np.nan  # the level f vanishes
    gone = {2, 7, 5, 11, 17, 23}
    kept = [i for i in range(N) if i not in gone]
    with pytest.warns(MissingSamplesWarning, match="6 of 24 samples") as record:
        model = fm.MultiLMM.from_formula(
            "~ x + (1 | g)", None, data, with_value(np.nan, kind), missing="drop"
        )
    assert len(record) == 1
    assert model.n_dropped == 6
    expected = stats_of(counts()[:, kept], samples().iloc[kept])
    assert_same_sums(model.stats, expected)
    assert model.stats.structure.column_names == tuple(f"g[{level}]" for level in "abcde")
    assert "Samples dropped:     6" in str(model.fit(parameter_space="psd").summary())


def test_a_level_that_vanishes_with_the_missing_values_of_y_alone_is_gone():
    Y = frame().astype(float)
    Y.loc["g2", [f"cell {i}" for i in (5, 11, 17, 23)]] = np.nan
    with pytest.warns(MissingSamplesWarning, match="4 of 24"):
        stats = stats_of(Y, missing="drop")
    assert stats.structure.column_names == tuple(f"g[{level}]" for level in "abcde")
    assert stats.n == 20


def test_drop_follows_labels():
    Y = frame().astype(float)
    Y.loc["g2", "cell 7"] = np.nan
    shuffled = Y.iloc[:, np.random.default_rng(3).permutation(N)]
    with pytest.warns(MissingSamplesWarning, match="1 of 24"):
        stats = stats_of(shuffled, missing="drop")
    kept = [i for i in range(N) if i != 7]
    assert_same_sums(stats, stats_of(frame().iloc[:, kept], samples().iloc[kept]))


def test_drop_with_nothing_to_drop_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_sums(stats_of(frame(), missing="drop"), stats_of(frame()))


def test_positions_in_messages_are_those_of_the_original_samples():
    Y = counts().astype(float)
    Y[0, 3], Y[1, 10] = np.nan, np.inf
    data = samples().reset_index(drop=True)
    with pytest.warns(MissingSamplesWarning), pytest.raises(InputError, match="sample 10"):
        stats_of(Y, data, missing="drop")


# ---- refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (frame().T, "Y is transposed.*Pass Y.T"),
        (frame().T.to_numpy(), r"looks transposed.*\(24, 5\). Pass Y.T"),
        (sp.csr_array(frame().T), "looks transposed"),
        (frame().iloc[:, :20], "without a column in Y: 'cell 20', 'cell 21'"),
        (frame().iloc[:, :20].to_numpy(), r"Y has 20 samples \(columns\), but the design has 24"),
        (frame().rename(columns={"cell 3": "cell x"}), "without a row in `data`: 'cell x'"),
        (frame().rename(columns={"cell 3": "cell 4"}), "duplicate sample labels: 'cell 4'"),
        (frame().rename(index={"g3": "g2"}), "Duplicate feature names: 'g2'"),
        (frame().set_axis([1, "1", 2, 3, 4]), "Duplicate feature names: '1'"),
        (frame().astype(str), "must be numeric; these columns are not: 'cell 0'|not .string."),
        (frame().reset_index(), "these columns are not: 'index'.*make it the index"),
        (counts().astype(str), "must be numeric; its dtype is <U"),
        (counts().astype(str).astype(object), r"holds objects that are not \(string\)"),
        (counts() + 1j, "its dtype is complex128"),
        (sp.csr_array(counts() + 1j), "its dtype is complex128"),
        (np.zeros((2, 3, N)), "two dimensions, features x samples; it has 3"),
        ([[1.0, 2.0], [3.0]], "rectangular array"),
        ({"a": 1}, "it is a dict, whose values must be one number"),
        (pd.Series(["a"] * N, index=SAMPLES), "must be numeric"),
        (xr.DataArray(counts(), dims=("a", "b")), "'a' and 'b', do not say which"),
        (xr.DataArray(counts(), dims=("cell", "obs")), "'cell' and 'obs', do not say which"),
        (xr.DataArray(np.zeros((1, 2, N)), dims=("a", "b", "sample")), "must have two dims"),
    ],
)
def test_y_that_is_refused(Y, message):
    with pytest.raises(InputError, match=message):
        stats_of(Y)


def test_labels_of_different_types_are_pointed_out():
    data = samples().set_axis([str(i) for i in range(100, 100 + N)])
    Y = frame().set_axis(list(range(100, 100 + N)), axis=1)
    with pytest.raises(InputError, match="look alike but are integer in Y and string in `data`"):
        stats_of(Y, data)


def test_duplicate_labels_of_data_are_named():
    with pytest.raises(InputError, match="index of `data` has duplicate labels: 'cell 1'"):
        stats_of(frame(), samples().rename(index={"cell 2": "cell 1"}))
    # by position, labels do not matter
    assert_same_sums(
        stats_of(counts(), samples().rename(index={"cell 2": "cell 1"})), stats_of(counts())
    )


def test_no_features_at_all():
    stats = stats_of(np.zeros((0, N)))
    assert stats.m == 0
    assert stats.XY.shape == (2, 0)
