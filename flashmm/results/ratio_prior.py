"""RatioPrior: what the features of a fit know together about their variances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.labels import find_labels
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, listing
from flashmm.inference.integrated.grid import RatioGrid
from flashmm.inference.integrated.integration import Integration
from flashmm.inference.integrated.scaling import NOT_FOLLOWING, Following
from flashmm.inference.moderation import VariancePrior
from flashmm.plots import variances
from flashmm.slips.answers import answer_calls
from flashmm.storage.files import load_dataset, reading, save_dataset
from flashmm.storage.format_version import FOLLOWING_FORMAT, FORMAT, marked

__all__ = ["RatioPrior", "prior_of"]

_KIND = "RatioPrior"
# What s0^2 may follow: nothing, the features' means, a covariate that was given.
_TRENDS = ("", "mean", "given")


@answer_calls
@dataclass(frozen=True, eq=False, repr=False)
class RatioPrior:
    """Distribution of the variance ratios and of the residual variance over the features.

    Made by a fit (`MultiLMMResults.ratio_prior`, `MultiLMMResults.learn_ratio_prior`); what takes
    ``df="integrated"`` takes it as ``prior``, of another fit too.

    Parameters
    ----------
    ds
        Dataset with dims point and param: ``ratio`` (point, param), theta over the residual
        variance; ``weight`` (point), its prior probability; ``line`` and ``base`` (point), how
        the grid is laid out and the weights that say little. ``sigma2_df``, d0, and
        ``sigma2_location``, s0^2 in squared units of Y: the residual variance is s0^2 d0 over a
        chi-square on d0. With a trend, ``trend_at`` and ``trend_location`` (knot). Where d0 or
        s0^2 differ by feature, ``feature_df`` and ``feature_location`` (feature). Where ratios
        follow the residual variance, ``residual_slope`` and ``residual_at``.

    Notes
    -----
    The grid holds ratios, so that it suits other numbers of samples and of levels, and other units
    of Y; s0^2 is in squared units of Y, and the ratio of a slope in those of its covariate. A fit
    of other features takes s0^2 from the trend at its own means, if there is one, and d0 of
    regular features.

    From 200 features on it is also learned whether ratios follow the residual variance: the prior
    of a feature's ratio is then that of the grid times (s^2 / ``residual_at``)^``residual_slope``,
    with s^2 its moderated residual variance; a slope of -1 says that the variance of the random
    effects has nothing to do with the residual variance. What is shown is the prior at
    ``residual_at``. No slope is taken where the features do not say so clearly.

    Examples
    --------
    >>> import numpy as np, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> Z = np.kron(np.eye(6), np.ones((8, 1)))
    >>> Y = rng.normal(size=(300, 6)) @ Z.T + rng.normal(size=(300, 48))
    >>> X = np.column_stack([np.ones(48), np.repeat([0, 1], 24)])
    >>> result = fm.MultiLMM.from_arrays(Y, X, Z).fit(parameter_space="psd")
    >>> result.ratio_prior
    <RatioPrior: 300 features, ... points; median ratio Z1 ...; residual variance ..., df inf>
    """

    ds: xr.Dataset

    # ---- looking at it ---------------------------------------------------------------------

    @property
    def params(self) -> list[str]:
        """Names of the ratios."""
        return [str(name) for name in self.ds["param"].to_numpy()]

    @property
    def ratios(self) -> pd.DataFrame:
        """The grid: points x parameters, theta over the residual variance."""
        return pd.DataFrame(self.ds["ratio"].to_numpy(), columns=pd.Index(self.params))

    @property
    def weights(self) -> FloatArray:
        """Prior probabilities of the points, shape (G,)."""
        return np.asarray(self.ds["weight"].to_numpy())

    @property
    def df(self) -> float:
        """d0: how many degrees of freedom all features together are worth to one of them."""
        return float(self.ds["sigma2_df"])

    @property
    def variance(self) -> float:
        """s0^2, the location of the residual variance (its median where there is a trend)."""
        return float(self.ds["sigma2_location"])

    @property
    def n_features(self) -> int:
        """Features that it was learned from."""
        return int(self.ds.attrs["n_features"])

    @property
    def residual_slope(self) -> float:
        """Slope of the logarithm of ratios on that of the residual variance; 0 for none."""
        return self.following.slope

    def quantile(self, q: Any) -> pd.DataFrame:
        """Quantiles of the ratios, each by itself: parameters x q.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.ratio_prior.quantile([0.1, 0.5, 0.9]).round(1)
                    0.1  0.5  0.9
        param
        Individual  0.6  5.5  8.3
        """
        q = np.atleast_1d(np.asarray(q, dtype=np.float64))
        values = np.empty((len(self.params), q.size))
        for i, column in enumerate(self.ratios.to_numpy().T):
            order = np.argsort(column, kind="stable")
            reached = np.cumsum(self.weights[order])
            where = np.searchsorted(reached, q * reached[-1] * (1 - 1e-12))
            values[i] = column[order][np.minimum(where, column.size - 1)]
        return pd.DataFrame(values, index=pd.Index(self.params, name="param"), columns=q)

    def __repr__(self) -> str:
        median = self.quantile(0.5).iloc[:, 0]
        shown = ", ".join(f"{name} {value:.3g}" for name, value in median.items()) or "none"
        slope = f", to the power {self.residual_slope:g} in ratios" if self.residual_slope else ""
        return (
            f"<RatioPrior: {self.n_features} features, {self.weights.size} points; median ratio "
            f"{shown}; residual variance {self.variance:.3g}, df {self.df:.3g}{slope}>"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the distribution of each ratio; needs matplotlib.

        Parameters
        ----------
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            Prior probability of ratios up to x; what lies at zero stands at the left end.

        Raises
        ------
        InputError
            If matplotlib is not installed.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> ax = result.ratio_prior.plot()
        >>> plt.close()
        """
        return variances.ratio_prior(self.ratios.to_numpy(), self.weights, self.params, ax=ax)

    # ---- keeping it ------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a file, as `MultiLMMResults.save` does.

        Parameters
        ----------
        path
            File to write; ``.nc`` for netCDF, ``.zarr`` or ``.zarr.zip`` for zarr.

        Examples
        --------
        >>> import tempfile, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.ratio_prior.save(f"{folder}/prior.nc")
        ...     fm.RatioPrior.load(f"{folder}/prior.nc").params
        ['Individual']
        """
        version = FOLLOWING_FORMAT if self.residual_slope else FORMAT
        save_dataset(marked(self.ds, _KIND, version), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> RatioPrior:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If the file holds something else.

        Examples
        --------
        >>> import tempfile, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.ratio_prior.save(f"{folder}/prior.nc")
        ...     again = fm.RatioPrior.load(f"{folder}/prior.nc")
        >>> tests = result.t_test("Age", df="integrated", prior=again)
        >>> tests.df_method
        'integrated'
        """
        ds = load_dataset(path, kind=_KIND)
        with reading(path):
            _refuse_nonsense(ds)
        return cls(ds)

    # ---- in numbers ------------------------------------------------------------------------

    @cached_property
    def grid(self) -> RatioGrid:
        """The grid in the form that `flashmm.inference.integrated` takes."""
        ds = self.ds
        return RatioGrid(
            ds["ratio"].to_numpy().astype(np.float64),
            ds["line"].to_numpy().astype(np.intp),
            ds["base"].to_numpy().astype(np.float64),
        )

    @cached_property
    def following(self) -> Following:
        """How ratios follow the residual variance, in numbers."""
        if "residual_slope" not in self.ds:
            return NOT_FOLLOWING
        return Following(float(self.ds["residual_slope"]), float(self.ds["residual_at"]))

    def check(self, params: tuple[str, ...]) -> None:
        """Raise unless it is a prior of these parameters, the residual not counted.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.ratio_prior.check(("Individual",))
        >>> result.ratio_prior.check(("Batch",))
        Traceback (most recent call last):
        ...
        flashmm.exceptions.InputError: `prior` is one of the ratios of 'Individual', but this model
        has 'Batch': a prior comes from a fit with the same random terms.
        """
        try:
            _refuse_nonsense(self.ds, "The prior's")
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "`prior` does not hold what a RatioPrior does. Take one of a fit, "
                "result.ratio_prior, or load one."
            ) from error
        if tuple(self.params) != params:
            raise InputError(
                f"`prior` is one of the ratios of {listing(self.params)}, but this model has "
                f"{listing(params)}: a prior comes from a fit with the same random terms."
            )

    def of_features(self, names: NDArray[Any], covariate: FloatArray | None) -> VariancePrior:
        """Prior of the residual variance of some features, by name; covariate for the trend.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> prior = result.ratio_prior.of_features(np.array(["gene3", "gene1"]), None)
        >>> prior.variance.round(2).tolist(), prior.df.round(1).tolist()
        ([1.95, 1.95], [7.5, 7.5])
        """
        location = np.full(names.size, self.variance)
        df = np.full(names.size, self.df)
        if "trend_at" in self.ds and covariate is not None:
            at, log = self.ds["trend_at"].to_numpy(), np.log(self.ds["trend_location"].to_numpy())
            location = np.exp(np.interp(covariate, at, log))
        if "feature_df" in self.ds:
            own = find_labels(self.ds["feature"].to_numpy(), names)
            known = own >= 0
            location[known] = self.ds["feature_location"].to_numpy()[own[known]]
            df[known] = self.ds["feature_df"].to_numpy()[own[known]]
        return VariancePrior(location, df, self.df)


# Ratios of slopes are in units of their covariate, but not in such.
_LARGEST = 1e100


def _refuse_nonsense(ds: xr.Dataset, whose: str = "Its") -> None:
    """Raise where a Dataset, read from a file or made by hand, is no distribution."""
    weights, ratio = ds["weight"].to_numpy(), ds["ratio"].to_numpy()
    if not ((weights >= 0).all() and abs(weights.sum() - 1.0) < 1e-6):  # nor where one is NaN
        raise InputError(f"{whose} weights are no probabilities.")
    base, line = ds["base"].to_numpy(), ds["line"].to_numpy()
    if not ((base >= 0) & np.isfinite(base)).all():
        raise InputError(f"{whose} base weights are no probabilities.")
    # The first two are variances, whatever the model: covariances follow those of their block.
    if not np.isfinite(ratio).all() or (ratio[:, :2] < 0).any() or (line < 0).any():
        raise InputError(f"{whose} grid of ratios is none.")
    largest = np.abs(ratio).max(initial=0.0)
    for each in RatioGrid(ratio, line.astype(np.intp), base).lines():
        on_it = each.base + each.steps[:, None] * each.direction
        if largest > _LARGEST or np.abs(on_it - ratio[each.columns]).max(initial=0.0) > (
            1e-9 * largest
        ):
            raise InputError(f"{whose} grid of ratios is not on lines.")
    if "residual_at" in ds and not (np.isfinite(ds["residual_slope"]) & (ds["residual_at"] > 0)):
        raise InputError(f"{whose} slope on the residual variance is none.")
    df, location = float(ds["sigma2_df"]), float(ds["sigma2_location"])
    unknown = df == 0 or (np.isnan(location) and ds.attrs.get("n_features") == 0)
    if not (df >= 0 and (unknown or 0 < location < np.inf)):
        raise InputError(f"{whose} prior of the residual variance is none.")
    if "feature_df" in ds and not (
        ((ds["feature_df"] >= 0) | np.isnan(ds["feature_location"])).all()
        and not (ds["feature_location"] < 0).any()
    ):
        raise InputError(f"{whose} priors of single features' residual variances are none.")
    if "trend_at" in ds:
        at, along = ds["trend_at"].to_numpy(), ds["trend_location"].to_numpy()
        sound = at.size and at.shape == along.shape and np.isfinite(along).all()
        if not (sound and (np.diff(at) > 0).all() and (along > 0).all()):
            raise InputError(f"{whose} trend of the residual variance is none.")
    if ds.attrs.get("trend", "") not in _TRENDS:
        raise InputError(f"{whose} trend is {str(ds.attrs['trend'])[:80]!r}, not one of {_TRENDS}.")


def prior_of(
    integration: Integration,
    names: NDArray[Any],
    params: tuple[str, ...],
    covariate: FloatArray | None,
    trend: str,
) -> RatioPrior:
    """What an `Integration` learned, with labels.

    Parameters
    ----------
    integration
        After learning.
    names, params
        Labels of the features and of the ratios.
    covariate
        What s0^2 follows, shape (m,); None without a trend.
    trend
        ``""``, ``"mean"`` or ``"given"``: what that is.
    """
    grid, sigma2 = integration.shared[0].grid, integration.sigma2
    location = np.nan  # where nothing is known of sigma2
    if sigma2.df_common > 0 and integration.known.any():
        location = float(np.median(sigma2.variance[integration.known]))
    data: dict[str, Any] = {
        "ratio": (("point", "param"), grid.ratios),
        "weight": (("point",), integration.weights),
        "line": (("point",), grid.line.astype(np.int32)),
        "base": (("point",), grid.base),
        "sigma2_df": ((), float(sigma2.df_common)),
        "sigma2_location": ((), location),
    }
    coords: dict[str, Any] = {"param": np.array(params, dtype=object)}
    if covariate is not None:
        order = np.argsort(covariate[integration.known], kind="stable")
        at = covariate[integration.known][order]
        first = np.concatenate([[True], np.diff(at) > 0])
        data["trend_at"] = (("knot",), at[first])
        data["trend_location"] = (("knot",), sigma2.variance[integration.known][order][first])
    if covariate is not None or (sigma2.df != sigma2.df[0]).any():
        data["feature_df"] = (("feature",), sigma2.df)
        data["feature_location"] = (("feature",), sigma2.variance)
        coords["feature"] = names
    if integration.following.slope:
        data["residual_slope"] = ((), integration.following.slope)
        data["residual_at"] = ((), integration.following.at)
    attrs = {"n_features": int(integration.known.sum()), "trend": trend}
    return RatioPrior(xr.Dataset(data, coords=coords, attrs=attrs))
