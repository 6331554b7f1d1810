"""Predictions for new samples, fitted values and residuals, for every feature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr
from numpy.typing import ArrayLike

from flashmm.arrays.labels import axis_labels, label_positions
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import RESIDUAL
from flashmm.designs.from_arrays import (
    as_matrix,
    check_rows_are_known,
    design_from_arrays,
    matched_columns,
    row_labels,
)
from flashmm.exceptions import InputError, check_option, listing
from flashmm.formulas.left_side import Responses, responses_of
from flashmm.formulas.new_data_recipe import RandomRows
from flashmm.formulas.sample_table import check_data
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, INTEGRATED, KNAPP_HARTUNG
from flashmm.inference.statistics import confidence_limits
from flashmm.results.estimability import estimable_rows
from flashmm.results.fitted import FittedModel
from flashmm.results.hypotheses import hypotheses
from flashmm.results.integrated import integrated_predictions
from flashmm.results.samples_again import OwnValues, own_values, values_of
from flashmm.results.some_effects import Wanted, wanted_effects
from flashmm.slips.answers import answered
from flashmm.sources import Transform, make_source
from flashmm.stats.grouping import labels_of
from flashmm.stats.groups import finer_groups
from flashmm.stats.own_rows import PatternedStats

__all__ = ["NewRows", "complete_rows", "fittedvalues", "new_rows", "predict", "resid"]

LEVELS = ("population", "conditional")
INTERVALS = ("confidence", "prediction")
DF = ("satterthwaite", "residual", "normal", KNAPP_HARTUNG, INTEGRATED)


@dataclass(frozen=True)
class NewRows:
    """New samples.

    Parameters
    ----------
    X
        Rows of X, shape (c, p).
    random
        Rows of Z, with what unknown levels add.
    labels
        Labels of the samples.
    estimable
        Whether the samples of the fit determine x'beta, shape (c,).
    offset
        Known part of the mean, shape (c,).
    """

    X: FloatArray
    random: RandomRows | None
    labels: pd.Index
    estimable: BoolArray
    offset: FloatArray


@answered
def predict(
    fitted: FittedModel,
    positions: IntArray,
    newdata: Any = None,
    *,
    level: str = "population",
    random: Any = None,
    se: bool = False,
    interval: str | None = None,
    alpha: float = 0.05,
    df: str = DEFAULT_DF,
    prior: Any = None,
    allow_new_levels: bool = False,
    X: ArrayLike | None = None,
    Z: Any = None,
    feature_covariates: Mapping[str, Any] | OwnValues | None = None,
    context: Mapping[str, Any] | None = None,
) -> xr.DataArray | xr.Dataset:
    """Predictions of new samples; see `MultiLMMResults.predict`."""
    check_option("level", level, LEVELS)
    if interval is not None:
        check_option("interval", interval, INTERVALS)
    check_option("df", df, DF)
    _check_df(df, level, prior)
    conditional = level == "conditional"
    wanted = wanted_effects(fitted, random, level)
    wide = interval == "prediction"
    plain = not se and interval is None and df != INTEGRATED
    given = _own_values(fitted, positions, feature_covariates, newdata, X, Z, plain=plain)
    newdata, X = _with_covariates(fitted, newdata, X, given)
    rows = _rows_of_samples(fitted, wanted, newdata, X, Z, context, wide=wide, known=conditional)
    if conditional and rows.random is not None and not allow_new_levels:
        _refuse_new_levels(rows.random)
    aliased = fitted.stats.aliased is not None
    estimable: dict[str, Any] = {"estimable": ("sample", rows.estimable)} if aliased else {}
    independent = _own_variances(fitted, rows, newdata, conditional=conditional, wide=wide)
    if df == INTEGRATED:
        Z_rows, independent = _independent_rows(
            fitted, rows.random if conditional else None, independent
        )
        ds = integrated_predictions(
            fitted,
            positions,
            rows.X,
            Z_rows,
            independent,
            interval=interval,
            alpha=alpha,
            prior=prior,
        )
        ds = ds.where(xr.DataArray(rows.estimable, dims="sample"))
        for name in {"prediction", "lower", "upper"} & set(ds):
            ds[name] = ds[name] + xr.DataArray(rows.offset, dims="sample")
        ds = ds.assign_coords(sample=rows.labels, **estimable).assign_attrs(level=level)
        return ds if se or interval is not None else ds["prediction"]
    estimate = _means(fitted.values("beta", positions), rows.X, given) + rows.offset
    estimate[:, ~rows.estimable] = np.nan
    if conditional and rows.random is not None:
        blup, _ = fitted.on_request.random_effects(positions, None)
        estimate = estimate + np.asarray(rows.random.Z @ blup.T).T
    dims = ("feature", "sample")
    coords = {"feature": fitted.features[positions], "sample": rows.labels, **estimable}
    prediction = xr.DataArray(estimate, dims=dims, coords=coords, name="prediction")
    if not se and interval is None:
        return prediction
    Z_known = sp.csr_array((len(rows.labels), fitted.stats.q))
    if conditional and rows.random is not None:
        Z_known = rows.random.Z
    found = hypotheses(fitted).predictions(positions, rows.X, Z_known, independent, df)
    with np.errstate(invalid="ignore"):
        usable = (found.variance > 0) & rows.estimable
        errors = np.sqrt(np.where(usable, found.variance, np.nan))
    result = xr.Dataset({"prediction": prediction, "se": (dims, errors)}, attrs={"level": level})
    if interval is None:
        return result
    freedom = np.where(rows.estimable, found.df, np.nan)
    limits = confidence_limits(estimate, errors, freedom, alpha)
    shown = {"lower": limits[..., 0], "upper": limits[..., 1], "df": freedom}
    result = result.assign({name: (dims, values) for name, values in shown.items()})
    return result.assign_attrs(interval=interval, alpha=alpha, df_method=df)


def _independent_rows(
    fitted: FittedModel, random: RandomRows | None, independent: FloatArray
) -> tuple[FloatArray | None, FloatArray]:
    """Rows of Z over independent effects, and what levels without data add to their variance."""
    if random is None:
        return None, independent
    rows, roots = random.Z.toarray(), fitted.projection.roots
    if roots is None:
        return rows, independent
    return np.asarray(roots.rows(rows)), independent + roots.unseen(rows)


def residual_groups_of(fitted: FittedModel, newdata: Any) -> FloatArray:
    """Which residual variance new samples have, ones in (c, H)."""
    by, structure = fitted.options.residual_by, fitted.stats.structure
    labels = [name[len(RESIDUAL) + 1 : -1] for name in structure.residuals]
    table = pd.DataFrame() if newdata is None else pd.DataFrame(newdata)
    within: dict[str, str] | None = None
    if fitted.options.residual_groups and by not in table:
        by, within = finer_groups(fitted.options.residual_groups)
    if sum(str(name) == by for name in table.columns) > 1:
        raise InputError(
            f"Two columns of the new data are called {by!r}, one by a number; rename one of them."
        )
    if by not in table:
        table = table.set_axis([str(name) for name in table.columns], axis=1)
    columns = [by] if by in table else by.split(":")
    absent = [name for name in columns if name not in table]
    if absent:
        raise InputError(
            f"This needs the samples' groups of {by!r}, whose residual variances differ: a table "
            f"with {listing(absent)}. (Groups are called by the column, "
            "or by the name of the Series, that `sums_by` was; 'group' where that had no name.)"
        )
    if len(columns) > 1:
        parts = [table[name].astype(str) for name in columns]
        found = parts[0].str.cat(parts[1:], sep=":")
    else:  # as the labels of groups are written: dates with their time
        found = pd.Series([str(value) for value in table[columns[0]]], table.index, dtype=object)
    numbers = len(columns) == 1 and pd.api.types.is_numeric_dtype(table[columns[0]])
    same = labels_of(found.unique(), labels if within is None else [*within], numbers=numbers)
    found = found.map(lambda text: same.get(text, text))
    if within is not None:
        strange = [value for value in dict.fromkeys(found) if value not in within]
        if strange:
            raise InputError(
                f"No residual variance is known of the groups {listing(strange)} of {by!r}; the "
                f"fit has {listing(within)}."
            )
        found = found.map(within)
    unknown = [value for value in dict.fromkeys(found) if value not in labels]
    if unknown:
        raise InputError(
            f"No residual variance is known of the groups {listing(unknown)} of {by!r}; the fit "
            f"has {listing(labels)}."
        )
    return np.asarray(found.to_numpy()[:, None] == np.array(labels, dtype=object), dtype=np.float64)


def _own_variances(
    fitted: FittedModel, rows: NewRows, newdata: Any, *, conditional: bool, wide: bool
) -> FloatArray:
    """Weights of theta in what new samples have of their own beside the mean, (c, k)."""
    independent = np.zeros((len(rows.labels), fitted.ds.sizes["param"]))
    if rows.random is None or not (conditional or wide):
        return independent
    k = len(fitted.stats.structure.parameters)
    independent[:, :k] = rows.random.new[:, :k]
    if fitted.options.residual_by:
        independent[:, k:] = residual_groups_of(fitted, newdata) if wide else 0.0
    else:
        # Where it is known the residual variance is that of an estimate, not of what it is of.
        independent[:, -1] = float(wide and not fitted.options.known_residual)
    return independent


def _check_df(df: str, level: str, prior: Any) -> None:
    if prior is not None and df != INTEGRATED:
        raise InputError(f"`prior` belongs to df='integrated'; these limits have df={df!r}.")
    if df == KNAPP_HARTUNG and level == "conditional":
        raise InputError(
            "df='knapp-hartung' is of means: use level='population', or df='satterthwaite'."
        )


def _rows_of_samples(
    fitted: FittedModel,
    wanted: Wanted,
    newdata: Any,
    X: Any,
    Z: Any,
    context: Mapping[str, Any] | None,
    *,
    wide: bool,
    known: bool,
) -> NewRows:
    """Rows of X and Z of the samples, with the random effects that are wanted."""

    def rows_of(known: bool, terms: frozenset[int] | None = None) -> NewRows:
        need = known or wide
        return new_rows(fitted, newdata, X, Z, context, known=known, need_random=need, terms=terms)

    rows = rows_of(known, wanted.terms)
    if not known or rows.random is None or wanted.terms is None:
        return rows
    rest = rows_of(False).random if wide else None
    return replace(rows, random=wanted.of(rows.random, rest))


def _means(beta: FloatArray, X: FloatArray, given: OwnValues | None) -> FloatArray:
    """X beta, shape (f, c)."""
    return beta @ X.T if given is None else given.means(beta, X)


def _own_values(
    fitted: FittedModel,
    positions: IntArray,
    given: Mapping[str, Any] | OwnValues | None,
    data: Any,
    X: Any,
    Z: Any,
    *,
    plain: bool = True,
) -> OwnValues | None:
    """The features' own covariates at the samples of a table or of matrices."""
    if given is not None and not plain:
        raise InputError(
            "Standard errors and intervals need samples that all features share, not "
            "`feature_covariates`. Predict one feature (`features`), with its covariates as "
            "columns of the table."
        )
    if given is None or isinstance(given, OwnValues):
        return given
    if not isinstance(given, Mapping):
        raise InputError("`feature_covariates` must be a dict of names and tables.")
    if data is not None:
        labels = check_data(data).index
        return own_values(fitted, positions, given, labels, len(labels))
    if X is None:
        return None  # new_rows says what is absent
    return own_values(fitted, positions, given, row_labels(X, Z), int(np.shape(X)[0]))


def _with_covariates(
    fitted: FittedModel, newdata: Any, X: Any, given: OwnValues | None
) -> tuple[Any, Any]:
    """The table and X, with ones for the covariates given; an error if a table lacks one."""
    stats = fitted.stats
    if given is None:
        if newdata is not None and isinstance(stats, PatternedStats):
            absent = [name for name in stats.own.names if name not in check_data(newdata)]
            if absent:
                raise InputError(
                    f"The table lacks {listing(absent)}, which each feature has its own of. Pass "
                    "them again as `feature_covariates`, features x samples, or as columns of the "
                    "table with values for all features."
                )
        return newdata, X
    if newdata is not None:
        return given.table(newdata), X
    return newdata, _with_ones(fitted, X, given)


def _with_ones(fitted: FittedModel, X: Any, given: OwnValues) -> Any:
    """X with a column of ones for each covariate that it lacks, as in a model from matrices."""
    matrix: Any = as_matrix(X)
    names = given.own.names
    if isinstance(matrix, pd.DataFrame):
        twice = [name for name in given.given if name in matrix.columns]
        if not twice:
            return matrix.assign(**dict.fromkeys(given.given, 1.0))
    elif len(given.given) == len(names) and np.shape(matrix)[1] == fitted.stats.p - len(names):
        dense = np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=np.float64)
        return np.hstack([dense, np.ones((dense.shape[0], len(names)))])
    raise InputError(
        f"With `feature_covariates` X has no columns of {listing(given.given)}: it is the X that "
        "the model was built from."
    )


@answered
def fittedvalues(
    fitted: FittedModel,
    positions: IntArray,
    data: Any = None,
    *,
    level: str = "conditional",
    random: Any = None,
    X: ArrayLike | None = None,
    Z: Any = None,
    feature_covariates: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Fitted values of the samples; see `MultiLMMResults.fittedvalues`."""
    there = complete_rows(fitted, data, level)
    some = data if there is None else check_data(data).iloc[np.flatnonzero(there)]
    own = _own_values(fitted, positions, feature_covariates, data, X, Z)
    if own is not None and there is not None:
        own = own.samples(there)
    values = predict(
        fitted,
        positions,
        some,
        level=level,
        random=random,
        X=X,
        Z=Z,
        feature_covariates=own,
        context=context,
    )
    assert isinstance(values, xr.DataArray)
    if there is not None:
        everywhere = np.full((values.sizes["feature"], there.size), np.nan)
        everywhere[:, there] = values.to_numpy()
        coords = {"feature": values["feature"], "sample": check_data(data).index}
        values = xr.DataArray(everywhere, dims=values.dims, coords=coords)
    return values.rename("fittedvalues")


def complete_rows(fitted: FittedModel, data: Any, level: str) -> BoolArray | None:
    """Samples of the data of a fit that dropped some, without those that miss a value, shape (n,).

    None where all are complete.
    """
    recipe = fitted.recipe
    if data is None or recipe is None or fitted.options.n_dropped == 0:
        return None
    table = check_data(data)
    names = recipe.fixed.columns
    if level == "conditional":
        names = tuple(record.of or name for name, record in recipe.columns.items())
    absent = table[[name for name in names if name in table]].isna().any(axis=1).to_numpy()
    return ~absent if absent.any() else None


def responses_again(fitted: FittedModel, positions: IntArray, Y: Any, data: Any) -> Any:
    """Y, or where it is None the columns of the samples' table that are called as the features."""
    if Y is not None:
        return Y
    if data is None:
        raise InputError(
            "Pass `Y`, features x samples, or `data` with a column for each feature: the results "
            "hold no samples."
        )
    table, names = check_data(data), [str(name) for name in fitted.names[positions]]
    columns = {str(column) for column in table.columns}
    asked = [f"`{name}`" if name in columns else name for name in names]
    try:
        values, _, _ = responses_of(table, Responses(asked))
    except InputError as error:
        raise InputError(f"Pass `Y`, features x samples. Of `data`: {error}") from error
    return pd.DataFrame(values, index=pd.Index(names, dtype=object), columns=table.index)


def resid(
    fitted: FittedModel,
    positions: IntArray,
    Y: Any,
    data: Any = None,
    *,
    transform: Transform = None,
    level: str = "conditional",
    X: ArrayLike | None = None,
    Z: Any = None,
    feature_covariates: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Y minus the fitted values; see `MultiLMMResults.resid`."""
    Y = responses_again(fitted, positions, Y, data)
    predicted = fittedvalues(
        fitted,
        positions,
        data,
        level=level,
        X=X,
        Z=Z,
        feature_covariates=feature_covariates,
        context=context,
    )
    labels = row_labels(X, Z) if data is None else getattr(data, "index", None)
    source = make_source(Y, transform=transform, samples=labels, n=predicted.sizes["sample"])
    if data is None:
        used = {"X": X} if Z is None else {"X": X, "Z": Z}
        check_rows_are_known(source, **used)
    values = values_of(source, fitted, positions, "Y", missing=fitted.lacks_values)
    difference = values - predicted.to_numpy()
    return xr.DataArray(difference, coords=predicted.coords, dims=predicted.dims, name="resid")


def new_rows(
    fitted: FittedModel,
    newdata: Any,
    X: ArrayLike | None,
    Z: Any,
    context: Mapping[str, Any] | None,
    *,
    known: bool,
    need_random: bool,
    terms: frozenset[int] | None = None,
) -> NewRows:
    """Rows of X, and of Z where needed, of new samples; of some random terms alone if asked."""
    if (newdata is None) == (X is None):
        raise InputError(
            "Pass the samples to predict: a table `newdata`, or matrices X and Z; one of the "
            "two. The results hold summary statistics, not the samples of the fit."
        )
    if X is not None:
        return _matrix_rows(fitted, X, Z, known=known, need_random=need_random)
    fixed, random = estimable_rows(fitted.stats, fitted.fixed_rows(newdata, context)), None
    if need_random:
        random = fitted.known_recipe().random_rows(
            newdata, fitted.stats.structure, known=known, context=context, terms=terms
        )
    offset = fitted.offset_rows(newdata, context)
    return NewRows(fixed.rows, random, check_data(newdata).index, fixed.estimable, offset)


def _matrix_rows(
    fitted: FittedModel, X: ArrayLike, Z: Any, *, known: bool, need_random: bool
) -> NewRows:
    stats = fitted.stats
    if fitted.recipe is not None and fitted.recipe.offset is not None:
        raise InputError(
            "The fixed formula has an offset, which X does not hold. Pass the samples as a table, "
            "`newdata`."
        )
    matrix: Any = as_matrix(X)
    known_rows = row_labels(matrix, Z)
    labels = pd.RangeIndex(np.shape(matrix)[0]) if known_rows is None else known_rows
    columns = axis_labels(matrix, 1)
    if columns is not None:
        own = pd.Index([str(name) for name in columns], dtype=object)
        # Columns that were left out because of their rank may be given too, and then count.
        names = fitted.columns if set(fitted.columns) <= set(own) else stats.coef_names
        absent = [name for name in names if name not in own]
        if absent:
            raise InputError(f"X lacks the columns {listing(absent)}.")
        wanted = pd.Index(names, dtype=object)
        matrix = matrix.iloc[:, label_positions(own, wanted, "X", of="columns of the model")]
    if need_random and Z is None and stats.q > 0:
        raise InputError(
            "Pass Z too: this prediction depends on the random effects of the samples."
        )
    structure = stats.structure
    Z = sp.csr_array((len(labels), stats.q)) if Z is None else matched_columns(Z, structure)
    design = design_from_arrays(matrix, Z, components=structure)
    rows_X, rows_Z = design.X[:], design.Z[:]
    estimable = np.ones(len(labels), dtype=bool)
    if stats.aliased is not None and rows_X.shape[1] == len(fitted.columns):
        split = estimable_rows(stats, rows_X)
        rows_X, estimable = split.rows, split.estimable
    if rows_X.shape[1] != stats.p:
        raise InputError(f"X has {rows_X.shape[1]} columns, but the model has p = {stats.p}.")
    weights = np.zeros((len(labels), len(structure.param_names)))
    if not known and fitted.projection.roots is not None:
        weights = fitted.projection.roots.prior(rows_Z)
    elif not known:
        for i, parameter in enumerate(structure.parameters):
            rows, columns = structure.columns(parameter)
            product = rows_Z[:, rows].multiply(rows_Z[:, columns]).sum(axis=1)
            weights[:, i] = np.ravel(product) * (1.0 if parameter.is_variance else 2.0)
    random = RandomRows(rows_Z, weights, {})
    return NewRows(rows_X, random, labels, estimable, np.zeros(len(labels)))


def _refuse_new_levels(rows: RandomRows) -> None:
    for term, levels in rows.unknown.items():
        raise InputError(
            f"Random term {term!r} has levels that the model does not know: {listing(levels)}. "
            "Pass allow_new_levels=True to predict them with random effects of zero, or "
            'level="population".'
        )
