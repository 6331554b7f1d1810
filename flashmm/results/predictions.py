"""Predictions for new samples, fitted values and residuals, for every feature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr

from flashmm.designs.from_arrays import design_from_arrays
from flashmm.exceptions import InputError, listing, nearest
from flashmm.formulas.columns import check_data
from flashmm.formulas.recipe import RandomRows
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.inference.statistics import confidence_limits
from flashmm.results.fixed_effects import FixedEffectInference
from flashmm.sources import Transform, make_source
from flashmm.stats.own_rows import PatternedStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["NewDataPredictions"]

LEVELS = ("population", "conditional")
INTERVALS = ("confidence", "prediction")
DF = ("satterthwaite", "residual")


@dataclass(frozen=True)
class _Rows:
    """New samples: X (c, p), Z with what unknown levels add, and the samples' labels."""

    X: FloatArray
    random: RandomRows | None
    labels: pd.Index


class NewDataPredictions(FixedEffectInference):
    """Predictions for samples, new or old; part of `MultiLMMResults`."""

    def predict(
        self,
        newdata: Any = None,
        *,
        level: Literal["population", "conditional"] = "population",
        se: bool = False,
        interval: Literal["confidence", "prediction"] | None = None,
        alpha: float = 0.05,
        df: str = DEFAULT_DF,
        allow_new_levels: bool = False,
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.DataArray | xr.Dataset:
        """Predict new samples, for every feature, on the scale of the (transformed) Y.

        Parameters
        ----------
        newdata
            One row per sample, with the columns that the formulas use. The columns of X and Z
            are made as they were for the model: same levels, same state of transforms such as
            ``scale(x)``.
        level
            ``"population"``: x'beta, whatever the groups; ``"conditional"``: x'beta + z'b, with
            the predicted random effects of the samples' groups.
        se
            Add standard errors.
        interval
            ``"confidence"``: limits of the mean above; ``"prediction"``: limits of a new
            observation, which adds the residual variance and, at the population level, the
            variance of a new group's random effects.
        alpha
            One minus the coverage.
        df
            Degrees of freedom of the limits: ``"satterthwaite"``, for the whole variance of the
            prediction, or ``"residual"``, n - p.
        allow_new_levels
            At the conditional level, predict groups that the model does not know with random
            effects of zero, whose variance enters the standard errors. Otherwise they raise.
        features
            Names, positions or a mask; all by default.
        X, Z
            Matrices (c, p) and (c, q) in place of ``newdata``, for models built from matrices.
        context
            Names that the formulas use besides columns; needed again after loading a file.

        Returns
        -------
        DataArray or Dataset
            Dims feature, sample. With ``se`` or ``interval`` a Dataset: prediction, se, and
            lower, upper and df where an interval is asked for. ``se`` is the standard error of
            prediction that the interval is built on: of the mean, or of a new observation.

        Raises
        ------
        InputError
            If a column is absent or holds missing values, a level is unknown, or the matrices
            have the wrong shape.

        Notes
        -----
        With C = cov(beta), D the covariance of b and T = Z'PZ, the variance of
        x'(beta_hat - beta) + z'(b_hat - b) is sigma2 x'(X'X)^-1 x + w'(D - D T D) w with
        w = z - Z'X (X'X)^-1 x: Henderson's (1975) mixed model equations, free of D^-1. Limits are
        Student's; theta counts as known but for the degrees of freedom.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> new = pd.DataFrame({"x": [0.0, 1.0], "g": ["a", "z"]})
        >>> result = model.fit(parameter_space="psd")
        >>> result.predict(new).dims
        ('feature', 'sample')
        >>> limits = result.predict(
        ...     new, level="conditional", interval="prediction", allow_new_levels=True)
        >>> bool((limits.upper > limits.lower).all())
        True
        """
        _check("level", level, LEVELS)
        if interval is not None:
            _check("interval", interval, INTERVALS)
        _check("df", df, DF)
        conditional = level == "conditional"
        wide = interval == "prediction"
        rows = self._rows(
            newdata, X, Z, context, known=conditional, need_random=conditional or wide
        )
        if conditional and rows.random is not None and not allow_new_levels:
            _refuse_new_levels(rows.random)
        positions = self._positions(features)
        estimate = self.ds["beta"].to_numpy()[positions] @ rows.X.T
        if conditional and rows.random is not None:
            blup, _ = self._on_request.random_effects(positions, None)
            estimate = estimate + np.asarray(rows.random.Z @ blup.T).T
        dims = ("feature", "sample")
        coords = {"feature": self._features.to_numpy()[positions], "sample": rows.labels}
        prediction = xr.DataArray(estimate, dims=dims, coords=coords, name="prediction")
        if not se and interval is None:
            return prediction
        Z_known = sp.csr_array((len(rows.labels), self.stats.q))
        independent = np.zeros((len(rows.labels), self.ds.sizes["param"]))
        if rows.random is not None and (conditional or wide):
            independent[:] = rows.random.new
            independent[:, -1] = float(wide)
            Z_known = rows.random.Z if conditional else Z_known
        found = self._hypotheses.predictions(positions, rows.X, Z_known, independent, df)
        with np.errstate(invalid="ignore"):
            errors = np.sqrt(np.where(found.variance > 0, found.variance, np.nan))
        result = xr.Dataset(
            {"prediction": prediction, "se": (dims, errors)}, attrs={"level": level}
        )
        if interval is not None:
            limits = confidence_limits(estimate, errors, found.df, alpha)
            result = result.assign(lower=(dims, limits[..., 0]), upper=(dims, limits[..., 1]))
            result = result.assign(df=(dims, found.df))
            result.attrs.update(interval=interval, alpha=alpha, df_method=df)
        return result

    def fittedvalues(
        self,
        data: Any = None,
        *,
        level: Literal["population", "conditional"] = "conditional",
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.DataArray:
        """Fitted values of the samples that the model was built on, their data given again.

        Parameters
        ----------
        data
            The samples' table, as given to `MultiLMM.from_formula`; results keep no samples.
            Where the fit dropped samples that miss a value, they may be in it: theirs are NaN.
        level
            ``"conditional"``: X beta + Z b, statsmodels' fittedvalues; ``"population"``: X beta.
        features, X, Z, context
            As in `predict`.

        Returns
        -------
        DataArray
            Dims feature, sample.

        Raises
        ------
        InputError
            If a column is absent, or a level is not one the model was fitted on.
        """
        there = self._complete_rows(data, level)
        some = data if there is None else pd.DataFrame(data).iloc[np.flatnonzero(there)]
        fitted = self.predict(some, level=level, features=features, X=X, Z=Z, context=context)
        assert isinstance(fitted, xr.DataArray)
        if there is not None:
            values = np.full((fitted.sizes["feature"], there.size), np.nan)
            values[:, there] = fitted.to_numpy()
            coords = {"feature": fitted["feature"], "sample": pd.DataFrame(data).index}
            fitted = xr.DataArray(values, dims=fitted.dims, coords=coords)
        return fitted.rename("fittedvalues")

    def _complete_rows(self, data: Any, level: str) -> NDArray[np.bool_] | None:
        """Samples of the data of a fit that dropped some, without those that miss a value.

        None where all are complete.
        """
        if data is None or self.recipe is None or self.options.n_dropped == 0:
            return None
        table = check_data(data)
        names = self.recipe.columns if level == "conditional" else self.recipe.fixed.columns
        absent = table[[name for name in names if name in table]].isna().any(axis=1).to_numpy()
        return ~absent if absent.any() else None

    def resid(
        self,
        Y: Any,
        data: Any = None,
        *,
        transform: Transform = None,
        level: Literal["population", "conditional"] = "conditional",
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.DataArray:
        """Residuals: Y minus `fittedvalues`, both Y and the samples' table given again.

        Where the fit left out missing values, they may be there again: their residuals are NaN.

        Parameters
        ----------
        Y
            Features x samples, of every kind that `MultiLMM.from_formula` takes; features are
            matched by name when Y has names.
        data
            The samples' table.
        transform
            The one that the model was built with.
        level, features, X, Z, context
            As in `fittedvalues`.

        Returns
        -------
        DataArray
            Dims feature, sample.

        Raises
        ------
        InputError
            If Y lacks a feature or does not match the samples.
        """
        fitted = self.fittedvalues(data, level=level, features=features, X=X, Z=Z, context=context)
        labels = getattr(data, "index", None)
        source = make_source(Y, transform=transform, samples=labels, n=fitted.sizes["sample"])
        names = fitted["feature"].to_numpy()
        where = pd.Index(source.feature_names).get_indexer(pd.Index(names))
        if source.feature_names.dtype.kind in "iu" and names.dtype.kind not in "iu":
            if source.m != self.stats.m:
                raise InputError(
                    f"Y has {source.m} features without names; the model has {self.stats.m}."
                )
            where = self._positions(features)
        if (where < 0).any():
            raise InputError(f"Y lacks the features {listing(names[where < 0])}.")
        chosen, slot = np.unique(where, return_inverse=True)
        values = np.empty((chosen.size, source.n))
        incomplete = isinstance(self.stats, PatternedStats) or self._lacks_samples
        source = replace(source, allow_missing=incomplete or self.options.n_dropped > 0)
        wanted = np.zeros(source.m, dtype=bool)  # a mask: names may be integers
        wanted[chosen] = True
        for block in source.taking(wanted).blocks():
            part: Any = block.values
            part = part.toarray() if sp.issparse(part) else part
            if block.missing is not None:
                part = np.where(block.missing, np.nan, part)
            where_to = np.ix_(_range(block.features, chosen.size), _range(block.samples, source.n))
            values[where_to] = part
        resid = values[slot] - fitted.to_numpy()
        return xr.DataArray(resid, coords=fitted.coords, dims=fitted.dims, name="resid")

    def _rows(
        self,
        newdata: Any,
        X: ArrayLike | None,
        Z: Any,
        context: Mapping[str, Any] | None,
        *,
        known: bool,
        need_random: bool,
    ) -> _Rows:
        """Rows of X, and of Z where needed, of new samples."""
        if (newdata is None) == (X is None):
            raise InputError(
                "Pass the samples to predict: a table `newdata`, or matrices X and Z; one of the "
                "two. The results hold summary statistics, not the samples of the fit."
            )
        if X is not None:
            return self._matrix_rows(X, Z, known=known, need_random=need_random)
        columns, random = self._fixed_rows(newdata, context), None
        if need_random:
            random = self._known_recipe().random_rows(
                newdata, self.stats.structure, known=known, context=context
            )
        return _Rows(columns, random, pd.DataFrame(newdata).index)

    def _matrix_rows(self, X: ArrayLike, Z: Any, *, known: bool, need_random: bool) -> _Rows:
        stats = self.stats
        labels = X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(np.shape(X)[0])
        if isinstance(X, pd.DataFrame):
            absent = [name for name in stats.coef_names if name not in X.columns]
            if absent:
                raise InputError(f"X lacks the columns {listing(absent)}.")
            X = X[list(stats.coef_names)]
        if need_random and Z is None:
            raise InputError(
                "Pass Z too: this prediction depends on the random effects of the samples."
            )
        empty = sp.csr_array((len(labels), stats.q))
        structure = stats.structure
        design = design_from_arrays(X, empty if Z is None else Z, components=structure)
        rows_X, rows_Z = design.X[:], design.Z[:]
        if rows_X.shape[1] != stats.p:
            raise InputError(f"X has {rows_X.shape[1]} columns, but the model has p = {stats.p}.")
        weights = np.zeros((len(labels), len(structure.param_names)))
        if not known:
            for i, parameter in enumerate(structure.parameters):
                rows, columns = structure.columns(parameter)
                product = rows_Z[:, rows].multiply(rows_Z[:, columns]).sum(axis=1)
                weights[:, i] = np.ravel(product) * (1.0 if parameter.is_variance else 2.0)
        return _Rows(rows_X, RandomRows(rows_Z, weights, {}), labels)


def _range(index: Any, size: int) -> Any:
    return np.arange(size)[index]


def _check(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InputError(f"Unknown {name}={value!r}. {nearest(str(value), options)}")


def _refuse_new_levels(rows: RandomRows) -> None:
    for term, levels in rows.unknown.items():
        raise InputError(
            f"Random term {term!r} has levels that the model does not know: {listing(levels)}. "
            "Pass allow_new_levels=True to predict them with random effects of zero, or "
            'level="population".'
        )
