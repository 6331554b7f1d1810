"""Features as of a container, and plain tables; the work is done in `flashmm.results.tidy`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any, Literal

import pandas as pd

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.labels import find_labels
from flashmm.exceptions import InputError
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.results import tidy
from flashmm.results.fitted import OfFittedModel
from flashmm.slips.answers import answer_calls

__all__ = ["TableMethods"]


@answer_calls
@hold_methods
class TableMethods(OfFittedModel):
    """Names of features, and tables of a fit; part of `MultiLMMResults`."""

    @property
    def feature_names(self) -> pd.Index:
        """Names of the features, in order; iterating over the results gives them too."""
        return self.fitted.features

    def __len__(self) -> int:
        return int(self.fitted.names.size)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fitted.names.tolist())

    def __contains__(self, feature: object) -> bool:
        if isinstance(feature, tuple):  # a label of several levels
            with contextlib.suppress(InputError):
                return self.fitted.positions([feature]).size == 1
            return False
        return bool(find_labels(self.fitted.names, [feature])[0] >= 0)

    def tidy(
        self,
        *,
        df: str = DEFAULT_DF,
        alpha: float = 0.05,
        effects: Literal["all", "fixed", "ran_pars"] = "all",
        features: Any = None,
    ) -> pd.DataFrame:
        """One row per feature and parameter, with plain columns (R's broom.mixed).

        Parameters
        ----------
        df
            Degrees of freedom of the fixed effects, as in `t_test`.
        alpha
            One minus the coverage of the limits.
        effects
            ``"fixed"`` effects, ``"ran_pars"``, the variances and covariances, or ``"all"``.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        DataFrame
            Columns feature, effect, group (grouping factor of a variance), term, estimate,
            std_error, statistic, df, p_value, conf_low, conf_high. Variances have no test here
            (see `variance_test`), and Wald limits.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> result = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40))
        ... ).fit()
        >>> result.tidy(features=[0])[["effect", "group", "term"]].to_numpy().tolist()
        [['fixed', '', 'Intercept'], ['fixed', '', 'x'], ['ran_pars', 'g', 'g'], \
['ran_pars', 'Residual', 'Residual']]
        """
        positions = self.fitted.positions(features)
        return tidy.tidy(self.fitted, positions, df=df, alpha=alpha, effects=effects)

    def glance(self, *, features: Any = None) -> pd.DataFrame:
        """One row per feature: how the fit went (R's broom).

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        DataFrame
            Indexed by feature: nobs, sigma (residual standard deviation), loglik, aic, bic,
            df_resid, n_iter, converged, status.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.glance()[["nobs", "sigma", "status"]].head(2).round(2)
                 nobs  sigma     status
        feature
        gene1     100   1.12  converged
        gene2     100   1.40  converged
        """
        return tidy.glance(self.fitted, self.fitted.positions(features))

    def augment(
        self, Y: Any = None, data: Any = None, *, features: Any = None, **options: Any
    ) -> pd.DataFrame:
        """One row per feature and sample: values, fitted values and residuals (R's broom).

        Parameters
        ----------
        Y
            Features x samples, as in `resid`; None where ``data`` has a column for each feature.
        data
            The samples' table.
        features
            Names, a mask or a slice; all by default.
        **options
            Those of `resid`: ``transform``, ``X``, ``Z``, ``feature_covariates``, ``context``.

        Returns
        -------
        DataFrame
            Columns feature, sample, y (transformed), fixed (X beta), fitted (X beta + Z b), resid.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.augment(genes.Y[:20], genes.data)[["feature", "y", "resid"]].head(2).round(2)
          feature      y  resid
        0   gene1  -7.67   1.10
        1   gene1 -19.11  -0.47
        """
        return tidy.augment(self.fitted, self.fitted.positions(features), Y, data, options)

    def to_excel(
        self,
        path: str | PathLike[str],
        *,
        tests: Any = None,
        df: str = DEFAULT_DF,
    ) -> None:
        """Write a workbook: fixed effects, variances, fits, tests and options, a sheet each.

        Parameters
        ----------
        path
            Name of the file, ``.xlsx``; needs openpyxl (the extra ``excel``).
        tests
            Tests or tables to be written too, ``{name of the sheet: tests}``; or one of them.
        df
            Degrees of freedom of the fixed effects, as in `t_test`.

        Raises
        ------
        InputError
            If openpyxl is absent, a table has more rows than a sheet can, or a sheet cannot have
            such a name.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> result.to_excel("sleep.xlsx")  # doctest: +SKIP
        """
        given = {} if tests is None else tests if isinstance(tests, Mapping) else {"Tests": tests}
        tidy.to_excel(self.fitted, path, given, df=df)
