"""Moderated residual variances of a fit, and the tests that use them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from flashmm.exceptions import InputError
from flashmm.inference.moderation import moderate, variance_prior
from flashmm.inference.variance_fractions import column_sums
from flashmm.results.estimates import Estimates
from flashmm.results.hypotheses import Hypotheses
from flashmm.solvers.space import PSD
from flashmm.stats.own_rows import PatternedStats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["VarianceModeration"]

_VARIABLES = ("sigma2", "df", "sigma2_prior", "df_prior", "sigma2_moderated", "df_moderated")


class VarianceModeration(Estimates):
    """Residual variances that learn from all features; part of `MultiLMMResults`."""

    @cached_property
    def _hypotheses(self) -> Hypotheses:
        blocks = None
        if self.options.parameter_space == "psd":
            structure = self.stats.structure
            blocks = PSD(tuple(structure.blocks()), len(structure.param_names)).all_blocks
        df = np.broadcast_to(np.asarray(self.df_resid, dtype=np.float64), (self.stats.m,))
        return Hypotheses(self._on_request, blocks, df)

    def moderate(self, *, trend: bool | ArrayLike = False, robust: bool = False) -> xr.Dataset:
        """Residual variances moderated by those of all features (empirical Bayes).

        The variances are taken as draws from one distribution, whose location and degrees of
        freedom are estimated (Smyth 2004). A fit without random effects (variances of zero in the
        psd space) gives what limma's eBayes does.

        Parameters
        ----------
        trend
            Whether the location follows a trend in the features' means, as in limma-trend; or
            what it follows instead, shape (m,).
        robust
            Keep outlying variances from distorting the distribution, and moderate them less
            (Phipson et al. 2016).

        Returns
        -------
        Dataset
            Dim feature: ``sigma2`` and its Satterthwaite degrees of freedom ``df``,
            2 sigma2^2 / var(sigma2); ``sigma2_prior``, ``df_prior``; ``sigma2_moderated``,
            ``df_moderated``. `t_test` and `f_test` take it as ``moderated``.

        Raises
        ------
        InputError
            If fewer than two features have a variance, or the means are not known.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(30, 40)), np.ones((40, 1)), Z)
        >>> result = model.fit(parameter_space="psd")
        >>> table = result.moderate()
        >>> bool((table["df_moderated"] >= table["df"]).all())
        True
        """
        internal, df = self._hypotheses.residual_variance()
        sigma2 = internal * self._projection.scale
        prior = variance_prior(sigma2, df, covariate=self._trend(trend), robust=robust)
        moderated = moderate(sigma2, df, prior)
        values = (sigma2, df, prior.variance, prior.df, moderated.variance, moderated.df)
        return xr.Dataset(
            {name: ("feature", value) for name, value in zip(_VARIABLES, values, strict=True)},
            coords=self._coords("feature"),
            attrs={
                "df_prior": prior.df_common,
                "trend": int(trend is not False),
                "robust": int(robust),
            },
        )

    def _trend(self, trend: Any) -> FloatArray | None:
        if isinstance(trend, bool):
            return self._means() if trend else None
        values = np.asarray(trend, dtype=np.float64)
        if values.shape != (self.stats.m,):
            raise InputError(
                f"`trend` must be True, False or {self.stats.m} numbers, one per feature; its "
                f"shape is {values.shape}."
            )
        return values

    def _means(self) -> FloatArray:
        """Means of the features over the samples: of their least-squares fits, shape (m,)."""
        sums = column_sums(
            self.stats.sums if isinstance(self.stats, PatternedStats) else self.stats
        )
        if sums is None:
            raise InputError(
                "The features' means do not follow from the statistics: the model has neither an "
                "intercept nor indicators of all levels of a factor. Give `trend` the means."
            )
        if isinstance(self.stats, PatternedStats):
            one = self.stats
            own = one.designs.X_sums[one.pattern]
            return np.asarray((own * self._projection.beta_ols.T).sum(axis=1) / one.nobs)
        return np.asarray(sums @ self._projection.beta_ols / self.stats.n)

    def _hypotheses_with(self, moderated: bool | xr.Dataset, df: str) -> Hypotheses:
        """The hypotheses of this fit, with moderated variances if asked for."""
        if moderated is False:
            return self._hypotheses
        if df != "satterthwaite":
            raise InputError(
                f"Moderated tests have Satterthwaite's degrees of freedom, not df={df!r}."
            )
        table = self.moderate() if moderated is True else moderated
        if not isinstance(table, xr.Dataset) or any(name not in table for name in _VARIABLES):
            raise InputError("`moderated` must be True, False or what `moderate` returns.")
        if not np.array_equal(table["feature"].to_numpy(), self.ds["feature"].to_numpy()):
            raise InputError("`moderated` has other features than this fit.")
        variance = table["sigma2_moderated"].to_numpy() / self._projection.scale
        return replace(
            self._hypotheses, residual=np.stack([variance, table["df_moderated"].to_numpy()], -1)
        )
