"""Pictures of a fit: the numbers of a `FittedModel`, handed to `flashmm.plots`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_names, check_option, nearest
from flashmm.formulas.sample_table import check_data
from flashmm.inference.statistics import check_alpha
from flashmm.inference.tails import norm_isf
from flashmm.plots import intervals, samples, variances
from flashmm.results import predictions as predicted
from flashmm.results import random_effects, variance_shares
from flashmm.results.fitted import FittedModel
from flashmm.results.moderation import feature_means, moderated_variances
from flashmm.results.profile_curves import profile_curve
from flashmm.sources.transforms import Transform

__all__ = ["caterpillar", "fractions", "predictions", "profile", "theta", "trend"]

# So many features are bars, more are violins; so many lines can be told apart.
_BARS, _LINES = 12, 28


def caterpillar(
    fitted: FittedModel,
    position: IntArray,
    term: str | None,
    effect: str | None,
    *,
    se: str,
    alpha: float,
    sort: bool,
    ax: Any,
) -> Any:
    """Predicted random effects of one feature; see `ResultPlots.caterpillar`."""
    check_alpha(alpha)
    check_option("se", se, ("conditional", "prediction"))
    terms = fitted.stats.structure.terms
    if not terms:
        raise InputError("The model has no random effects.")
    names = [each.name for each in terms]
    chosen = terms[names.index(_one_of("term", term, names))]
    effects = [str(name) for name in chosen.effects]
    which = _one_of("effect", effect, effects)
    ds = random_effects.blup(fitted, position, se)
    here = (ds["term"].to_numpy().astype(str) == str(chosen.name)) & (
        ds["effect"].to_numpy().astype(str) == which
    )
    value, error = (ds[name].to_numpy()[0, here] for name in ("blup", "se"))
    half = norm_isf(alpha / 2.0) * error
    levels = list(ds["group_level"].to_numpy()[here])
    several = len(effects) > 1
    return intervals.caterpillar(
        value,
        value - half,
        value + half,
        levels,
        sort=sort,
        xlabel=f"predicted random effect, {which}" if several else "predicted random effect",
        ylabel=str(chosen.group),
        title=_name(fitted, position),
        ax=ax,
    )


def fractions(
    fitted: FittedModel,
    positions: IntArray,
    kind: str | None,
    *,
    of: str,
    column_means: Any,
    ax: Any,
) -> Any:
    """Shares of the variance; see `ResultPlots.fractions`."""
    check_option("of", of, ("total", "random"))
    if kind is None:
        kind = "bars" if positions.size <= _BARS else "violin"
    if of == "total":
        ds = variance_shares.variance_fractions(fitted, positions, column_means=column_means)
    else:
        ds = variance_shares.icc(fitted, positions)
    known = fitted.on_request.known[positions][:, None]  # shares of nothing are rounding errors
    return variances.fractions(
        np.where(known, ds["estimate"].to_numpy(), np.nan),
        [str(name) for name in ds["component"].to_numpy()],
        features=list(fitted.names[positions]),
        kind=kind,
        ax=ax,
    )


def theta(
    fitted: FittedModel, positions: IntArray, x: str | None, y: str | None, *, log: bool, ax: Any
) -> Any:
    """Two variance parameters of every feature; see `ResultPlots.theta`."""
    names = [str(name) for name in fitted.params]
    if len(names) == 1:
        raise InputError("The model has no random effects, so there is one variance alone.")
    is_variance = fitted.stats.structure.is_variance
    i = names.index(_one_of("x", x, names))
    rest = [k for k in np.flatnonzero(is_variance) if k != i]
    j = names.index(_one_of("y", y, names)) if y is not None else int(rest[0])
    values = fitted.values("theta", positions)
    return variances.theta(
        values[:, i],
        values[:, j],
        xlabel=_variance_label(names[i], bool(is_variance[i])),
        ylabel=_variance_label(names[j], bool(is_variance[j])),
        status=fitted.verdicts[positions],
        bounded=(_may_be_zero(fitted, i), _may_be_zero(fitted, j)),
        log=log,
        ax=ax,
    )


def profile(
    fitted: FittedModel, position: IntArray, param: str | None, alpha: float, ax: Any
) -> Any:
    """Profile of one parameter of one feature; see `ResultPlots.profile`."""
    check_alpha(alpha)
    names = [str(name) for name in fitted.params]
    i = names.index(_one_of("param", param, names))
    curve = profile_curve(fitted, position, i, alpha)
    low, high = curve.limits
    return variances.profile(
        curve.value,
        curve.fall,
        estimate=curve.estimate,
        limits=(float(low), float(high)),
        quantile=curve.quantile,
        xlabel=_variance_label(names[i], bool(fitted.stats.structure.is_variance[i])),
        title=_name(fitted, position),
        ax=ax,
    )


def trend(fitted: FittedModel, positions: IntArray, robust: bool, ax: Any) -> Any:
    """Residual standard deviations by means; see `ResultPlots.trend`."""
    fitted.one_residual("A picture of the trend", "moderate(trend=True) has each group's.")
    mean = feature_means(fitted)[positions]
    with np.errstate(invalid="ignore"):
        sd = np.sqrt(fitted.values("theta", positions)[:, -1])
    prior = None
    if (np.isfinite(sd) & fitted.converged[positions]).sum() > 1:
        table = moderated_variances(fitted, trend=True, robust=robust)
        with np.errstate(invalid="ignore"):
            prior = np.sqrt(table["sigma2_prior"].to_numpy()[positions])
    return variances.variance_trend(mean, sd, prior=prior, status=fitted.verdicts[positions], ax=ax)


# ---- predictions over the data -----------------------------------------------------------------


def predictions(
    fitted: FittedModel,
    position: IntArray,
    x: str,
    data: Any,
    Y: Any = None,
    *,
    by: str | None = None,
    at: Mapping[str, Any] | None = None,
    level: str = "population",
    interval: str | None = "confidence",
    alpha: float = 0.05,
    df: str,
    points: int = 50,
    transform: Transform = None,
    context: Mapping[str, Any] | None = None,
    ax: Any = None,
) -> Any:
    """Predicted lines over the samples; see `ResultPlots.predictions`."""
    fitted.known_recipe()
    table = check_data(data)
    columns = [str(name) for name in table.columns]
    for name, value in (("x", x), ("by", by)):
        if value is not None and not isinstance(value, Hashable):
            raise InputError(f"`{name}` must be the name of one column of `data`, not {value!r}.")
        if value is not None and value not in table.columns:
            raise InputError(
                f"`{name}` names {value!r}, which is no column of `data`. {nearest(value, columns)}"
            )
    fixed = check_names("at", at, "a value")
    for name in fixed:
        if name not in table.columns:
            raise InputError(
                f"`at` names {name!r}, which is no column of `data`. {nearest(name, columns)}"
            )
    if isinstance(points, bool) or not isinstance(points, (int, np.integer)) or points < 2:
        raise InputError(f"`points` must be a whole number from 2 on, not {points!r}.")
    numeric = _is_number(table[x])
    if numeric:
        known = table[x].to_numpy(dtype=np.float64, na_value=np.nan)
        known = known[np.isfinite(known)]
        if known.size == 0:
            raise InputError(f"Column {x!r} of `data` holds no numbers.")
        along: Any = np.linspace(known.min(), known.max(), int(points))
    else:
        along = _levels(table[x])
    lines = None if by is None else _levels(table[by])
    if lines is not None and len(lines) > _LINES:
        raise InputError(
            f"`by` has {len(lines)} levels, and {_LINES} lines can be told apart: give rows of "
            "`data` with fewer, or a coarser column."
        )
    parts = []
    for line in [None] if lines is None else lines:
        # What belongs to a group is its own: the typical values are of the line's own samples.
        own = table if line is None or level == "population" else table[table[by] == line]
        values: dict[str, Any] = {**fixed, x: along}
        if by is not None:
            values[by] = line
        parts.append(_typical(own, table, values, len(along)))
    new = pd.concat(parts, ignore_index=True)
    options: dict[str, Any] = {"level": level, "context": context}
    if interval is not None:
        options |= {"interval": interval, "alpha": alpha, "df": df}
    found = predicted.predict(fitted, position, new, **options)
    shape = (len(parts), len(along))
    limits: list[FloatArray | None] = [None, None]
    middle = found if interval is None else found["prediction"]
    if interval is not None:
        limits = [found[name].to_numpy()[0].reshape(shape) for name in ("lower", "upper")]
    shown: dict[str, Any] = {}
    if Y is not None or _name(fitted, position) in columns:
        rest: dict[str, Any] = {"level": "population", "context": context}
        left = predicted.resid(fitted, position, Y, table, transform=transform, **rest)
        y = (left + predicted.fittedvalues(fitted, position, table, **rest)).to_numpy()[0]
        place = table[x] if numeric else pd.Series(pd.Index(along).get_indexer(table[x]))
        shown = {"data_x": place.to_numpy(dtype=np.float64, na_value=np.nan), "data_y": y}
        if lines is not None:
            shown["data_line"] = pd.Index(lines).get_indexer(table[by])
    return samples.predictions(
        along if numeric else np.arange(len(along)),
        middle.to_numpy()[0].reshape(shape),
        *limits,
        lines=lines,
        by=by or "",
        levels=None if numeric else along,
        xlabel=x,
        ylabel=_name(fitted, position),
        ax=ax,
        **shown,
    )


def _is_number(column: pd.Series[Any]) -> bool:
    kinds = pd.api.types
    return bool(kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column))


def _levels(column: pd.Series[Any]) -> list[Any]:
    """Levels that occur, in their order."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.remove_unused_categories().cat.categories)
    return sorted(column.dropna().unique().tolist())


def _typical(
    own: pd.DataFrame, table: pd.DataFrame, values: Mapping[str, Any], count: int
) -> pd.DataFrame:
    """Rows with some columns as given and the others at a typical value.

    A mean for numbers, a median that occurs for whole numbers, which may be names of levels, and
    the most frequent level for everything else.
    """
    made = {}
    for name in table.columns:
        column = own[name].dropna()
        if name in values:
            value = values[name]
        elif len(column) == 0:
            value = np.nan
        elif not _is_number(column):
            value = column.mode().iloc[0]
        elif pd.api.types.is_integer_dtype(column):
            value = column.sort_values().iloc[(len(column) - 1) // 2]
        else:
            value = column.mean()
        is_many = isinstance(value, (list, np.ndarray))
        series = pd.Series(value if is_many else [value] * count)
        if isinstance(table[name].dtype, pd.CategoricalDtype):
            series = series.astype(table[name].dtype)
        made[name] = series
    return pd.DataFrame(made)


# ---- names ------------------------------------------------------------------------------------


def _one_of(what: str, asked: str | None, names: list[str]) -> str:
    """A name that there is; the first for None."""
    if asked is None:
        return names[0]
    if asked not in names:
        raise InputError(f"No {what} {asked!r}. {nearest(str(asked), names)}")
    return asked


def _name(fitted: FittedModel, position: IntArray) -> str:
    return str(fitted.names[position[0]])


def _may_be_zero(fitted: FittedModel, param: int) -> bool:
    """Whether zero is the boundary of a parameter: of variances but the residual."""
    structure = fitted.stats.structure
    return bool(structure.is_variance[param]) and param < len(structure.parameters)


def _variance_label(name: str, is_variance: bool) -> str:
    return f"{'variance' if is_variance else 'covariance'}, {name}"
