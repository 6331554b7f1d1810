"""Methods on groups of samples whose sums were kept; the work is done in `flashmm.results`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashmm.results import influence
from flashmm.results.fitted import OfFittedModel

if TYPE_CHECKING:
    from flashmm.results.influence import Influence

__all__ = ["GroupMethods"]


class GroupMethods(OfFittedModel):
    """What groups of samples do to a fit; part of `MultiLMMResults`."""

    def influence(
        self, by: Any = None, *, features: Any = None, exact: bool | None = None
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
        return influence.influence(self.fitted, self.fitted.positions(features), by, exact)
