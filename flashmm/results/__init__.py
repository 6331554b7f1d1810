"""Results: what a fit found, and everything that can be asked of it.

`estimates` holds the Dataset and its labelled tables; `fixed_effects` and `random_effects` add
inference and predictions; `results` joins them in `MultiLMMResults`; `fitting` makes one of
statistics, `on_workers` on a cluster; `contrast_results`, `feature_results` and `summary` are what
users are handed.
"""

from flashmm.results.bootstrap_results import BootstrapResults
from flashmm.results.contrast_results import FTestResults, TTestResults
from flashmm.results.estimates import FitOptions
from flashmm.results.feature_results import FeatureResults
from flashmm.results.results import MultiLMMResults

__all__ = [
    "BootstrapResults",
    "FTestResults",
    "FeatureResults",
    "FitOptions",
    "MultiLMMResults",
    "TTestResults",
]
