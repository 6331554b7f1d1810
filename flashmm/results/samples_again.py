"""Tables of features x samples that belong to a fit, given again: Y, and own covariates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.labels import find_labels
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError, listing
from flashmm.formulas.own_covariates import with_ones
from flashmm.results.fitted import FittedModel
from flashmm.sources import Source, make_source
from flashmm.stats.own_designs import OwnColumns
from flashmm.stats.own_rows import PatternedStats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OwnValues", "own_values", "rows_of_features", "values_of"]


@dataclass(frozen=True)
class OwnValues:
    """Covariates of each feature's own at some samples.

    Parameters
    ----------
    own
        Which columns of X they multiply.
    given
        Names of the covariates that are given.
    values
        One for each covariate of the model, shape (f, c); ones where it is not given.
    """

    own: OwnColumns
    given: tuple[str, ...]
    values: tuple[FloatArray, ...]

    def means(self, beta: FloatArray, X: FloatArray) -> FloatArray:
        """Means of features with beta (f, p) at samples X (c, p) that has ones, shape (f, c)."""
        total = np.zeros((beta.shape[0], X.shape[0]))
        for group, columns in self.own.groups.items():
            part = beta[:, columns] @ X[:, columns].T
            factor = self.own.factor(group, self.values)
            total += part if factor is None else part * factor
        return total

    def samples(self, there: BoolArray) -> OwnValues:
        """At some of the samples."""
        return replace(self, values=tuple(value[:, there] for value in self.values))

    def table(self, data: Any) -> pd.DataFrame:
        """The samples' table with ones for the covariates."""
        return with_ones(data, self.given)


def own_values(
    fitted: FittedModel,
    positions: IntArray,
    given: Mapping[str, Any] | None,
    samples: pd.Index | None,
    n: int,
) -> OwnValues | None:
    """Covariates of features at positions, for n samples; None where none are given.

    Raises
    ------
    InputError
        If the model has no such covariate, or one of matrices is absent.
    """
    if not given:
        return None
    stats = fitted.stats
    own = stats.own if isinstance(stats, PatternedStats) else OwnColumns.none(stats.p)
    unknown = [name for name in given if name not in own.names]
    if unknown:
        raise InputError(
            f"`feature_covariates` has {listing(unknown)}; the covariates of each feature's own in "
            f"this model are {listing(own.names) or 'none'}."
        )
    values = [np.ones((positions.size, n)) for _ in own.names]
    for name, table in given.items():
        source = make_source(table, samples=samples, n=n)
        what = f"The covariate {name!r}"
        values[own.names.index(name)] = values_of(source, fitted, positions, what, missing=True)
    return OwnValues(own, tuple(given), tuple(values))


def values_of(
    source: Source, fitted: FittedModel, positions: IntArray, what: str, *, missing: bool
) -> FloatArray:
    """Values of the features at some positions, shape (f, n)."""
    where = rows_of_features(source, fitted, positions, what)
    chosen, slot = np.unique(where, return_inverse=True)
    values = np.empty((chosen.size, source.n))
    source = replace(source, allow_missing=missing)
    for block in source.at(chosen).blocks():
        part: Any = block.values
        part = part.toarray() if sp.issparse(part) else part
        if block.missing is not None:
            part = np.where(block.missing, np.nan, part)
        where_to = np.ix_(_range(block.features, chosen.size), _range(block.samples, source.n))
        values[where_to] = part
    return values[slot]


def rows_of_features(
    source: Source, fitted: FittedModel, positions: IntArray, what: str
) -> IntArray:
    """Rows of a table that hold the features at some positions.

    By name where it has names. Without, the features are the numbers of rows if that is what they
    were called by when the model was built, else they stand as in the fit.
    """
    names = fitted.names[positions]
    if not source.numbered:
        where = find_labels(source.feature_names, names)
        if (where < 0).any():
            raise InputError(f"{what} lacks the features {listing(names[where < 0])}.")
        return where
    if fitted.stats.numbered and fitted.names.max(initial=-1) < source.m:
        return np.asarray(names, dtype=np.intp)
    if source.m == fitted.stats.m:
        return positions
    whole, members = fitted.whole, fitted.members
    if whole is not None and members is not None and source.m == whole.stats.m:
        return np.asarray(members[positions])
    raise InputError(
        f"{what} has {source.m} features without names; the model has {fitted.stats.m}. Pass "
        "them with names, as a DataFrame."
    )


def _range(index: Any, size: int) -> Any:
    return np.arange(size)[index]
