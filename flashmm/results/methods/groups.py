"""Methods on groups of samples whose sums were kept; the work is done in `flashmm.results`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.blas import hold_methods
from flashmm.progress import Progress
from flashmm.results import flip_tests, influence
from flashmm.results.fitted import OfFittedModel
from flashmm.results.flip_tests import FlipTestResults
from flashmm.results.influence import Influence
from flashmm.slips.answers import answer_calls

__all__ = ["GroupMethods"]


@answer_calls
@hold_methods
class GroupMethods(OfFittedModel):
    """What groups of samples do to a fit; part of `MultiLMMResults`."""

    def influence(
        self,
        by: Any = None,
        *,
        features: Any = None,
        exact: bool | None = None,
        progress: Progress = None,
    ) -> Influence:
        """Fit all features again without each group of samples.

        The model must have been built with ``sums_by``: the statistics without a group are a
        difference, and nothing is read again. Each refit starts from the estimates of all samples.

        Parameters
        ----------
        by
            The groups: None or the name that ``sums_by`` gave; a grouping factor of the random
            effects that they lie within; or a dict or Series from them to coarser ones.
        features
            Names, a mask or a slice; all by default.
        exact
            True for refits to convergence; False for one scoring step from the full theta, with
            the coefficients that follow from it. None: one step where every sample is a group of
            its own and there are more than a million refits; ``ds.attrs["refits"]`` says which.
        progress
            A bar on a terminal, as in `fit`; None for one after a few seconds.

        Returns
        -------
        Influence
            ``ds`` holds params, theta, se and Cook's distances without each group; its methods
            say how tests change (`t_test`), which group drives how many hits (`hits`,
            `summary`) and draw it (`plot`). NaN where a group cannot be left out.

        Raises
        ------
        InputError
            If no sums were kept by group, the groups are not within those asked for, features
            have rows of their own, or the table would be too large.

        Warns
        -----
        ConvergenceWarning
            Once, for groups without which the model cannot be fitted and for irregular refits.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)), sums_by="g")
        >>> found = model.fit(parameter_space="psd").influence(by="g")
        >>> dict(found.ds["params"].sizes)
        {'feature': 3, 'group': 8, 'coef': 2}
        """
        return influence.influence(
            self.fitted, self.fitted.positions(features), by, exact, progress
        )

    def flip_test(
        self,
        contrast: Any = None,
        *,
        by: Any = None,
        n_flips: int = 5000,
        rng: Any = None,
        alternative: str = "two-sided",
        statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
        features: Any = None,
        progress: Progress = None,
    ) -> FlipTestResults:
        """Test contrasts by flipping the signs of groups' scores, with family-wise error control.

        The contributions of independent groups to the score of a contrast have mean zero under the
        null hypothesis; flipping their signs gives its distribution without a model of the
        groups' variances (Hemerik, Goeman & Finos 2020). All features are flipped together, so
        the largest statistic of each flip gives p-values that hold for all features at once and
        take account of how they depend on each other (max-T, step-down; Westfall & Young 1993).

        Parameters
        ----------
        contrast
            As in `t_test`; the features are one family for each contrast.
        by
            The groups, as in `influence`: random effects must not reach from one to another.
        n_flips
            Flips, that of the data included. Where there are no more different ones, all of them
            are taken, and the p-values are not random: 2^(k - 1) of k groups in a two-sided test,
            which is also the inverse of the smallest p-value there can be.
        rng
            Seed or ``numpy.random.Generator``.
        alternative
            ``"two-sided"``, ``"greater"`` or ``"less"``.
        statistic
            A function of the signed statistics of some flips, shape (f, m), features in the order
            asked for, that gives statistics of the same shape to take in their place:
            threshold-free cluster enhancement, or a mean over neighbours. Features without an
            estimate are 0 in it.
        features
            Names, a mask or a slice; all by default.
        progress
            A bar on a terminal, as in `fit`; None for one after a few seconds.

        Returns
        -------
        FlipTestResults
            ``estimate``; ``t``, the sum of the groups' contributions over its standard deviation
            under flips, (De Santis et al. 2022: what the other coefficients take of it is
            counted); ``p`` of each feature; ``p_fwer``, adjusted for all. Its `top_table` adjusts
            p for the false discovery rate besides.

        Raises
        ------
        InputError
            If no sums were kept by group, groups are not independent, or an option cannot be read.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=60), "g": np.repeat(list("abcdefghijkl"), 5)})
        >>> Y = rng.normal(size=(3, 60))
        >>> Y[0] += data["x"]
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="g")
        >>> tests = model.fit(parameter_space="psd").flip_test("x")
        >>> tests
        sign-flip tests: 3 features x 1 contrasts, two-sided, df=2048 sign flips by g
        ...
        >>> (tests.pvalue_fwer["x"] < 0.05).tolist()
        [True, False, False]
        """
        return flip_tests.flip_test(
            self.fitted,
            self.fitted.positions(features),
            contrast,
            by,
            n_flips,
            rng,
            alternative,
            statistic,
            progress,
        )
