"""Everything with labels is aligned by label: in another order, every argument says the same.

Each case permutes one labelled argument of one public function. The answer must not change, or
an InputError names what does not match.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from test_feature_names import EVERY

import flashmm as fm
from flashmm.exceptions import InputError

M, N, Q = 6, 40, 8
FEATURES = [f"gene{i}" for i in range(M)]
SAMPLES = [f"cell{i}" for i in range(N)]
LEVELS = list("stuvwxyz")
COEFS = ["one", "x", "w"]
FIXED, RANDOM = "~ x + w", "(1 | g)"


@cache
def numbers() -> np.random.Generator:
    return np.random.default_rng(3)


@dataclass(frozen=True)
class Parts:
    """All that a model is made of, labelled; a case permutes one of them."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))

    def __post_init__(self) -> None:
        rng = self.rng
        g = np.repeat(LEVELS, N // Q)
        rng.shuffle(g)
        set_ = object.__setattr__
        set_(
            self,
            "data",
            pd.DataFrame({"x": rng.normal(size=N), "w": rng.normal(size=N), "g": g}, index=SAMPLES),
        )
        values = 10.0 + np.arange(M)[:, None] * 3.0 + rng.normal(size=(M, N))
        values += np.array([LEVELS.index(level) for level in g])
        set_(self, "Y", pd.DataFrame(values, index=FEATURES, columns=SAMPLES))
        X = np.column_stack([np.ones(N), self.data[["x", "w"]]])
        set_(self, "X", pd.DataFrame(X, index=SAMPLES, columns=COEFS))
        Z = (g[:, None] == np.array(LEVELS)).astype(float)
        set_(self, "Z", pd.DataFrame(Z, index=SAMPLES, columns=LEVELS))
        set_(self, "weights", pd.Series(rng.uniform(0.5, 2.0, N), index=SAMPLES))
        set_(self, "factors", pd.Series(rng.uniform(0.5, 2.0, N), index=SAMPLES))
        set_(self, "mask", pd.Series([True, False, True, True, False, True], index=FEATURES))
        set_(self, "trend", pd.Series(rng.normal(size=M), index=FEATURES))

    data: Any = None
    Y: Any = None
    X: Any = None
    Z: Any = None
    weights: Any = None
    factors: Any = None
    mask: Any = None
    trend: Any = None


@cache
def parts() -> Parts:
    return Parts()


def order_of(size: int, seed: int = 1) -> Any:
    """An order in which the first is not the first."""
    order = np.random.default_rng(seed).permutation(size)
    return order if order[0] else np.roll(order, 1)


def shuffled(value: Any, axis: int = 0, seed: int = 1) -> Any:
    """The same labelled values in another order."""
    if isinstance(value, xr.DataArray):
        order = order_of(value.shape[axis], seed)
        return value.isel({value.dims[axis]: order})
    order = order_of(value.shape[axis], seed)
    return value.iloc[order] if axis == 0 else value.iloc[:, order]


def array(value: Any, *dims: str) -> xr.DataArray:
    """A Series or DataFrame as a DataArray with the same labels."""
    axes = value.axes
    return xr.DataArray(value.to_numpy(), dims=dims, coords=dict(zip(dims, axes, strict=True)))


def numbers_of(found: Any) -> dict[str, Any]:
    """What must not change, by label."""
    if isinstance(found, fm.MultiLMM):
        found = found.stats
    if isinstance(found, fm.PatternedStats):
        order = np.argsort(found.feature_names)
        own = {"nobs": found.nobs[order], "log": found.log_weights}
        return numbers_of(found.sums) | own | numbers_of(fm.MultiLMM(found).fit(n_jobs=1).theta)
    if isinstance(found, fm.SummaryStats):
        features = [str(name) for name in found.feature_names]
        coefs, levels = list(found.coef_names), list(found.structure.column_names)
        rows, columns = np.argsort(coefs), np.argsort(levels)
        order = np.argsort(features)
        return {
            "features": sorted(features),
            "coefs": sorted(coefs),
            "levels": sorted(levels),
            "n": found.n,
            "log_weights": found.log_weights,
            "XX": found.XX[np.ix_(rows, rows)],
            "XY": found.XY[np.ix_(rows, order)],
            "ZX": found.ZX[np.ix_(columns, rows)],
            "ZY": found.ZY[np.ix_(columns, order)],
            "ZZ": found.ZZ.toarray()[np.ix_(columns, columns)],
            "yy": found.yy[order],
        }
    if isinstance(found, xr.Dataset):
        return {str(name): numbers_of(part) for name, part in found.items()}
    if isinstance(found, xr.DataArray):
        for dim in found.dims:
            if dim in found.indexes:
                found = found.sortby(dim)
        return {"values": found.to_numpy(), "dims": found.dims}
    if isinstance(found, pd.DataFrame | pd.Series):
        return {"values": found.sort_index().to_numpy()}
    if isinstance(found, fm.TTestResults | fm.FTestResults):
        return numbers_of(found.ds)
    return {"values": np.asarray(found)}


def assert_same(left: Any, right: Any) -> None:
    assert list(left) == list(right)
    for key in left:
        if isinstance(left[key], dict):
            assert_same(left[key], right[key])
        elif isinstance(left[key], float | np.ndarray) and np.asarray(left[key]).dtype.kind == "f":
            np.testing.assert_allclose(left[key], right[key], rtol=1e-9, atol=1e-9, err_msg=key)
        else:
            assert np.array_equal(left[key], right[key]), key


# ---- the models, and the results, that arguments are given to --------------------------------


def from_formula(**changed: Any) -> Any:
    p = parts()
    options = {"data": p.data, "Y": p.Y, **changed}
    return fm.MultiLMM.from_formula(FIXED, RANDOM, **options)


def from_arrays(cls: Any = fm.MultiLMM, **changed: Any) -> Any:
    p = parts()
    options = {"Y": p.Y, "X": p.X, "Z": p.Z, **changed}
    return cls.from_arrays(options.pop("Y"), options.pop("X"), options.pop("Z"), **options)


def stats_from_arrays(**changed: Any) -> Any:
    return from_arrays(fm.SummaryStats, **changed)


def from_anndata(**changed: Any) -> Any:
    anndata = pytest.importorskip("anndata")
    p = parts()
    adata = anndata.AnnData(p.Y.T.to_numpy(), obs=p.data, var=pd.DataFrame(index=FEATURES))
    return fm.MultiLMM.from_anndata(adata, FIXED, RANDOM, **changed)


def in_blocks(cut: Callable[[Any, slice], Any]) -> Any:
    """Y as an iterable of pairs, which ``cut`` makes of the samples at a slice."""
    Y = parts().Y
    return from_formula(Y=iter([cut(Y, slice(0, 15)), cut(Y, slice(15, N))]))


def blocks_of(turn: Callable[[Any], Any]) -> Any:
    p = parts()
    cuts = [slice(0, 15), slice(15, N)]
    return fm.SummaryStats.from_blocks(
        (turn(p.Y.iloc[:, here]), p.X.iloc[here], p.Z.iloc[here]) for here in cuts
    )


@cache
def fitted(kind: str = "formula") -> Any:
    model = from_formula() if kind == "formula" else from_arrays()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return model.fit("ML", parameter_space="psd", n_jobs=1)


@cache
def many() -> Any:
    rng = np.random.default_rng(5)
    p = parts()
    Y = pd.DataFrame(
        rng.normal(size=(30, N)) * rng.uniform(0.5, 2, (30, 1)),
        index=[f"gene{i}" for i in range(30)],
        columns=SAMPLES,
    )
    return fm.MultiLMM.from_formula("~ x", RANDOM, p.data, Y).fit(parameter_space="psd", n_jobs=1)


@cache
def covariate() -> Any:
    rng = np.random.default_rng(6)
    return pd.Series(rng.normal(size=30), index=many().params.index)


def summed(**changed: Any) -> Any:
    """Statistics from labelled sums."""
    p = parts()
    sums = {
        "XX": p.X.T @ p.X,
        "XY": p.X.T @ p.Y.T,
        "ZX": p.Z.T @ p.X,
        "ZY": p.Z.T @ p.Y.T,
        "ZZ": p.Z.T @ p.Z,
        "yy": (p.Y**2).sum(axis=1),
    }
    for name, change in changed.items():
        sums[name] = change(sums[name])
    return fm.MultiLMM.from_summary_stats({"n": N, **sums})


def started(theta0: Any) -> Any:
    """Where one step from given starting values leads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return from_formula().fit(theta0=theta0, max_iter=1, n_jobs=1).theta


def starts() -> pd.DataFrame:
    rng = np.random.default_rng(8)
    return pd.DataFrame(rng.uniform(0.3, 3, (M, 2)), FEATURES, columns=["g", "Residual"])


def means() -> pd.Series:
    return parts().X.mean().set_axis(["Intercept", "x", "w"])


def no_intercept(**options: Any) -> Any:
    p = parts()
    model = fm.MultiLMM.from_arrays(p.Y, p.X[["x", "w"]], p.Z)
    return model.fit(parameter_space="psd", n_jobs=1).variance_fractions(**options)


def updated(**changed: Any) -> Any:
    p = parts()
    options = {"Y": p.Y, "X": p.X, "Z": p.Z, **changed}
    first = stats_from_arrays()
    return first.update(options.pop("Y"), options.pop("X"), options.pop("Z"), **options)


def written(tests: Any, names: list[str] | None = None) -> pd.DataFrame:
    """What is written of tests into an AnnData, by gene."""
    anndata = pytest.importorskip("anndata")
    var = pd.DataFrame(index=FEATURES if names is None else names)
    adata = anndata.AnnData(np.zeros((2, M)), var=var)
    fitted().to_anndata(adata, tests=tests)
    table = np.hstack([adata.varm["flashmm_params"], adata.varm["flashmm_tests_p"]])
    return pd.DataFrame(table, index=adata.var_names)


def voomed(counts: Any, **options: Any) -> pd.DataFrame:
    made = fm.voom(counts, "~ x", data=parts().data, **options)
    return pd.concat([made.log2cpm, made.weights], keys=["a", "b"])


def reversed_fit() -> Any:
    """The same models, the features in another order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return from_formula(Y=shuffled(parts().Y)).fit("ML", parameter_space="psd", n_jobs=1)


def compared(large: Any) -> pd.DataFrame:
    small = from_formula().drop(fixed="x").fit("ML", parameter_space="psd", n_jobs=1)
    return large().compare_lr_test(small)


def turned(stats: Any) -> Any:
    """The same sums with everything in another order."""
    levels = shuffled(parts().Z, 1)
    other = fm.SummaryStats.from_arrays(parts().Y, shuffled(parts().X, 1), levels)
    return other.take(FEATURES[::-1])


def numbered(value: Any) -> Any:
    """The same with 0, 1, 2, ... for labels of the first axis."""
    return value.set_axis(np.arange(len(value)), axis=0)


P = parts()
SERIES = pd.Series([0.0, 1.0, -1.0], index=["Intercept", "x", "w"])
TABLE = pd.DataFrame({"a": [0.0, 1.0, -1.0], "b": [0.0, 1.0, 0.0]}, index=SERIES.index)

# What is called, with the argument as it is, and with the same in another order.
CASES: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {}


def case(name: str, call: Callable[[Any], Any], value: Any, *others: Any) -> None:
    for i, other in enumerate(others):
        CASES[f"{name} {i}" if i else name] = (call, value, other)


def by_groups(make: Callable[..., Any], sums_by: Any) -> Any:
    """The statistics without some samples that only labels tell."""
    made = make(sums_by=sums_by)
    stats = getattr(made, "stats", made)
    return stats.without(["s", "t"]).ungrouped()


G = P.data["g"]
for maker_name, maker in (
    ("formula", from_formula),
    ("arrays", from_arrays),
    ("stats", stats_from_arrays),
    ("anndata", from_anndata),
):
    case(
        f"{maker_name} sums_by",
        lambda by, make=maker: by_groups(make, by),
        G,
        shuffled(G),
        shuffled(G).to_frame(),
        shuffled(pd.concat([G, pd.Series("z", index=["another"])])),
    )


KINSHIP = pd.DataFrame(np.eye(len(LEVELS)) + 0.02 * np.arange(len(LEVELS)), LEVELS, LEVELS)
KINSHIP = 0.5 * (KINSHIP + KINSHIP.T)
for maker_name, key in (("formula", "g"), ("arrays", "Z1"), ("anndata", "g")):
    maker = {"formula": from_formula, "arrays": from_arrays, "anndata": from_anndata}[maker_name]
    case(
        f"{maker_name} covariances",
        lambda K, make=maker, key=key: make(covariances={key: K}).fit("ML", n_jobs=1).blup(),
        KINSHIP,
        shuffled(KINSHIP),
        shuffled(shuffled(KINSHIP), 1),
        shuffled(array(KINSHIP, "a", "b")),
    )
case(
    "summary statistics covariances",
    lambda K: (
        fm.MultiLMM.from_summary_stats(stats_from_arrays(), covariances={"Z1": K}).fit("ML").blup()
    ),
    KINSHIP,
    shuffled(KINSHIP),
)


@cache
def grouped() -> Any:
    return from_formula(sums_by="g").fit("ML", parameter_space="psd", n_jobs=1)


CENTRES = pd.Series(list("aabbccdd"), index=LEVELS)
case(
    "influence by",
    lambda by: grouped().influence(by).ds,
    CENTRES,
    shuffled(CENTRES),
    shuffled(CENTRES).to_dict(),
)
case("cluster", lambda by: grouped().t_test(cov="CR2", cluster=by).ds, CENTRES, shuffled(CENTRES))

MAKERS = {"formula": from_formula, "arrays": from_arrays, "stats": stats_from_arrays}
for maker_name, maker in {**MAKERS, "anndata": from_anndata, "update": updated}.items():
    case(
        f"{maker_name} weights Series",
        lambda w, make=maker: make(weights=w),
        P.weights,
        shuffled(P.weights),
        shuffled(P.weights).to_frame(),
        shuffled(array(P.weights, "sample")),
        shuffled(pd.concat([P.weights, pd.Series(7.0, index=["another"])])),
    )
TABLE_OF_WEIGHTS = np.cos(7.0 * P.Y) + 2.0
for what, name in {
    "table of weights": "weights",
    "feature covariate": "feature_covariates",
}.items():
    case(
        what,
        lambda table, name=name: (
            from_formula(weights=table)
            if name == "weights"
            else fm.MultiLMM.from_formula(
                "~ x + own", RANDOM, P.data, P.Y, feature_covariates={"own": table}
            )
        ),
        TABLE_OF_WEIGHTS,
        shuffled(TABLE_OF_WEIGHTS),
        shuffled(TABLE_OF_WEIGHTS, 1),
        shuffled(array(TABLE_OF_WEIGHTS, "feature", "sample")),
        shuffled(array(TABLE_OF_WEIGHTS.T, "sample", "feature")),
    )
    case(
        f"Y beside a {what}",
        lambda Y, name=name: (
            from_formula(Y=Y, weights=TABLE_OF_WEIGHTS)
            if name == "weights"
            else fm.MultiLMM.from_formula(
                "~ x + own", RANDOM, P.data, Y, feature_covariates={"own": TABLE_OF_WEIGHTS}
            )
        ),
        P.Y,
        shuffled(P.Y),
        shuffled(P.Y, 1),
    )
for maker_name in ("formula", "anndata"):
    case(
        f"{maker_name} size factors",
        lambda f, make={"formula": from_formula, "anndata": from_anndata}[maker_name]: make(
            size_factors=f
        ),
        P.factors,
        shuffled(P.factors),
        shuffled(P.factors).to_frame(),
        shuffled(array(P.factors, "sample")),
    )
for maker_name in ("formula", "anndata"):
    option = "features" if maker_name == "formula" else "mask_var"
    case(
        f"{maker_name} mask",
        lambda mask, name=maker_name, option=option: (
            from_formula if name == "formula" else from_anndata
        )(**{option: mask}),
        P.mask,
        shuffled(P.mask),
        shuffled(P.mask).astype("boolean"),
        shuffled(array(P.mask, "feature")),
    )
case(
    "anndata features",
    lambda mask: from_anndata(features=mask),
    P.mask,
    shuffled(P.mask),
    shuffled(array(P.mask, "feature")),
)
IN_DATA = pd.Series([True, True, False], index=P.data.columns)
case(
    "feature_columns",
    lambda mask: fm.MultiLMM.from_formula("~ 1", "(1 | g)", data=P.data, feature_columns=mask),
    IN_DATA,
    shuffled(IN_DATA),
    shuffled(array(IN_DATA, "column")),
)
for maker_name, maker in {**MAKERS, "update": updated}.items():
    case(
        f"{maker_name} Y",
        lambda Y, make=maker: make(Y=Y),
        P.Y,
        shuffled(P.Y, 1),
        shuffled(P.Y, 0),
        shuffled(array(P.Y, "feature", "sample"), 1),
        shuffled(array(P.Y.T, "sample", "feature"), 0),
    )
for maker_name in ("arrays", "stats", "update"):
    make = {**MAKERS, "update": updated}[maker_name]
    for part in ("X", "Z"):
        value = getattr(P, part)
        dims = ("sample", "coef") if part == "X" else ("sample", "level")
        case(
            f"{maker_name} {part}",
            lambda v, make=make, part=part: make(**{part: v}),
            value,
            shuffled(value),
            shuffled(value, 1),
            shuffled(array(value, *dims)),
            shuffled(array(value, *dims), 1),
        )
    case(
        f"{maker_name} X beside arrays",
        lambda X, make=make: make(X=X, Y=P.Y.to_numpy(), Z=numbered(P.Z)),
        numbered(P.X),
        shuffled(numbered(P.X)),
    )
    case(
        f"{maker_name} Z, X unlabelled",
        lambda Z, make=make: (
            make(Z=Z, X=P.X.to_numpy(), coef_names=COEFS)
            if make is not updated
            else make(Z=Z, X=P.X.to_numpy())
        ),
        P.Z,
        shuffled(P.Z),
    )
    case(
        f"{maker_name} X, Z unlabelled",
        lambda X, make=make: make(X=X, Z=P.Z.to_numpy()),
        P.X,
        shuffled(P.X),
    )
case("formula data", lambda data: from_formula(data=data), P.data, shuffled(P.data))
case(
    "formula data, weights labelled",
    lambda data: from_formula(data=data, weights=P.weights, size_factors=P.factors),
    P.data,
    shuffled(P.data),
)
case(
    "formula data of numbers",
    lambda data: from_formula(data=data, Y=P.Y.to_numpy(), weights=numbered(P.weights)),
    numbered(P.data).reset_index(drop=True),
)
case(
    "weights of numbers",
    lambda w: from_formula(data=P.data.reset_index(drop=True), Y=P.Y.to_numpy(), weights=w),
    numbered(P.weights),
    shuffled(numbered(P.weights)),
)
case(
    "weights of numbers beside arrays",
    lambda w: from_arrays(Y=P.Y.to_numpy(), X=P.X.to_numpy(), Z=P.Z.to_numpy(), weights=w),
    numbered(P.weights),
    shuffled(numbered(P.weights)),
    shuffled(array(numbered(P.weights), "sample")),
)
case(
    "weights beside a labelled Y alone",
    lambda w: from_arrays(X=P.X.to_numpy(), Z=P.Z.to_numpy(), weights=w),
    P.weights,
    shuffled(P.weights),
)
case(
    "table beside a labelled Y alone",
    lambda w: from_arrays(X=P.X.to_numpy(), Z=P.Z.to_numpy(), weights=w),
    TABLE_OF_WEIGHTS,
    shuffled(TABLE_OF_WEIGHTS, 1),
    shuffled(TABLE_OF_WEIGHTS),
)
case(
    "weights beside nothing labelled",
    lambda w: from_arrays(Y=P.Y.to_numpy(), X=P.X.to_numpy(), Z=P.Z.to_numpy(), weights=w),
    P.weights.to_numpy(),
    shuffled(P.weights),
)
case(
    "feature names by name",
    lambda names: from_formula(feature_names=names),
    pd.Series([f"symbol{i}" for i in range(M)], index=FEATURES),
    shuffled(pd.Series([f"symbol{i}" for i in range(M)], index=FEATURES)),
)
case(
    "coefficient names by name",
    lambda names: stats_from_arrays(coef_names=names),
    pd.Series(["a", "b", "c"], index=COEFS),
    shuffled(pd.Series(["a", "b", "c"], index=COEFS)),
)
case(
    "sizes of components",
    lambda Z: stats_from_arrays(Z=Z, components={"g": Q}) + stats_from_arrays(components={"g": Q}),
    P.Z,
    shuffled(P.Z, 1),
)
case(
    "components beside arrays",
    lambda sizes: stats_from_arrays(Z=P.Z.to_numpy(), components=sizes).structure.param_names,
    {"a": 3, "b": 5},
    pd.Series({"a": 3, "b": 5}),
)
for what, turn in {
    "samples": lambda block: shuffled(block, 1),
    "features": shuffled,
    "DataArray": lambda block: shuffled(array(block, "feature", "sample"), 1),
}.items():
    case(
        f"blocks, {what}",
        lambda turn: in_blocks(lambda Y, here: (Y.columns[here], turn(Y.iloc[:, here]))),
        lambda block: block,
        turn,
    )
    case(
        f"blocks by position, {what}",
        lambda turn: in_blocks(lambda Y, here: (here, turn(Y.iloc[:, here]))),
        lambda block: block,
        turn,
    )
    case(f"from_blocks, {what}", blocks_of, lambda block: block, turn)
case(
    "blocks, their labels",
    lambda order: in_blocks(
        lambda Y, here: (
            Y.columns[here][order[here] % (here.stop - here.start)]
            if order is not None
            else Y.columns[here],
            Y.iloc[:, here],
        )
    ),
    None,
    np.concatenate([np.random.default_rng(1).permutation(15), 15 + np.arange(25)[::-1]]),
)
case(
    "residual variance",
    lambda v: from_formula().fit(residual_variance=v, n_jobs=1).llf,
    pd.Series(np.linspace(1.0, 3.0, M), index=FEATURES),
    shuffled(pd.Series(np.linspace(1.0, 3.0, M), index=FEATURES)),
)
case(
    "residual groups",
    lambda by: from_formula(sums_by="g").fit(residual_by=by, n_jobs=1).llf,
    pd.Series(np.where(np.arange(Q) < Q // 2, "low", "high"), index=LEVELS),
    shuffled(pd.Series(np.where(np.arange(Q) < Q // 2, "low", "high"), index=LEVELS)),
)
case("trend", lambda t: many().moderate(trend=t), covariate(), shuffled(covariate()))
case(
    "trend array",
    lambda t: many().moderate(trend=t),
    covariate(),
    shuffled(covariate()).to_frame(),
    shuffled(array(covariate(), "feature")),
)
case(
    "moderated",
    lambda table: many().t_test("x", moderated=table),
    many().moderate(),
    many().moderate().isel(feature=np.random.default_rng(1).permutation(30)),
)
case(
    "column means",
    lambda m: fitted().variance_fractions(column_means=m),
    means(),
    shuffled(means()),
    shuffled(array(means(), "coef")),
    shuffled(means().to_frame()),
    shuffled(means().rename({"Intercept": "(Intercept)"})),
)
case(
    "column means of matrices",
    lambda m: no_intercept(column_means=m),
    P.X[["x", "w"]].mean(),
    P.X[["w", "x"]].mean(),
)
case(
    "contrast",
    lambda L: fitted().t_test(L),
    SERIES,
    shuffled(SERIES),
    shuffled(array(SERIES, "coef")),
)
case(
    "contrasts",
    lambda L: fitted().f_test(L),
    TABLE,
    shuffled(TABLE),
    shuffled(TABLE).T,
    shuffled(array(TABLE, "coef", "contrast")),
    shuffled(array(TABLE.T, "contrast", "coef"), 1),
)
case(
    "contrasts by label",
    lambda L: fitted().t_test({"this": L}),
    SERIES,
    shuffled(SERIES),
    shuffled(array(SERIES, "coef")),
)
case(
    "weights of marginal means",
    lambda w: marginal().marginal_means("g", contrast={"this": w}),
    pd.Series([1.0, -1.0, 0, 0, 0, 0, 0, 0], index=LEVELS),
    shuffled(pd.Series([1.0, -1.0, 0, 0, 0, 0, 0, 0], index=LEVELS)),
    {"t": -1.0, "s": 1.0},
)
case("starts", started, starts(), shuffled(starts()), shuffled(starts(), 1))
case(
    "starts array",
    started,
    starts(),
    shuffled(array(starts(), "feature", "param")),
    shuffled(array(starts(), "feature", "param"), 1),
)
case("one start", started, starts().iloc[0], starts().iloc[0][::-1])
for name in ("XX", "XY", "ZX", "ZY", "ZZ", "yy"):
    for axis in range(1 if name == "yy" else 2):
        case(
            f"sums {name}, axis {axis}",
            lambda turn, name=name: summed(**{name: turn}),
            lambda part: part,
            lambda part, axis=axis: shuffled(part, axis),
        )
case(
    "sums as DataArrays",
    lambda turn: summed(
        **{name: lambda part: array(part, "a", "b") for name in ("XX", "XY", "ZX", "ZZ")},
        ZY=lambda part: turn(array(part, "level", "feature")),
    ),
    lambda part: part,
    shuffled,
    lambda part: shuffled(part, 1),
)
case(
    "newdata",
    lambda data: fitted().predict(data, level="conditional"),
    P.data,
    shuffled(P.data),
    shuffled(P.data, 1),
)
for part in ("X", "Z"):
    value = getattr(P, part)
    case(
        f"predict {part}",
        lambda v, part=part: fitted("arrays").predict(
            **{"X": P.X, "Z": P.Z, part: v}, level="conditional"
        ),
        value,
        shuffled(value),
        shuffled(value, 1),
        shuffled(array(value, "sample", "column")),
        shuffled(array(value, "sample", "column"), 1),
    )
    case(
        f"resid {part}",
        lambda v, part=part: fitted("arrays").resid(P.Y, **{"X": P.X, "Z": P.Z, part: v}),
        value,
        shuffled(value),
        shuffled(value, 1),
    )
case(
    "resid Y",
    lambda Y: fitted("arrays").resid(Y, X=P.X, Z=P.Z),
    P.Y,
    shuffled(P.Y),
    shuffled(P.Y, 1),
    shuffled(array(P.Y, "feature", "sample"), 1),
)
case(
    "resid Y of formulas",
    lambda Y: fitted().resid(Y, P.data),
    P.Y,
    shuffled(P.Y),
    shuffled(P.Y, 1),
)
case("checks data", lambda data: fitted().check_residuals(P.Y, data), P.data, shuffled(P.data))
case(
    "checks Y", lambda Y: fitted().check_residuals(Y, P.data), P.Y, shuffled(P.Y), shuffled(P.Y, 1)
)
case(
    "checks by",
    lambda by: fitted().check_residuals(P.Y, P.data, by=by)["levene"],
    P.data["g"],
    shuffled(P.data["g"]),
)
case(
    "weights of residuals",
    lambda w: fitted().resid(P.Y, P.data, kind="pearson", weights=w),
    P.weights,
    shuffled(P.weights),
    shuffled(array(P.weights, "sample")),
)
case(
    "theta of a likelihood",
    lambda theta: from_formula().loglike(theta),
    starts(),
    shuffled(starts()),
    shuffled(starts(), 1),
)
case("resid data", lambda data: fitted().resid(P.Y, data), P.data, shuffled(P.data))
case(
    "statsmodels",
    lambda Y: fitted().sel("gene2").to_statsmodels(Y, P.data).table,
    P.Y.loc["gene2"],
    shuffled(P.Y.loc["gene2"]),
    shuffled(P.Y),
    shuffled(array(P.Y.loc["gene2"], "sample")),
)
case(
    "trend of the prior",
    lambda t: (
        many().learn_ratio_prior(trend=t).of_features(many().ds.feature, covariate()).variance
    ),
    covariate(),
    shuffled(covariate()),
    shuffled(array(covariate(), "feature")),
)
case(
    "a statistic's values",
    lambda turn: fitted().bootstrap(3, statistic=lambda r: turn(r.theta), rng=1).ds,
    lambda table: table,
    shuffled,
    lambda table: xr.DataArray(shuffled(table), dims=("feature", "param")),
    lambda table: table.sort_values("g"),
)
case(
    "tests in another order",
    lambda order: written(fitted().t_test("x", features=order)),
    FEATURES,
    FEATURES[::-1],
)
case(
    "genes of adata",
    lambda names: written(fitted().t_test("x"), names),
    FEATURES,
    FEATURES[::-1],
)
case(
    "margin",
    lambda margin: fitted().t_test(["x", "w"], margin=margin),
    pd.Series([0.1, 0.3], index=["x", "w"]),
    pd.Series([0.3, 0.1], index=["w", "x"]),
    {"w": 0.3, "x": 0.1},
    xr.DataArray([0.3, 0.1], dims="contrast", coords={"contrast": ["w", "x"]}),
)
case(
    "screen",
    lambda screen: fitted().t_test(["x", "w"]).two_stage(screen, alpha=0.9),
    fitted().f_test(["x", "w"]).pvalue["joint"],
    shuffled(fitted().f_test(["x", "w"]).pvalue["joint"]),
    shuffled(fitted().f_test(["x", "w"]).pvalue),
    fitted().f_test(["x", "w"], features=FEATURES[::-1]),
)
case("counts of voom", voomed, P.Y.round(), shuffled(P.Y.round(), 1))
case(
    "factors of voom",
    lambda f: voomed(P.Y.round(), norm_factors=f, lib_size=P.Y.round().sum()),
    P.factors,
    shuffled(P.factors),
    shuffled(array(P.factors, "sample")),
)
case(
    "totals of voom",
    lambda f: voomed(P.Y.round(), lib_size=f),
    P.Y.round().sum() * 1.5,
    shuffled(P.Y.round().sum() * 1.5),
)
case("nested models", compared, fitted, reversed_fit)
case("added", lambda turn: stats_from_arrays() + turn(stats_from_arrays()), lambda s: s, turned)
case(
    "power",
    lambda theta: fm.power(
        from_formula(), theta=theta, beta={"x": 0.4}, contrast="x", n_sim=20, rng=1
    ),
    {"g": 0.5, "Residual": 2.0},
    pd.Series({"g": 0.5, "Residual": 2.0}),
    pd.Series({"Residual": 2.0, "g": 0.5}),
    pd.DataFrame({"Residual": [2.0], "g": [0.5]}),
    xr.DataArray([2.0, 0.5], dims="param", coords={"param": ["Residual", "g"]}),
)
case(
    "power beta",
    lambda beta: fm.power(
        from_formula(), theta=[0.5, 2.0], beta=beta, contrast="x", n_sim=20, rng=1
    ),
    {"x": 0.5, "Intercept": 0.1, "w": 0.0},
    pd.Series({"x": 0.5, "Intercept": 0.1, "w": 0.0}),
    pd.DataFrame({"w": [0.0], "x": [0.5], "Intercept": [0.1]}),
)


@cache
def marginal() -> Any:
    p = parts()
    h = np.tile(list("klmn"), N // 4)
    return fm.MultiLMM.from_formula("~ g", "(1 | h)", p.data.assign(h=h), p.Y).fit(
        parameter_space="psd", n_jobs=1
    )


CASES = {name: found for name, found in CASES.items() if found[2] is not found[1]}
# Labels that nothing answers to, or that contradict each other, are refused.
REFUSED = {
    "weights beside nothing labelled",
    "weights of numbers beside arrays",
    "weights of numbers beside arrays 1",
    # rows of X and Z in two orders; their columns are aligned
    *(
        f"{what} {part}{how}"
        for what in ("arrays", "stats", "update", "predict", "resid")
        for part in ("X", "Z")
        for how in ("", " 2")
        if not (what == "resid" and how)
    ),
    *(f"{make} X beside arrays" for make in ("arrays", "stats", "update")),
    *(f"{make} X, Z unlabelled" for make in ("arrays", "stats", "update")),
    *(f"{make} Z, X unlabelled" for make in ("arrays", "stats", "update")),
}


@pytest.mark.parametrize("name", CASES)
def test_another_order_changes_nothing(name):
    call, value, other = CASES[name]
    right = numbers_of(call(value))
    if may_be_refused(name):
        with contextlib.suppress(InputError):
            assert_same(numbers_of(call(other)), right)
        return
    assert_same(numbers_of(call(other)), right)


def may_be_refused(name: str) -> bool:
    """Where an InputError will do as well: sums, blocks and rows of matrices in two orders."""
    return name in REFUSED or name.startswith(("sums", "blocks, features", "blocks by position, f"))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_labels_that_nothing_answers_to_are_refused(name):
    call, _, other = CASES[name]
    with pytest.raises(InputError, match=r"label|order"):
        call(other)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "weights": (
        lambda: from_arrays(weights=P.weights.rename({"cell3": "cell99"})),
        "`weights`.*'cell3'",
    ),
    "weights twice": (
        lambda: from_formula(weights=pd.concat([P.weights, P.weights[:1]])),
        "`weights`.*'cell0'",
    ),
    "size factors": (
        lambda: from_formula(size_factors=P.factors.iloc[1:]),
        "`size_factors`.*'cell0'",
    ),
    "two columns": (
        lambda: many().moderate(trend=many().params),
        "`trend`.*2 columns",
    ),
    "mask": (
        lambda: from_formula(features=P.mask.rename({"gene0": "gen0"})),
        "'gene0'",
    ),
    "trend": (lambda: many().moderate(trend=covariate().iloc[1:]), "`trend`.*'gene0'"),
    "column means": (
        lambda: fitted().variance_fractions(column_means=means().rename({"x": "y"})),
        "`column_means`.*'y'",
    ),
    "Z": (
        lambda: fitted("arrays").predict(
            X=P.X, Z=P.Z.rename(columns={"s": "new"}), level="conditional"
        ),
        "Z.*'s'",
    ),
    "X rows": (lambda: from_arrays(X=P.X.rename({"cell1": "other"})), "'cell1'|'other'"),
    "block": (
        lambda: in_blocks(lambda Y, here: (Y.columns[here], Y.iloc[:, ::-1].iloc[:, here])),
        "[Bb]lock 0.*'cell",
    ),
    "start": (lambda: started(pd.Series({"g": 1.0, "residual": 1.0})), "'Residual'"),
    "starts of other features": (
        lambda: started(starts().set_axis([f"other{i}" for i in range(M)])),
        "`theta0`.*'gene0'",
    ),
    "feature names": (
        lambda: from_formula(feature_names=pd.Series(FEATURES, index=[*FEATURES[::-1][1:], "z"])),
        "'gene5'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_labels_that_do_not_match_are_named(name):
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        call()


def test_sparse_frames_keep_their_labels():
    """A frame of sparse columns is labelled like any other."""
    Z = shuffled(P.Z, 1).astype(pd.SparseDtype(float, 0.0))
    assert_same(numbers_of(stats_from_arrays(Z=Z)), numbers_of(stats_from_arrays()))
    found = stats_from_arrays(Y=shuffled(P.Y, 1), Z=Z, weights=shuffled(P.weights))
    assert_same(numbers_of(found), numbers_of(stats_from_arrays(weights=P.weights)))


def test_levels_are_named_by_the_columns_of_z():
    """The sizes of components do not take the names from the columns they cut."""
    stats = stats_from_arrays(components={"a": 3, "b": 5})
    assert stats.structure.terms[1].levels == tuple(LEVELS[3:])


# ---- nothing is left out ---------------------------------------------------------------------

# Parameters of public functions whose values may carry labels: each is in the cases above.
LABELLED = {
    *("X", "Y", "Z", "adata", "at", "beta", "blocks", "by", "coef_names", "column_means"),
    *("components", "contrast", "counts", "data", "feature_covariates", "feature_names"),
    *("features", "feature_columns", "margin", "screen"),
    *("lib_size", "mask_var"),
    *("moderated", "newdata", "norm_factors", "other", "size_factors", "statistic", "stats"),
    *("tests", "theta", "theta0", "trend", "weights", "sums_by", "cluster", "covariances"),
    *("residual_variance", "residual_by"),
}
# Names, options, numbers, files, random numbers; and what the package made itself.
UNLABELLED = {
    *("adjust", "adjust_library_size", "adjust_over", "aliased", "allow_new_levels", "alpha"),
    *("alternative", "effects", "layout", "legacy", "max_seconds", "modality", "rank"),
    *("ax", "axes", "axis", "block_bytes", "client", "coefs", "divisor", "kind", "reduce_terms"),
    *("test", "component", "context", "contrasts", "copy"),
    *("change", "cov", "exact", "grouping", "groups", "n_flips", "threshold"),
    *("covariate", "design", "device", "df", "direction", "ds", "engine", "epsilon", "feature"),
    *(
        "fixed",
        "interval",
        "key_added",
        "layer",
        "legacy",
        "level",
        "max_beta",
        "max_iter",
        "memory",
    ),
    *("method", "min_beta", "min_count", "min_fraction", "missing", "n", "n_cells", "n_clusters"),
    *("n_de_genes", "n_genes", "n_jobs", "n_samples", "n_sim", "n_treatments", "names", "null"),
    *("options", "over", "parameter_space", "params", "path", "pattern", "positions", "prior"),
    *("progress", "pvalues", "q", "random", "reference", "rng", "robust", "rows", "scale", "se"),
    *(
        "interaction",
        "variable",
        "within",
        "samples_nested",
        "self",
        "solver",
        "sort_by",
        "source",
        "span",
        "specs",
        "style",
    ),
    *(
        "aliased",
        "rank",
        "target_sum",
        "transform",
        "treatment",
        "type",
        "use_f",
        "var_random_effects",
        "workers",
    ),
    # The simulators align these themselves; see test_simulate.
    *("metadata", "n_de_genes_by_cluster", "p_de_genes_by_cluster"),
}


def test_every_parameter_that_may_carry_labels_is_known():
    functions = [fm.voom, fm.power, fm.contrast_matrix, fm.adjust_pvalues, fm.simulate.rnaseq]
    for owner in (*EVERY, fm.RatioPrior, fm.Voom):
        members = (getattr(owner, name) for name in dir(owner) if not name.startswith("_"))
        functions += [member for member in members if callable(member)]
    found = {name for function in functions for name in inspect.signature(function).parameters}
    assert found == {*LABELLED, *UNLABELLED} & found
    assert found >= LABELLED
