"""The variables of a results Dataset: dims, dtype and meaning, checked and documented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OPTIONAL", "RESULTS", "Variable", "check_dataset", "describe"]


@dataclass(frozen=True)
class Variable:
    """One variable of a Dataset.

    Parameters
    ----------
    dims
        Names of its dims, in order.
    kind
        numpy kind of its dtype: ``"f"``, ``"i"`` or ``"O"`` (text).
    meaning
        One line, with the unit.
    """

    dims: tuple[str, ...]
    kind: str
    meaning: str


RESULTS: dict[str, Variable] = {
    "beta": Variable(("feature", "coef"), "f", "fixed effects, units of Y per unit of X"),
    "se_beta": Variable(("feature", "coef"), "f", "standard errors of beta; NaN if undefined"),
    "theta": Variable(
        ("feature", "param"), "f", "variances and covariances, squared units of Y; Residual last"
    ),
    "se_theta": Variable(
        ("feature", "param"), "f", "standard errors of theta, from the expected information"
    ),
    "score": Variable(
        ("feature", "param"), "f", "derivatives of the log-likelihood by theta (FLASHMM's dlogL)"
    ),
    "loglik": Variable(("feature",), "f", "maximised (restricted) log-likelihood"),
    "n_iter": Variable(("feature",), "i", "iterations taken"),
    "status": Variable(("feature",), "i", "verdict; see flashmm.Status"),
}

OPTIONAL: dict[str, Variable] = {
    "nobs": Variable(("feature",), "i", "samples of the feature; only where they differ"),
}


def check_dataset(ds: xr.Dataset, registry: dict[str, Variable] = RESULTS) -> None:
    """Raise AssertionError if a registered variable is absent or of another shape or kind."""
    for name, variable in registry.items():
        if name not in ds:
            raise AssertionError(f"variable {name!r} is missing")
        array = ds[name]
        if array.dims != variable.dims:
            raise AssertionError(f"{name!r} has dims {array.dims}, not {variable.dims}")
        if array.dtype.kind != variable.kind:
            raise AssertionError(f"{name!r} has dtype {array.dtype}")
    for name, value in ds.attrs.items():
        if not isinstance(value, (str, int, float, np.integer, np.floating)):
            raise AssertionError(f"attr {name!r} is {type(value)}, which netCDF refuses")


def describe(registry: dict[str, Variable] = RESULTS) -> str:
    """The registry as a Markdown table, for the documentation."""
    lines = ["| variable | dims | meaning |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {', '.join(variable.dims)} | {variable.meaning} |"
        for name, variable in {**registry, **OPTIONAL}.items()
    ]
    return "\n".join(lines)
