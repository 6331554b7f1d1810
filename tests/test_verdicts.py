"""Odd features: the right estimate or the right verdict, and no harm to their neighbours."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import pytest
import scipy.sparse as sp

import flashmm as fm
from flashmm.solvers import FisherScoring
from flashmm.solvers.verdict_texts import MEANINGS, Status
from flashmm.storage.schema import check_dataset

N, L, BATCHES = 120, 12, 5
ORDINARY = 5
VARIABLES = ("beta", "se_beta", "theta", "se_theta", "loglik")


@lru_cache
def problem():
    """X (n, 3), Z of one and of two components, and features with effects of all of them."""
    rng = np.random.default_rng(3)
    group, batch = np.repeat(np.arange(L), N // L), np.arange(N) % BATCHES
    X = np.column_stack([np.ones(N), rng.normal(size=N), np.arange(N) % 2])
    Z1, Z2 = np.eye(L)[group], np.eye(BATCHES)[batch]
    Y = rng.normal(size=(ORDINARY + 1, 3)) @ X.T
    Y += rng.normal(size=(ORDINARY + 1, L)) @ Z1.T * 0.8
    Y += rng.normal(size=(ORDINARY + 1, BATCHES)) @ Z2.T * 0.8
    Y += rng.normal(size=Y.shape)
    return X, {1: (Z1, [L]), 2: (np.hstack([Z1, Z2]), [L, BATCHES])}, Y[:-1], Y[-1]


def odd_features(components: int) -> dict[str, tuple[np.ndarray, str]]:
    """Odd features and the verdict each must get; "" for that of the ordinary ``base``."""
    X, designs, _, base = problem()
    Z, _ = designs[components]
    rng = np.random.default_rng(4)
    in_X = X @ np.array([1.3, 2.7, -0.1])
    in_XZ = in_X + Z @ rng.normal(size=Z.shape[1])
    return {
        "zeros": (np.zeros(N), "zero variance"),
        "constant": (np.full(N, 0.1), "zero variance"),
        "large constant": (np.full(N, 1e9 + 0.1), "zero variance"),
        "in X": (in_X, "zero variance"),
        "in X, large": (1e12 * in_X, "zero variance"),
        "in X, small": (1e-12 * in_X, "zero variance"),
        "in X, off zero": (1e8 + in_X, "zero variance"),
        "in X and Z": (in_XZ, "perfect fit"),
        "in X and Z, large": (1e12 * in_XZ, "perfect fit"),
        "in X and Z, off zero": (1e6 + in_XZ, "perfect fit"),
        "small": (1e-12 * base, ""),
        "large": (1e12 * base, ""),
        "very small": (1e-140 * base, ""),
        "very large": (1e140 * base, ""),
        "mean 1e8": (1e8 + base, ""),
        "large along X": (base + 1e8 * in_X, ""),
        "overflow": (1e200 * base, "non finite"),
    }


SETTINGS = [
    (method, space, components)
    for method in ("REML", "ML")
    for space in ("unconstrained", "psd")
    for components in (1, 2)
]


def fit(Y, components: int, method: str, space: str, *, make=np.asarray, **options):
    """Fit and collect the warnings: (results, messages)."""
    X, designs, _, _ = problem()
    Z, sizes = designs[components]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = fm.MultiLMM.from_arrays(make(Y), X, Z, components=sizes).fit(
            method, parameter_space=space, **options
        )
    assert all(w.category is fm.ConvergenceWarning for w in caught), [
        str(w.message) for w in caught
    ]
    return results, [str(w.message) for w in caught]


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize(("method", "space", "components"), SETTINGS)
def test_odd_features_get_the_right_estimate_or_the_right_verdict(method, space, components, make):
    _, _, Y, base = problem()
    odd = odd_features(components)
    mixed = np.vstack([Y[:2], *(y for y, _ in odd.values()), Y[2:]])
    results, messages = fit(mixed, components, method, space, make=make)
    names = [None, None, *odd, *([None] * (ORDINARY - 2))]
    check_dataset(results.ds)

    # one counted warning
    verdicts = [verdict for _, verdict in odd.values() if verdict]
    counts = ", ".join(
        f"{verdicts.count(status.label)} {status.label}"
        for status in Status
        if status.label in verdicts
    )
    assert messages == [
        f"{len(verdicts)} of {len(names)} features ended without a regular fit: {counts}. See "
        "results.status."
    ]

    # the ordinary ones are as they would be alone
    alone, none = fit(Y, components, method, space)
    assert not none
    ordinary = [i for i, name in enumerate(names) if name is None]
    for variable in VARIABLES:
        np.testing.assert_allclose(
            results.ds[variable].to_numpy()[ordinary], alone.ds[variable], rtol=1e-9, atol=1e-12
        )
    np.testing.assert_array_equal(results.ds["n_iter"].to_numpy()[ordinary], alone.ds["n_iter"])

    # the odd ones
    reference, _ = fit(base, components, method, space)
    reference = reference.ds.isel(feature=0)
    X, _, _, _ = problem()
    for position, name in enumerate(names):
        if name is None:
            continue
        one = results.ds.isel(feature=position)
        values, verdict = odd[name]
        label = results.status.iloc[position]
        if verdict:
            assert label == verdict, name
            assert not results.converged.iloc[position]
            for variable in ("se_beta", "se_theta", "loglik", "score"):
                assert np.isnan(one[variable]).all(), (name, variable)
        if verdict == "zero variance":
            assert (one["theta"] == 0).all()
            size = np.abs(values).max()
            fitted = X @ one["beta"].to_numpy()
            np.testing.assert_allclose(fitted, values, rtol=1e-9, atol=1e-9 * size, err_msg=name)
        elif verdict:
            assert np.isnan(one["theta"]).all()
            assert np.isnan(one["beta"]).all()
        else:
            assert label == ("boundary" if reference["status"] == Status.BOUNDARY else "converged")
            scale, shift = {
                "mean 1e8": (1.0, np.array([1e8, 0.0, 0.0])),
                "large along X": (1.0, 1e8 * np.array([1.3, 2.7, -0.1])),
                "small": (1e-12, 0.0),
                "large": (1e12, 0.0),
                "very small": (1e-140, 0.0),
                "very large": (1e140, 0.0),
            }[name]
            # float64 holds such a feature to 1e-8 of its spread, no better
            exact = 1e-9 if np.all(shift == 0.0) else 1e-6
            theta = one["theta"].to_numpy() / scale**2
            np.testing.assert_allclose(
                theta, reference["theta"], rtol=exact, atol=exact, err_msg=name
            )
            np.testing.assert_allclose(
                one["se_beta"] / scale, reference["se_beta"], rtol=exact, err_msg=name
            )
            beta = (one["beta"].to_numpy() - shift) / scale
            np.testing.assert_allclose(
                beta,
                reference["beta"],
                rtol=exact,
                atol=max(exact, 4e-16 * np.max(shift)),
                err_msg=name,
            )
            df = N - 3 if method == "REML" else N
            loglik = float(one["loglik"]) + df * np.log(scale)
            assert loglik == pytest.approx(float(reference["loglik"]), rel=max(exact, 1e-11)), name


@pytest.mark.parametrize(("method", "space", "components"), SETTINGS)
def test_nothing_non_finite_hides_under_a_good_verdict(method, space, components):
    """Noise, near-perfect fits and single outliers, in number."""
    _, designs, _, _ = problem()
    Z, _ = designs[components]
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(40, N))
    near = (
        rng.normal(size=(20, Z.shape[1])) @ Z.T
        + rng.normal(size=(20, N)) * 10.0 ** -np.arange(20)[:, None]
    )
    spikes = np.eye(N)[:5] * 1e8
    rare = rng.poisson(0.02, size=(20, N)).astype(float)
    results, messages = fit(np.vstack([noise, near, spikes, rare]), components, method, space)
    good = results.status.isin(["converged", "boundary"]).to_numpy()
    assert good.sum() >= 40
    for variable in (*VARIABLES, "score"):
        assert np.isfinite(results.ds[variable].to_numpy()[good]).all(), variable
    assert (results.bse.to_numpy()[good] > 0).all()
    assert np.isfinite(results.blup(se="prediction")["blup"].to_numpy()[good]).all()
    # every feature has a verdict, and the warning counts those without a regular fit
    assert "running" not in set(results.status)
    irregular = int((~good).sum())
    assert len(messages) == (irregular > 0)
    if messages:
        assert messages[0].startswith(f"{irregular} of 85 features")


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("noise", [1e-2, 1e-3, 1e-4, 1e-5])
def test_nearly_perfect_fits_have_the_standard_errors_of_fixed_effects(noise, components):
    """With random effects far above the noise, slopes are estimated within the groups alone."""
    X, designs, _, _ = problem()
    Z, _ = designs[components]
    rng = np.random.default_rng(5)
    Y = rng.normal(size=(3, Z.shape[1])) @ Z.T + noise * rng.normal(size=(3, N))
    results, messages = fit(Y, components, "REML", "psd")
    assert not messages
    within = X[:, 1:] - Z @ np.linalg.lstsq(Z, X[:, 1:], rcond=None)[0]
    unit = np.sqrt(np.diag(np.linalg.inv(within.T @ within)))
    expected = np.sqrt(results.theta["Residual"].to_numpy())[:, None] * unit
    np.testing.assert_allclose(results.bse.to_numpy()[:, 1:], expected, rtol=1e-2)


def test_what_is_asked_of_features_without_a_fit_is_nan():
    _, _, Y, _ = problem()
    odd = odd_features(1)
    names = ["zeros", "in X and Z", "overflow"]
    results, _ = fit(np.vstack([Y[:1], *(odd[name][0] for name in names)]), 1, "REML", "psd")
    test = results.t_test("x2")
    for values in (
        results.blup(se=True)["blup"],
        results.cov_params(),
        results.fim()["FIM_theta"],
        test.pvalue,
        test.adjusted(),
        results.conf_int(),
    ):
        by_feature = np.asarray(values).reshape(4, -1)
        assert np.isfinite(by_feature[0]).all()
        assert np.isnan(by_feature[1:]).all()
    # a feature without a test does not count as one in the adjustment
    assert test.adjusted().iloc[0, 0] == test.pvalue.iloc[0, 0]
    for name in (1, 2, 3):
        assert "NaN" in str(results.summary(name))


# ---- no maximum --------------------------------------------------------------------------


def unbounded():
    """A large group that X gives a coefficient of its own, so ML can make V singular there."""
    group = np.concatenate([np.zeros(20, dtype=int), np.repeat(np.arange(1, 6), 5)])
    X = np.column_stack([np.ones(group.size), group == 0]).astype(float)
    Z = np.eye(6)[group]
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(3, group.size))
    alike -= 0.9 * alike @ Z / Z.sum(axis=0) @ Z.T  # groups more alike than chance makes them
    apart = rng.normal(size=(3, group.size)) + 3.0 * rng.normal(size=(3, 6)) @ Z.T
    return np.vstack([alike, apart]), X, Z


def ml_profile(y: np.ndarray, X: np.ndarray, Z: np.ndarray, gamma: float) -> float:
    """ML log-likelihood of y at the variance ratio gamma, by the definition."""
    n = y.size
    V = np.eye(n) + gamma * Z @ Z.T
    W = np.linalg.inv(V)
    P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
    sigma2 = y @ P @ y / n
    return -0.5 * (n * np.log(2 * np.pi * sigma2) + np.linalg.slogdet(V)[1] + n)


def test_an_unbounded_likelihood_has_no_maximum():
    Y, X, Z = unbounded()
    path = -0.05 + np.array([0.05, 0.02, 5e-3, 1e-3, 1e-5, 1e-7, 1e-9])  # V is singular at -0.05
    for y in Y[:3]:
        rising = [ml_profile(y, X, Z, gamma) for gamma in path]
        assert (np.diff(rising) > 0).all()  # from zero to the edge, without end
        assert rising[-1] > rising[0] + 5
    model = fm.MultiLMM.from_arrays(Y, X, Z)
    with pytest.warns(fm.ConvergenceWarning, match="^3 of 6 features .*: 3 no maximum"):
        results = model.fit("ML")
    assert results.status.tolist() == ["no maximum"] * 3 + ["converged"] * 3
    for variable in (*VARIABLES, "score"):
        assert np.isnan(results.ds[variable].to_numpy()[:3]).all()
        assert np.isfinite(results.ds[variable].to_numpy()[3:]).all()
    # those that converged are at a maximum
    for y, theta, llf in zip(Y[3:], results.theta.to_numpy()[3:], results.llf[3:], strict=True):
        gamma = theta[0] / theta[1]
        assert llf == pytest.approx(ml_profile(y, X, Z, gamma), abs=1e-8)
        assert llf > max(ml_profile(y, X, Z, gamma * f) for f in (0.9, 1.1))


def test_the_psd_space_and_reml_have_a_maximum_where_ml_has_none():
    Y, X, Z = unbounded()
    model = fm.MultiLMM.from_arrays(Y, X, Z)
    psd = model.fit("ML", parameter_space="psd")
    assert psd.status.tolist() == ["boundary"] * 3 + ["converged"] * 3
    np.testing.assert_array_equal(psd.theta.to_numpy()[:3, 0], 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        reml = model.fit("REML")
    assert reml.converged.all()


def test_indefinite_v_is_a_verdict_of_its_own():
    """REML sees the error contrasts alone: their covariance may be fine where V is not."""
    Y, X, Z = unbounded()
    with pytest.warns(fm.ConvergenceWarning, match="indefinite.*parameter_space='psd' avoids it"):
        results = fm.MultiLMM.from_arrays(Y, X, Z).fit("REML")
    for status, theta, se in zip(
        results.status, results.theta.to_numpy(), results.bse.to_numpy(), strict=True
    ):
        V = theta[1] * np.eye(Y.shape[1]) + theta[0] * Z @ Z.T
        definite = np.linalg.eigvalsh(V)[0] > 0
        assert status == ("converged" if definite else "indefinite")
        assert np.isfinite(se).all() == definite
    assert "indefinite" in set(results.status)
    assert "converged" in set(results.status)


# ---- limits ------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "space", "components"), SETTINGS)
def test_the_iteration_limit_is_a_verdict(method, space, components):
    _, _, Y, _ = problem()
    # an object, unlike a name, has nothing to fall back on
    results, messages = fit(Y, components, method, space, max_iter=1, solver=FisherScoring())
    full, _ = fit(Y, components, method, space)
    assert (full.n_iter > 1).all()
    assert set(results.status) == {"iteration limit"}
    assert messages == [
        f"{ORDINARY} of {ORDINARY} features ended without a regular fit: {ORDINARY} iteration "
        "limit. See results.status."
    ]
    assert (results.n_iter == 1).all()
    assert not results.converged.any()
    for variable in (*VARIABLES, "score"):
        assert np.isfinite(results.ds[variable].to_numpy()).all()
    assert (results.llf <= full.llf + 1e-9).all()  # on the way, and never past the maximum
    assert (results.llf < full.llf - 1e-9).any()


def test_non_finite_sums_are_a_verdict_of_the_features_concerned():
    X, designs, Y, _ = problem()
    Z, _ = designs[1]
    whole = fm.SummaryStats.from_arrays(Y, X, Z)
    fields = {name: np.array(getattr(whole, name)) for name in ("XX", "XY", "ZX", "ZY", "yy")}
    fields["XY"][1, 0], fields["ZY"][2, 2], fields["yy"][4] = np.nan, np.inf, np.nan
    broken = fm.SummaryStats(n=N, ZZ=whole.ZZ, **fields)
    with pytest.warns(fm.ConvergenceWarning, match="3 of 5 features .*: 3 non finite"):
        results = fm.MultiLMM.from_summary_stats(broken).fit()
    expected = fm.MultiLMM.from_summary_stats(whole).fit()
    assert results.status.tolist() == [
        "non finite",
        "converged",
        "non finite",
        "converged",
        "non finite",
    ]
    for variable in VARIABLES:
        values = results.ds[variable].to_numpy()
        np.testing.assert_allclose(values[[1, 3]], expected.ds[variable][[1, 3]], rtol=1e-10)
        assert np.isnan(values[[0, 2, 4]]).all()


def test_order_and_company_change_nothing():
    _, _, Y, _ = problem()
    odd = np.vstack([y for y, _ in odd_features(2).values()])
    mixed = np.vstack([Y, odd])
    order = np.random.default_rng(0).permutation(len(mixed))
    one, _ = fit(mixed, 2, "REML", "psd")
    other, _ = fit(mixed[order], 2, "REML", "psd")
    assert other.status.tolist() == one.status.iloc[order].tolist()
    # Numbers of size 1e8 are 1.5e-8 apart, and BLAS rounds a row by its place among others: of
    # features with such a mean no more than that is known.
    large = [list(odd_features(2)).index(name) for name in ("mean 1e8", "large along X")]
    is_large = np.isin(order, len(Y) + np.array(large))
    for variable in VARIABLES:
        mine, theirs = other.ds[variable].to_numpy(), one.ds[variable].to_numpy()[order]
        for chosen, rtol in ((~is_large, 1e-9), (is_large, 1e-7)):
            np.testing.assert_allclose(mine[chosen], theirs[chosen], rtol=rtol, atol=1e-12)


def test_every_verdict_has_a_label_and_a_meaning():
    assert set(MEANINGS) == set(Status)
    assert len({status.label for status in Status}) == len(Status)
    assert [status for status in Status if status.is_converged] == [
        Status.CONVERGED,
        Status.BOUNDARY,
        Status.INDEFINITE,
    ]
