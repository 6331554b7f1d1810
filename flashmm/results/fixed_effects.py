"""Inference on the fixed effects: tests, limits, covariances, tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from flashmm.exceptions import InputError, nearest
from flashmm.inference.contrasts import parse_contrasts
from flashmm.inference.statistics import confidence_limits, resolve_alternative, t_statistics
from flashmm.results.contrast_results import TTestResults
from flashmm.results.estimates import Estimates

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FixedEffectInference"]

DF_METHODS = ("residual",)


class FixedEffectInference(Estimates):
    """Tests and limits of the fixed effects; part of `MultiLMMResults`."""

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

    def to_frame(self, adjust: str = "bh") -> pd.DataFrame:
        """One row per feature and coefficient: estimate, se, t, df, p, p_adjusted.

        Parameters
        ----------
        adjust
            How p-values are adjusted over the features, per coefficient.
        """
        table = self.t_test().to_frame(adjust)
        return table.rename_axis(index={"contrast": "coef"})
