"""SummaryStats: sums over samples that add up, split, and keep the digits of the data."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.stats.summary_stats import SummaryStats

N, L, M = 60, 6, 4


def arrays(seed: int = 0, n: int = N):
    """X with an intercept, a covariate and a treatment; indicator Z; Y with all effects."""
    rng = np.random.default_rng(seed)
    group = np.arange(n) % L
    X = np.column_stack([np.ones(n), rng.normal(size=n), (np.arange(n) // L) % 2])
    Z = np.eye(L)[group]
    Y = rng.normal(size=(M, 3)) @ X.T + rng.normal(size=(M, L)) @ Z.T + rng.normal(size=(M, n))
    return Y, X, Z


def assert_same(left: SummaryStats, right: SummaryStats, rtol: float = 1e-12) -> None:
    assert left.n == right.n
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        a, b = getattr(left, name), getattr(right, name)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(), 1e-300))
    np.testing.assert_allclose(left.ZZ.toarray(), right.ZZ.toarray(), rtol=rtol)
    assert list(left.feature_names) == list(right.feature_names)
    assert left.coef_names == right.coef_names
    assert left.structure == right.structure


def fit_of(stats: SummaryStats):
    return fm.MultiLMM(stats).fit(parameter_space="psd")


def assert_same_fit(left: SummaryStats, right: SummaryStats, rtol: float) -> None:
    a, b = fit_of(left), fit_of(right)
    assert b.converged.all()
    assert a.status.tolist() == b.status.tolist()
    theta = b.theta.to_numpy()
    residual = theta[:, -1:]
    np.testing.assert_allclose(
        a.theta.to_numpy() / residual, theta / residual, rtol=rtol, atol=rtol
    )
    error = b.bse.to_numpy()
    np.testing.assert_allclose(a.bse.to_numpy(), error, rtol=rtol)
    beta = b.params.to_numpy()
    assert (np.abs(a.params.to_numpy() - beta) <= rtol * (error + np.abs(beta))).all()


# ---- the sums ----------------------------------------------------------------------------


@pytest.mark.parametrize("sparse_Z", [False, True])
def test_fields_are_the_cross_products(sparse_Z):
    Y, X, Z = arrays()
    stats = SummaryStats.from_arrays(Y, X, sp.csc_matrix(Z) if sparse_Z else Z)
    assert (stats.n, stats.p, stats.q, stats.m) == (N, 3, L, M)
    np.testing.assert_allclose(stats.XX, X.T @ X, rtol=1e-14)
    np.testing.assert_allclose(stats.XY, X.T @ Y.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats.ZX, Z.T @ X, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(stats.ZY, Z.T @ Y.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats.ZZ.toarray(), Z.T @ Z, rtol=1e-14)
    np.testing.assert_allclose(stats.yy, (Y * Y).sum(axis=1), rtol=1e-13)
    assert sp.issparse(stats.ZZ)
    assert stats.coef_names == ("x1", "x2", "x3")
    assert list(stats.feature_names) == [0, 1, 2, 3]
    assert stats.shift is None
    assert repr(stats) == (
        "<SummaryStats: n=60 samples, m=4 features, p=3 fixed effects, q=6 random effects>"
    )


def test_labels_come_from_frames_or_are_given():
    Y, X, Z = arrays()
    X = pd.DataFrame(X, columns=["one", "age", "trt"])
    assert SummaryStats.from_arrays(Y, X, Z).coef_names == ("one", "age", "trt")
    stats = SummaryStats.from_arrays(
        Y,
        X,
        Z,
        components={"donor": 4, "batch": 2},
        coef_names=["a", "b", "c"],
        feature_names=["w", "x", "y", "z"],
    )
    assert stats.coef_names == ("a", "b", "c")
    assert list(stats.feature_names) == ["w", "x", "y", "z"]
    assert stats.structure.param_names == ("donor", "batch", "Residual")


@pytest.mark.parametrize("cuts", [[30], [1, 2, 3, 59], [7, 20, 21, 45]])
def test_parts_of_the_samples_add_up(cuts):
    Y, X, Z = arrays()
    whole = SummaryStats.from_arrays(Y, X, Z)
    edges = [0, *cuts, N]
    slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
    parts = [SummaryStats.from_arrays(Y[:, s], X[s], Z[s]) for s in slices]
    assert_same(sum(parts), whole)
    assert_same(parts[0] + sum(parts[1:]), whole)
    assert_same(SummaryStats.from_blocks((Y[:, s], X[s], Z[s]) for s in slices), whole)
    # parts smaller than p fit X exactly, but their union does not need their shifts
    assert sum(parts).shift is None
    assert_same_fit(sum(parts), whole, 1e-8)


def test_blocks_take_the_options_of_from_arrays():
    Y, X, Z = arrays()
    counts = np.random.default_rng(1).poisson(2.0, size=Y.shape)
    options = {
        "components": [4, 2],
        "transform": "log2p1",
        "feature_names": list("wxyz"),
        "coef_names": list("abc"),
    }
    blocks = (
        (sp.csr_array(counts[:, s]), X[s], sp.csr_array(Z[s])) for s in (slice(25), slice(25, N))
    )
    assert_same(
        SummaryStats.from_blocks(blocks, **options),
        SummaryStats.from_arrays(counts, X, Z, **options),
    )
    with pytest.raises(InputError, match="`blocks` is empty"):
        SummaryStats.from_blocks([])


def test_addition_refuses_other_labels():
    Y, X, Z = arrays()

    def build(**options):
        return SummaryStats.from_arrays(Y, X, Z, **options)

    one = build(feature_names=list("abcd"), coef_names=list("xyz"))
    with pytest.raises(
        InputError, match=r"different features: only on the left: 'd'; .*right: 'e'"
    ):
        one + build(feature_names=list("abce"), coef_names=list("xyz"))
    with pytest.raises(InputError, match="different coefficients: only on the left: 'z'"):
        one + build(feature_names=list("abcd"), coef_names=list("xyw"))
    with pytest.raises(InputError, match="different variance components: 'Z1', 'Residual' and"):
        one + build(feature_names=list("abcd"), coef_names=list("xyz"), components=[4, 2])
    with pytest.raises(InputError, match="6 and 5 columns in 'Z1', without labels"):
        one + SummaryStats.from_arrays(
            Y, X, Z[:, :5], feature_names=list("abcd"), coef_names=list("xyz")
        )
    with pytest.raises(InputError, match="different features"):
        one + one.take(["a"])
    with pytest.raises(InputError, match="no feature in common"):
        one.take(["a"]).add(one.take(["b"]), features="intersect")
    with pytest.raises(InputError, match=r"Unknown features='intersection'. Did you mean 'inters"):
        one.add(one, features="intersection")
    with pytest.raises(TypeError):
        one + 1
    with pytest.raises(TypeError):
        1 + one


# ---- take --------------------------------------------------------------------------------

SELECTIONS = {
    "names": ["d", "b"],
    "positions": [3, 1],
    "negative positions": [-1, -3],
    "array": np.array([3, 1]),
    "Index": pd.Index(["d", "b"]),
}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_take_keeps_the_order_asked_for(selection):
    Y, X, Z = arrays()
    stats = SummaryStats.from_arrays(Y, X, Z, feature_names=list("abcd"))
    taken = stats.take(SELECTIONS[selection])
    assert_same(taken, SummaryStats.from_arrays(Y[[3, 1]], X, Z, feature_names=["d", "b"]))


@pytest.mark.parametrize(
    "selection",
    [
        [False, True, True, False],
        np.array([False, True, True, False]),
        pd.Series([False, True, True, False]),
        pd.array([False, True, True, False], dtype="boolean"),
        slice(1, 3),
    ],
)
def test_take_by_mask_or_slice(selection):
    Y, X, Z = arrays()
    stats = SummaryStats.from_arrays(Y, X, Z, feature_names=list("abcd"))
    assert_same(stats.take(selection), stats.take(["b", "c"]))


def test_take_one_none_and_integer_names():
    Y, X, Z = arrays()
    stats = SummaryStats.from_arrays(Y, X, Z, feature_names=list("abcd"))
    assert list(stats.take("c").feature_names) == ["c"]
    assert stats.take([]).m == 0
    numbered = SummaryStats.from_arrays(Y, X, Z, feature_names=[10, 20, 30, 2])
    assert list(numbered.take([2, 30]).feature_names) == [2, 30]  # names, not positions
    np.testing.assert_array_equal(numbered.take([2]).yy, stats.yy[3:])


def test_take_refuses():
    Y, X, Z = arrays()
    stats = SummaryStats.from_arrays(Y, X, Z, feature_names=["ISG15", "IFI6", "c", "d"])
    with pytest.raises(InputError, match=r"Unknown feature: 'isg15'. Did you mean 'ISG15'"):
        stats.take(["isg15"])
    with pytest.raises(InputError, match="out of range: there are 4 features"):
        stats.take([4])
    with pytest.raises(InputError, match="mask has 3 entries for 4 features"):
        stats.take([True, False, True])
    with pytest.raises(InputError, match="Duplicate feature names: 'c'"):
        stats.take(["c", "d", "c"])


# ---- digits ------------------------------------------------------------------------------


def far_off(seed: int = 0):
    """Ordinary features, and the same ones far away from zero along X."""
    Y, X, Z = arrays(seed)
    far = Y + 1e8  # the mean
    along = Y + X @ np.array([3e7, -2e8, 5e8])  # other directions of X too
    # what is left after rounding to float64 is the data: compare with that
    near = far - 1e8, along - X @ np.array([3e7, -2e8, 5e8])
    return Y, np.vstack([far, along]), np.vstack(near), X, Z


def test_a_mean_that_dwarfs_the_spread_costs_no_digits():
    Y, far, near, X, Z = far_off()
    stats = SummaryStats.from_arrays(np.vstack([Y, far]), X, Z)
    np.testing.assert_array_equal(stats.shift.features, np.arange(M, 3 * M))
    expected = SummaryStats.from_arrays(np.vstack([Y, near]), X, Z)
    a, b = fit_of(stats), fit_of(expected)
    np.testing.assert_allclose(a.theta, b.theta, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(a.bse, b.bse, rtol=1e-6)
    np.testing.assert_allclose(a.theta.iloc[:M], b.theta.iloc[:M], rtol=1e-12)
    np.testing.assert_allclose(
        a.params.iloc[M : 2 * M, 0] - 1e8, b.params.iloc[M : 2 * M, 0], atol=1e-5
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_halves_with_shifts_of_their_own_add_up(sparse):
    Y, far, _, X, Z = far_off()
    far = np.vstack([Y, far])
    far[:M, N // 2 :] += 1e8  # first half ordinary, second far off
    far[M : 2 * M, N // 2 :] *= 2.0  # two means
    X = np.column_stack([X, np.arange(N) >= N // 2])  # a column per half, unidentified in each
    make = sp.csr_array if sparse else np.asarray
    whole = SummaryStats.from_arrays(make(far), X, Z)
    halves = [
        SummaryStats.from_arrays(make(far[:, s]), X[s], Z[s])
        for s in (slice(N // 2), slice(N // 2, N))
    ]
    for pooled in (halves[0] + halves[1], halves[1] + halves[0]):
        assert_same(pooled, whole)
        np.testing.assert_array_equal(pooled.shift.features, whole.shift.features)
        assert_same_fit(pooled, whole, 1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])  # fewer samples than coefficients, or more
def test_many_small_parts_of_far_off_features_add_up(size):
    _, far, _, X, Z = far_off()
    whole = SummaryStats.from_arrays(far, X, Z)
    parts = [
        SummaryStats.from_arrays(far[:, i : i + size], X[i : i + size], Z[i : i + size])
        for i in range(0, N, size)
    ]
    assert_same_fit(sum(parts), whole, 1e-5)


def test_columns_of_very_different_size_do_not_hide_a_shift():
    Y, X, Z = arrays()
    scaled = X * np.array([1e-8, 1e8, 1.0])
    far = Y + 1e8
    stats = SummaryStats.from_arrays(far, scaled, Z)
    assert stats.shift is not None
    a, b = fit_of(stats), fit_of(SummaryStats.from_arrays(far - 1e8, X, Z))
    np.testing.assert_allclose(a.theta, b.theta, rtol=1e-6, atol=1e-8)


def test_take_carries_the_shifts():
    Y, far, near, X, Z = far_off()
    stats = SummaryStats.from_arrays(np.vstack([Y[:1], far[:1], Y[1:2], far[1:2]]), X, Z)
    taken = stats.take([3, 0, 1])
    np.testing.assert_array_equal(taken.shift.features, [0, 2])
    expected = fit_of(SummaryStats.from_arrays(np.vstack([near[1], Y[0], near[0]]), X, Z))
    np.testing.assert_allclose(fit_of(taken).theta, expected.theta, rtol=1e-6, atol=1e-8)
    assert stats.take([0, 2]).shift is None


def test_sums_that_overflow_are_infinite_without_a_fuss():
    Y, X, Z = arrays()
    Y[1] *= 1e200
    stats = SummaryStats.from_arrays(Y, X, Z)
    assert np.isinf(stats.yy[1])
    assert np.isfinite(stats.yy[[0, 2, 3]]).all()
    assert np.isinf(SummaryStats.from_arrays(sp.csr_array(Y), X, Z).yy[1])


# ---- given sums --------------------------------------------------------------------------


def sums(**changes):
    Y, X, Z = arrays()
    fields = {
        "n": N,
        "XX": X.T @ X,
        "XY": X.T @ Y.T,
        "ZX": Z.T @ X,
        "ZY": Z.T @ Y.T,
        "ZZ": Z.T @ Z,
        "yy": (Y * Y).sum(axis=1),
    }
    return {**fields, **changes}


def test_given_sums_are_those_of_arrays():
    expected = SummaryStats.from_arrays(*arrays())
    assert_same(SummaryStats(**sums()), expected)
    assert_same(SummaryStats(**sums(n=np.int64(N), ZZ=sp.coo_array(sums()["ZZ"]))), expected)
    assert_same(SummaryStats(**sums(n=float(N))), expected)
    flashmm_names = sums()
    flashmm_names["Ynorm"] = flashmm_names.pop("yy")
    assert_same(fm.MultiLMM.from_summary_stats(flashmm_names).stats, expected)
    assert_same(fm.MultiLMM.from_summary_stats(expected).stats, expected)


def test_one_feature_may_come_as_vectors():
    whole = sums()
    one = SummaryStats(**sums(XY=whole["XY"][:, 0], ZY=whole["ZY"][:, 0], yy=whole["yy"][0]))
    assert_same(one, SummaryStats(**whole).take([0]))


def test_labels_of_given_sums():
    coefs, features = ["a", "b", "c"], ["w", "x", "y", "z"]
    whole = sums()
    stats = SummaryStats(
        **sums(
            XX=pd.DataFrame(whole["XX"], coefs, coefs),
            XY=pd.DataFrame(whole["XY"], coefs, features),
            yy=pd.Series(whole["yy"], index=features),
        )
    )
    assert stats.coef_names == ("a", "b", "c")
    assert list(stats.feature_names) == features
    with pytest.raises(InputError, match="XX and XY label the coefficients differently"):
        SummaryStats(
            **sums(
                XX=pd.DataFrame(whole["XX"], coefs, coefs),
                XY=pd.DataFrame(whole["XY"], ["a", "c", "b"], features),
            )
        )
    with pytest.raises(InputError, match="XY and yy label the features differently"):
        SummaryStats(
            **sums(
                XY=pd.DataFrame(whole["XY"], coefs, features),
                yy=pd.Series(whole["yy"], index=features[::-1]),
            )
        )


def test_components_of_given_sums():
    model = fm.MultiLMM.from_summary_stats(
        sums(),
        components={"donor": 4, "batch": 2},
        feature_names=list("wxyz"),
        coef_names=list("abc"),
    )
    assert model.stats.structure.param_names == ("donor", "batch", "Residual")
    assert model.fit(parameter_space="psd").params.columns.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"XX": np.eye(2)}, r"XX has shape \(2, 2\), but must be \(3, 3\)"),
        ({"ZX": sums()["ZX"].T}, r"ZX has shape \(3, 6\), but must be \(6, 3\)"),
        ({"ZY": sums()["ZY"][:, :2]}, r"ZY has shape \(6, 2\), but must be \(6, 4\)"),
        ({"yy": np.ones(3)}, r"yy has shape \(3,\), but must be \(4,\)"),
        ({"ZZ": np.eye(5)}, r"q=5 \(ZZ\)"),
        ({"ZZ": np.zeros((6, 5))}, r"ZZ has shape \(6, 5\), but must be \(6, 6\)"),
        ({"ZZ": np.zeros((2, 2, 2))}, "ZZ must be a matrix; it has 3 dimensions"),
        ({"XY": np.zeros((2, 2, 2))}, "XY must be a matrix; it has 3 dimensions"),
        ({"XY": 3.0}, "XY must be a matrix; it has 0 dimensions"),
        ({"XX": "a"}, "XX must be numeric"),
        ({"ZZ": "a"}, "ZZ must be numeric"),
        ({"ZZ": None}, "ZZ must be numeric; it is of type NoneType"),
        ({"XX": np.full((3, 3), np.nan)}, "XX holds missing or infinite values"),
        ({"ZX": np.full((6, 3), np.inf)}, "ZX holds missing or infinite values"),
        ({"ZZ": np.full((6, 6), np.nan)}, "ZZ holds missing or infinite values"),
        ({"XX": sums()["XX"] + np.eye(3, k=1)}, "XX is not symmetric; it must be X'X"),
        ({"ZZ": sums()["ZZ"] + np.eye(6, k=1)}, "ZZ is not symmetric; it must be Z'Z"),
        ({"n": -3}, "n, the number of samples, must be a whole number, not -3"),
        ({"n": 60.5}, "must be a whole number, not 60.5"),
        ({"n": "sixty"}, "must be a whole number, not 'sixty'"),
        ({"n": np.nan}, "must be a whole number, not nan"),
        ({"feature_names": ["a", "b", "c"]}, "There are 3 feature names for 4 features"),
        ({"feature_names": ["a", "b", "c", "a"]}, "Duplicate feature names: 'a'"),
        ({"feature_names": "abcd"}, "must be a sequence of names, not the text 'abcd'"),
        ({"coef_names": ["a", "b"]}, "There are 2 coefficient names for 3 coefficients"),
        ({"coef_names": ["a", "b", "b"]}, "Duplicate coefficient names: 'b'"),
        ({"structure": [4, 3]}, r"sizes \[4, 3\], which must be positive and sum to the 6"),
        ({"structure": [6, 0]}, r"sizes \[6, 0\], which must be positive"),
        ({"structure": [2.5, 3.5]}, "must be whole numbers"),
        ({"structure": "abc"}, "must be whole numbers"),
    ],
)
def test_sums_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        SummaryStats(**sums(**changes))


def test_rounding_does_not_count_as_asymmetry():
    XX = sums()["XX"]
    XX[0, 1] += 1e-13  # an entry that cancels may carry nothing but rounding
    XX[0, 2] *= 1 + 1e-14
    assert SummaryStats(**sums(XX=XX)).p == 3


def test_mappings_that_lack_something_are_refused():
    lacking = sums()
    del lacking["ZY"]
    with pytest.raises(InputError, match="`stats` lacks 'ZY'"):
        fm.MultiLMM.from_summary_stats(lacking)
    with pytest.raises(InputError, match="it is int"):
        fm.MultiLMM.from_summary_stats(3)


@pytest.mark.parametrize(
    ("X", "Z", "message"),
    [
        (np.ones((5, 1)), np.ones((N, 2)), "X has 5 rows"),
        (np.ones((5, 1)), np.ones((5, 2)), "Y has 60 samples .* but the design has 5"),
        (np.full((N, 1), np.nan), np.ones((N, 2)), "X is missing or infinite in row 0, column 0"),
        (
            pd.DataFrame({"one": np.ones(N), "age": [np.inf] * N}),
            np.ones((N, 2)),
            "X is missing or infinite in row 0, column 'age'",
        ),
        (
            np.ones((N, 1)),
            sp.csr_array(np.full((N, 2), np.inf)),
            "Z is missing or infinite in row 0",
        ),
        (np.ones((N, 1)).astype(str), np.ones((N, 2)), "X must be numeric"),
        (np.ones((N, 1, 1)), np.ones((N, 2)), "X must have two dimensions; it has 3"),
        (np.ones((N, 1)), sp.csr_array(np.ones((N, 2)) * 1j), "Z must be numeric"),
        ([[1.0], [2.0, 3.0]], np.ones((N, 2)), "X must be a rectangular array of numbers"),
    ],
)
def test_designs_that_are_refused(X, Z, message):
    with pytest.raises(InputError, match=message):
        SummaryStats.from_arrays(arrays()[0], X, Z)
