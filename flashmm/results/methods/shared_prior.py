"""Methods on what all features know together; the work is done in `flashmm.results.integrated`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from flashmm.arrays.blas import hold_methods
from flashmm.progress import Progress
from flashmm.results import integrated
from flashmm.results.fitted import OfFittedModel
from flashmm.results.ratio_prior import RatioPrior
from flashmm.slips.answers import answer_calls

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SharedPriorMethods"]


@answer_calls
@hold_methods
class SharedPriorMethods(OfFittedModel):
    """The prior of ``df="integrated"``, and variances under it; part of `MultiLMMResults`."""

    @property
    def ratio_prior(self) -> RatioPrior:
        """What all features together say of the variance ratios; learned when first asked for.

        The prior of ``df="integrated"`` and of `posterior_variances`; see `learn_ratio_prior`.
        """
        return integrated.default_ratio_prior(self.fitted)

    def learn_ratio_prior(
        self,
        *,
        trend: bool | ArrayLike = False,
        robust: bool = False,
        progress: Progress = None,
    ) -> RatioPrior:
        """Learn the prior of variance ratios and residual variances from all features.

        Parameters
        ----------
        trend, robust
            How residual variances are moderated, as in `moderate`; here on the n - p - r degrees
            of freedom that X and Z leave.
        progress
            As in `MultiLMM.fit`, of the features.

        Returns
        -------
        RatioPrior
            ``t_test(..., df="integrated", prior=...)`` takes it, of this fit and of others.

        Raises
        ------
        InputError
            If no feature varies, or the model has more variances than a grid can cover: three
            independent ones, or one intercept with one correlated slope.

        Notes
        -----
        The weights of the grid maximise the likelihood of all features (Kiefer & Wolfowitz 1956),
        with ten features' worth of a prior that says little mixed in: with few features the tests
        err on the safe side. From 200 features on it is learned too whether ratios follow the
        residual variance (`RatioPrior.residual_slope`).

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(30, 40)), np.ones((40, 1)), Z)
        >>> model.fit(parameter_space="psd").learn_ratio_prior(robust=True).params
        ['Z1']
        """
        return integrated.learn_ratio_prior(self.fitted, trend, robust, progress)

    def posterior_variances(
        self,
        alpha: float = 0.05,
        *,
        prior: Any = None,
        features: Any = None,
        progress: Progress = None,
    ) -> xr.Dataset:
        """Variances that learn from all features: posterior means and limits.

        Parameters
        ----------
        alpha
            One minus the probability between the limits.
        prior
            As in `t_test`; by default `ratio_prior`.
        features
            Names, a mask or a slice; all by default.
        progress
            As in `MultiLMM.fit`, of the features.

        Returns
        -------
        Dataset
            Dims feature, param: ``mean``, ``lower``, ``upper`` of theta in squared units of Y.
            Dims feature, component: ``share``, ``share_lower``, ``share_upper`` of the average
            variance of a sample, for intercepts the intra-class correlation.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(30, 40)), np.ones((40, 1)), Z)
        >>> found = model.fit(parameter_space="psd").posterior_variances()
        >>> bool((found["mean"] > 0).all()), list(found.dims)
        (True, ['feature', 'param', 'component'])
        """
        return integrated.posterior_variances(
            self.fitted, self.fitted.positions(features), alpha, prior, progress
        )
