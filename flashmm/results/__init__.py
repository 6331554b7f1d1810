"""Results: what a fit found, and everything that can be asked of it.

`fitting` makes a fit of statistics, `on_workers` on a cluster. `fitted` holds it: the `FittedModel`
that every capability is a function of, and how to add one. The functions stand in modules by
subject (`fixed_effects`, `variance_tests`, `predictions`, ...); `results` and `methods` give them
their public names in `MultiLMMResults`, `feature_results` for one feature. `contrast_results`,
`joint_results`, `bootstrap_results` and `pages` are what users are handed.
"""

from flashmm.results.bootstrap_results import BootstrapResults
from flashmm.results.contrast_results import TTestResults
from flashmm.results.feature_results import FeatureResults
from flashmm.results.fitted import FitOptions
from flashmm.results.flip_tests import FlipTestResults
from flashmm.results.influence import Influence
from flashmm.results.joint_results import FTestResults
from flashmm.results.ratio_prior import RatioPrior
from flashmm.results.results import MultiLMMResults

__all__ = [
    "BootstrapResults",
    "FTestResults",
    "FeatureResults",
    "FitOptions",
    "FlipTestResults",
    "Influence",
    "MultiLMMResults",
    "RatioPrior",
    "TTestResults",
]
