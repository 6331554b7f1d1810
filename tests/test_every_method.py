"""One feature never stops the others: every public method, on fits that hold every verdict."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flashmm as fm
from flashmm.results.feature_results import FeatureResults
from flashmm.results.results import MultiLMMResults
from flashmm.solvers.verdict_texts import Status

EDGES = Path(__file__).parent / "reference" / "edges"

# How each method is called on results, and what of it is compared; None: needs no call.
CALLS = {
    "aic": None, "bic": None, "bse": None, "bse_theta": None, "converged": None,
    "df_resid": None, "ds": None, "llf": None, "method": None, "n_iter": None, "nobs": None,
    "options": None, "params": None, "pvalues": None, "random_effects": None, "recipe": None,
    "score": None, "stats": None, "status": None, "theta": None, "tvalues": None,
    "fitted": None, "ratio_prior": None,
    "learn_ratio_prior": [{}],
    "posterior_variances": [{}],
    "blup": [{}, {"se": "conditional"}, {"se": "prediction"}],
    "conf_int": [{}, {"df": "residual"}, {"df": "normal", "coefs": "x"}],
    "conf_int_theta": [{}, {"method": "profile", "params": "Residual"}],
    "cov_params": [{}],
    "fim": [{}],
    "icc": [{}],
    "variance_fractions": [{}, {"by": "coef"}],
    "variance_components": [{}],
    "variance_test": [{}],
    "t_test": [
        {}, {"df": "residual"}, {"moderated": True}, {"alternative": "greater"},
        {"df": "integrated"}, {"margin": 0.3, "null": "outside"},
    ],
    "f_test": [{}, {"df": "residual"}],
    "wald_test": [{}, {"use_f": True}],
    "anova": [{}, {"df": "normal"}],
    "drop1": [{}],
    "ranova": [{}],
    "r_squared": [{}, {"by": "term"}],
    "coef": [{}],
    "random_correlations": [{}],
    "random_parameters": [{}, {"method": "profile"}],
    "top_table": [{"contrast": "x", "n": None}],
    "to_frame": [{}, {"layout": "wide"}],
    "feature_names": None,
    "glance": [{}],
    "tidy": [{}, {"df": "residual", "effects": "fixed"}],
    "summary": [{}],
    "moderate": [{}],
    "marginal_means": [{"specs": "trt"}],
    "marginal_slopes": [{"variable": "x", "by": "trt"}],
}  # fmt: skip
# Called by themselves below, or not of a fit's features.
ELSEWHERE = {
    "augment", "to_excel",
    "bootstrap", "bootstrap_test", "check_residuals", "compare_lr_test", "draw", "fittedvalues",
    "load", "of_pattern", "plot", "heterogeneity",
    "plot_residuals", "predict", "resid", "save", "sel", "to_anndata", "flip_test", "influence",
}  # fmt: skip


def design():
    rng = np.random.default_rng(0)
    n = 48
    return pd.DataFrame(
        {
            "g": np.repeat([f"g{i}" for i in range(8)], 6),
            "trt": np.tile(["A", "B", "B"], 16),
            "x": rng.normal(size=n),
        }
    )


def features(data, *, missing):
    rng = np.random.default_rng(5)
    n, codes = len(data), data["g"].factorize()[0]
    groups = rng.normal(size=(6, 8))[:, codes]
    noise = rng.normal(size=(6, n))
    alike = noise[3] - 0.99 * pd.Series(noise[3]).groupby(codes).transform("mean").to_numpy()
    Y = {
        "good": groups[0] + noise[0],
        "also good": 2.0 * groups[1] + noise[1] + data["x"],
        "no variance between": alike,
        "constant": np.full(n, 3.0),
        "in X": 1.0 + data["x"].to_numpy(),
        "in X and Z": groups[2] + data["x"].to_numpy(),
        "overflow": 1e200 * noise[4],
    }
    if missing:
        hole = noise[5].copy()
        hole[5:] = np.nan
        lone = groups[0] + noise[0]
        lone[data["trt"].to_numpy() == "A"] = np.nan
        some = groups[3] + noise[2]
        some[::7] = np.nan
        Y |= {"five samples": hole, "no treatment A": lone, "some": some}
    return pd.DataFrame(Y).T


@lru_cache
def fitted(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        if kind == "edge":  # a likelihood without a maximum, and a fit that stalls
            data, Y = pd.read_csv(EDGES / "d156.csv"), pd.read_csv(EDGES / "y156.csv").T
            data = data.rename(columns={"x1": "x"})
            model = fm.MultiLMM.from_formula("~ x + trt + (1 + x:x2 | f1)", data=data, Y=Y)
            return model.fit("ML"), data, Y
        data = design()
        space, missing = kind.split(", ")[0], "missing" in kind
        Y = features(data, missing=missing)
        random = "(1 | g)" if "slopes" not in kind else "(1 + x | g)"
        own = {"missing": "feature"} if missing else {}
        if "weights" in kind:
            own["weights"] = np.random.default_rng(6).lognormal(sigma=0.5, size=Y.shape)
        model = fm.MultiLMM.from_formula(f"~ trt + x + {random}", data=data, Y=Y, **own)
        options = {"max_iter": 1, "solver": _Slow()} if "short" in kind else {}
        return model.fit(parameter_space=space, **options), data, Y


class _Slow(fm.solvers.FisherScoring):
    """A solver that is not known by name, so that nothing goes on where it ends."""


KINDS = [
    "unconstrained", "psd", "unconstrained, missing", "psd, missing", "psd, missing, weights",
    "unconstrained, slopes", "psd, slopes", "unconstrained, short", "psd, short", "edge",
]  # fmt: skip


def test_the_fits_hold_every_verdict():
    found = set()
    for kind in KINDS:
        found |= set(fitted(kind)[0].status)
    running = {Status.RUNNING.label}
    assert found >= {status.label for status in Status} - running


def test_every_public_method_is_called():
    names = {name for name in dir(MultiLMMResults) if not name.startswith("_")}
    assert names - set(CALLS) - ELSEWHERE == set()


def called(result, name, options):
    member = getattr(result, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return member(**options) if options is not None else member


def by_feature(value, feature):
    """What a result says of one feature, as numbers."""
    if hasattr(value, "ds"):
        value = value.ds
    if isinstance(value, dict):
        return [by_feature(part, feature) for part in value.values()]
    if isinstance(value, xr.Dataset):
        return [by_feature(value[name], feature) for name in value if "feature" in value[name].dims]
    if isinstance(value, xr.DataArray):
        values = value.sel(feature=feature).to_numpy()
        return np.asarray(values, dtype=float) if values.dtype.kind in "fiub" else None
    if isinstance(value, (pd.DataFrame, pd.Series)):
        if isinstance(value, pd.DataFrame) and "feature" in value:
            value = value.set_index("feature")
        part = value.loc[[feature]]
        frame = pd.DataFrame(part)
        return frame.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)
    return None


def same(one, other):
    if isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif one is not None:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", sorted(CALLS))
@pytest.mark.parametrize("kind", KINDS)
def test_no_feature_stops_the_others(kind, name):
    result, _, Y = fitted(kind)
    if kind == "edge" and name == "conf_int_theta":
        pytest.skip("profiles of a likelihood without a maximum take long")
    if kind == "edge" and name == "moderate":
        pytest.skip("needs several features that have an estimate, and says so")
    for options in CALLS[name] or [None]:
        if kind == "edge" and (options or {}).get("moderated"):
            continue  # needs several features that have an estimate, and says so
        if name == "variance_fractions" and options.get("by") and "missing" in kind:
            continue
        value = called(result, name, options)
        assert value is not None or name in ("recipe",)
        str(value)
        for feature in Y.index:
            by_feature(value, feature)
    if CALLS[name] is None or name in ("top_table", "to_frame", "moderate", "summary"):
        return
    good = next(iter(result.status.index[result.status == "converged"]), None)
    if good is None:
        return
    for options in CALLS[name]:
        if options.get("moderated") or (options.get("by") and "missing" in kind):
            continue
        alone = (
            called(result, name, {**options, "features": [good]})
            if "features" in (inspect.signature(getattr(result, name)).parameters)
            else None
        )
        if alone is not None:
            same(by_feature(alone, good), by_feature(called(result, name, options), good))


@pytest.mark.parametrize("kind", KINDS)
def test_one_feature_of_each_verdict_alone(kind):
    """`sel` and everything that one feature has."""
    result, _, Y = fitted(kind)
    properties = [
        name
        for name in dir(FeatureResults)
        if not name.startswith("_") and not callable(getattr(FeatureResults, name))
    ]
    for feature in Y.index:
        one = result.sel(feature)
        for name in properties:
            with contextlib.suppress(fm.InputError):
                getattr(one, name)
        for name in ("conf_int", "cov_params", "t_test", "f_test", "wald_test", "summary"):
            str(getattr(one, name)())
        str(one), one._repr_html_()
        str(result.summary(feature))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_files_and_refits(kind, tmp_path):
    result, data, Y = fitted(kind)
    new = data.head(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        result.predict(new)
        result.fittedvalues(data)
        result.resid(Y, data)
        assert result.resid(Y, data, kind="marginal").sizes["feature"] == len(Y)
        if "weights" not in kind:  # they say that they need them again
            assert result.resid(Y, data, kind="standardized").sizes["feature"] == len(Y)
            assert result.check_residuals(Y, data).sizes["feature"] == len(Y)
        if kind != "edge":
            assert result.conf_int(method="profile", coefs="x").sizes["feature"] == len(Y)
            assert result.drop1(test="LRT").sizes["feature"] == len(Y)
        result.draw(2, rng=1)
        result.bootstrap(5, rng=1)
        result.save(tmp_path / "fit.nc")
    again = type(result).load(tmp_path / "fit.nc")
    assert again.status.tolist() == result.status.tolist()
    pd.testing.assert_frame_equal(again.params, result.params, check_dtype=False)


@pytest.mark.parametrize("kind", KINDS)
def test_contrasts_at_once(kind):
    """Of tests of every fit: NaN where the tests are, and the same for one feature alone."""
    result, _, Y = fitted(kind)
    first, second = result.params.columns[1:3]
    contrasts = [first, second, f"{first} - {second}"]
    tests, screen = result.t_test(contrasts), result.f_test(contrasts)
    lost = np.isnan(tests.pvalue.to_numpy())
    for method in ("tukey", "mvt", "scheffe", "sidak"):
        found = tests.simultaneous(method)
        assert (np.isnan(found["p"].to_numpy()) >= lost).all()
        if method in ("tukey", "sidak"):
            assert (np.isnan(found["p"].to_numpy()) == lost).all()
        for feature in Y.index[:2]:
            alone = result.t_test(contrasts, features=[feature]).simultaneous(method)
            same(by_feature(alone, feature), by_feature(found, feature))
    stages = tests.two_stage(screen, alpha=0.5)
    assert not stages["rejected"].to_numpy()[lost].any()


@pytest.mark.parametrize(
    "kind",
    ["unconstrained", "psd", "unconstrained, short", "psd, slopes", "psd, missing, weights"],
)
def test_integrated_tests(kind):
    """Their prior is learned from all features that vary."""
    result, _, Y = fitted(kind)
    for table in (result.t_test(df="integrated"), result.anova(df="integrated")):
        values = table.ds["p"].sel(feature=["good", "also good"])
        assert bool(np.isfinite(values).all())
    assert result.posterior_variances().sizes["feature"] == len(Y)
    assert np.isfinite(by_feature(result.posterior_variances(), "good")[0]).all()
    for kwargs in ({"df": "kenward-roger"}, {"df": "integrated"}):
        assert result.f_test(**kwargs).ds.sizes["feature"] == len(Y)


@pytest.mark.parametrize("kind", ["psd", "unconstrained, slopes", "edge", "psd, missing"])
def test_what_needs_sums_by_group(kind):
    """Features of every verdict beside each other, alone, and from a file."""
    result, data, Y = fitted(kind)
    by = "f1" if kind == "edge" else "g"
    calls = {
        "influence": lambda r, **o: r.influence(**o),
        "flips": lambda r, **o: r.flip_test("x", n_flips=64, rng=1, **o),
        "t": lambda r, **o: r.t_test(cov="CR2", **o),
        "f": lambda r, **o: r.f_test(cov="CR2", cluster=by, **o),
        "anova": lambda r, **o: r.anova(cov="CR3", **o),
        "cov": lambda r, **o: r.cov_params(cov="CR1", **o),
    }
    for call in calls.values():
        with pytest.raises(fm.InputError, match="sums"):
            call(result)
    if "missing" in kind:
        model = fm.MultiLMM.from_formula(
            "~ trt + x + (1 | g)", data=data, Y=Y, missing="feature", sums_by="g"
        )
        with pytest.warns(fm.ConvergenceWarning):
            result = model.fit(parameter_space="psd")
        for call in calls.values():
            with pytest.raises(fm.InputError, match="that all features share"):
                call(result)
        return
    formula = {"edge": "~ x + trt + (1 + x:x2 | f1)", "psd": "~ trt + x + (1 | g)"}
    model = fm.MultiLMM.from_formula(
        formula.get(kind, "~ trt + x + (1 + x | g)"), data=data, Y=Y, sums_by=by
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        result = model.fit(result.method, parameter_space=result.options.parameter_space)
        for name, call in calls.items():
            table = call(result)
            for feature in Y.index:
                by_feature(table, feature)
            good = next(iter(result.status.index[result.status == "converged"]), None)
            if good is not None and name != "flips":
                same(by_feature(call(result, features=[good]), good), by_feature(table, good))
                if name == "t":
                    assert np.isfinite(by_feature(table, good)[3]).all()
                    alone = result.sel(good).t_test(cov="CR2")
                    same(by_feature(alone, good), by_feature(table, good))


def test_a_feature_of_huge_values_and_one_without_any():
    """Values of 1e150, whose squares and their products overflow: RuntimeWarnings, one an error."""
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"x": rng.normal(size=30), "g": np.repeat(list("abcdef"), 5)})
    Y = pd.DataFrame(rng.normal(size=(12, 30)), index=[f"f{i}" for i in range(12)])
    Y.loc["huge"], Y.loc["none"] = 1e150 * (Y.loc["f0"] - 3.0), np.nan

    def fit(values):
        model = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, values, missing="feature")
        return model.fit(parameter_space="psd")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", fm.exceptions.ConvergenceWarning)
        result, others = fit(Y), fit(Y.iloc[:12])
        assert np.isnan(result.bic["none"])
        assert np.isnan(result.glance().loc["none", "bic"])
        result.fim()
        result.posterior_variances()
        result.check_residuals(Y, data)
        assert result.sel("huge").summary() is not None
        p = result.t_test("x", df="integrated").pvalue
    assert p.iloc[:12].notna().all(axis=None)
    np.testing.assert_allclose(result.pvalues.iloc[:12], others.pvalues, rtol=1e-9)
