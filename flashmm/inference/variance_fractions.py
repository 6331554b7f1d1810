"""Shares of the variance: of random effects, of fixed effects, and intra-class correlations.

A random effect with covariance parameter theta_i adds theta_i tr(G_i Z'Z) / n to the average
variance of a sample (Johnson 2014, Methods Ecol Evol 5:944): theta_i itself for an intercept.
So do residual variances by group: together the mean of those of the samples.
A fixed term k adds the variance over the samples of X_k beta_k. As fixed terms may be correlated,
these are scaled to add up to the variance of X beta, as variancePartition does
(Hoffman & Schadt 2016, BMC Bioinformatics 17:483).

Standard errors are by the delta method: theta and beta are asymptotically independent, with
covariances E^-1 and (X'V^-1X)^-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.designs.design import RESIDUAL, CovarianceStructure
from flashmm.stats.own_designs import DesignSums
from flashmm.stats.summary_stats import SummaryStats

__all__ = [
    "FixedShares",
    "Fractions",
    "column_sums",
    "component_weights",
    "fixed_shares",
    "own_component_weights",
    "own_sample_covariances",
    "sample_covariance",
    "variance_fractions",
    "weight_total",
]


@dataclass(frozen=True)
class Fractions:
    """Parts of a total and their standard errors, both (B, c)."""

    estimate: FloatArray
    se: FloatArray


@dataclass(frozen=True)
class FixedShares:
    """Variances of t fixed terms over the samples, adding up to that of X beta.

    Parameters
    ----------
    value
        Shape (B, t).
    gradient
        Derivatives by beta, shape (B, t, p).
    """

    value: FloatArray
    gradient: FloatArray


def component_weights(
    stats: SummaryStats, total: float | None = None
) -> tuple[tuple[str, ...], FloatArray]:
    """What each parameter of theta adds to each component of variance.

    ``total`` is the sum of the samples' weights; n by default.

    Returns
    -------
    names
        One component per variance with its own name, the covariances counted with the term (a
        correlated term is one component), the residual last.
    weights
        Shape (c, k): component = weights @ theta.
    """
    structure, ZZ = stats.structure, stats.ZZ.tocsr()
    total = float(stats.n) if total is None else total
    names: list[str] = []
    rows: list[FloatArray] = []
    k = len(structure.param_names)
    for name, owned in _groups(structure):
        row = np.zeros(k)
        for i in owned:
            parameter = structure.parameters[i]
            upper, lower = structure.columns(parameter)
            trace = float(np.asarray(ZZ[upper, lower]).sum())
            row[i] = trace / total * (1.0 if parameter.is_variance else 2.0)
        names.append(name)
        rows.append(row)
    residual, sizes = np.zeros(k), structure.residual_sizes or (stats.n,)
    residual[k - len(sizes) :] = np.array(sizes) / total
    return (*names, RESIDUAL), np.stack([*rows, residual])


def own_component_weights(
    structure: CovarianceStructure, designs: DesignSums
) -> tuple[tuple[str, ...], FloatArray]:
    """The same of features with rows of their own, weighted; shape (P, c, k).

    The sample i of weight w_i counts as w_i over the sum of the weights. Its residual variance is
    sigma2 / w_i, so that the residual's component is sigma2 over the mean weight.
    """
    names: list[str] = []
    k = len(structure.param_names)
    groups = _groups(structure)
    weights = np.zeros((designs.count, len(groups) + 1, k))
    total = np.where(designs.total > 0, designs.total, np.nan)
    q = structure.q
    keys = designs.rows * q + designs.columns
    for c, (name, owned) in enumerate(groups):
        for i in owned:
            parameter = structure.parameters[i]
            upper, lower = structure.columns(parameter)
            wanted = np.minimum(upper, lower) * q + np.maximum(upper, lower)
            trace = designs.ZZ[:, np.isin(keys, wanted)].sum(axis=1)
            weights[:, c, i] = trace / total * (1.0 if parameter.is_variance else 2.0)
        names.append(name)
    weights[:, -1, -1] = designs.n / total
    return (*names, structure.param_names[-1]), weights


def own_sample_covariances(designs: DesignSums) -> FloatArray:
    """Weighted covariances of the columns of X over the samples, shape (P, p, p)."""
    total = np.where(designs.total > 0, designs.total, np.nan)[:, None]
    mean = designs.WX_sums / total
    S = designs.XX / total[:, :, None] - mean[:, :, None] * mean[:, None, :]
    square = np.diagonal(designs.XX, axis1=1, axis2=2) / total
    constant = np.diagonal(S, axis1=1, axis2=2) <= 1e-12 * square
    return np.where(constant[:, :, None] | constant[:, None, :], 0.0, S)


def _groups(structure: CovarianceStructure) -> list[tuple[str, list[int]]]:
    """Parameters that belong together: a correlated block under its term's name."""
    groups: list[tuple[str, list[int]]] = []
    for block in structure.blocks():
        owned = sorted({int(i) for i in block.ravel()})
        if owned[0] >= len(structure.parameters):
            continue  # a residual variance
        first = structure.parameters[owned[0]]
        term = structure.terms[first.term]
        if term.covariance == "cs" and first.row < 0:  # the second of its two variances
            groups[-1][1].extend(owned)
            continue
        alone = len(owned) == 1 and term.covariance != "cs"
        groups.append((first.name if alone else term.name, owned))
    return groups


def weight_total(stats: SummaryStats) -> float | None:
    """Sum of the samples' weights where the statistics tell it: n without weights.

    With an intercept it is that column's square, with a random intercept the trace of its Z'Z.
    """
    if stats.log_weights == 0.0:
        return float(stats.n)
    for i, name in enumerate(stats.coef_names):
        if name in ("Intercept", "(Intercept)"):
            return float(stats.XX[i, i])
    for position, term in enumerate(stats.structure.terms):
        if term.covariance == "full" and "Intercept" in term.effects:
            start, stop = stats.structure.offsets[position : position + 2]
            first = start + term.effects.index("Intercept")
            return float(stats.ZZ.diagonal()[first : stop : len(term.effects)].sum())
    return None


def column_sums(stats: SummaryStats) -> FloatArray | None:
    """Sums of the columns of X over the samples, shape (p,), where the statistics tell them.

    They do when a column of ones is known: an intercept, indicators of all levels of a factor
    among the fixed effects (``cls[a]``, ``cls[b]``, ...), or a random intercept, whose columns of Z
    add up to one in every sample.
    """
    n, XX = weight_total(stats), stats.XX
    if stats.p == 0:
        return np.zeros(0)
    if n is None:
        return None
    names = list(stats.coef_names)
    for i, name in enumerate(names):
        if name in ("Intercept", "(Intercept)") and np.isclose(XX[i, i], n, rtol=1e-12):
            return np.asarray(XX[i])
    factors: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name.endswith("]") and ":" not in name and "[T." not in name:
            factors.setdefault(name[: name.index("[")], []).append(i)
    for columns in factors.values():
        block = XX[np.ix_(columns, columns)]
        disjoint = np.count_nonzero(block - np.diag(np.diag(block))) == 0
        if disjoint and np.isclose(np.trace(block), n, rtol=1e-12):
            return np.asarray(XX[columns].sum(axis=0))
    for position, term in enumerate(stats.structure.terms):
        if term.covariance == "full" and term.effects == ("Intercept",):
            start, stop = stats.structure.offsets[position : position + 2]
            if np.isclose(stats.ZZ[start:stop, start:stop].sum(), n, rtol=1e-12):
                return np.asarray(stats.ZX[start:stop].sum(axis=0))
    return None


def sample_covariance(XX: FloatArray, sums: FloatArray, n: float) -> FloatArray:
    """Covariance (divisor n) of the columns of X over the samples, shape (p, p)."""
    mean = sums / n
    S = XX / n - np.outer(mean, mean)
    # A column that is constant over the samples varies by rounding alone.
    constant = np.diag(S) <= 1e-12 * np.diag(XX) / n
    S[constant] = 0.0
    S[:, constant] = 0.0
    return np.asarray(S)


def fixed_shares(beta: FloatArray, S: FloatArray, terms: Sequence[Sequence[int]]) -> FixedShares:
    """Variances of the fixed terms, scaled to add up to that of X beta.

    Parameters
    ----------
    beta
        Shape (B, p).
    S
        Covariance of the columns of X over the samples, shape (p, p), or (B, p, p).
    terms
        Positions of each term's coefficients.
    """
    count, p = beta.shape
    S = np.broadcast_to(S, (count, p, p))
    Sb = np.matmul(beta[:, None, :], S)[:, 0]
    total = (beta * Sb).sum(axis=1)
    own = np.empty((count, len(terms)))
    own_gradient = np.zeros((count, len(terms), p))
    for k, columns in enumerate(terms):
        chosen = np.asarray(columns, dtype=np.intp)
        block = S[:, chosen][:, :, chosen]
        part = np.matmul(beta[:, None, columns], block)[:, 0]
        own[:, k] = (beta[:, columns] * part).sum(axis=1)
        own_gradient[:, k, columns] = 2.0 * part
    sum_own = own.sum(axis=1)
    some = sum_own > 0
    scale = np.divide(total, sum_own, out=np.zeros(count), where=some)
    # d(total / sum) = (d total - scale d sum) / sum
    change = 2.0 * Sb - scale[:, None] * own_gradient.sum(axis=1)
    change = np.divide(change, sum_own[:, None], out=np.zeros_like(change), where=some[:, None])
    gradient = scale[:, None, None] * own_gradient + own[:, :, None] * change[:, None, :]
    return FixedShares(scale[:, None] * own, gradient)


def variance_fractions(
    parts: FloatArray, covariance: FloatArray, denominator: FloatArray
) -> Fractions:
    """Shares of a total, with standard errors by the delta method.

    Parameters
    ----------
    parts
        Variances, shape (B, c).
    covariance
        Their covariances, shape (B, c, c).
    denominator
        Which parts make up the total, ones and zeros, shape (c,).

    Returns
    -------
    Fractions
        NaN where the total is not positive.
    """
    total = parts @ denominator
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.where(total > 0, total, np.nan)
        share = parts / total[:, None]
        # var(share) = (C_aa - 2 share C_at + share^2 C_tt) / total^2
        with_total = covariance @ denominator
        total_variance = with_total @ denominator
        own = np.diagonal(covariance, axis1=1, axis2=2)
        variance = own - 2.0 * share * with_total + share**2 * total_variance[:, None]
        se = np.sqrt(np.maximum(variance, 0.0)) / total[:, None]
    return Fractions(share, se)
