"""What a bootstrap hands out: replicates, intervals, standard errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from flashmm.exceptions import check_option
from flashmm.inference.statistics import check_alpha
from flashmm.inference.tails import norm_isf
from flashmm.slips.answers import answer_calls, no_index, no_such_attribute
from flashmm.slips.attributes import BOOTSTRAP

__all__ = ["BootstrapResults"]

METHODS = ("percentile", "basic", "normal")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without numpy's warnings of features that have no estimate, and so no replicates."""
    with warnings.catch_warnings():
        for said in ("All-NaN slice", "Mean of empty slice", "Degrees of freedom"):
            warnings.filterwarnings("ignore", said, RuntimeWarning)
        yield


@answer_calls
@dataclass(frozen=True)
class BootstrapResults:
    """Replicates of statistics under the fitted models.

    Parameters
    ----------
    ds
        ``replicates``, dims feature, replicate, statistic, NaN where the refit of a replicate
        did not converge; ``estimate``, dims feature, statistic.

    Examples
    --------
    >>> import numpy as np, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
    >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit(
    ...     parameter_space="psd")
    >>> boot = result.bootstrap(50, rng=1)
    >>> dict(boot.conf_int().sizes)
    {'feature': 3, 'statistic': 3, 'bound': 2}
    """

    ds: xr.Dataset

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Bootstrap results", own=BOOTSTRAP)

    __getitem__ = no_index("A bootstrap", "features are labels: boot.ds.sel(feature=...)")
    __iter__ = None

    def __repr__(self) -> str:
        sizes = self.ds.sizes
        return (
            f"<BootstrapResults: {sizes['feature']} features, {sizes['replicate']} replicates, "
            f"{sizes['statistic']} statistics>"
        )

    @property
    def replicates(self) -> xr.DataArray:
        """The replicates, dims feature, replicate, statistic."""
        return self.ds["replicates"]

    @property
    def estimate(self) -> xr.DataArray:
        """The statistics of the data, dims feature, statistic."""
        return self.ds["estimate"]

    @property
    def se(self) -> xr.DataArray:
        """Standard deviations of the replicates, dims feature, statistic."""
        with _quiet():
            return self.replicates.std("replicate", ddof=1, skipna=True).rename("se")

    @property
    def bias(self) -> xr.DataArray:
        """Mean of the replicates minus the estimate, dims feature, statistic."""
        with _quiet():
            return (self.replicates.mean("replicate", skipna=True) - self.estimate).rename("bias")

    @property
    def n_failed(self) -> xr.DataArray:
        """Replicates whose refit did not converge, dims feature."""
        failed = self.replicates.isnull().all("statistic").sum("replicate")
        return failed.rename("n_failed")

    def conf_int(
        self, alpha: float = 0.05, *, method: Literal["percentile", "basic", "normal"] = "basic"
    ) -> xr.DataArray:
        """Confidence limits (Davison & Hinkley 1997, chapter 5).

        Parameters
        ----------
        alpha
            One minus the coverage.
        method
            ``"percentile"``: quantiles of the replicates, which stay in the range of the
            statistic; ``"basic"``: 2 estimate - quantile, right for estimates whose error does not
            depend on the truth; ``"normal"``: estimate - bias -/+ z se.

        Returns
        -------
        DataArray
            Dims feature, statistic, bound (lower, upper). Replicates that failed are left out.

        Raises
        ------
        InputError
            If the method is unknown or alpha is not between 0 and 1.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> boot = result.bootstrap(50, rng=1)
        >>> limits = boot.conf_int(method="percentile").sel(statistic="Days")
        >>> limits.round(1).values.tolist()
        [[6.9, 14.3]]
        """
        check_option("method", method, METHODS)
        check_alpha(alpha)
        if method == "normal":
            half = norm_isf(alpha / 2.0) * self.se
            centre = self.estimate - self.bias
            bounds = [centre - half, centre + half]
        else:
            with _quiet():
                both = self.replicates.quantile(
                    [alpha / 2.0, 1.0 - alpha / 2.0], "replicate", method="weibull", skipna=True
                )
            lower, upper = (both.isel(quantile=i, drop=True) for i in (0, 1))
            bounds = [lower, upper]
            if method == "basic":
                bounds = [2.0 * self.estimate - upper, 2.0 * self.estimate - lower]
        limits: xr.DataArray = xr.concat(bounds, "bound").assign_coords(bound=["lower", "upper"])
        limits = limits.transpose("feature", "statistic", "bound").rename("conf_int")
        return limits.assign_attrs(method=method, alpha=float(alpha))


def monte_carlo_p(
    exceed: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    draws: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> tuple[
    np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    np.ndarray[tuple[int, ...], np.dtype[np.float64]],
]:
    """(1 + exceedances) / (1 + draws), and its Monte Carlo standard error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(draws > 0, (1.0 + exceed) / (1.0 + draws), np.nan)
        return p, np.sqrt(p * (1.0 - p) / draws)
