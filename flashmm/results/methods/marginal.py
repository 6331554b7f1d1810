"""Marginal means and slopes; the work is done in `flashmm.results.reference_grid`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flashmm.arrays.blas import hold_methods
from flashmm.results import marginal_means, marginal_slopes
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import OfFittedModel
from flashmm.slips.answers import answer_calls

__all__ = ["MarginalMethods"]


@answer_calls
@hold_methods
class MarginalMethods(OfFittedModel):
    """Averages over a reference grid; part of `MultiLMMResults`."""

    def marginal_means(
        self,
        specs: str | Sequence[str],
        *,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        contrast: Any = None,
        interaction: Any = None,
        reference: Any = None,
        weights: Literal["equal", "proportional"] = "equal",
        context: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TTestResults:
        """Estimated marginal means, or their contrasts, as R's emmeans gives them.

        The model is predicted over a grid of all levels of the factors in the fixed formula,
        numbers at their mean over the samples (before any transform in the formula), and
        averaged over the factors that are not asked for. Booleans are factors. An offset is held
        at its mean, unless ``at`` sets one of its columns.

        Parameters
        ----------
        specs
            Column or columns whose levels get a mean each.
        by
            Columns within whose levels means are taken and contrasted.
        at
            Values in place of all levels or of the mean: ``{"age": [30, 60], "sex": "f"}``.
        contrast
            None for the means themselves; a family of contrasts of the levels of ``specs``:
            ``"pairwise"``, ``"revpairwise"``, ``"trt.vs.ctrl"``, ``"trt.vs.ctrlk"``, ``"consec"``
            (each level minus the one before), ``"mean_chg"``, ``"poly"``, ``"eff"`` (each level
            minus their mean), ``"del.eff"``, ``"identity"``, or in words ``"all pairs"``,
            ``"reverse pairwise"``, ``"treatment vs control"``, ``"consecutive"``,
            ``"polynomial"``, ``"effect"``; or your own: a dict of label to weights, or a table of
            levels x contrasts, matched by label.
        interaction
            Interaction contrasts, in place of ``contrast``: a family for all columns of
            ``specs``, a list with one for each, or a dict by column.
        reference
            The control of ``"trt.vs.ctrl"``; the first level by default. With ``interaction``
            also a dict by column.
        weights
            How to average over the other factors: ``"equal"``, or ``"proportional"`` to the
            numbers of samples at their combinations of levels.
        context
            Names that the formula uses besides columns; needed again after loading a file.
        **options
            Those of `t_test`: alternative, df, moderated, prior, margin, null, features.

        Returns
        -------
        TTestResults
            Labels such as ``"trt=A, cls=1"`` and ``"A - B | cls=1"``. p-values are adjusted over
            features when asked for, not over contrasts (emmeans' ``adjust = "none"``): for that see
            `TTestResults.simultaneous`. What
            the samples do not determine (``rank="drop"``) is NaN; see its ``estimable``.

        Raises
        ------
        InputError
            If a column is not in the fixed formula, or a level or an option is unknown.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({
        ...     "trt": np.tile(list("AB"), 20), "age": rng.uniform(20, 60, 40),
        ...     "g": np.repeat(list("abcdefgh"), 5)})
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ trt * age + (1 | g)", data=data, Y=rng.normal(size=(3, 40))
        ... ).fit(parameter_space="psd")
        >>> result.marginal_means("trt").contrasts
        ['trt=A', 'trt=B']
        >>> result.marginal_means(
        ...     "trt", by="age", at={"age": [30, 50]}, contrast="pairwise").contrasts
        ['A - B | age=30', 'A - B | age=50']
        """
        positions = self.fitted.positions(options.pop("features", None))
        return marginal_means.marginal_means(
            self.fitted,
            positions,
            specs,
            by=by,
            at=at,
            contrast=contrast,
            interaction=interaction,
            reference=reference,
            weights=weights,
            context=context,
            **options,
        )

    def marginal_slopes(
        self,
        variable: str,
        by: str | Sequence[str] | None = None,
        *,
        within: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        contrast: Any = None,
        interaction: Any = None,
        reference: Any = None,
        weights: Literal["equal", "proportional"] = "equal",
        context: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TTestResults:
        """Slopes along a number, or their contrasts, as R's emtrends gives them.

        The derivative of the linear predictor along a column of numbers, over the reference grid of
        `marginal_means` and averaged like its means: through interactions, powers, logarithms,
        ``poly``, splines, whatever the formula makes of the column.

        Parameters
        ----------
        variable
            The column of numbers. The slope is taken at its mean, unless ``at`` says where.
        by
            Column or columns whose levels get a slope each, and whose slopes ``contrast``
            compares. May name ``variable`` itself, for slopes at several values of ``at``.
        within
            Columns within whose levels slopes are contrasted.
        at
            Values in place of all levels or of the mean: ``{"age": [30, 60]}``.
        contrast, interaction, reference, weights, context
            As in `marginal_means`, of the slopes.
        **options
            Those of `t_test`: alternative, df, moderated, prior, margin, null, features.

        Returns
        -------
        TTestResults
            In units of Y per unit of ``variable``. Labels such as ``"sex=f"`` and ``"f - m"``.

        Raises
        ------
        InputError
            If the column is not in the fixed formula or is a factor, a level or an option is
            unknown, or the formula has no derivative there.

        Notes
        -----
        Derivatives of the columns of X are central differences of order four whose step is chosen
        by agreement with the next one (`flashmm.inference.derivatives`): to about 1e-9 of their
        size. emtrends takes one difference over a thousandth of the column's range.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({
        ...     "sex": np.tile(list("fm"), 20), "age": rng.uniform(20, 60, 40),
        ...     "g": np.repeat(list("abcdefgh"), 5)})
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ sex * age + (1 | g)", data=data, Y=rng.normal(size=(3, 40))
        ... ).fit(parameter_space="psd")
        >>> result.marginal_slopes("age", by="sex").contrasts
        ['sex=f', 'sex=m']
        >>> difference = result.marginal_slopes("age", by="sex", contrast="revpairwise")
        >>> bool(np.allclose(difference.effect["m - f"], result.params["sex[T.m]:age"]))
        True
        """
        positions = self.fitted.positions(options.pop("features", None))
        return marginal_slopes.marginal_slopes(
            self.fitted,
            positions,
            variable,
            by=by,
            within=within,
            at=at,
            contrast=contrast,
            interaction=interaction,
            reference=reference,
            weights=weights,
            context=context,
            **options,
        )
