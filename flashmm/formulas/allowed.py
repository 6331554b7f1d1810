"""What formulas of a file may call: transforms of formulaic, elementwise functions of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from formulaic.transforms import TRANSFORMS

__all__ = [
    "CODINGS",
    "CODING_CLASSES",
    "FUNCTIONS",
    "LEARNT",
    "LIMITS",
    "METHOD_SUMMARIES",
    "NUMPY_CALLS",
    "NUMPY_NUMBERS",
    "NUMPY_SUMMARIES",
    "ONLY_BY_NAME",
    "PARAMETERS",
    "PYTHON_SUMMARIES",
    "TAKE_TEXT",
]

_ONE_ARGUMENT = (
    *("abs", "absolute", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "cbrt"),
    *("ceil", "cos", "cosh", "deg2rad", "degrees", "exp", "exp2", "expm1", "fabs", "floor"),
    *("isfinite", "isinf", "isnan", "log", "log10", "log1p", "log2", "logical_not", "negative"),
    *("positive", "rad2deg", "radians", "reciprocal", "rint", "sign", "sin", "sinh", "sqrt"),
    *("square", "tan", "tanh", "trunc"),
)
_TWO_ARGUMENTS = (
    *("add", "arctan2", "divide", "equal", "float_power", "floor_divide", "fmax", "fmin", "fmod"),
    *("greater", "greater_equal", "heaviside", "hypot", "less", "less_equal", "logaddexp"),
    *("logaddexp2", "logical_and", "logical_or", "logical_xor", "maximum", "minimum", "mod"),
    *("multiply", "not_equal", "power", "remainder", "subtract", "true_divide"),
)

# Parameters that a call may give, in order; the first is what is transformed.
_SPLINE = ("x", "df", "knots", "lower_bound", "upper_bound", "constraints", "extrapolation")
PARAMETERS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("log", "log10", "log2", "exp", "exp10", "exp2"), ("x",)),
    "bs": (
        *("x", "df", "knots", "degree", "include_intercept"),
        *("lower_bound", "upper_bound", "extrapolation"),
    ),
    **dict.fromkeys(("cc", "cr", "cs"), _SPLINE),
    "center": ("data",),
    "scale": ("data", "center", "scale", "ddof"),
    "standardize": ("x", "center", "rescale", "ddof"),
    "poly": ("x", "degree", "raw"),
    "lag": ("data", "k"),
    "hashed": ("data", "levels", "contrasts", "spans_intercept"),
    "C": ("data", "contrasts", "levels", "spans_intercept"),
    "I": ("data",),
    "Q": ("variable",),
    "Treatment": ("reference",),
    "Poly": ("scores",),
    "Sum": (),
    "Helmert": ("reverse", "scale"),
    "Diff": ("backward",),
    "abs": ("x",),
    "round": ("x", "decimals"),
}
ONLY_BY_NAME = {"cc": 1, "cr": 1, "cs": 1, "C": 2, "hashed": 3}
CODINGS: dict[str, tuple[str, ...]] = {
    "treatment": ("base", "drop"),
    "SAS": ("base", "drop"),
    "sum": (),
    "helmert": ("reverse", "scale"),
    "diff": ("backward",),
    "poly": ("scores",),
    "custom": ("contrasts", "names"),
}
CODING_CLASSES = ("Treatment", "Poly", "Sum", "Helmert", "Diff")
# Arguments that decide how much is allocated.
LIMITS = {"df": 1000, "degree": 100, "hashed": 100_000, "decimals": 300}
NUMPY_CALLS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_ONE_ARGUMENT, ("x",)),
    **dict.fromkeys(_TWO_ARGUMENTS, ("x", "y")),
    "where": ("condition", "x", "y"),
    "clip": ("x", "low", "high"),
    "isin": ("x", "values"),
    "round": ("x", "decimals"),
    "around": ("x", "decimals"),
}
# What gives one value for all samples. It stands in a file with its value and is never computed.
NUMPY_SUMMARIES = (
    *("amax", "amin", "average", "count_nonzero", "max", "mean", "median", "min", "nanmax"),
    *("nanmean", "nanmedian", "nanmin", "nanpercentile", "nanquantile", "nanstd", "nansum"),
    *("nanvar", "percentile", "prod", "ptp", "quantile", "size", "std", "sum", "var"),
)
METHOD_SUMMARIES = (
    *("all", "any", "count", "kurt", "kurtosis", "max", "mean", "median", "min", "nunique"),
    *("prod", "quantile", "sem", "skew", "std", "sum", "var"),
)
PYTHON_SUMMARIES = ("len", "max", "min", "sum")
# Those that may stand beside text.
TAKE_TEXT = ("equal", "isin", "not_equal", "where")
NUMPY_NUMBERS = ("pi", "e", "inf", "nan", "euler_gamma")
# What stateful transforms must have learnt; without it they would learn from the new data.
LEARNT = {
    "center": ("center",),
    "scale": ("center", "scale"),
    "standardize": ("center", "scale"),
    "poly": ("alpha", "norms2"),
    "bs": ("knots", "lower_bound", "upper_bound"),
    **dict.fromkeys(("cc", "cr", "cs"), ("knots", "lower_bound", "upper_bound")),
}
FUNCTIONS: dict[str, Any] = {
    **{name: TRANSFORMS[name] for name in PARAMETERS if name in TRANSFORMS},
    "abs": np.abs,
    "round": np.round,
}
