"""Which of two models is part of the other, and how their likelihood ratio is distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.exceptions import InputError, listing
from flashmm.inference.nested_groups import are_unions
from flashmm.inference.variance_tests import ChiBarSquare
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    Key = tuple[str, ...]

__all__ = ["Nesting", "check_same_data", "nesting"]

# Two computations of the same sums differ by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Nesting:
    """What a smaller model lacks of a larger one.

    Parameters
    ----------
    coefficients
        Names of the fixed effects.
    parameters
        Names of the parameters of D, variances and covariances.
    variances
        How many of the parameters are variances.
    one_effect
        Whether all parameters belong to one random effect.
    residuals
        How many residual variances more there are, equal in the smaller model.
    equal
        How many parameters fewer the structures of effects have that both models have, such as
        equal variances, or correlations of zero.
    """

    coefficients: tuple[str, ...]
    parameters: tuple[str, ...]
    variances: int
    one_effect: bool
    residuals: int = 0
    equal: int = 0

    @property
    def df(self) -> int:
        """Number of parameters that the larger model has more."""
        return len(self.coefficients) + len(self.parameters) + self.residuals + self.equal

    def null(self, space: str) -> ChiBarSquare:
        """Large-sample null distribution of twice the gain in log-likelihood.

        Chi-square, except where variances are zero in the psd space: there a random effect that
        is absent brings an equal mixture with one degree of freedom less (Stram & Lee 1994), and
        several bring one that bounds the p-value from above (Silvapulle & Sen 2005, section 3.6).
        """
        if space == "unconstrained" or self.variances == 0:
            return ChiBarSquare(((self.df, 1.0),))
        mixture = ((self.df - 1, 0.5), (self.df, 0.5))
        return ChiBarSquare(mixture, "asymptotic" if self.one_effect else "bound")


def nesting(large: SummaryStats, small: SummaryStats) -> Nesting:
    """What ``small`` lacks of ``large``.

    Raises
    ------
    InputError
        If the smaller model has what the larger has not.
    """
    extra = [name for name in small.coef_names if name not in set(large.coef_names)]
    if extra:
        raise InputError(
            "The models are not nested: only the other one has the fixed effects "
            f"{listing(extra)}. Coefficients are the same if their names are. The test is "
            "called on the fit of the larger model."
        )
    _refuse_curves(large.structure, small.structure)
    pairs = _simpler(large.structure, small.structure)
    mine = _parameters(large.structure, without=[i for i, _ in pairs])
    theirs = _parameters(small.structure, without=[j for _, j in pairs])
    unknown = [name for key, name in theirs.items() if key not in mine]
    if len(small.structure.residuals) > 1 and not _same_or_finer(large, small):
        raise InputError(
            "The models are not nested: the other one has the residual variances "
            f"{listing(small.structure.residuals)}, whose groups are no unions of groups of this "
            "one. The test is called on the fit of the larger model."
        )
    if unknown:
        raise InputError(
            "The models are not nested: only the other one has the variance components "
            f"{listing(unknown)}. Components count as the same if their groups, levels and "
            "effects have the same names."
        )
    gone = [key for key in mine if key not in theirs]
    variances = [key for key in gone if key[-1] == key[-2]]
    one = len(variances) == 1 and all(variances[0][-1] in key[-2:] for key in gone)
    return Nesting(
        tuple(name for name in large.coef_names if name not in set(small.coef_names)),
        tuple(mine[key] for key in gone),
        len(variances),
        one,
        len(large.structure.residuals) - len(small.structure.residuals),
        sum(_count(large.structure, i) - _count(small.structure, j) for i, j in pairs),
    )


# Structures that are others with some parameters equal or zero, inside of their spaces.
_SIMPLER = {
    "full": ("diagonal", "cs", "identity"),
    "diagonal": ("identity",),
    "cs": ("identity",),
}


def _simpler(large: CovarianceStructure, small: CovarianceStructure) -> list[tuple[int, int]]:
    """Terms of the same effects of which the smaller model has a simpler structure, by position.

    What is left out of a diagonal term, or of a full one that is diagonal in the smaller model,
    are parameters by their names, which need no pair.
    """
    pairs = []
    for j, theirs in enumerate(small.terms):
        for i, mine in enumerate(large.terms):
            same = all(getattr(mine, at) == getattr(theirs, at) for at in ("group", "effects"))
            same &= set(mine.levels) == set(theirs.levels) and len(mine.effects) > 1
            known = mine.root is not None or theirs.root is not None
            named = (mine.covariance, theirs.covariance) == ("full", "diagonal")
            simpler = theirs.covariance in _SIMPLER.get(mine.covariance, ())
            if same and simpler and not known and not named:
                pairs.append((i, j))
    return pairs


def _count(structure: CovarianceStructure, term: int) -> int:
    """Parameters of a term."""
    return sum(parameter.term == term for parameter in structure.parameters)


def _same_or_finer(large: SummaryStats, small: SummaryStats) -> bool:
    """Whether each residual variance of a model is one, or several, of the larger one's."""
    if len(large.structure.residuals) < len(small.structure.residuals):
        return False
    if large.groups is None or small.groups is None:
        return bool(large.structure.residuals == small.structure.residuals)
    return are_unions(small.groups, large.groups)


def _refuse_curves(large: CovarianceStructure, small: CovarianceStructure) -> None:
    """Raise where the models differ in a structure that is not linear in its parameters."""

    def curved(structure: CovarianceStructure) -> dict[str, object]:
        return {
            term.name: (term.covariance, term.group, term.effects, term.positions, term.unit)
            for term in structure.terms
            if term.curve is not None
        }

    mine, theirs = curved(large), curved(small)
    if mine != theirs:
        names = [n for n in {**mine, **theirs} if mine.get(n) != theirs.get(n)]
        raise InputError(
            f"The models differ in the structure of {listing(names)}, whose correlation means "
            "nothing where its variance is zero: the likelihood ratio has no chi-square "
            "distribution (Davies 1977). Compare their AIC or BIC, or fit both to what `draw` "
            "gives of the smaller one, a parametric bootstrap."
        )


def check_same_data(large: SummaryStats, small: SummaryStats) -> None:
    """Raise unless two nested models of the same features were summed over the same samples.

    Parameters
    ----------
    large, small
        Statistics of the same features in the same order, ``small`` nested in ``large``.

    Raises
    ------
    InputError
        If a sum that both have differs.
    """
    if large.n != small.n:
        raise InputError(
            f"The models were fitted to different data: {large.n} and {small.n} samples."
        )
    if abs(large.log_weights - small.log_weights) > _ROUNDING * (1.0 + abs(large.log_weights)):
        raise InputError("The models were fitted to different data: the weights differ.")
    length = np.sqrt(large.yy)
    _compare("y'y of", large.yy, small.yy, large.yy, large)
    here = np.array([large.coef_names.index(name) for name in small.coef_names], dtype=np.intp)
    size = np.sqrt(np.diag(large.XX))[here]
    _compare("X'y of", large.XY[here], small.XY, size[:, None] * length, large)
    if _differ(large.XX[np.ix_(here, here)], small.XX, np.outer(size, size)).any():
        raise InputError("The models are not nested: fixed effects of the same names differ.")
    columns = {key: i for i, key in enumerate(_columns(large.structure))}
    keys = _columns(small.structure)
    # Of simpler structures the columns may be directions of several effects; y'y has told already.
    whole = {j for _, j in _simpler(large.structure, small.structure)}
    terms = np.repeat(np.arange(len(small.structure.terms)), np.diff(small.structure.offsets))
    mine = np.array([i for i, j in enumerate(terms) if j not in whole], dtype=np.intp)
    there = np.array([columns[keys[i]] for i in mine], dtype=np.intp)
    size = np.sqrt(large.ZZ.diagonal())[there]
    _compare("Z'y of", large.ZY[there], small.ZY[mine], size[:, None] * length, large)


def _differ(left: FloatArray, right: FloatArray, scale: FloatArray) -> BoolArray:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(left - right) > _ROUNDING * scale)  # NaN in both is no difference


def _compare(
    what: str, left: FloatArray, right: FloatArray, scale: FloatArray, stats: SummaryStats
) -> None:
    wrong = np.atleast_2d(_differ(left, right, scale)).any(axis=0)
    if wrong.any():
        names = stats.feature_names[wrong]
        raise InputError(
            f"The models were fitted to different data: {what} the same features differs for "
            f"{listing(names)}."
        )


def _parameters(structure: CovarianceStructure, without: list[int]) -> dict[Key, str]:
    """Names of the parameters of D by what they mean: group, levels, and two effects.

    ``without``: those of some terms.
    """
    keys = {}
    for parameter in structure.parameters:
        if parameter.term in without:
            continue
        term = structure.terms[parameter.term]
        if parameter.row < -2:
            pair: tuple[str, ...] = (parameter.name, "")
        elif parameter.row < 0:
            pair = ("", "")
        else:
            pair = tuple(sorted((term.effects[parameter.row], term.effects[parameter.column])))
        cs = term.covariance == "cs"
        own = parameter.row < 0 or cs or term.root is not None or term.curve is not None
        name = _kind(term) if own else ""
        name += "[mean]" if cs and parameter.row == 0 else ""
        known = () if term.root is None else (f"known, {term.root.mean_diagonal:.9g}",)
        keys[(name, term.group, *term.levels, *known, *pair)] = parameter.name
    return keys


def _kind(term: RandomTerm) -> str:
    """Name of a term whose columns or parameters are no single effects."""
    special = term.covariance == "cs" or term.curve is not None
    return f"{term.name}[{term.covariance}]" if special else term.name


def _columns(structure: CovarianceStructure) -> list[Key]:
    """Columns of Z by group, level and effect."""
    keys: list[Key] = []
    for term in structure.terms:
        own = term.is_whole or term.root is not None
        name = _kind(term) if own else ""
        keys += [
            (name, term.group, level, effect) for level in term.levels for effect in term.effects
        ]
    return keys
