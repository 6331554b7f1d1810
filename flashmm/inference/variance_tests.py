"""Tests that variance components are zero: hypotheses, statistics and their null distributions.

In the unconstrained space zero lies inside, and twice the gain in log-likelihood is chi-square.
In the psd space zero is on the boundary and the null distribution is a mixture of chi-squares
(Self & Liang 1987, JASA 82:605; Stram & Lee 1994, Biometrics 50:1171).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashmm.arrays.numeric import dimensions
from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError, listing, nearest
from flashmm.inference.tails import chi2_sf, norm_isf, norm_sf

__all__ = [
    "ChiBarSquare",
    "Gain",
    "ZeroHypothesis",
    "asymptotic_null",
    "likelihood_ratio",
    "wald_limits",
    "z_statistics",
    "zero_hypotheses",
]

# Twice a difference of log-likelihoods below this is rounding.
_ROUNDING = 1e-8


@dataclass(frozen=True)
class ZeroHypothesis:
    """The hypothesis that a random effect, or a whole term, is absent.

    Parameters
    ----------
    label
        Name of the variance, or of the term.
    zeros
        Positions in theta of the parameters that are zero: variances with their covariances.
    block
        Effects in the covariance block that the hypothesis cuts; 0 where it cuts several.
    removed
        Effects that it removes.
    """

    label: str
    zeros: tuple[int, ...]
    block: int
    removed: int


def zero_hypotheses(
    structure: CovarianceStructure, components: str | Sequence[str] | None
) -> list[ZeroHypothesis]:
    """Hypotheses from names of variances or terms; one for every variance by default.

    Parameters
    ----------
    structure
        The covariance structure.
    components
        Names of variances (``"Subject[Days]"``) or of terms with several parameters
        (``"Subject"``).

    Returns
    -------
    list of ZeroHypothesis

    Raises
    ------
    InputError
        If a name is unknown, or is that of a covariance or of the residual variance.
    """
    parameters = structure.parameters
    variances = {p.name: i for i, p in enumerate(parameters) if p.is_variance}
    terms: dict[str, list[int]] = {}
    for position, term in enumerate(structure.terms):
        owned = [i for i, p in enumerate(parameters) if p.term == position]
        if len(owned) > 1:
            terms[term.name] = owned
    if components is None:
        owners = {name: structure.terms[parameters[i].term] for name, i in variances.items()}
        # The two eigenvalues of compound symmetry mean little alone.
        cs = {name: owner.name for name, owner in owners.items() if owner.covariance == "cs"}
        names: list[str] = list(dict.fromkeys(cs.get(name, name) for name in variances))
    else:
        one = isinstance(components, str) or dimensions(components) == 0
        names = [str(components)] if one else [str(c) for c in components]
    blocks = structure.blocks()
    hypotheses = []
    for name in names:
        if name in variances:
            i = variances[name]
            block = next(b for b in blocks if i in b)
            row = int(np.flatnonzero(np.diag(block) == i)[0])
            zeros = tuple(sorted({int(x) for x in block[row]}))
            hypotheses.append(ZeroHypothesis(name, zeros, block.shape[0], 1))
        elif name in terms:
            owned = terms[name]
            cut = [b for b in blocks if int(b[0, 0]) in owned]
            size = cut[0].shape[0] if len(cut) == 1 else 0
            removed = sum(b.shape[0] for b in cut)
            hypotheses.append(ZeroHypothesis(name, tuple(owned), size, removed))
        else:
            known = [*variances, *terms]
            also = (
                " A covariance or the residual variance cannot be tested so."
                if name in structure.param_names
                else ""
            )
            raise InputError(f"No variance component {name!r}.{also} {nearest(name, known)}")
    if not structure.parameters:
        raise InputError("The model has no random effects: there is no variance to test.")
    if not hypotheses:
        raise InputError(f"`components` is empty; there are {listing([*variances, *terms], 10)}.")
    return hypotheses


@dataclass(frozen=True)
class ChiBarSquare:
    """A mixture of chi-square distributions; 0 degrees of freedom stand for a mass at zero.

    Parameters
    ----------
    weights
        Weight of each number of degrees of freedom; they sum to one.
    quality
        ``"asymptotic"``, or ``"bound"`` where p-values are upper bounds.
    """

    weights: tuple[tuple[int, float], ...]
    quality: Literal["asymptotic", "bound"] = "asymptotic"

    def sf(self, statistic: FloatArray) -> FloatArray:
        """P(at least ``statistic``), exact far into the tail; NaN for NaN."""
        p = np.zeros(np.shape(statistic))
        for df, weight in self.weights:
            mass = np.where(statistic <= 0.0, 1.0, 0.0) if df == 0 else chi2_sf(statistic, df)
            p = p + weight * mass
        return np.where(np.isnan(statistic), np.nan, p)

    def __str__(self) -> str:
        parts = [
            f"chi2_{df}" if weight == 1.0 else f"{weight:g} chi2_{df}"
            for df, weight in self.weights
        ]
        return " + ".join(parts) + (" (upper bound)" if self.quality == "bound" else "")


@dataclass(frozen=True)
class Gain:
    """What B features gain by a component.

    Parameters
    ----------
    statistic
        Twice the gain in log-likelihood, shape (B,); NaN where one of the two fits is missing.
    loglik_null
        Log-likelihoods without it, shape (B,).
    lost
        Features whose fit without it did not converge.
    """

    statistic: FloatArray
    loglik_null: FloatArray
    lost: int


def asymptotic_null(hypothesis: ZeroHypothesis, space: str) -> ChiBarSquare:
    """Large-sample null distribution of the likelihood-ratio statistic.

    Unconstrained: chi-square, one degree of freedom per parameter. psd, one effect out of a
    block of s: equal mixture of chi2_{s-1} and chi2_s (Stram & Lee 1994, case 3; for s = 1 the
    mass at zero of Self & Liang 1987, case 5). psd, several effects at once: the weights depend
    on the information matrix, and the equal mixture of chi2_{K-1} and chi2_K for K parameters
    bounds the p-value from above (Silvapulle & Sen 2005, section 3.6).

    The other variances are taken to lie inside the space; where some are zero too the mixture is
    an approximation.
    """
    K = len(hypothesis.zeros)
    if space == "unconstrained":
        return ChiBarSquare(((K, 1.0),))
    mixture = ((K - 1, 0.5), (K, 0.5))
    return ChiBarSquare(mixture, "asymptotic" if hypothesis.removed == 1 else "bound")


def likelihood_ratio(full: FloatArray, null: FloatArray) -> FloatArray:
    """Twice the gain in log-likelihood; what is negative or tiny by rounding is zero."""
    gain = 2.0 * (full - null)
    return np.where(np.abs(gain) <= _ROUNDING * (1.0 + np.abs(full)), 0.0, np.maximum(gain, 0.0))


def z_statistics(
    theta: FloatArray, se: FloatArray, alternative: str
) -> tuple[FloatArray, FloatArray]:
    """Theta / se and its normal p-values, the shape of theta; NaN where se is not positive."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(se > 0, theta / se, np.nan)
    if alternative == "two-sided":
        p = 2.0 * norm_sf(np.abs(z))
    else:
        p = norm_sf(z) if alternative == "greater" else norm_sf(-z)
    return z, np.asarray(p)


def wald_limits(
    theta: FloatArray, se: FloatArray, alpha: float, on_log_scale: BoolArray
) -> FloatArray:
    """Normal limits of theta (B, k), shape (B, k, 2).

    Parameters
    ----------
    theta, se
        Estimates and standard errors, shape (B, k).
    alpha
        One minus the coverage.
    on_log_scale
        Parameters whose logarithm is taken as normal, with standard error se / theta, shape
        (k,); NaN where theta is not positive.
    """
    half = norm_isf(alpha / 2.0) * np.stack([-se, se], axis=-1)
    centre = theta[:, :, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        logarithmic = np.where(centre > 0, centre * np.exp(half / centre), np.nan)
    return np.where(on_log_scale[:, None], logarithmic, centre + half)
