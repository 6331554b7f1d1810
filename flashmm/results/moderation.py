"""Moderated residual variances of a fit, and the tests that use them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from flashmm.arrays.labels import in_order, label_positions
from flashmm.arrays.numeric import float_array
from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.exceptions import InputError, check_option
from flashmm.inference.moderation import moderate, variance_prior
from flashmm.inference.variance_fractions import column_sums, weight_total
from flashmm.results.fitted import FittedModel
from flashmm.results.hypotheses import Hypotheses, hypotheses
from flashmm.stats.own_rows import PatternedStats

__all__ = ["feature_means", "moderated_hypotheses", "moderated_variances", "trend_values"]

_VARIABLES = ("sigma2", "df", "sigma2_prior", "df_prior", "sigma2_moderated", "df_moderated")


def moderated_variances(
    fitted: FittedModel,
    trend: bool | ArrayLike = False,
    robust: bool = False,
    df_method: str = "satterthwaite",
    legacy: bool | None = None,
) -> xr.Dataset:
    """Residual variances moderated by those of all features; see `MultiLMMResults.moderate`."""
    fitted.estimated_residual("Moderation", "Tests with df='normal' or 'knapp-hartung' need none.")
    check_option("df", df_method, ("satterthwaite", "dream"))
    if legacy is not None and not isinstance(legacy, bool | np.bool_):
        raise InputError(f"`legacy` must be True, False or None, not {legacy!r}.")
    internal, df = hypotheses(fitted).residual_variances()
    sigma2 = internal * fitted.projection.scale[:, None]
    if df_method == "dream":
        fitted.one_residual(
            "df='dream', which counts degrees of freedom of the whole fit,",
            "Use df='satterthwaite'.",
        )
        if fitted.options.method != "REML":
            raise InputError("df='dream' counts degrees of freedom of a REML fit; this is ML.")
        df = np.where(np.isfinite(sigma2), hypotheses(fitted).hat_df()[:, None], np.nan)
        sigma2 = sigma2 / _mean_weights(fitted)[:, None]
    if legacy is None:
        legacy = _same_samples(fitted, np.asarray(np.isfinite(sigma2).all(axis=1)))
    at = trend_values(fitted, trend)
    columns = []
    for own, own_df in zip(sigma2.T, df.T, strict=True):  # each group has a prior of its own
        prior = variance_prior(own, own_df, covariate=at, robust=robust, legacy=legacy)
        found = moderate(own, own_df, prior)
        columns.append((own, own_df, prior.variance, prior.df, found.variance, found.df))
    attrs = {
        "df_prior": prior.df_common,
        "trend": int(trend is not False),
        "robust": int(robust),
        "df": df_method,
        "legacy": int(legacy),
    }
    coords: dict[str, Any] = {"feature": fitted.features}
    if not fitted.options.residual_by:
        values = dict(zip(_VARIABLES, columns[0], strict=True))
        return xr.Dataset({name: ("feature", v) for name, v in values.items()}, coords, attrs)
    del attrs["df_prior"]  # one for each group: the variable
    coords["param"] = list(fitted.stats.structure.residuals)
    stacked = (np.stack(parts, axis=1) for parts in zip(*columns, strict=True))
    data = {name: (("feature", "param"), v) for name, v in zip(_VARIABLES, stacked, strict=True)}
    return xr.Dataset(data, coords, attrs)


def _same_samples(fitted: FittedModel, known: BoolArray) -> bool:
    """Whether all features have the same number of observations."""
    stats = fitted.stats
    if not isinstance(stats, PatternedStats) or not known.any():
        return True
    return bool(np.ptp(stats.nobs[known]) == 0)


def _mean_weights(fitted: FittedModel) -> FloatArray:
    """Mean weight of each feature over its samples; ones where all features share them."""
    stats = fitted.stats
    if not isinstance(stats, PatternedStats):
        return np.ones(stats.m)
    total = stats.designs.total[stats.pattern]
    return np.asarray(total / np.maximum(stats.nobs, 1))


def moderated_hypotheses(fitted: FittedModel, moderated: bool | xr.Dataset, df: str) -> Hypotheses:
    """The hypotheses of a fit, with moderated variances if asked for."""
    if moderated is False:
        return hypotheses(fitted)
    if df != "satterthwaite":
        raise InputError(f"Moderated tests have Satterthwaite's degrees of freedom, not df={df!r}.")
    table = moderated_variances(fitted) if moderated is True else moderated
    if not isinstance(table, xr.Dataset) or any(name not in table for name in _VARIABLES):
        raise InputError("`moderated` must be True, False or what `moderate` returns.")
    residuals = list(fitted.stats.structure.residuals)
    if ("param" in table.dims) != (len(residuals) > 1) or (
        "param" in table.dims and set(residuals) != set(table["param"].to_numpy())
    ):
        raise InputError("`moderated` is of other residual variances than this fit has.")
    if "param" in table.dims:
        table = table.sel(param=residuals).transpose("feature", "param")
    if table.sizes["feature"] != fitted.names.size:
        raise InputError("`moderated` has other features than this fit.")
    here = label_positions(
        table["feature"].to_numpy(), fitted.names, "`moderated`", of="features", by_text=True
    )
    table = table.isel(feature=here)
    if table.attrs.get("df") == "dream":
        ratio = table["sigma2_moderated"].to_numpy() / table["sigma2"].to_numpy()
        gained = table["df_moderated"].to_numpy() - table["df"].to_numpy()
        return replace(hypotheses(fitted), dream=np.stack([ratio, gained], -1))
    variance, df_moderated = (
        table[name].to_numpy().reshape(fitted.names.size, -1)
        for name in ("sigma2_moderated", "df_moderated")
    )
    variance = variance / fitted.projection.scale[:, None]
    return replace(hypotheses(fitted), residual=np.stack([variance, df_moderated], -1))


def trend_values(fitted: FittedModel, trend: Any) -> FloatArray | None:
    """What s0^2 follows, shape (m,): the means, what was given, or None."""
    if isinstance(trend, bool):
        return feature_means(fitted) if trend else None
    given = in_order(trend, fitted.names, "`trend`", of="features", by_text=True)
    values = float_array(given, "`trend`")
    if values.shape != (fitted.stats.m,):
        raise InputError(
            f"`trend` must be True, False or {fitted.stats.m} numbers, one per feature; its "
            f"shape is {values.shape}."
        )
    return values


def feature_means(fitted: FittedModel) -> FloatArray:
    """Means of the features over the samples: of their least-squares fits, shape (m,)."""
    sums = column_sums(
        fitted.stats.sums if isinstance(fitted.stats, PatternedStats) else fitted.stats
    )
    if sums is None:
        raise InputError(
            "The features' means do not follow from the statistics: the model has neither an "
            "intercept nor indicators of all levels of a factor. Give `trend` the means."
        )
    if isinstance(fitted.stats, PatternedStats):
        one = fitted.stats
        own = one.designs.X_sums[one.pattern]
        return np.asarray((own * fitted.projection.beta_ols.T).sum(axis=1) / one.nobs)
    total = weight_total(fitted.stats)
    assert total is not None  # where it is not known, the sums are not
    return np.asarray(sums @ fitted.projection.beta_ols / total)
