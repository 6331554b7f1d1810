"""Tests of the fixed effects of one feature; `flashmm.results.fixed_effects` has those of all."""

from __future__ import annotations

from typing import Any

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.types import IntArray
from flashmm.results import fixed_effects
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.joint_results import FTestResults
from flashmm.slips.answers import answer_calls

__all__ = ["OneFeatureTests"]


@answer_calls
@hold_methods
class OneFeatureTests:
    """Tests of one feature; part of `FeatureResults`."""

    _fitted: FittedModel
    _positions: IntArray

    def t_test(self, contrast: Any = None, **options: Any) -> TTestResults:
        """Test contrasts of the fixed effects; see `MultiLMMResults.t_test`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.t_test("Days")
        t tests: 1 features x 1 contrasts, two-sided, df=satterthwaite
                           estimate    se     t  df         p  p_adjusted     status
        feature  contrast
        Reaction Days         10.47 1.546 6.771  17 3.264e-06   3.264e-06  converged
        """
        return fixed_effects.t_test(self._fitted, self._positions, contrast, **options)

    def f_test(self, contrast: Any = None, **options: Any) -> FTestResults:
        """Test contrasts together; see `MultiLMMResults.f_test`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.f_test("Days")
        F tests: 1 features x 1 contrasts, df=satterthwaite
                              F  df_num  df_denom         p  p_adjusted     status
        feature  contrast
        Reaction Days     45.85       1        17 3.264e-06   3.264e-06  converged
        """
        return fixed_effects.f_test(self._fitted, self._positions, contrast, **options)

    def wald_test(self, contrast: Any = None, **options: Any) -> FTestResults:
        """Wald tests of contrasts together; see `MultiLMMResults.wald_test`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.wald_test("Days")
        F tests: 1 features x 1 contrasts, df=none (chi-square)
                              F  df_num  df_denom         p  p_adjusted     status
        feature  contrast
        Reaction Days     45.85       1       inf 1.275e-11   1.275e-11  converged
        """
        return fixed_effects.wald_test(self._fitted, self._positions, contrast, **options)
