"""Residuals of several kinds, and one more pass over Y that checks them for every feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr
from numpy.typing import ArrayLike

from flashmm.arrays.numeric import dimensions
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.from_arrays import check_rows_are_known, row_labels
from flashmm.designs.per_sample import per_sample, positive
from flashmm.exceptions import InputError, check_option, nearest
from flashmm.formulas.sample_table import check_data
from flashmm.inference.residual_checks import ResidualSums, shape_of, shape_of_moments
from flashmm.plots import samples as pictures
from flashmm.results.fitted import FittedModel
from flashmm.results.hypotheses import hypotheses
from flashmm.results.predictions import (
    NewRows,
    complete_rows,
    new_rows,
    residual_groups_of,
)
from flashmm.results.predictions import resid as raw_residuals
from flashmm.results.samples_again import rows_of_features, values_of
from flashmm.slips.answers import answered
from flashmm.sources import Source, Transform, make_source
from flashmm.stats.grouping import group_codes
from flashmm.stats.own_rows import PatternedStats

__all__ = ["KINDS", "check_residuals", "resid", "residual_panels"]

KINDS = ("conditional", "marginal", "pearson", "standardized")


@answered
def resid(
    fitted: FittedModel,
    positions: IntArray,
    Y: Any,
    data: Any = None,
    *,
    kind: str | None = None,
    weights: Any = None,
    transform: Transform = None,
    level: str = "conditional",
    X: ArrayLike | None = None,
    Z: Any = None,
    feature_covariates: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Residuals of a kind; see `MultiLMMResults.resid`."""
    if kind is not None:
        check_option("kind", kind, KINDS)
        level = {"marginal": "population", "conditional": "conditional"}.get(kind, level)
    found = raw_residuals(
        fitted,
        positions,
        Y,
        data,
        transform=transform,
        level=level,
        X=X,
        Z=Z,
        feature_covariates=feature_covariates,
        context=context,
    )
    if kind not in ("pearson", "standardized"):
        return found
    fitted.shared_samples(f"{kind=}", "Use kind='conditional'.")
    labels = row_labels(X, Z) if data is None else check_data(data).index
    precision = _precision(fitted, positions, weights, data, labels, found.sizes["sample"])
    if kind == "pearson":
        if fitted.options.residual_by:
            precision = precision / residual_variances(fitted, positions, data)
        return found * np.sqrt(precision)
    if feature_covariates is not None:
        raise InputError(
            'kind="standardized" needs samples that all features share, not `feature_covariates`.'
        )
    there = complete_rows(fitted, data, "conditional")
    some = data if there is None else check_data(data).iloc[np.flatnonzero(there)]
    rows = _Rows.of(fitted, some, X, Z, context, level)
    columns = np.arange(found.sizes["sample"]) if there is None else np.flatnonzero(there)
    values = np.full(found.shape, np.nan)
    own = np.broadcast_to(precision, found.shape)[:, columns]
    spread = rows.variance(fitted, positions, np.arange(columns.size), own)
    values[:, columns] = found.to_numpy()[:, columns] / np.sqrt(spread)
    return found.copy(data=values)


@dataclass(frozen=True)
class _Rows:
    """Rows of X and Z of samples, for residuals at a level.

    Parameters
    ----------
    rows
        With the known levels of Z at the conditional level.
    between
        What theta is multiplied by to give the variance of z'b, shape (c, k); None at the
        conditional level.
    groups
        Which residual variance each sample has, ones in (c, H); None where there is one.
    """

    rows: NewRows
    between: FloatArray | None
    groups: FloatArray | None

    @classmethod
    def of(cls, fitted: FittedModel, data: Any, X: Any, Z: Any, context: Any, level: str) -> _Rows:
        """Rows of a table or of matrices."""
        known = level == "conditional"
        rows = new_rows(fitted, data, X, Z, context, known=known, need_random=True)
        between = None if known or rows.random is None else rows.random.new
        roots = fitted.projection.roots
        if between is not None and roots is not None:
            # These samples are those of the fit: each level has its own variance, K_ll theta.
            of_levels = new_rows(fitted, data, X, Z, context, known=True, need_random=True).random
            assert of_levels is not None
            between = roots.prior(of_levels.Z) + of_levels.new
        groups = residual_groups_of(fitted, data) if fitted.options.residual_by else None
        return cls(rows, between, groups)

    def noise(self, theta: FloatArray, samples: IntArray) -> FloatArray:
        """Residual variances of features at samples, by theta (f, k): shape (f, c), or (f, 1)."""
        if self.groups is None:
            return theta[:, -1:]
        return np.asarray(theta[:, -self.groups.shape[1] :] @ self.groups[samples].T)

    def variance(
        self, fitted: FittedModel, positions: IntArray, samples: IntArray, precision: FloatArray
    ) -> FloatArray:
        """Variances of residuals of features at samples, (f, c); NaN where they are not positive.

        y - X beta_hat - Z b_hat = sigma2 W^-1 P y has the variance sigma2 / w less that of the
        prediction's error; y - X beta_hat that of y less that of the estimate.
        """
        X, random = self.rows.X[samples], self.rows.random
        assert random is not None
        Z = (
            random.Z[samples]
            if self.between is None
            else sp.csr_array((samples.size, random.Z.shape[1]))
        )
        theta = fitted.values("theta", positions)
        nothing = np.zeros((samples.size, theta.shape[1]))
        error = hypotheses(fitted).predictions(positions, X, sp.csr_array(Z), nothing, "residual")
        with np.errstate(divide="ignore", invalid="ignore"):
            size = self.noise(theta, samples) / precision
            left = size - error.variance
            if self.between is not None:
                between = theta @ self.between[samples].T
                left, size = left + between, size + between
            return np.where(left > 1e-10 * size, left, np.nan)

    def means(self, fitted: FittedModel, positions: IntArray, blup: FloatArray) -> _Means:
        """What gives fitted values of features."""
        return _Means(fitted.values("beta", positions), blup, self.rows)


@dataclass(frozen=True)
class _Means:
    """Fitted values X beta + Z b + offset."""

    beta: FloatArray
    blup: FloatArray
    rows: NewRows

    def at(self, features: IntArray, samples: IntArray) -> FloatArray:
        """Of some features at some samples, shape (f, c)."""
        random = self.rows.random
        assert random is not None
        values = self.beta[features] @ self.rows.X[samples].T + self.rows.offset[samples]
        return np.asarray(values + (random.Z[samples] @ self.blup[features].T).T)


def residual_variances(fitted: FittedModel, positions: IntArray, data: Any) -> FloatArray:
    """Residual variances of features at the samples of a table, by their groups, (f, n)."""
    groups = residual_groups_of(fitted, data)
    return np.asarray(fitted.values("theta", positions)[:, -groups.shape[1] :] @ groups.T)


def _precision(
    fitted: FittedModel,
    positions: IntArray,
    weights: Any,
    data: Any,
    labels: pd.Index | None,
    n: int,
) -> FloatArray:
    """Weights of the samples, (n,), or of each observation, (f, n), NaN where they are zero."""
    if weights is None:
        if _is_weighted(fitted):
            raise InputError(
                "The fit has weights, which these residuals need and the results do not hold: pass "
                "them again, `weights=`."
            )
        return np.ones(n)
    if not isinstance(weights, str) and dimensions(weights) == 2:
        source = make_source(weights, samples=labels, n=n)
        values = values_of(source, fitted, positions, "`weights`", missing=True)
        return np.where(values > 0, values, np.nan)
    if data is None:
        if isinstance(weights, str):
            raise InputError("`weights` names a column, which needs `data`.")
        return positive(weights, n, "weights", labels)
    found = per_sample(weights, data, "weights")
    assert found is not None
    return found


def _is_weighted(fitted: FittedModel) -> bool:
    stats = fitted.stats
    if isinstance(stats, PatternedStats):
        designs = stats.designs
        return bool((np.abs(designs.total - designs.n) > 1e-9 * np.maximum(designs.n, 1.0)).any())
    return stats.log_weights != 0.0


# ---- one more pass ---------------------------------------------------------------------------


def check_residuals(
    fitted: FittedModel,
    positions: IntArray,
    Y: Any,
    data: Any = None,
    *,
    by: Any = None,
    weights: Any = None,
    transform: Transform = None,
    X: ArrayLike | None = None,
    Z: Any = None,
    context: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Checks of the residuals of every feature; see `MultiLMMResults.check_residuals`."""
    if isinstance(fitted.stats, PatternedStats) and fitted.stats.own.names:
        fitted.one_design("check_residuals")
    labels = row_labels(X, Z) if data is None else check_data(data).index
    there = complete_rows(fitted, data, "conditional")
    some = data if there is None else check_data(data).iloc[np.flatnonzero(there)]
    rows = _Rows.of(fitted, some, X, Z, context, "conditional")
    n = len(rows.rows.labels) if there is None else there.size
    source = make_source(Y, transform=transform, samples=labels, n=n)
    if data is None:
        check_rows_are_known(source, **({"X": X} if Z is None else {"X": X, "Z": Z}))
    name, group, levels = _groups(fitted, data, by, n, labels)
    slot, unique = _unique_rows(source, fitted, positions)
    precision = _precision(fitted, unique, weights, data, labels, n)
    blup, _ = fitted.on_request.random_effects(unique, None)
    means = rows.means(fitted, unique, blup)
    sums = ResidualSums.empty(unique.size, n, levels)
    place = np.arange(n) if there is None else np.where(there, np.cumsum(there) - 1, -1)
    theta = fitted.values("theta", unique)
    source = replace(source, allow_missing=fitted.lacks_values)
    for features, samples, values in _blocks(source, rows_of_features(source, fitted, unique, "Y")):
        used = place[samples] >= 0
        here, at = samples[used], place[samples[used]]
        w = np.broadcast_to(precision, (unique.size, n))[np.ix_(features, here)]
        mean = means.at(features, at)
        raw = values[:, used] - mean
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = rows.variance(fitted, unique[features], at, w)
            scaled = raw * np.sqrt(w / np.maximum(rows.noise(theta[features], at), 0.0))
            standard = raw / np.sqrt(spread)
        sums.add(features, here, scaled, standard, mean, group[here])
    return _labelled(fitted, positions, sums, slot, blup, labels, name)


def _unique_rows(
    source: Source, fitted: FittedModel, positions: IntArray
) -> tuple[IntArray, IntArray]:
    """Where each feature is among those read once, and the positions of the latter."""
    where = rows_of_features(source, fitted, positions, "Y")
    _, first, slot = np.unique(where, return_index=True, return_inverse=True)
    return np.asarray(slot, dtype=np.intp), positions[first]


def _blocks(source: Source, chosen: IntArray) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """Positions of features and samples, and dense values with NaN, block by block."""
    for block in source.at(chosen).blocks():
        part: Any = block.values
        part = part.toarray() if sp.issparse(part) else part
        if block.missing is not None:
            part = np.where(block.missing, np.nan, part)
        features = np.arange(chosen.size)[block.features]
        samples = np.arange(source.n)[block.samples]
        step = max(1, _BLOCK // max(features.size, 1))
        for start in range(0, samples.size, step):
            here = slice(start, start + step)
            yield features, samples[here], part[:, here]


# Values of a block that are worked on at once.
_BLOCK = 2**20


def _groups(
    fitted: FittedModel, data: Any, by: Any, n: int, labels: pd.Index | None
) -> tuple[str, IntArray, int]:
    """Name, codes (n,) and number of the groups that variances are compared between."""
    none = "", np.full(n, -1, dtype=np.intp), 0
    table = None if data is None else check_data(data)
    if by is None:
        recipe = fitted.recipe
        columns = next((term.group for term in recipe.terms if term.group), ()) if recipe else ()
        if table is None or not columns or not set(columns) <= set(table.columns):
            return none
        codes = table.groupby(list(columns), observed=True, sort=True).ngroup().to_numpy()
        return ":".join(columns), codes.astype(np.intp), int(codes.max(initial=-1)) + 1
    if isinstance(by, str):
        if table is None or by not in table.columns:
            names = [] if table is None else [str(column) for column in table.columns]
            raise InputError(
                f"`by` names {by!r}, which is no column of `data`. {nearest(by, names)}"
            )
        values, name = table[by], by
    else:
        if dimensions(by) != 1:
            raise InputError("`by` must hold one label for each sample, not lists or a table.")
        values, name = pd.Series(by) if not isinstance(by, pd.Series) else by, "by"
        if isinstance(by, pd.Series) and labels is not None and not by.index.equals(labels):
            if not labels.isin(by.index).all() or not by.index.is_unique:
                raise InputError("`by` has other samples than `data`.")
            values = by.loc[labels]
        if len(values) != n:
            raise InputError(f"`by` has {len(values)} values, but there are {n} samples.")
    codes, levels = group_codes(values, "`by`")
    return name, codes, len(levels)


def _labelled(
    fitted: FittedModel,
    positions: IntArray,
    sums: ResidualSums,
    slot: IntArray,
    blup: FloatArray,
    labels: pd.Index | None,
    by: str,
) -> xr.Dataset:
    known = fitted.on_request.known[positions]

    def of_feature(values: FloatArray) -> FloatArray:
        return np.where(known, values[slot], np.nan)

    table: dict[str, Any] = {"n": (("feature",), sums.count[slot])}
    for suffix, part in (("", sums.raw), ("_standardized", sums.standard)):
        shape = shape_of_moments(sums.count, part)
        for name in ("skewness", "kurtosis"):
            table[f"{name}{suffix}"] = (("feature",), of_feature(getattr(shape, name)))
        table[f"normality_p{suffix}"] = (("feature",), of_feature(shape.p))
    r, p = sums.against_level()
    table["level_correlation"] = (("feature",), of_feature(r))
    table["level_p"] = (("feature",), of_feature(p))
    if by:
        F, p = sums.levene()
        table["levene"], table["levene_p"] = (
            (("feature",), of_feature(values)) for values in (F, p)
        )
    table["n_outlying"] = (("feature",), of_feature(sums.outlying))
    structure = fitted.stats.structure
    variances = [p for p in structure.parameters if p.is_variance]
    dims = ("feature", "param")
    shapes = [shape_of(blup[:, structure.columns(p)[0]]) for p in variances]
    for name in ("skewness", "kurtosis", "p"):
        own = np.full((slot.size, len(variances)), np.nan)
        for column, shape in enumerate(shapes):
            own[:, column] = of_feature(getattr(shape, name))
        table["blup_normality_p" if name == "p" else f"blup_{name}"] = (dims, own)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_square = sums.sample_square / np.where(
            sums.sample_count > 0, sums.sample_count, np.nan
        )
        share = sums.sample_outlying / np.where(sums.sample_count > 0, sums.sample_count, np.nan)
    table["sample_mean_square"] = (("sample",), mean_square)
    table["sample_outlying"] = (("sample",), share)
    n = sums.sample_count.size
    return xr.Dataset(
        table,
        coords={
            "feature": fitted.features[positions],
            "param": pd.Index([p.name for p in variances], dtype=object),
            "sample": pd.RangeIndex(n) if labels is None else labels,
        },
        attrs={"by": by},
    )


# ---- one feature -----------------------------------------------------------------------------


def residual_panels(
    fitted: FittedModel, position: IntArray, Y: Any, data: Any, axes: Any, **options: Any
) -> Any:
    """Panels of one feature's residuals; see `MultiLMMResults.plot_residuals`."""
    standard = resid(fitted, position, Y, data, kind="standardized", **options)
    raw = resid(fitted, position, Y, data, kind="conditional", **options)
    values = raw.to_numpy()[0]
    rows = {key: options.get(key) for key in ("X", "Z", "context")}
    there = complete_rows(fitted, data, "conditional")
    some = data if there is None else check_data(data).iloc[np.flatnonzero(there)]
    made = _Rows.of(fitted, some, rows["X"], rows["Z"], rows["context"], "conditional")
    blup, _ = fitted.on_request.random_effects(position, None)
    mean = np.full(values.size, np.nan)
    used = np.arange(values.size) if there is None else np.flatnonzero(there)
    means = made.means(fitted, position, blup)
    mean[used] = means.at(np.arange(1), np.arange(used.size))[0]
    name = str(fitted.names[position[0]])
    return pictures.residuals(mean, values, standard.to_numpy()[0], blup[0], title=name, axes=axes)
