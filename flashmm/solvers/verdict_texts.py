"""The verdicts: how the fit of a feature may end."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Status"]


class Status(IntEnum):
    """How the fit of one feature ended.

    Codes up to ``INDEFINITE`` are stationary points and count as converged.

    Examples
    --------
    >>> import flashmm as fm
    >>> sleep = fm.datasets.sleepstudy()
    >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
    >>> status = fm.Status["CONVERGED"]
    >>> status.label, status.is_converged
    ('converged', True)
    >>> result.status.tolist()
    ['converged']
    """

    CONVERGED = 0
    BOUNDARY = 1
    INDEFINITE = 2
    ITERATION_LIMIT = 3
    STALLED = 4
    NO_MAXIMUM = 5
    ZERO_VARIANCE = 6
    PERFECT_FIT = 7
    NON_FINITE = 8
    NOT_ESTIMABLE = 9
    RUNNING = 10

    @property
    def label(self) -> str:
        """The verdict as printed, e.g. ``"iteration limit"``."""
        return self.name.lower().replace("_", " ")

    @property
    def is_converged(self) -> bool:
        """Whether the estimate is a stationary point."""
        return self <= Status.INDEFINITE


MEANINGS: dict[Status, str] = {
    Status.CONVERGED: "stationary point inside the parameter space",
    Status.BOUNDARY: "maximum on the boundary of the psd space (a singular fit)",
    Status.INDEFINITE: (
        "stationary point where V is not positive definite: some standard errors do not exist"
    ),
    Status.ITERATION_LIMIT: "max_iter reached before the score was small enough",
    Status.STALLED: (
        "no step raises the likelihood further, yet the score is not small (or lost in rounding)"
    ),
    Status.NO_MAXIMUM: "the likelihood grows without bound towards the edge of its domain",
    Status.ZERO_VARIANCE: (
        "X explains the feature exactly (a constant, for instance), or squares of it underflow"
    ),
    Status.PERFECT_FIT: "X and Z together explain the feature, or a residual group of it, exactly",
    Status.NON_FINITE: (
        "the feature's sums, or variances in its units, are no finite numbers with all digits"
    ),
    Status.NOT_ESTIMABLE: "the samples that the feature has cannot carry the model",
    Status.RUNNING: "not ended (internal)",
}
