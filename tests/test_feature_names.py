"""What features are called changes nothing: every public method that takes or returns them.

The same data are fitted under text names and under names that can be taken for positions; each
public method must give the same numbers for the same features. The lists of methods below are
complete: a new public method that is in none of them fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flashmm as fm
from flashmm.arrays.labels import feature_positions
from flashmm.exceptions import InputError
from flashmm.simulate.power import power

M, N = 14, 48
RANDOM, FIXED = "(1 | g)", "~ x + trt"
# An order in which no feature has the place that its number says.
ORDER = [3, 0, 9, 7, 1, 2, 12, 8, 5, 6, 4, 13, 10, 11]
KEPT = [1, 2, 4, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20]
ROWS = 22  # of the Y that a filter leaves KEPT of
TEXT = [f"g{i:02d}" for i in range(M)]
NAMES: dict[str, list[Any]] = {
    "text": TEXT,
    "counted": list(range(M)),
    "permuted": ORDER,
    "ids": [1000 + 7 * i for i in range(M)],
    "text numbers": [str(i) for i in ORDER],
    "mixed": [i if j % 2 else f"g{j}" for j, i in enumerate(ORDER)],
}
GIVEN = {f"{kind}, feature_names=": kind for kind in ("permuted", "ids", "mixed")}
FILTERS = ("min_count", "min_fraction", "features", "mask", "keep", "drop", "take")
KINDS = [*list(NAMES)[1:], *GIVEN, *FILTERS]
# Every method under these; under the others what is most easily mistaken.
MAIN = ["counted", "permuted", "ids", "mixed", "permuted, feature_names=", "min_count", "keep"]
FEW = ["permuted", "ids", "mixed", "features"]
DELICATE = {"resid", "of_pattern", "icc", "take", "params"}
# Fits again, in seconds: each way of finding a feature once.
SLOW = {"to_statsmodels", "compare_lr_test"}
MISSING = ["raise", "feature"]


# ---- the same data under many names ---------------------------------------------------------


@cache
def data() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    return pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "trt": np.tile(["a", "b", "b"], N // 3),
            "g": np.repeat(list("stuvwxyz"), N // 8),
        },
        index=[f"s{i}" for i in range(N)],
    )


@cache
def values(missing: str) -> Any:
    """Y (M, N), all features different in every respect."""
    rng = np.random.default_rng(11)
    effects = rng.normal(size=(M, 8)) * rng.uniform(0.2, 1.5, size=(M, 1))
    Y = 20.0 + np.arange(M)[:, None] + np.repeat(effects, N // 8, axis=1)
    Y += rng.normal(size=(M, 1)) * data()["x"].to_numpy()
    Y += rng.uniform(0.5, 2.0, size=(M, 1)) * rng.normal(size=(M, N))
    if missing == "feature":  # one pattern that many share, some of their own, some complete
        Y[:9, 0] = np.nan
        Y[9:11, 5] = np.nan
        Y[11, [7, 9]] = np.nan
    return Y


def full(missing: str) -> Any:
    """Y of KEPT with other features between them that are nearly always zero."""
    Y = np.zeros((ROWS, N))
    Y[:, 3] = 0.25
    Y[KEPT] = values(missing)
    return Y


class Named:
    """One way to name the features: how to build the model, what Y is, what the names are."""

    def __init__(self, kind: str, missing: str) -> None:
        self.kind, self.missing = kind, missing
        self.options: dict[str, Any] = {}
        named = GIVEN.get(kind, kind)
        self.Y: Any
        if named in NAMES:
            self.names = NAMES[named]
            if kind in GIVEN:
                self.Y, self.options = values(missing), {"feature_names": self.names}
            elif kind == "counted":
                self.Y = values(missing)
            else:
                self.Y = pd.DataFrame(values(missing), index=self.names, columns=data().index)
            return
        self.names, self.Y = KEPT, full(missing)
        self.options = {
            "min_count": {"min_count": 1.0},
            "min_fraction": {"min_fraction": 0.5},
            "features": {"features": KEPT},
            "mask": {"features": np.isin(np.arange(ROWS), KEPT)},
        }.get(kind, {})

    def model(self, fixed: str = FIXED, sums_by: str | None = None) -> Any:
        options = {**self.options, "missing": self.missing, "sums_by": sums_by}
        model: Any = fm.MultiLMM.from_formula(fixed, RANDOM, data(), self.Y, **options)
        if self.kind == "keep":
            return model.keep(features=KEPT)
        if self.kind == "drop":
            return model.drop(features=[i for i in range(ROWS) if i not in KEPT])
        return fm.MultiLMM(model.stats.take(KEPT)) if self.kind == "take" else model

    @property
    def labels(self) -> list[Any]:
        """The names as the results have them: all text where some are."""
        whole = all(isinstance(name, int) for name in self.names)
        return self.names if whole else [str(name) for name in self.names]

    def asked(self, *positions: int) -> list[Any]:
        return [self.names[i] for i in positions]


@cache
def named(kind: str, missing: str) -> Named:
    return Named(kind, missing)


def fit(model: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return model.fit(parameter_space="psd", n_jobs=1, **options)


@cache
def grouped(kind: str) -> Any:
    """A fit that keeps the sums of each level of g."""
    return fit(named(kind, "raise").model(sums_by="g"))


@cache
def built(kind: str, missing: str, fixed: str = FIXED) -> Any:
    return named(kind, missing).model(fixed)


@cache
def fitted(kind: str, missing: str, method: str = "REML", fixed: str = FIXED) -> Any:
    model = built(kind, missing, fixed)
    if kind == "take":  # `take` forgets the formulas, which belong to the model
        model = fm.MultiLMM(model.stats, recipe=built("min_count", missing, fixed).recipe)
    return fit(model, method=method)


def words(page: Any, name: Any) -> list[str]:
    """The words of a feature's page, without its name."""
    return str(page).replace(f" {name} ", " this ").split()


TEST_RESULTS = (fm.TTestResults, fm.FTestResults, fm.FlipTestResults)


def plain(found: Any, labels: list[Any]) -> Any:
    """What a method returned, with the names of features replaced by their positions."""
    place = {label: i for i, label in enumerate(labels)}

    def index(axis: Any) -> list[Any]:
        if axis.name == "feature":
            return [place[name] for name in axis]
        return [tuple(item) if isinstance(item, tuple) else item for item in axis]

    if isinstance(found, pd.DataFrame | pd.Series):
        if isinstance(found.index, pd.MultiIndex):
            found = found.reset_index()
            found["feature"] = [place[name] for name in found["feature"]]
            return {str(name): column.to_numpy() for name, column in found.items()}
        for name in {"names", "variable"} & set(getattr(found, "columns", [])):
            found = found.assign(**{name: [place[label] for label in found[name]]})
        columns = found.items() if isinstance(found, pd.DataFrame) else [("", found)]
        return {"index": index(found.index)} | {str(k): v.to_numpy() for k, v in columns}
    if isinstance(found, xr.Dataset):
        return {name: plain(array, labels) for name, array in found.items()}
    if isinstance(found, xr.DataArray):
        parts: dict[str, Any] = {"values": found.to_numpy(), "dims": found.dims}
        if "feature" in found.coords:
            parts["feature"] = [place[name] for name in np.atleast_1d(found["feature"].to_numpy())]
        return parts
    if isinstance(
        found, fm.TTestResults | fm.FTestResults | fm.BootstrapResults | fm.FlipTestResults
    ):
        return plain(found.ds, labels)
    if isinstance(found, fm.MultiLMMResults):
        return {"ds": plain(found.ds, labels), "stats": plain(found.stats, labels)}
    if isinstance(found, fm.MultiLMM):
        return plain(found.stats, labels)
    if isinstance(found, fm.PatternedStats):
        return plain(found.sums, labels) | {"nobs": found.nobs, "pattern": found.pattern}
    if isinstance(found, fm.SummaryStats):
        arrays = {name: getattr(found, name) for name in ("n", "XX", "XY", "ZX", "ZY", "yy")}
        names = [str(name).split("#")[0] for name in found.feature_names]
        by_text = {str(label): i for label, i in place.items()}
        return {**arrays, "ZZ": found.ZZ.toarray(), "feature": [by_text[name] for name in names]}
    if isinstance(found, fm.FeatureResults):
        return plain(found.fe_params, labels) | {"at": place[found.name], "df": found.df.to_numpy()}
    if isinstance(found, Mapping):
        return {str(key): plain(value, labels) for key, value in found.items()}
    if isinstance(found, tuple | list):
        return [plain(item, labels) for item in found]
    return found


def assert_same(left: Any, right: Any, path: str = "") -> None:
    assert type(left) is type(right), path
    if isinstance(left, Mapping):
        assert list(left) == list(right), path
        for key in left:
            assert_same(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list) and left and not isinstance(left[0], str | int):
        assert len(left) == len(right), path
        for i, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    elif isinstance(left, np.ndarray) and left.dtype.kind == "f":
        np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-9, err_msg=path)
    elif isinstance(left, np.ndarray):
        assert left.tolist() == right.tolist(), path
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-7, nan_ok=True), path
    else:
        assert left == right, path


# ---- what each method says of some features -------------------------------------------------

Case = Callable[[Any, Named], Any]
SOME = (9, 2, 12, 4)  # of several patterns, in no order


def of(*names: str) -> dict[str, Case]:
    """Properties, and methods without arguments: what they are of all features."""

    def reader(name: str) -> Case:
        def read(owner: Any, _: Named) -> Any:
            value = getattr(owner, name)
            return value() if callable(value) else value

        return read

    return {name: reader(name) for name in names}


def for_some(name: str, *args: Any, **options: Any) -> Case:
    """A method with ``features=``."""

    def call(owner: Any, how: Named) -> Any:
        return getattr(owner, name)(*args, features=how.asked(*SOME), **options)

    return call


def saved(owner: Any, _: Named, path: Any) -> Any:
    owner.save(path)
    return type(owner).load(path)


def written(result: Any, how: Named) -> Any:
    anndata = pytest.importorskip("anndata")
    order = np.argsort(ORDER)
    var = pd.DataFrame(index=[str(how.labels[i]) for i in order])
    target = anndata.AnnData(np.zeros((3, M)), var=var)
    result.to_anndata(target, tests=result.t_test("x"))
    return {name: np.asarray(target.varm[name]) for name in sorted(target.varm)}


def names_of(owner: Any, how: Named) -> list[int]:
    return [how.labels.index(name) for name in owner.feature_names]


def drawn(result: Any, how: Named) -> Any:
    """Heights of the points of the first panel."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    axes = result.plot_residuals(how.names[9], how.Y, data())
    shown = np.asarray(np.ravel(axes)[0].collections[0].get_offsets())[:, 1]
    plt.close("all")
    return shown


def pictured(result: Any, how: Named) -> Any:
    """Where the marks of some features lie, and the names beside them."""
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    asked, place = how.asked(*SOME), {str(name): i for i, name in enumerate(how.labels)}
    forest = result.plot.forest("x", features=asked)
    named = [place[label.get_text()] for label in forest.get_yticklabels()]
    texts = result.plot.volcano("x", label=asked, df="residual").texts
    where = np.array(sorted((place[text.get_text()], *text.xy) for text in texts))
    marks = np.asarray(forest.collections[-1].get_offsets())
    plt.close("all")
    return [named, where, marks]


RESULTS: dict[str, Case] = {
    **of("aic", "bic", "bse", "bse_theta", "converged", "llf", "n_iter", "params", "pvalues"),
    **of("score", "status", "theta", "tvalues", "random_effects", "to_frame"),
    "conf_int": lambda r, how: [
        r.conf_int(),
        r.conf_int(method="profile", coefs="x", features=how.asked(*SOME)),
    ],
    **of("nobs", "df_resid", "moderate", "ds", "stats"),
    "anova": lambda r, how: [
        r.anova(features=how.asked(*SOME)),
        r.anova(type=2, df="normal", features=how.asked(*SOME)),
    ],
    "drop1": lambda r, how: [
        r.drop1(features=how.asked(*SOME)),
        r.drop1(test="LRT", features=how.asked(*SOME)),
    ],
    "ranova": for_some("ranova"),
    "r_squared": lambda r, how: [
        r.r_squared(features=how.asked(*SOME)),
        r.r_squared(by="term", features=how.asked(*SOME)),
    ],
    "random_correlations": for_some("random_correlations"),
    "random_parameters": for_some("random_parameters"),
    "coef": for_some("coef"),
    "check_residuals": lambda r, how: [
        r.check_residuals(how.Y, data(), features=how.asked(*SOME)),
        r.check_residuals(how.Y, data(), by="trt"),
    ],
    "plot_residuals": drawn,
    "plot": pictured,
    "blup": for_some("blup", "conditional"),
    "bootstrap": for_some("bootstrap", 3, rng=5),
    "bootstrap_test": lambda r, how: [  # enough replicates to tell null fits apart
        r.bootstrap_test("x", n=40, rng=5, features=how.asked(*SOME)),
        r.bootstrap_test(component="g", n=40, rng=5, features=how.asked(*SOME)),
    ],
    "compare_lr_test": lambda _, how: [
        fitted(how.kind, how.missing, "ML").compare_lr_test(
            fitted(how.kind, how.missing, "ML", "~ trt"), features=how.asked(*SOME)
        ),
        fitted(how.kind, how.missing, "ML").compare_lr_test(
            fit(built(how.kind, how.missing, "~ trt").keep(features=how.names[::-1]), method="ML")
        ),
    ],
    "conf_int_theta": for_some("conf_int_theta", method="profile"),
    "cov_params": for_some("cov_params"),
    "draw": for_some("draw", 2, rng=5),
    "f_test": for_some("f_test", ["x", "trt[T.b]"]),
    "fim": for_some("fim"),
    "fittedvalues": for_some("fittedvalues", data()),
    "flip_test": lambda _, how: grouped(how.kind).flip_test("x", features=how.asked(*SOME)),
    "heterogeneity": lambda _, how: fit(
        built(how.kind, how.missing), residual_variance=1.0
    ).heterogeneity(features=how.asked(*SOME)),
    "icc": for_some("icc"),
    "influence": lambda _, how: grouped(how.kind).influence(features=how.asked(*SOME)).ds,
    "marginal_means": for_some("marginal_means", "trt"),
    "marginal_slopes": for_some("marginal_slopes", "x"),
    "of_pattern": lambda r, how: [r.of_pattern(name) for name in how.asked(*SOME)],
    "posterior_variances": for_some("posterior_variances"),
    "ratio_prior": lambda r, how: [
        r.t_test("x", df="integrated", features=how.asked(*SOME)),
        r.t_test("x", df="integrated", prior=r.ratio_prior).pvalue,
    ],
    "learn_ratio_prior": lambda r, _: r.t_test(
        "x", df="integrated", prior=r.learn_ratio_prior(trend=r.llf.iloc[::-1], robust=True)
    ),
    "predict": for_some("predict", data().iloc[:3], level="conditional", interval="prediction"),
    "resid": lambda r, how: [
        r.resid(how.Y, data(), features=how.asked(*SOME)),
        r.resid(how.Y, data()),
        r.resid(how.Y, data(), kind="standardized", features=how.asked(*SOME)),
    ],
    "summary": lambda r, how: [words(r.summary(how.names[i]), how.labels[i]) for i in SOME],
    "t_test": lambda r, how: [
        r.t_test("x", features=how.asked(*SOME), moderated=True),
        r.t_test("x", features=how.asked(*SOME), df="kenward-roger"),
        how.missing == "raise"
        and grouped(how.kind).t_test("x", features=how.asked(*SOME), cov="CR2"),
    ],
    "to_anndata": written,
    "top_table": for_some("top_table", "x"),
    "variance_components": for_some("variance_components"),
    "variance_fractions": for_some("variance_fractions"),
    "variance_test": for_some("variance_test"),
    "wald_test": for_some("wald_test", "x", use_f=False),
    "feature_names": names_of,
    "glance": for_some("glance"),
    "tidy": lambda r, how: [
        r.tidy(df="residual").set_index("feature"),
        r.tidy(features=how.asked(*SOME)).set_index("feature"),
    ],
    "augment": lambda r, how: r.augment(how.Y, data(), features=how.asked(*SOME)).set_index(
        "feature"
    ),
    "sel": lambda r, how: [
        r.sel(how.names[9]),
        r[how.names[9]],
        r.sel(how.asked(*SOME)).t_test("x"),
        r[how.asked(*SOME)].params,
        [how.labels.index(name) for name in r],
        [name in r for name in how.names],
        "nobody" in r,
        len(r),
    ],
}
# A test of their own; no features.
RESULTS_APART = {"load", "save", "method", "options", "recipe", "to_excel"}
# These need sums by group, which such features have not.
OF_GROUPS = {"flip_test", "influence"}

FEATURE: dict[str, Case] = {
    **of("aic", "bic", "bse", "bse_fe", "bse_re", "bse_theta", "conf_int", "converged"),
    **of("coef", "cov_params", "cov_re", "cov_re_unscaled", "df", "df_resid", "ds", "f_test"),
    **of("fe_params", "llf", "n_iter", "nobs", "normalized_cov_params", "params"),
    **of("pvalues", "random_effects", "random_effects_cov", "ranef", "scale", "status"),
    **of("t_test", "theta", "tvalues", "wald_test"),
    "name": lambda one, how: how.labels.index(one.name),
    "fittedvalues": lambda one, _: one.fittedvalues(data()),
    "predict": lambda one, _: one.predict(data().iloc[:3], se=True),
    "resid": lambda one, how: one.resid(how.Y, data()),
    "summary": lambda one, _: words(one.summary(), one.name),
    "glance": lambda one, _: one.glance(),
    "tidy": lambda one, _: one.tidy(df="residual").set_index("feature"),
    "augment": lambda one, how: one.augment(how.Y, data()),
    "to_statsmodels": lambda one, how: refitted(one, how),  # noqa: PLW0108  (defined below)
}
FEATURE_APART = {
    *("plot", "df_modelwc", "k_fe", "k_re", "k_re2", "k_vc", "method", "reml", "use_t", "vcomp"),
}


def refitted(one: Any, how: Named) -> Any:
    pytest.importorskip("statsmodels")
    return one.to_statsmodels(how.Y, data()).table


def again(stats: Any, how: Named) -> Any:
    """One more block of the same features, labelled or not as the first."""
    Y = how.Y
    if how.kind in FILTERS:
        Y = values("raise")
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(N), data()["x"], rng.normal(size=N)])
    first = fm.SummaryStats.from_arrays(
        Y, X, np.kron(np.eye(8), np.ones((6, 1))), feature_names=how.names
    )
    if isinstance(Y, pd.DataFrame):
        Y = Y.iloc[::-1]
    return first.update(Y, X, np.kron(np.eye(8), np.ones((6, 1))))


def added(stats: Any, how: Named) -> Any:
    turned = stats.take([how.names[i] for i in ORDER])
    return [stats.add(turned), stats + turned, sum([stats, turned]) - turned]


STATS: dict[str, Case] = {
    **of("centred", "to_dataset"),
    "feature_names": lambda s, how: [how.labels.index(name) for name in s.feature_names],
    "add": added,
    "at": lambda s, _: s.at(np.array(SOME)),  # positions, whatever the names
    "from_dataset": lambda s, _: type(s).from_dataset(s.to_dataset()),
    "drop": lambda s, how: s.drop(features=how.asked(*SOME)),
    "keep": lambda s, how: s.keep(fixed="x", features=how.asked(*SOME)),
    "take": lambda s, how: [s.take(how.asked(*SOME)), s.take(how.names[3])],
    "update": again,
    "from_arrays": again,
    "from_blocks": lambda _, how: fm.SummaryStats.from_blocks(
        [(Y, np.ones((N, 1)), np.kron(np.eye(8), np.ones((6, 1)))) for Y in turned(how)]
    ),
    "shift": lambda s, _: None if s.shift is None else s.shift.features,
    "without": lambda _, how: grouped(how.kind).stats.without("s").ungrouped(),
    "ungrouped": lambda _, how: grouped(how.kind).stats.take(how.asked(*SOME)).ungrouped(),
}
STATS_APART = {
    *("XX_root", "coef_names", "from_design", "load", "log_weights", "m", "p", "q", "save"),
    *("structure", "numbered", "aliased", "noting", "groups", "of_groups", "centred_at"),
}

PATTERNED: dict[str, Case] = {
    **of("nobs", "to_dataset"),
    "at": STATS["at"],
    "add": lambda s, how: s.add(s.take([how.names[i] for i in ORDER])),
    "from_dataset": STATS["from_dataset"],
    "feature_names": STATS["feature_names"],
    "drop": STATS["drop"],
    "keep": STATS["keep"],
    "members": lambda s, _: [s.members(k) for k in range(s.n_patterns)],
    "of_pattern": lambda s, _: [s.of_pattern(k) for k in range(s.n_patterns)],
    "take": STATS["take"],
}
PATTERNED_APART = {
    *("coef_names", "load", "log_weights", "m", "n", "n_patterns", "p", "q", "save"),
    *("structure", "numbered", "aliased", "noting", "groups", "group_designs"),
}

TESTS: dict[str, Case] = {
    **of("pvalue", "to_frame", "adjusted", "estimable", "summary_frame"),
    "feature_names": names_of,
    "top_table": lambda t, _: [t.top_table("x", sort_by=t.statistic), t.top_table("x", n=3)],
}
T_TESTS = {
    **TESTS,
    **of("conf_int", "df", "effect", "sd", "tvalue"),
    "top_table": lambda t, _: [t.top_table("x"), *(t.top_table("x", style=s) for s in STYLES)],
    "simultaneous": lambda t, _: [t.simultaneous("mvt"), t.simultaneous("sidak")],
    "two_stage": lambda t, how: [
        t.two_stage(t.pvalue["x"].iloc[ORDER]),
        t.two_stage(fitted(how.kind, how.missing).f_test("x", features=how.asked(*ORDER))),
    ],
}
STYLES = ("scanpy", "pertpy")
F_TESTS = {**TESTS, **of("df_denom", "df_num", "fvalue")}
TESTS_APART = {"plot", "columns", "contrasts", "statistic", "ds"}

FLIPS = {**TESTS, **of("effect", "tvalue", "pvalue_fwer")}
INFLUENCE: dict[str, Case] = {
    **of("cooks_distance", "dfbetas", "summary"),
    "t_test": lambda i, _: i.t_test("x"),
    "hits": lambda i, how: [
        how.labels.index(name) for name in i.hits("x", adjust="none")["largest_change"]
    ],
}
INFLUENCE_APART = {"groups", "plot"}

BOOTSTRAP = of("bias", "conf_int", "estimate", "n_failed", "replicates", "se")


def turned(how: Named) -> list[Any]:
    """Two blocks of Y, the second with its features in another order where they have names."""
    Y = values("raise")
    if how.kind == "counted" or how.kind in GIVEN or how.kind in FILTERS:
        return [pd.DataFrame(Y, index=how.names), pd.DataFrame(Y, index=how.names).iloc[::-1]]
    return [pd.DataFrame(Y, index=how.names), pd.DataFrame(Y, index=how.names).iloc[ORDER]]


MODEL: dict[str, Case] = {
    "drop": lambda m, how: m.drop(fixed="x", features=how.asked(*SOME)),
    "keep": lambda m, how: [m.keep(features=how.asked(*SOME)), m.keep(features=how.names[7])],
    "fit": lambda m, how: [
        fit(m, theta0=fitted(how.kind, how.missing)),
        fit(m, theta0=fitted(how.kind, how.missing).theta.iloc[ORDER], max_iter=1),
    ],
    "from_formula": lambda m, _: m,
    "feature_names": names_of,
    "loglike": lambda m, how: [
        m.loglike(fitted(how.kind, how.missing)),
        m.loglike(fitted(how.kind, how.missing).theta.iloc[ORDER], method="ML"),
    ],
    "score": lambda m, how: m.score(2.0 * fitted(how.kind, how.missing).theta.iloc[ORDER]),
    "from_arrays": lambda _, how: fm.MultiLMM.from_arrays(
        values(how.missing),
        *(np.column_stack([np.ones(N), data()["x"]]), np.kron(np.eye(8), np.ones((6, 1)))),
        feature_names=how.names,
        missing=how.missing,
    ),
    "from_summary_stats": lambda m, _: fm.MultiLMM.from_summary_stats(m.stats),
}
MODEL_APART = {"from_anndata", "projection"}  # a test of its own; positions alone

EVERY = {
    fm.MultiLMM: (MODEL, MODEL_APART),
    fm.MultiLMMResults: (RESULTS, RESULTS_APART),
    fm.FeatureResults: (FEATURE, FEATURE_APART),
    fm.SummaryStats: (STATS, STATS_APART),
    fm.PatternedStats: (PATTERNED, PATTERNED_APART),
    fm.TTestResults: (T_TESTS, TESTS_APART),
    fm.FTestResults: (F_TESTS, TESTS_APART),
    fm.BootstrapResults: (BOOTSTRAP, set()),
    fm.FlipTestResults: (FLIPS, TESTS_APART),
    fm.Influence: (INFLUENCE, INFLUENCE_APART),
}


def owners(owner: type, kind: str, missing: str) -> list[Any]:
    """The objects of a class that the methods are called on."""
    if owner is fm.MultiLMM:
        return [built(kind, missing)]
    if owner is fm.FlipTestResults:
        return [grouped(kind).flip_test("x")]
    if owner is fm.Influence:
        return [grouped(kind).influence()]
    result = fitted(kind, missing)
    if owner is fm.FeatureResults:
        return [result.sel(name) for name in named(kind, missing).asked(0, *SOME)]
    if owner is fm.TTestResults:
        return [result.t_test(["x", "trt[T.b]"])]
    if owner is fm.FTestResults:
        return [result.f_test("x")]
    if owner is fm.BootstrapResults:
        return [result.bootstrap(3, rng=1, features=named(kind, missing).asked(*SOME))]
    return [result if owner is fm.MultiLMMResults else built(kind, missing).stats]


def outcome(owner: type, method: str, kind: str, missing: str) -> Any:
    how, case = named(kind, missing), EVERY[owner][0][method]
    return [plain(case(one, how), how.labels) for one in owners(owner, kind, missing)]


def kinds(owner: type, method: str) -> list[str]:
    if method in DELICATE:
        return KINDS
    if method in SLOW:
        return [*FEW, "permuted, feature_names=", "keep"]
    return MAIN if owner in (fm.MultiLMM, fm.MultiLMMResults) else FEW


def holds(owner: type, method: str, missing: str) -> bool:
    """Whether there is such a thing to ask for."""
    if missing == "raise":
        return owner is not fm.PatternedStats
    apart = (fm.FlipTestResults, fm.Influence, fm.SummaryStats)
    return owner not in apart and not (owner is fm.MultiLMMResults and method in OF_GROUPS)


CASES = [(owner, method) for owner, (methods, _) in EVERY.items() for method in methods]


@cache
def baseline(owner: type, method: str, missing: str) -> Any:
    return outcome(owner, method, "text", missing)


@pytest.mark.parametrize("owner", EVERY, ids=lambda owner: owner.__name__)
def test_every_public_method_is_in_the_matrix(owner):
    methods, apart = EVERY[owner]
    public = {name for name in dir(owner) if not name.startswith("_")}
    assert public == {*methods, *apart}
    assert not set(methods) & apart


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("kind", KINDS)
def test_names_reach_the_results_as_they_were_given(kind, missing):
    how = named(kind, missing)
    assert fitted(kind, missing).params.index.tolist() == how.labels
    assert len(set(fitted(kind, missing).status)) >= 1
    assert isinstance(built(kind, missing).stats, fm.PatternedStats) == (missing == "feature")


@pytest.mark.parametrize(
    ("owner", "method"), CASES, ids=lambda case: getattr(case, "__name__", case)
)
def test_the_same_numbers_whatever_the_names(owner, method):
    tried = 0
    for missing in MISSING:
        for kind in kinds(owner, method) if holds(owner, method, missing) else ():
            try:
                assert_same(outcome(owner, method, kind, missing), baseline(owner, method, missing))
            except Exception as error:
                error.add_note(f"Names: {kind}; missing={missing!r}.")
                raise
            tried += 1
    assert tried >= len(FEW)


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_from_a_file(tmp_path, kind, missing):
    for owner, right in (
        (fitted(kind, missing), fitted("text", missing)),
        (built(kind, missing).stats, built("text", missing).stats),
    ):
        how = named(kind, missing)
        found = saved(owner, how, tmp_path / "saved.nc")
        assert_same(plain(found, how.labels), plain(right, TEXT))
        if isinstance(found, fm.MultiLMMResults):
            some = found.resid(how.Y, data(), features=how.asked(*SOME))
            expected = right.resid(values(missing), data(), features=[TEXT[i] for i in SOME])
            np.testing.assert_allclose(some.to_numpy(), expected.to_numpy())


@pytest.mark.parametrize("method", ["bootstrap", "bootstrap_test", "draw"])
@pytest.mark.parametrize("kind", ["permuted", "ids"])
def test_one_pattern_is_simulated_as_one_design(method, kind):
    how = named(kind, "feature")
    args = ("x",) if method == "bootstrap_test" else (2,)
    found, right = (
        getattr(result.of_pattern(names[2]), method)(*args, rng=1, features=[names[2], names[7]])
        for result, names in (
            (fitted(kind, "feature"), how.names),
            (fitted("text", "feature"), TEXT),
        )
    )
    assert_same(plain(found, how.labels), plain(right, TEXT))


@pytest.mark.parametrize("kind", ["text numbers", "permuted", "ids"])
def test_the_same_from_anndata_whose_genes_are_called_by_numbers(kind):
    anndata = pytest.importorskip("anndata")
    names = NAMES[kind]
    adata = anndata.AnnData(
        values("raise").T, obs=data(), var=pd.DataFrame(index=[str(name) for name in names])
    )
    found = fit(fm.MultiLMM.from_anndata(adata, FIXED, RANDOM))
    right = fitted("text", "raise")
    asked = [names[i] for i in SOME]  # Entrez numbers in a file are text; asked for as either
    np.testing.assert_allclose(
        found.t_test("x", features=asked).pvalue,
        right.t_test("x", features=[TEXT[i] for i in SOME]).pvalue,
    )


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_and_covariates_beside_y(kind, labelled):
    """Tables beside Y are matched to it whatever the names, in any order where they have some."""

    def sums(how: Named) -> Any:
        rows = KEPT if how.kind in FILTERS else range(M)
        table = np.ones((ROWS if how.kind in FILTERS else M, N))
        table[list(rows)] = 0.5 + 0.1 * np.abs(values("raise") - 20.0)
        if labelled:
            names = np.arange(ROWS) if how.kind in FILTERS else how.names
            table = pd.DataFrame(table, index=names, columns=data().index).iloc[::-1]
        model: Any = fm.MultiLMM.from_formula(
            "~ x + own",
            RANDOM,
            data(),
            how.Y,
            weights=table,
            feature_covariates={"own": table},
            **how.options,
        )
        return model.keep(features=how.names).stats

    how, text = named(kind, "raise"), named("text", "raise")
    found, right = sums(how), sums(text)
    np.testing.assert_allclose(found.sums.XY, right.sums.XY)
    np.testing.assert_allclose(found.designs.XX[found.pattern], right.designs.XX[right.pattern])
    assert found.feature_names.tolist() == how.labels


def test_power_of_statistics_whatever_their_names():
    found = [
        power(
            built(kind, "raise"), theta=[0.5, 1.0], beta={"x": 0.4}, contrast="x", n_sim=20, rng=1
        )
        for kind in ("text", "permuted")
    ]
    xr.testing.assert_equal(*found)


# ---- ways to ask ----------------------------------------------------------------------------


def mask_of(how: Named, *positions: int) -> Any:
    return np.isin(np.arange(M), positions)


def series_mask(how: Named) -> Any:
    mask = pd.Series(mask_of(how, *SOME), index=how.labels)
    return mask.iloc[ORDER]


IN_ORDER = sorted(SOME)
WAYS: dict[str, tuple[Callable[[Named], Any], list[int]]] = {
    "list": (lambda how: how.asked(*SOME), list(SOME)),
    "tuple": (lambda how: tuple(how.asked(*SOME)), list(SOME)),
    "array": (lambda how: np.array(how.asked(*SOME)), list(SOME)),
    "objects": (lambda how: np.array(how.asked(*SOME), dtype=object), list(SOME)),
    "Index": (lambda how: pd.Index(how.asked(*SOME)), list(SOME)),
    "Series": (lambda how: pd.Series(how.asked(*SOME), index=list("abcd")), list(SOME)),
    "Categorical": (lambda how: pd.Categorical(how.asked(*SOME)), list(SOME)),
    "DataArray": (lambda how: xr.DataArray(how.asked(*SOME), dims="feature"), list(SOME)),
    "generator": (lambda how: (name for name in how.asked(*SOME)), list(SOME)),
    "keys": (lambda how: dict.fromkeys(how.asked(*SOME)).keys(), list(SOME)),
    "text of them": (lambda how: [str(name) for name in how.asked(*SOME)], list(SOME)),
    "one": (lambda how: how.names[4], [4]),
    "none": (lambda _: [], []),
    "mask": (lambda how: mask_of(how, *SOME), IN_ORDER),
    "list mask": (lambda how: mask_of(how, *SOME).tolist(), IN_ORDER),
    "Series mask": (series_mask, IN_ORDER),
    "nullable mask": (lambda how: series_mask(how).astype("boolean"), IN_ORDER),
    "DataArray mask": (
        lambda how: xr.DataArray(series_mask(how), dims="feature"),
        IN_ORDER,
    ),
    "mask of results": (lambda how: fitted(how.kind, "raise").llf.rank() > 9, []),
    "slice": (lambda _: slice(2, 5), [2, 3, 4]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["text", *KINDS])
def test_ways_to_ask_for_features(kind, way):
    how, result = named(kind, "raise"), fitted(kind, "raise")
    ask, positions = WAYS[way]
    if way == "mask of results":
        positions = np.flatnonzero(result.llf.rank().to_numpy() > 9).tolist()
    found = result.cov_params(ask(how))
    assert [how.labels.index(name) for name in found["feature"].to_numpy()] == positions
    right = fitted("text", "raise").cov_params().to_numpy()[positions]
    np.testing.assert_allclose(found.to_numpy(), right, rtol=1e-7)
    taken = built(kind, "raise").stats.take(ask(how))
    np.testing.assert_allclose(taken.yy, built("text", "raise").stats.yy[positions])


def test_a_whole_number_is_a_position_only_where_no_name_can_be_meant():
    names = np.array(["a", "b", "c"], dtype=object)
    assert feature_positions(names, [2, 0]).tolist() == [2, 0]
    assert feature_positions(names, -1).tolist() == [2]
    with pytest.raises(InputError, match="there are 3 features"):
        feature_positions(names, 3)
    mixed = np.array(["a", "0", "c"], dtype=object)  # a frame labelled 'a', 0, 'c'
    assert feature_positions(mixed, 0).tolist() == [1]
    with pytest.raises(InputError, match="Unknown feature: '2'"):
        feature_positions(mixed, 2)
    numbers = np.array([7157, 672, 1])
    assert feature_positions(numbers, [1, "672", 7157.0]).tolist() == [2, 1, 0]
    with pytest.raises(InputError, match=r"Unknown feature: '0'.*names, not positions"):
        feature_positions(numbers, 0)
    floats = np.array(["7157.0", "672.0"], dtype=object)  # numbers that a missing one made floats
    assert feature_positions(floats, 672.0).tolist() == [1]
    with pytest.raises(InputError, match=r"Did you mean '672\.0'"):
        feature_positions(floats, 672)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["g01", "g1"], r"Unknown feature: 'g1'. Did you mean 'g1"),
        (slice("g01", "g03"), "positions"),
        (np.zeros(3, dtype=bool), "3 entries for 14 features"),
        (pd.Series(True, index=[*TEXT[:-1], "other"]), "'other'"),
        (pd.Series(True, index=TEXT[:-1]), "'g13'"),
        (pd.Series([True, None] + [True] * 12, index=TEXT, dtype="boolean"), "missing"),
        (pd.Series(True, index=[TEXT[0], *TEXT[:-1]]), "'g00'"),
        (np.array([["g01", "g02"]]), "one dimension"),
        ([1.5], "Unknown feature: '1.5'"),
        ([99], "there are 14 features"),
    ],
)
def test_what_is_no_feature_is_named(asked, message):
    with pytest.raises(InputError, match=message):
        fitted("text", "raise").cov_params(asked)
    with pytest.raises(InputError, match=message):
        built("text", "raise").stats.take(asked)


# ---- Y without names ------------------------------------------------------------------------


def test_rows_of_an_array_are_what_the_names_count():
    """Features of an array are named by their rows, whatever was left out since."""
    model = fm.MultiLMM.from_formula(FIXED, RANDOM, data(), full("raise"), min_count=1.0)
    turned_names = KEPT[::-1]
    result = fit(model.keep(features=turned_names))
    found = result.resid(full("raise"), data())
    right = fitted("text", "raise").resid(values("raise"), data())
    assert found["feature"].to_numpy().tolist() == turned_names
    np.testing.assert_allclose(found.to_numpy(), right.to_numpy()[::-1], atol=1e-9)


def test_rows_of_an_array_are_not_taken_for_names():
    """A frame with numbers for names, and the same values without them."""
    result = fitted("permuted", "raise")
    right = fitted("text", "raise").resid(values("raise"), data())
    found = result.resid(values("raise"), data(), features=ORDER[::-1])
    np.testing.assert_allclose(found.to_numpy(), right.to_numpy()[::-1], atol=1e-9)
    frame = pd.DataFrame(full("raise"), index=np.arange(ROWS)[::-1], columns=data().index)
    filtered = fit(fm.MultiLMM.from_formula(FIXED, RANDOM, data(), frame, min_count=1.0))
    with pytest.raises(InputError, match="22 features without names"):
        filtered.resid(frame.to_numpy(), data())


def test_labels_of_several_levels_are_found_as_the_index_gives_them():
    names = pd.MultiIndex.from_tuples([(i, "a") for i in ORDER])
    Y = pd.DataFrame(values("raise"), index=names, columns=data().index)
    model = fm.MultiLMM.from_formula(FIXED, RANDOM, data(), Y)
    result, text = fit(model), fitted("text", "raise")
    for some in ([names[2], names[7]], names[[2, 7]], [tuple(names[2]), names[7]]):
        found = result.t_test("x", features=some).pvalue.to_numpy()
        np.testing.assert_allclose(found, text.t_test("x").pvalue.to_numpy()[[2, 7]])
        assert model.keep(features=some).stats.m == 2
    assert result.sel(names[2]).llf == pytest.approx(text.llf.iloc[2])


def test_names_that_are_no_sequence_are_refused():
    for names in (4, 1.5, object()):
        with pytest.raises(InputError, match="must be a sequence of names"):
            fm.MultiLMM.from_formula(FIXED, RANDOM, data(), values("raise"), feature_names=names)
