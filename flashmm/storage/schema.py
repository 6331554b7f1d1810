"""The variables of a results Dataset: dims, dtype and meaning, checked and documented."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmm.exceptions import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OPTIONAL", "RESULTS", "Variable", "check_dataset", "check_file", "describe"]


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


def _variables(kinds: dict[str, str], **dims: str) -> dict[str, Variable]:
    """Variables by name, their dims separated by blanks; ``kinds``: numpy's, floats if absent."""
    return {
        name: Variable(tuple(where.split()), kinds.get(name, "f"), "")
        for name, where in dims.items()
    }


# What files of statistics hold; flashmm.stats gives it its meaning.
_STATISTICS = _variables(
    {
        **dict.fromkeys(("ZZ_row", "ZZ_column", "term_effects", "term_columns"), "i"),
        **dict.fromkeys(("term_name", "term_covariance", "coef", "coef_", "level"), "O"),
        **dict.fromkeys(("term", "group", "group_level", "effect"), "O"),
    },
    **{"XX": "coef coef_", "XY": "coef feature", "ZX": "level coef", "ZY": "level feature"},
    **{"yy": "feature", "coef": "coef", "coef_": "coef_"},
    **dict.fromkeys(("ZZ_row", "ZZ_column", "ZZ_value"), "nonzero"),
    **dict.fromkeys(
        ("term_name", "term_covariance", "term_effects", "term_columns"), "random_term"
    ),
    **dict.fromkeys(("level", "term", "group", "group_level", "effect"), "level"),
)
_SHIFTS = _variables(
    {"shift_feature": "i"},
    **{"shift_feature": "shifted", "shift_a": "coef shifted", "shift_yy": "shifted"},
    **dict.fromkeys(("shift_XY",), "coef shifted"),
    **dict.fromkeys(("shift_ZY",), "level shifted"),
)
_GROUPS = _variables(
    {
        **dict.fromkeys(("sums_by", "sums_name"), "O"),
        **dict.fromkeys(("sums_n", "sums_row", "sums_column"), "i"),
        **dict.fromkeys(("sums_ZZ_row", "sums_ZZ_column"), "i"),
    },
    **dict.fromkeys(("sums_by", "sums_name", "sums_n", "sums_log_weights"), "sums_group"),
    **{"sums_XX": "sums_group coef coef_", "sums_XX_root": "sums_group sums_root coef"},
    **{"sums_XY": "sums_group coef feature", "sums_yy": "sums_group feature"},
    **dict.fromkeys(("sums_row", "sums_column"), "sums_level"),
    **{"sums_ZX": "sums_level coef", "sums_ZY": "sums_level feature"},
    **dict.fromkeys(("sums_ZZ_row", "sums_ZZ_column", "sums_ZZ_value"), "sums_nonzero"),
)
_GROUP_SHIFTS = _variables(
    dict.fromkeys(("sums_shift_row", "sums_shift_feature"), "i"),
    **dict.fromkeys(("sums_shift_row", "sums_shift_feature", "sums_shift_yy"), "sums_shifted"),
    **dict.fromkeys(("sums_shift_a", "sums_shift_XY"), "coef sums_shifted"),
    **{"sums_shift_ZY": "sums_shifted_level"},
)
_OWN = _variables(
    dict.fromkeys(("own_row", "own_column"), "i"),
    **dict.fromkeys(("own_n", "own_log_weights", "own_total"), "design"),
    **{"own_signature": "design signature_"},
    **dict.fromkeys(("own_X_sums", "own_WX_sums"), "design coef"),
    **{"own_XX": "design coef coef_", "own_ZX": "design level coef", "own_ZZ": "design pair"},
    **dict.fromkeys(("own_row", "own_column"), "pair"),
)
_OWN_GROUPS = _variables(
    dict.fromkeys(("own_group_row", "own_group_column"), "i"),
    **dict.fromkeys(("own_group_n", "own_group_log_weights"), "sums_group design"),
    **{"own_group_total": "sums_group design"},
    **{"own_group_signature": "sums_group design signature_"},
    **dict.fromkeys(("own_group_X_sums", "own_group_WX_sums"), "sums_group design coef"),
    **{"own_group_XX": "sums_group design coef coef_", "own_group_ZX": "design sums_level coef"},
    **{"own_group_ZZ": "design sums_pair"},
    **dict.fromkeys(("own_group_row", "own_group_column"), "sums_pair"),
)
_OWN_COVARIATES = _variables(
    {"own_covariate": "O", "own_of": "i"}, own_covariate="covariate", own_of="coef covariate"
)
_ROOT = _variables({}, XX_root="root coef")
_KNOWN = _variables(
    dict.fromkeys(("term_root", "root_term", "root_row", "root_column"), "i"),
    term_root="random_term",
    **dict.fromkeys(("root_term", "root_row", "root_column", "root_value"), "root_entry"),
)
_POSITIONS = _variables({}, term_positions="along")
_UNITS = _variables({"term_unit": "O"}, term_unit="random_term")
_PATTERNS = _variables({"pattern": "i"}, pattern="feature")
_RECIPE = _variables({"recipe": "O"}, recipe="recipes")
_RATIO_PRIOR = _variables(
    {"line": "i", "param": "O"},
    **{"ratio": "point param", "param": "param", "sigma2_df": "", "sigma2_location": ""},
    **dict.fromkeys(("weight", "line", "base"), "point"),
)
_TREND = _variables({}, trend_at="knot", trend_location="knot")
_OF_FEATURES = _variables({}, feature_df="feature", feature_location="feature")
_FOLLOWING = _variables({}, residual_slope="", residual_at="")


def check_file(ds: xr.Dataset, kind: str) -> None:
    """Raise InputError unless a Dataset is made as files of a kind are.

    Parameters
    ----------
    ds
        What a file holds.
    kind
        ``"SummaryStats"``, ``"PatternedStats"``, ``"MultiLMMResults"`` or ``"RatioPrior"``.
    """
    required = _required(ds, kind)
    for name, variable in required.items():
        if name not in ds.variables:
            raise InputError(f"It lacks {name!r}.")
        array = ds.variables[name]
        if array.dims != variable.dims:
            raise InputError(f"{name!r} has the dims {array.dims}, not {variable.dims}.")
        if array.size and array.dtype.kind not in _ALIKE[variable.kind]:
            raise InputError(f"{name!r} is of type {array.dtype}.")
        if array.size and variable.kind == "O":
            wrong = [value for value in array.to_numpy().ravel() if not isinstance(value, str)]
            if wrong:
                raise InputError(f"{name!r} holds {str(wrong[0])[:80]!r}, which is no text.")
    if "feature" in ds.variables:  # absent where features only count
        labels = ds.variables["feature"]
        if labels.dims != ("feature",) or (labels.size and labels.dtype.kind not in "iuOUT"):
            raise InputError(f"'feature' is of type {labels.dtype}, over {labels.dims}.")
    _check_positions(ds)
    if kind == "RatioPrior":
        _check_numbers(ds, {"n_features": 0.0})
        return
    _check_sizes(ds)
    _check_finite(ds)
    _check_squares(ds)
    # A fit leaves degrees of freedom; sums that are yet to be added need not.
    least = ds.sizes["coef"] + 1.0 if kind == "MultiLMMResults" else 0.0
    _check_numbers(ds, {"n": least, "log_weights": -np.inf})
    if ds.attrs.get("numbered", 0) not in (0, 1):
        raise InputError(f"'numbered' is {str(ds.attrs['numbered'])[:80]!r}, not 0 or 1.")


def _required(ds: xr.Dataset, kind: str) -> dict[str, Variable]:
    """The variables that a file of a kind must have, those that come together included."""
    if kind == "RatioPrior":
        parts = [_RATIO_PRIOR]
        optional = [_TREND, _OF_FEATURES, _FOLLOWING]
    else:
        parts = [_STATISTICS]
        optional = [_SHIFTS, _ROOT, _KNOWN, _RECIPE, _PATTERNS, _GROUPS, _GROUP_SHIFTS]
        optional += [_OWN_COVARIATES, _POSITIONS, _UNITS]
        if kind == "PatternedStats":
            parts.append(_PATTERNS)
        if "observed" not in ds and (kind == "PatternedStats" or "pattern" in ds):
            parts.append(_OWN)
            if "sums_by" in ds:
                parts.append(_OWN_GROUPS)
        if kind == "MultiLMMResults":
            parts.append(RESULTS)
            optional.append(OPTIONAL)
    parts += [variables for variables in optional if any(name in ds for name in variables)]
    return {name: variable for variables in parts for name, variable in variables.items()}


_DESIGN = (
    *("XX", "ZX", "ZZ_value", "XX_root"),
    *("sums_XX", "sums_ZX", "sums_ZZ_value", "sums_log_weights"),
)
_LARGEST = 1e300
_STRUCTURES = {"full", "diagonal", "identity", "cs", "ar1", "exp", "csh"}
# What formulas allow: flashmm/formulas/along.py. Different places have as many distances at least.
_MOST_EFFECTS, _MOST_PLACES = 9, 50

# numpy's kinds of text and whole numbers; formats differ in width.
_ALIKE = {"f": "f", "i": "iu", "O": "OUT"}


def _check_sizes(ds: xr.Dataset) -> None:
    sizes = ds.sizes
    if sizes["coef"] != sizes["coef_"]:
        raise InputError(
            f"It has {sizes['coef']} coefficients in one place, {sizes['coef_']} in another."
        )
    if "recipe" in ds and sizes["recipes"] != 1:
        raise InputError(f"It holds {sizes['recipes']} recipes.")
    effects, columns = (ds[f"term_{name}"].to_numpy() for name in ("effects", "columns"))
    if (effects < 1).any() or (columns < 0).any() or (columns % effects != 0).any():
        raise InputError("Its random terms have no whole number of effects at each level.")
    if columns.sum() != sizes["level"]:
        raise InputError(f"Its random terms own {columns.sum()} of {sizes['level']} columns of Z.")
    structures = ds["term_covariance"].to_numpy()
    wrong = set(structures.tolist()) - _STRUCTURES
    if wrong:
        raise InputError(f"It has a random term with the covariance {sorted(wrong)[0]!r:.80}.")
    if ((structures == "cs") & (effects < 2)).any():
        raise InputError("It has a compound symmetric random term with a single effect.")
    if ((structures == "csh") & ((effects < 3) | (effects > _MOST_EFFECTS))).any():
        raise InputError("It has a compound symmetric random term with too few or many effects.")
    units = ds["term_unit"].to_numpy().tolist() if "term_unit" in ds else []
    strange = [unit for unit in units if not re.fullmatch(r"[\w .:+-]{0,60}", unit)]
    if strange:
        raise InputError(f"It has times in {strange[0]!r:.80}.")
    _check_along(ds, effects[np.isin(structures, ("ar1", "exp"))])


def _check_along(ds: xr.Dataset, effects: np.ndarray[Any, Any]) -> None:
    """Raise unless random terms along times or places have these, ascending."""
    at = ds["term_positions"].to_numpy() if "term_positions" in ds else np.zeros(0)
    if (effects < 2).any() or (effects > _MOST_PLACES).any() or effects.sum() != at.size:
        raise InputError(
            f"It has {at.size} times or places for random terms along {effects.sum()}."
        )
    for places in np.split(at, np.cumsum(effects)[:-1]) if effects.size else []:
        steps = np.diff(places)
        if not ((np.abs(places) < _LARGEST).all() and (steps > 0).all()):
            raise InputError("The times or places of a random term are not ascending numbers.")


def _check_finite(ds: xr.Dataset) -> None:
    """Raise for sums of the design, shared by features, that are missing or beyond all measure."""
    own = (_OWN | _OWN_GROUPS).items()
    for name in (*_DESIGN, *(name for name, variable in own if variable.kind == "f")):
        if name not in ds:
            continue
        values = ds[name].to_numpy()
        # Not so large that a sum of two overflows.
        if not (np.abs(values) < _LARGEST).all():
            raise InputError(f"{name!r} holds missing or infinite values, or some above 1e300.")
    for name in ("own_n", "own_total", "sums_n", "own_group_n", "own_group_total"):
        if name in ds and (ds[name].to_numpy() < 0).any():
            raise InputError(f"{name!r} is negative somewhere.")


def _check_squares(ds: xr.Dataset) -> None:
    """Raise for sums of squares that are negative beyond the rounding of a difference."""
    on = ds["ZZ_row"].to_numpy() == ds["ZZ_column"].to_numpy()
    for name, squares in (
        ("XX", np.diagonal(ds["XX"].to_numpy())),
        ("ZZ_value", ds["ZZ_value"].to_numpy()[on]),
    ):
        if squares.size and squares.min() < -1e-8 * np.abs(squares).max():
            raise InputError(f"{name!r} holds a negative sum of squares.")


def _check_positions(ds: xr.Dataset) -> None:
    """Raise for positions outside of what they point into."""
    for name, dim in (
        *(("ZZ_row", "level"), ("ZZ_column", "level"), ("shift_feature", "feature")),
        *(("sums_row", "sums_group"), ("sums_column", "level"), ("sums_shift_row", "sums_group")),
        *(("sums_ZZ_row", "sums_level"), ("sums_ZZ_column", "sums_level")),
        *(("sums_shift_feature", "feature"), ("Z_row", "sample")),
        *(("Z_column", "level"),),
        *(("own_row", "level"), ("own_column", "level")),
        *(("own_group_row", "sums_level"), ("own_group_column", "sums_level")),
        *(("root_term", "random_term"),),
        *(("pattern", "design"), ("pattern", "observed_pattern")),
    ):
        if name not in ds or dim not in ds.sizes or ds[name].size == 0:
            continue
        values = ds[name].to_numpy()
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= ds.sizes[dim]:
            raise InputError(f"{name!r} points outside the {ds.sizes[dim]} places of {dim!r}.")


def _check_numbers(ds: xr.Dataset, least: dict[str, float]) -> None:
    """Raise for attributes that are no finite numbers, or no whole ones where they count."""
    for name, smallest in least.items():
        value: Any = ds.attrs.get(name)
        number = isinstance(value, (int, float, np.integer, np.floating)) and np.isfinite(value)
        if number and name.startswith("n"):
            number = value == int(value) and value <= 2**53
        if not number or value < smallest:
            raise InputError(f"{name!r} is {str(value)[:80]!r}, which is no such number.")


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
