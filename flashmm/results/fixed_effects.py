"""Inference on the fixed effects: tests, limits, covariances, tables."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from flashmm.designs.design import INTERCEPT
from flashmm.exceptions import InputError
from flashmm.formulas.fixed_terms import type3_hypotheses
from flashmm.inference.contrasts import independent_rows, parse_contrasts
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, resolve_df
from flashmm.inference.statistics import (
    chi2_pvalues,
    f_pvalues,
    resolve_alternative,
    t_statistics,
)
from flashmm.results.contrast_results import FTestResults, TTestResults
from flashmm.results.moderation import VarianceModeration

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["FixedEffectInference"]


class FixedEffectInference(VarianceModeration):
    """Tests and limits of the fixed effects; part of `MultiLMMResults`."""

    @cached_property
    def _default_tests(self) -> TTestResults:
        return self.t_test()

    @property
    def pvalues(self) -> pd.DataFrame:
        """Two-sided p-values of the fixed effects, with the default degrees of freedom."""
        return self._default_tests.pvalue.rename_axis(columns="coef")

    def conf_int(self, alpha: float = 0.05, *, df: str = DEFAULT_DF) -> xr.DataArray:
        """Wald confidence limits of the fixed effects.

        Parameters
        ----------
        alpha
            One minus the coverage.
        df
            Degrees of freedom, as in `t_test`.

        Returns
        -------
        DataArray
            Dims feature, coef, bound (lower, upper), in the units of params.
        """
        limits = self.t_test(df=df).conf_int(alpha)
        return limits.rename({"contrast": "coef"})

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
        df: str = DEFAULT_DF,
        moderated: bool | xr.Dataset = False,
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
            Degrees of freedom: ``"satterthwaite"`` (Satterthwaite 1946, as lmerTest),
            ``"kenward-roger"`` (Kenward & Roger 1997, which also widens the standard errors, as
            pbkrtest; REML fits only) or ``"residual"``, n - p, as FLASHMM.
        moderated
            True for residual variances moderated by those of all features, or what `moderate`
            returns; with Satterthwaite's degrees of freedom only.
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
        method = resolve_df(df, self.method)
        contrasts = parse_contrasts(contrast, self.stats.coef_names)
        L = contrasts.matrix
        positions = self._positions(features)
        estimate = self.ds["beta"].to_numpy()[positions] @ L.T
        found = self._hypotheses_with(moderated, method).contrasts(positions, L, method)
        with np.errstate(invalid="ignore"):
            se = np.sqrt(np.where(found.variance > 0, found.variance, np.nan))
        table = t_statistics(estimate - contrasts.values, se, found.df, side)
        shown = method if moderated is False else f"{method}, moderated"
        dims = ("feature", "contrast")
        ds = xr.Dataset(
            {
                "estimate": (dims, estimate),
                "se": (dims, se),
                "t": (dims, table.t),
                "df": (dims, found.df),
                "p": (dims, table.p),
                "value": (("contrast",), contrasts.values),
                "status": (("feature",), self.status.to_numpy()[positions]),
            },
            coords={
                "feature": self._features.to_numpy()[positions],
                "contrast": np.array(contrasts.labels, dtype=object),
            },
            attrs={"alternative": side, "df": shown},
        )
        return TTestResults(ds, alternative=side, df_method=shown)

    def f_test(
        self,
        contrast: Any = None,
        *,
        df: str = DEFAULT_DF,
        moderated: bool | xr.Dataset = False,
        features: Any = None,
    ) -> FTestResults:
        """Test several contrasts of the fixed effects jointly, for every feature.

        Parameters
        ----------
        contrast
            As in `t_test`: the hypothesis is that all of them hold at once. By default that
            every coefficient is zero.
        df
            Denominator degrees of freedom: ``"satterthwaite"`` (Fai & Cornelius 1996, as
            lmerTest), ``"kenward-roger"`` (Kenward & Roger 1997: their scaled F, as pbkrtest; REML
            fits only) or ``"residual"``, n - p.
        moderated
            As in `t_test`.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        FTestResults

        Raises
        ------
        InputError
            If a name is unknown, or the contrasts contradict each other.
        """
        method = resolve_df(df, self.method)
        contrasts = parse_contrasts(contrast, self.stats.coef_names)
        label = contrasts.labels[0] if len(contrasts.labels) == 1 else "joint"
        hypotheses = {label: independent_rows(contrasts)}
        return self._f_tests(hypotheses, method, self._positions(features), moderated)

    def wald_test(
        self,
        contrast: Any = None,
        *,
        use_f: bool = False,
        df: str = DEFAULT_DF,
        features: Any = None,
    ) -> FTestResults:
        """Wald test that several contrasts hold jointly, for every feature.

        Parameters
        ----------
        contrast
            As in `f_test`.
        use_f
            False: a chi-square test, which takes the variances as known; True: `f_test`.
        df
            Denominator degrees of freedom of the F test; a chi-square test has none.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        FTestResults
            For a chi-square test F is the chi-square divided by its degrees of freedom, and the
            denominator's are infinite.
        """
        if use_f:
            return self.f_test(contrast, df=df, features=features)
        result = self.f_test(contrast, df="residual", features=features)
        ds = result.ds
        ds["df_denom"] = ds["df_denom"] * np.inf
        ds["p"] = (
            ds["p"].dims,
            chi2_pvalues(ds["F"].to_numpy() * ds["df_num"].to_numpy(), ds["df_num"].to_numpy()),
        )
        ds.attrs["df"] = "none (chi-square)"
        return FTestResults(ds, df_method="none (chi-square)")

    def anova(
        self,
        *,
        type: Literal[3] = 3,
        df: str = DEFAULT_DF,
        moderated: bool | xr.Dataset = False,
        features: Any = None,
    ) -> FTestResults:
        """Type III F tests of the terms of the fixed formula, for every feature.

        The hypotheses do not depend on how factors are coded: a term is tested with the linear
        predictor averaged, with equal weights, over the levels of the factors outside the term,
        as in SAS and lmerTest. The intercept is not tested. In a model built from matrices each
        coefficient is a term of its own.

        Parameters
        ----------
        type
            3, the only one.
        df
            Denominator degrees of freedom, as in `f_test`.
        moderated
            As in `t_test`.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        FTestResults
            One hypothesis per term.

        Raises
        ------
        InputError
            If an option is unknown or there is no term but the intercept.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=5, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls * trt", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1").fit(parameter_space="psd")
        >>> result.anova().df_num.iloc[0].to_dict()
        {'log(libsize)': 1.0, 'cls': 1.0, 'trt': 1.0, 'cls:trt': 1.0}
        """
        if type not in (3, "III", "3"):
            raise InputError(f"Unknown type={type!r}. Only type III tests are available: type=3.")
        terms = self._terms()
        if not terms:
            raise InputError("The fixed formula has no term but the intercept: nothing to test.")
        hypotheses = {name: (L, np.zeros(L.shape[0])) for name, L in terms.items()}
        return self._f_tests(
            hypotheses, resolve_df(df, self.method), self._positions(features), moderated
        )

    def _terms(self) -> dict[str, FloatArray]:
        """Contrasts of each term, by the formula if it is known and made these coefficients."""
        names = self.stats.coef_names
        if self.recipe is not None and self.recipe.fixed.names == names:
            return type3_hypotheses(self.recipe.fixed.spec)
        return {name: np.eye(len(names))[[i]] for i, name in enumerate(names) if name != INTERCEPT}

    def _f_tests(
        self,
        hypotheses: dict[str, tuple[FloatArray, FloatArray]],
        method: str,
        positions: NDArray[np.intp],
        moderated: bool | xr.Dataset = False,
    ) -> FTestResults:
        """F tests of hypotheses: label -> (independent contrasts (r, p), their values (r,))."""
        beta = self.ds["beta"].to_numpy()[positions]
        shape = positions.size, len(hypotheses)
        F, df = np.empty(shape), np.empty(shape)
        tests = self._hypotheses_with(moderated, method)
        for column, (L, values) in enumerate(hypotheses.values()):
            found = tests.joint(positions, beta @ L.T - values, L, method)
            F[:, column], df[:, column] = found.F, found.df
        df_num = np.array([float(L.shape[0]) for L, _ in hypotheses.values()])
        shown = method if moderated is False else f"{method}, moderated"
        dims = ("feature", "contrast")
        ds = xr.Dataset(
            {
                "F": (dims, F),
                "df_num": (dims, np.broadcast_to(df_num, shape).copy()),
                "df_denom": (dims, df),
                "p": (dims, f_pvalues(F, df_num, df)),
                "status": (("feature",), self.status.to_numpy()[positions]),
            },
            coords={
                "feature": self._features.to_numpy()[positions],
                "contrast": np.array(list(hypotheses), dtype=object),
            },
            attrs={"df": shown},
        )
        return FTestResults(ds, df_method=shown)

    def top_table(self, contrast: Any, **options: Any) -> pd.DataFrame:
        """The features with the strongest evidence on one contrast.

        Parameters
        ----------
        contrast
            As in `t_test`; one contrast.
        **options
            Those of `TTestResults.top_table` (n, sort_by, adjust, alpha) and of `t_test`
            (alternative, df, moderated, features).

        Returns
        -------
        DataFrame
            Indexed by feature: estimate, se, t, df, p, p_adjusted, status (the verdict).
        """
        testing = {
            key: options.pop(key)
            for key in ("alternative", "df", "moderated", "features")
            if key in options
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

    def to_frame(self, adjust: str = "bh", *, df: str = DEFAULT_DF) -> pd.DataFrame:
        """One row per feature and coefficient: estimate, se, t, df, p, p_adjusted.

        Parameters
        ----------
        adjust
            How p-values are adjusted over the features, per coefficient.
        df
            Degrees of freedom, as in `t_test`.
        """
        table = self.t_test(df=df).to_frame(adjust)
        return table.rename_axis(index={"contrast": "coef"})
