"""One feature fitted again by statsmodels' MixedLM, beside ours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError
from flashmm.results.fitted import FittedModel

__all__ = ["StatsmodelsCheck", "check_with_statsmodels"]


@dataclass(frozen=True)
class StatsmodelsCheck:
    """Two fits of one feature.

    Parameters
    ----------
    fit
        statsmodels' MixedLMResults.
    table
        One row per fixed effect and variance parameter, units of Y: flashmm, statsmodels,
        difference, and the difference in standard errors.
    llf
        Log-likelihoods, ours and statsmodels'; they have the same constant.
    """

    fit: Any
    table: pd.DataFrame
    llf: tuple[float, float]

    @property
    def largest_difference(self) -> float:
        """Largest difference of a parameter, in our standard errors."""
        return float(self.table["in_se"].abs().max())

    def __repr__(self) -> str:
        ours, theirs = self.llf
        higher = "flashmm's" if ours >= theirs else "statsmodels'"
        return (
            f"{self.table}\nlog-likelihoods: flashmm {ours:.8g}, statsmodels {theirs:.8g} "
            f"({higher} is higher by {abs(ours - theirs):.2g})\n"
            f"largest difference: {self.largest_difference:.2g} standard errors"
        )


def check_with_statsmodels(
    fitted: FittedModel, position: int, y: FloatArray, X: FloatArray, Z: sp.csr_array
) -> StatsmodelsCheck:
    """Refit y (n,) with X (n, p) and Z (n, q), and compare; see `FeatureResults.to_statsmodels`."""
    try:
        mixed = import_module("statsmodels.regression.mixed_linear_model")
    except ImportError as error:
        raise InputError("This check needs statsmodels: pip install statsmodels.") from error
    stats, one = fitted.stats, fitted.ds.isel(feature=position)
    if stats.log_weights != 0.0:
        raise InputError("The samples are weighted, which statsmodels' MixedLM cannot do.")
    fitted.one_residual("to_statsmodels", "MixedLM estimates one.")
    fitted.estimated_residual("to_statsmodels", "MixedLM estimates it.")
    structure = stats.structure
    if structure.curved is not None:
        raise InputError(
            "A random term is ar1, exp or cs with hom=FALSE, which statsmodels' MixedLM does not "
            "have."
        )
    if structure.has_roots:
        raise InputError(
            "A random term has a known covariance between its levels, which statsmodels' MixedLM "
            "does not have."
        )
    # MixedLM ties no variances of the effects of a group: then each becomes a component of its own.
    tied = any(
        term.covariance == "cs" or (term.covariance == "identity" and len(term.effects) > 1)
        for term in structure.terms
    )
    if len({(term.group, term.levels) for term in structure.terms}) == 1 and not tied:
        model, free, read = _one_group(mixed, y, X, Z, structure)
    else:
        model, free, read = _components(mixed, y, X, Z, structure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every boundary and missed gradient
        reml = fitted.options.method == "REML"
        try:
            fit = model.fit(reml=reml, method=["bfgs", "lbfgs"], gtol=1e-8, free=free)
        except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
            # Its own optimiser or Hessian: often a variance near zero, or Y in large units.
            raise InputError(
                f"statsmodels gave up on its own fit of {str(one['feature'].item())!r}, so there "
                f"is nothing to compare with ({type(error).__name__}: {error}); Y in units of its "
                "standard deviation may help it."
            ) from error
    ours = np.concatenate([one["beta"].to_numpy(), one["theta"].to_numpy()])
    theirs = np.concatenate([fit.fe_params, read(fit), [fit.scale]])
    errors = np.concatenate([one["se_beta"].to_numpy(), one["se_theta"].to_numpy()])
    names = [*fitted.coefs, *fitted.params]
    table = pd.DataFrame({"flashmm": ours, "statsmodels": theirs}, index=names)
    table["difference"] = ours - theirs
    table["in_se"] = (ours - theirs) / errors
    return StatsmodelsCheck(fit, table, (float(one["loglik"]), float(fit.llf)))


def _one_group(
    mixed: Any, y: FloatArray, X: FloatArray, Z: sp.csr_array, structure: CovarianceStructure
) -> tuple[Any, Any, Any]:
    """The model, what is free in its covariance, and how to read our theta from its fit."""
    effects, level = [], np.full(y.size, -1, dtype=np.intp)
    for position, term in enumerate(structure.terms):
        s = len(term.effects)
        own = Z[:, structure.offsets[position] : structure.offsets[position + 1]].tocoo()
        row_level = own.col // s
        level[own.row] = row_level
        if (level[own.row] != row_level).any():
            raise InputError(
                "statsmodels needs samples that each belong to one level; a column of Z mixes them."
            )
        part = np.zeros((y.size, s))
        part[own.row, own.col % s] = own.data
        effects.append(part)
    model = mixed.MixedLM(y, X, groups=level, exog_re=np.concatenate(effects, axis=1))
    first = np.concatenate([[0], np.cumsum([len(term.effects) for term in structure.terms])])
    places = [
        (first[p.term] + max(p.row, 0), first[p.term] + max(p.column, 0))
        for p in structure.parameters
    ]
    k = int(first[-1])
    pattern = np.zeros((k, k))
    for row, column in places:
        pattern[row, column] = pattern[column, row] = 1.0
    free = None
    if (pattern == 0).any():
        free = mixed.MixedLMParams.from_components(np.ones(X.shape[1]), pattern)
    return model, free, lambda fit: [np.asarray(fit.cov_re)[place] for place in places]


def _components(
    mixed: Any, y: FloatArray, X: FloatArray, Z: sp.csr_array, structure: CovarianceStructure
) -> tuple[Any, Any, Any]:
    """Several grouping factors: variance components within one group of all samples."""
    slopes = [p.name for p in structure.parameters if not p.is_variance]
    if slopes:
        raise InputError(
            f"statsmodels cannot express the covariance {slopes[0]!r} beside another grouping "
            "factor."
        )
    matrices = [Z[:, structure.columns(p)[0]].toarray() for p in structure.parameters]
    names = [p.name for p in structure.parameters]
    columns = [[[str(i) for i in range(matrix.shape[1])]] for matrix in matrices]
    spec = mixed.VCSpec(names, columns, [[matrix] for matrix in matrices])
    model = mixed.MixedLM(y, X, groups=np.zeros(y.size), exog_vc=spec)
    order = [list(model.exog_vc.names).index(name) for name in names]
    return model, None, lambda fit: np.asarray(fit.vcomp)[order]
