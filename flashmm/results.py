"""MultiLMMResults: a Dataset of estimates and thin methods over it.

What is large (covariances, information, random effects) is computed on request from theta and
the summary statistics; it is not stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.contrast_results import TTestResults
from flashmm.exceptions import InputError, nearest
from flashmm.feature_results import FeatureResults
from flashmm.inference.contrasts import parse_contrasts
from flashmm.inference.statistics import confidence_limits, resolve_alternative, t_statistics
from flashmm.labels import feature_positions
from flashmm.likelihood import Estimator, Projection, make_likelihood, project
from flashmm.on_request import OnRequest
from flashmm.schema import RESULTS
from flashmm.solvers.status import Status
from flashmm.storage import (
    level_coordinates,
    load_dataset,
    save_dataset,
    stats_from_dataset,
    stats_to_dataset,
)
from flashmm.summary import SummaryPage, feature_page, model_page

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from flashmm.summary_stats import SummaryStats

    FloatArray = NDArray[np.float64]

__all__ = ["FitOptions", "MultiLMMResults"]

DF_METHODS = ("residual",)


@dataclass(frozen=True)
class FitOptions:
    """How a model was fitted, and the formulas as text; kept in ``results.ds.attrs``."""

    method: Literal["REML", "ML"]
    solver: str
    parameter_space: str
    max_iter: int
    epsilon: float
    memory: int
    engine: str
    fixed: str = ""
    random: str = ""
    n_dropped: int = 0


class MultiLMMResults:
    """Fitted models of all features.

    Parameters
    ----------
    ds
        Estimates, as an xarray Dataset; its variables are listed in `flashmm.schema`.
    stats
        The summary statistics that were fitted.
    options
        How they were fitted.
    projection
        The statistics projected off X; computed when left out.

    Examples
    --------
    >>> import flashmm as fm
    >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
    >>> result = fm.MultiLMM.from_formula(
    ...     "~ 0 + log(libsize) + cls + cls:trt", "~ 0 + sam", sim.metadata, sim.counts,
    ...     transform="log2p1").fit(parameter_space="psd")
    >>> result.t_test("cls1:trtB").top_table(n=2).columns.tolist()
    ['estimate', 'se', 't', 'df', 'p', 'p_adjusted', 'status']
    """

    def __init__(
        self,
        ds: xr.Dataset,
        stats: SummaryStats,
        options: FitOptions,
        projection: Projection | None = None,
    ) -> None:
        self.ds = ds
        self.stats = stats
        self.options = options
        if projection is not None:
            self.__dict__["_projection"] = projection

    @cached_property
    def _projection(self) -> Projection:
        return project(self.stats)

    @cached_property
    def _likelihood(self) -> Estimator:
        return make_likelihood(self._projection, self.options.method, self.options.engine)

    @cached_property
    def _on_request(self) -> OnRequest:
        theta = self._projection.to_internal(self.ds["theta"].to_numpy())
        varies = self.ds["status"].to_numpy() != Status.ZERO_VARIANCE
        known = varies & np.isfinite(theta).all(axis=1)
        likelihood, memory = self._likelihood, self.options.memory
        return OnRequest(likelihood, self._projection, theta, known, memory)

    def __repr__(self) -> str:
        s, o = self.stats, self.options
        good = int(self.converged.sum())
        return (
            f"<MultiLMMResults: {o.method}, {s.m} features, {good} converged; n={s.n}, p={s.p}, "
            f"q={s.q}>"
        )

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # ---- labelled tables -------------------------------------------------------------------

    def _frame(self, name: str) -> pd.DataFrame:
        array = self.ds[name]
        dim = str(array.dims[1])
        return pd.DataFrame(
            array.to_numpy(),
            index=self._features,
            columns=pd.Index(self.ds[dim].to_numpy(), name=dim),
        )

    def _series(self, name: str) -> pd.Series[Any]:
        return pd.Series(self.ds[name].to_numpy(), index=self._features, name=name)

    @property
    def _features(self) -> pd.Index:
        return pd.Index(self.ds["feature"].to_numpy(), name="feature")

    @property
    def params(self) -> pd.DataFrame:
        """Fixed effects, features x coefficients (FLASHMM's coef, transposed)."""
        return self._frame("beta")

    @property
    def bse(self) -> pd.DataFrame:
        """Standard errors of the fixed effects, features x coefficients."""
        return self._frame("se_beta")

    @property
    def tvalues(self) -> pd.DataFrame:
        """Params / bse, features x coefficients."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.params / self.bse

    @property
    def pvalues(self) -> pd.DataFrame:
        """Two-sided p-values of the fixed effects on `df_resid` degrees of freedom."""
        table = t_statistics(
            self.params.to_numpy(), self.bse.to_numpy(), self.df_resid, "two-sided"
        )
        return pd.DataFrame(table.p, index=self._features, columns=self.params.columns)

    @property
    def theta(self) -> pd.DataFrame:
        """Variances and covariances, features x parameters, Residual last."""
        return self._frame("theta")

    @property
    def bse_theta(self) -> pd.DataFrame:
        """Standard errors of theta, from the expected information."""
        return self._frame("se_theta")

    @property
    def score(self) -> pd.DataFrame:
        """Derivatives of the log-likelihood by theta (FLASHMM's dlogL)."""
        return self._frame("score")

    @property
    def llf(self) -> pd.Series[Any]:
        """Maximised log-likelihoods, with the constant of lme4 and statsmodels."""
        return self._series("loglik").rename("llf")

    @property
    def aic(self) -> pd.Series[Any]:
        """-2 llf + 2 (p + number of variance parameters), as lme4 counts them."""
        return (-2.0 * self.llf + 2.0 * self._n_estimated).rename("aic")

    @property
    def bic(self) -> pd.Series[Any]:
        """-2 llf + log(n) (p + number of variance parameters), as lme4 counts them."""
        return (-2.0 * self.llf + np.log(self.nobs) * self._n_estimated).rename("bic")

    @property
    def _n_estimated(self) -> int:
        return self.stats.p + self.ds.sizes["param"]

    @property
    def n_iter(self) -> pd.Series[Any]:
        """Iterations taken by each feature."""
        return self._series("n_iter")

    @property
    def status(self) -> pd.Series[Any]:
        """Verdict of each feature as text, e.g. ``"converged"``; see `flashmm.Status`."""
        labels = np.array([status.label for status in Status], dtype=object)
        return pd.Series(labels[self.ds["status"].to_numpy()], index=self._features, name="status")

    @property
    def converged(self) -> pd.Series[Any]:
        """Whether each feature ended at a stationary point."""
        good = self.ds["status"].to_numpy() <= Status.INDEFINITE
        return pd.Series(good, index=self._features, name="converged")

    @property
    def nobs(self) -> int:
        """Number of samples."""
        return self.stats.n

    @property
    def df_resid(self) -> int:
        """Residual degrees of freedom, n - p."""
        return self.stats.n - self.stats.p

    @property
    def method(self) -> str:
        """``"REML"`` or ``"ML"``."""
        return self.options.method

    # ---- inference -------------------------------------------------------------------------

    def conf_int(self, alpha: float = 0.05) -> xr.DataArray:
        """Wald confidence limits of the fixed effects.

        Parameters
        ----------
        alpha
            One minus the coverage.

        Returns
        -------
        DataArray
            Dims feature, coef, bound (lower, upper), in the units of params.
        """
        limits = confidence_limits(
            self.ds["beta"].to_numpy(), self.ds["se_beta"].to_numpy(), self.df_resid, alpha
        )
        return xr.DataArray(
            limits,
            dims=("feature", "coef", "bound"),
            coords={**self._coords("feature", "coef"), "bound": ["lower", "upper"]},
            name="conf_int",
        )

    def cov_params(self, features: Any = None) -> xr.DataArray:
        """Covariance matrices of the fixed effects.

        Parameters
        ----------
        features
            Names, positions or a mask; all by default (m p^2 numbers).

        Returns
        -------
        DataArray
            Dims ``feature``, ``coef`` and ``coef_``.
        """
        positions = self._positions(features)
        names = self.ds["coef"].to_numpy()
        return xr.DataArray(
            self._on_request.covariance(positions),
            dims=("feature", "coef", "coef_"),
            coords={"feature": self._features.to_numpy()[positions], "coef": names, "coef_": names},
            name="cov_params",
        )

    def t_test(
        self,
        contrast: Any = None,
        *,
        alternative: str = "two-sided",
        df: str = "residual",
        features: Any = None,
    ) -> TTestResults:
        """Test linear contrasts of the fixed effects, for every feature.

        Parameters
        ----------
        contrast
            A coefficient or expression of coefficients, ``"a - b"``, ``"(a + b)/2 = c"``; a
            list or dict of such; a vector (p,); a matrix (n_contrasts, p); a DataFrame from
            `contrast_matrix`. Every coefficient by default. R's spelling of a name is
            understood (``cls1:trtB`` for ``cls[1]:trt[T.B]``).
        alternative
            ``"two-sided"``, ``"greater"`` or ``"less"``.
        df
            Degrees of freedom: ``"residual"``, n - p.
        features
            Names, positions or a mask; all by default. Adjusted p-values then count these
            features alone.

        Returns
        -------
        TTestResults

        Raises
        ------
        InputError
            If a name in the contrast is unknown, or the contrast is zero.
        """
        side = resolve_alternative(alternative)
        if df not in DF_METHODS:
            raise InputError(f"Unknown df={df!r}. {nearest(str(df), DF_METHODS)}")
        contrasts = parse_contrasts(contrast, self.stats.coef_names)
        L = contrasts.matrix
        positions = self._positions(features)
        estimate = self.ds["beta"].to_numpy()[positions] @ L.T
        variance = self._on_request.contrast_variance(positions, L)
        with np.errstate(invalid="ignore"):
            se = np.sqrt(np.where(variance > 0, variance, np.nan))
        table = t_statistics(estimate - contrasts.values, se, self.df_resid, side)
        dims = ("feature", "contrast")
        ds = xr.Dataset(
            {
                "estimate": (dims, estimate),
                "se": (dims, se),
                "t": (dims, table.t),
                "df": (dims, np.full(estimate.shape, float(self.df_resid))),
                "p": (dims, table.p),
                "value": (("contrast",), contrasts.values),
                "status": (("feature",), self.status.to_numpy()[positions]),
            },
            coords={
                "feature": self._features.to_numpy()[positions],
                "contrast": np.array(contrasts.labels, dtype=object),
            },
            attrs={"alternative": side, "df": df},
        )
        return TTestResults(ds, alternative=side, df_method=df)

    def top_table(self, contrast: Any, **options: Any) -> pd.DataFrame:
        """The features with the strongest evidence on one contrast.

        Parameters
        ----------
        contrast
            As in `t_test`; one contrast.
        **options
            Those of `TTestResults.top_table` (n, sort_by, adjust, alpha) and of `t_test`
            (alternative, df, features).

        Returns
        -------
        DataFrame
            Indexed by feature: estimate, se, t, df, p, p_adjusted, status (the verdict).
        """
        testing = {
            key: options.pop(key) for key in ("alternative", "df", "features") if key in options
        }
        return self.t_test(contrast, **testing).top_table(**options)

    def fim(self, features: Any = None) -> xr.Dataset:
        """Fisher information matrices.

        Parameters
        ----------
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        Dataset
            ``FIM_theta``, dims ``feature``, ``param``, ``param_``: expected information of theta
            (FLASHMM's FIM.theta); ``FIM_beta``, dims ``feature``, ``coef``, ``coef_``: X'V^-1X
            (FLASHMM's FIM.beta).
        """
        positions = self._positions(features)
        information = self._on_request.information(positions)
        coefs, params = self.ds["coef"].to_numpy(), self.ds["param"].to_numpy()
        return xr.Dataset(
            {
                "FIM_theta": (("feature", "param", "param_"), information.theta),
                "FIM_beta": (("feature", "coef", "coef_"), information.beta),
            },
            coords={
                "feature": self._features.to_numpy()[positions],
                "param": params,
                "param_": params,
                "coef": coefs,
                "coef_": coefs,
            },
        )

    # ---- random effects --------------------------------------------------------------------

    def blup(
        self,
        se: Literal["conditional", "prediction"] | bool | None = None,
        *,
        features: Any = None,
    ) -> xr.DataArray | xr.Dataset:
        """Best linear unbiased predictions of the random effects.

        Parameters
        ----------
        se
            ``"conditional"`` (or True): standard deviations given y and beta, lme4's condVar
            and statsmodels' random_effects_cov; ``"prediction"``: standard errors of
            prediction with beta estimated; None: predictions alone.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        DataArray or Dataset
            Dims feature, level; the coordinates term, group, group_level and effect tell the
            levels apart. With ``se`` a Dataset with the variables blup and se.
        """
        kind = {True: "conditional", False: None}.get(se, se) if isinstance(se, bool) else se
        if kind not in (None, "conditional", "prediction"):
            raise InputError(
                f"Unknown se={se!r}. {nearest(str(se), ['conditional', 'prediction'])}"
            )
        positions = self._positions(features)
        blup, errors = self._on_request.random_effects(positions, kind)
        dims = ("feature", "level")
        coords = {
            "feature": self._features.to_numpy()[positions],
            **level_coordinates(self.stats.structure),
        }
        if kind is None:
            return xr.DataArray(blup, dims=dims, coords=coords, name="blup")
        return xr.Dataset(
            {"blup": (dims, blup), "se": (dims, errors)}, coords=coords, attrs={"se": kind}
        )

    @property
    def random_effects(self) -> dict[str, xr.DataArray]:
        """Predictions by random term: dims feature, the grouping factor's levels, effect."""
        blup = self.blup()
        assert isinstance(blup, xr.DataArray)
        values, structure = blup.to_numpy(), self.stats.structure
        result = {}
        for term, start in zip(structure.terms, structure.offsets, strict=False):
            shape = (values.shape[0], len(term.levels), len(term.effects))
            result[term.name] = xr.DataArray(
                values[:, start : start + term.n_columns].reshape(shape),
                dims=("feature", "group_level", "effect"),
                coords={
                    "feature": self._features.to_numpy(),
                    "group_level": list(term.levels),
                    "effect": list(term.effects),
                },
                name=term.name,
            )
        return result

    # ---- looking at it ---------------------------------------------------------------------

    def sel(self, feature: Any) -> FeatureResults:
        """One feature, with the names that statsmodels' MixedLMResults has.

        Parameters
        ----------
        feature
            Name of the feature, or its position when the features have text names.

        Returns
        -------
        FeatureResults
        """
        return FeatureResults(self, int(self._positions([feature])[0]))

    def summary(self, feature: Any = None) -> SummaryPage:
        """A page on the whole fit, or on one feature as statsmodels' MixedLM prints it.

        Parameters
        ----------
        feature
            Name of a feature; None for the whole fit.

        Returns
        -------
        SummaryPage
            Prints as text, shows as HTML in a notebook.
        """
        return model_page(self) if feature is None else feature_page(self.sel(feature))

    def to_frame(self, adjust: str = "bh") -> pd.DataFrame:
        """One row per feature and coefficient: estimate, se, t, df, p, p_adjusted.

        Parameters
        ----------
        adjust
            How p-values are adjusted over the features, per coefficient.
        """
        table = self.t_test().to_frame(adjust)
        return table.rename_axis(index={"contrast": "coef"})

    # ---- keeping it ------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write estimates and summary statistics to one netCDF file, whole or not at all.

        Parameters
        ----------
        path
            File to write; an existing file is replaced once the new one is complete.
        """
        ds = xr.merge([self.ds, stats_to_dataset(self.stats)], join="exact", compat="no_conflicts")
        ds.attrs = {**stats_to_dataset(self.stats.take([])).attrs, **self.ds.attrs}
        ds.attrs["flashmm_kind"] = "MultiLMMResults"
        save_dataset(ds, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> MultiLMMResults:
        """Read results that `save` wrote; they can do all that the originals could.

        Parameters
        ----------
        path
            File to read.

        Raises
        ------
        InputError
            If the file holds something else or comes from a later format.
        """
        merged = load_dataset(path, kind="MultiLMMResults")
        stats = stats_from_dataset(merged)
        attrs = merged.attrs
        values = {field.name: attrs[field.name] for field in fields(FitOptions)}
        for name in ("max_iter", "memory", "n_dropped"):
            values[name] = int(values[name])
        options = FitOptions(**values)
        ds = merged[list(RESULTS)]
        ds = ds.drop_vars([name for name in ds.coords if name not in ("feature", "coef", "param")])
        ds["n_iter"], ds["status"] = ds["n_iter"].astype(np.int64), ds["status"].astype(np.int8)
        ds.attrs = attributes(stats, options)
        return cls(ds, stats, options)

    # ---- helpers ---------------------------------------------------------------------------

    def _coords(self, *names: str) -> dict[str, Any]:
        return {name: self.ds[name].to_numpy() for name in names}

    def _positions(self, features: Any) -> NDArray[np.intp]:
        names = self._features.to_numpy()
        if features is None:
            return np.arange(names.size)
        return feature_positions(names, features)


def attributes(stats: SummaryStats, options: FitOptions) -> dict[str, Any]:
    """What ``results.ds.attrs`` holds: strings and numbers."""
    return {**asdict(options), "nobs": stats.n, "df_resid": stats.n - stats.p}
