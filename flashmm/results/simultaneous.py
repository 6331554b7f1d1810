"""Tests of several contrasts at once, and of features in two stages, with labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.labels import in_order
from flashmm.arrays.numeric import float_array
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError, check_option, listing
from flashmm.inference.max_t import draw_directions
from flashmm.inference.simultaneous import (
    METHODS,
    Adjusted,
    Basis,
    basis_of,
    check_means,
    has_one_control,
    roots_of,
    scheffe,
    sidak,
    single_step,
    tukey,
)
from flashmm.inference.statistics import check_alpha, t_of_pvalues, two_sided_level
from flashmm.inference.two_stage import WITHIN, two_stage

__all__ = ["Family", "JointContrasts", "simultaneous_tests", "two_stage_tests"]

# Bytes of the roots of one chunk of features.
_CHUNK = 2**26


@dataclass(frozen=True)
class Family:
    """Contrasts whose errors count together.

    Parameters
    ----------
    positions
        Which of the contrasts, shape (c,).
    weights
        The contrasts in terms of means, shape (c, k), where they are made of means; None where
        they are made of coefficients.
    """

    positions: IntArray
    weights: FloatArray | None = None


@dataclass(frozen=True)
class JointContrasts:
    """What tests of contrasts know of all of them together.

    Parameters
    ----------
    matrix
        The contrasts in the coefficients of the fit, shape (c, p).
    covariance
        ``covariance(here, rows)``: covariances of the contrasts in ``rows`` (r, p) for the tested
        features at the positions ``here`` (B,), shape (B, r, r).
    families
        Contrasts whose errors count together: all, or those of each group of marginal means.
    """

    matrix: FloatArray
    covariance: Callable[[IntArray, FloatArray], FloatArray]
    families: tuple[Family, ...]


def simultaneous_tests(
    ds: xr.Dataset,
    joint: JointContrasts | None,
    method: str,
    alpha: float,
    rng: Any,
    limits: Callable[[FloatArray], FloatArray] | None,
) -> xr.Dataset:
    """Tests of all contrasts at once; see `TTestResults.simultaneous`."""
    check_option("method", method, METHODS)
    check_alpha(alpha)
    side = str(ds.attrs.get("alternative", "two-sided"))
    if side != "two-sided" and method in ("tukey", "scheffe"):
        raise InputError(
            f'method={method!r} is two-sided, and these tests are alternative={side!r}. Use "mvt".'
        )
    if "margin" in ds and method != "sidak":
        raise InputError(
            f"method={method!r} is for hypotheses that are points, not intervals (margin=). Use "
            '"sidak", which takes p-values of any tests.'
        )
    estimable = _estimable(ds)
    c = ds.sizes["contrast"]
    families = (Family(np.arange(c)),) if joint is None else joint.families
    if joint is None and method != "sidak":
        raise InputError(
            f"method={method!r} needs the correlations of the contrasts, which tests that were put "
            'together by hand do not know. Use "sidak", or what `t_test` returns.'
        )
    equal = _equivalent_t(ds, side, exact=limits is not None)
    df, raw = ds["df"].to_numpy(), ds["p"].to_numpy()
    p, critical = np.full(equal.shape, np.nan), np.full(equal.shape, np.nan)
    family_of = np.zeros(c, dtype=np.intp)
    generator = _generator(rng)
    for number, family in enumerate(families):
        family_of[family.positions] = number
        kept = estimable[family.positions]
        here = family.positions[kept]
        if here.size == 0:
            continue
        if method == "sidak":
            found = sidak(raw[:, here], df[:, here], alpha, two_sided=side == "two-sided")
        else:
            assert joint is not None
            part = equal[:, here], df[:, here]
            labels = tuple(str(label) for label in ds["contrast"].to_numpy()[here])
            found = _of_family(joint, family, here, part, method, alpha, side, labels, generator)
        p[:, here], critical[:, here] = found.p, found.critical
    failed = ~np.isfinite(raw)
    p[failed], critical[failed] = np.nan, np.nan
    lower, upper = _limits(ds, critical, side, limits)
    dims = ("feature", "contrast")
    names = ("estimate", "se", "t", "df")
    result = xr.Dataset(
        {
            **{name: ds[name] for name in names},
            "p": (dims, p),
            "lower": (dims, lower),
            "upper": (dims, upper),
            "critical": (dims, critical),
            "family": (("contrast",), family_of),
            "estimable": (("contrast",), estimable),
        },
        attrs={
            "method": method,
            "alpha": float(alpha),
            "alternative": side,
            "df": ds.attrs.get("df", ""),
        },
    )
    return result.assign(status=ds["status"]) if "status" in ds else result


def _of_family(
    joint: JointContrasts,
    family: Family,
    here: IntArray,
    part: tuple[FloatArray, FloatArray],
    method: str,
    alpha: float,
    side: str,
    labels: tuple[str, ...],
    generator: np.random.Generator,
) -> Adjusted:
    """Tests of the contrasts ``here``, those of a family that the samples determine."""
    t, df = part
    if method == "tukey":
        weights = joint.matrix[here] if family.weights is None else family.weights
        return tukey(t, df, alpha, check_means(weights, labels))
    basis = basis_of(joint.matrix[here])
    if method == "scheffe":
        return scheffe(t, df, alpha, basis.rank)
    if method == "dunnett":
        _check_control(family, basis, here, labels)
    directions = draw_directions(basis.rank, generator, here.size)
    rows = joint.matrix[here][basis.rows]
    p, critical = np.full(t.shape, np.nan), np.full(t.shape, np.nan)
    size = max(1, _CHUNK // (8 * here.size * basis.rank))
    for start in range(0, len(t), size):
        some = np.arange(start, min(start + size, len(t)))
        with one_blas_thread():
            roots = roots_of(joint.covariance(some, rows), basis.weights)
        found = single_step(t[some], df[some], alpha, roots, directions, side)
        p[some], critical[some] = found.p, found.critical
    return Adjusted(p, critical)


def _check_control(family: Family, basis: Basis, here: IntArray, labels: tuple[str, ...]) -> None:
    """Refuse what is no comparison of means with one control."""
    chosen = np.isin(family.positions, here)
    one = basis.rank == here.size
    if family.weights is not None:
        one = one and has_one_control(family.weights[chosen])
    if not one:
        raise InputError(
            f"method='dunnett' is for means against one control; {listing(labels, 3)} are "
            'something else. Use "mvt", which takes any contrasts, or '
            'marginal_means(..., contrast="trt.vs.ctrl").'
        )


def _equivalent_t(ds: xr.Dataset, side: str, *, exact: bool) -> FloatArray:
    """The t statistics; of tests whose p-values are their own, those that have these p-values."""
    t = ds["t"].to_numpy()
    if not exact:
        return np.asarray(t)
    from_p = t_of_pvalues(ds["p"].to_numpy(), ds["df"].to_numpy(), two_sided=side == "two-sided")
    if side == "two-sided":
        return np.asarray(np.copysign(from_p, t))
    return np.asarray(-from_p if side == "less" else from_p)


def _limits(
    ds: xr.Dataset,
    critical: FloatArray,
    side: str,
    limits: Callable[[FloatArray], FloatArray] | None,
) -> tuple[FloatArray, FloatArray]:
    """Simultaneous limits; of one-sided tests the other one is infinite."""
    estimate = ds["estimate"].to_numpy()
    if limits is None:
        half = critical * ds["se"].to_numpy()
        lower, upper = estimate - half, estimate + half
    else:
        level = two_sided_level(critical, ds["df"].to_numpy())
        lower, upper = np.moveaxis(limits(level), -1, 0)
    infinite = np.where(np.isfinite(critical), np.inf, np.nan)
    if side == "greater":
        upper = infinite
    elif side == "less":
        lower = -infinite
    return lower, upper


def _estimable(ds: xr.Dataset) -> BoolArray:
    if "estimable" in ds:
        return np.asarray(ds["estimable"].to_numpy(), dtype=bool)
    return np.ones(ds.sizes["contrast"], dtype=bool)


def _generator(rng: Any) -> np.random.Generator:
    """Random numbers; without a seed always the same, as p-values should be."""
    try:
        return np.random.default_rng(0 if rng is None else rng)
    except (TypeError, ValueError):
        raise InputError(f"`rng` must be a seed, a Generator or None, not {rng!r}.") from None


def two_stage_tests(ds: xr.Dataset, screen: Any, alpha: float, within: str) -> xr.Dataset:
    """Features screened, then their contrasts; see `TTestResults.two_stage`."""
    check_alpha(alpha)
    check_option("within", within, WITHIN)
    features = ds["feature"].to_numpy()
    if hasattr(screen, "ds"):
        screen = screen.ds["p"]
    if isinstance(screen, xr.DataArray) and screen.ndim == 2:
        if screen.shape[1] != 1:
            raise InputError(
                f"`screen` holds {screen.shape[1]} hypotheses; features are screened by one, that "
                "all contrasts hold: f_test(contrasts)."
            )
        screen = screen[:, 0].to_series()
    given = in_order(screen, features, "`screen`", of="features", by_text=True)
    values = float_array(given, "`screen`")
    if values.shape != features.shape:
        raise InputError(
            f"`screen` must be F tests of the same features, or {features.size} p-values, one per "
            f"feature; its shape is {values.shape}."
        )
    found = two_stage(values, ds["p"].to_numpy(), alpha, within)
    dims = ("feature", "contrast")
    result = xr.Dataset(
        {
            "p_screen": (("feature",), values),
            "p_screen_adjusted": (("feature",), found.screened),
            "passed": (("feature",), found.passed),
            "p": (dims, found.p),
            "rejected": (dims, found.rejected),
        },
        coords={name: ds[name] for name in dims},
        attrs={
            "alpha": float(alpha),
            "within": within,
            "n_screened": int(np.isfinite(values).sum()),
            "n_passed": int(found.passed.sum()),
        },
    )
    return result.assign(status=ds["status"]) if "status" in ds else result
