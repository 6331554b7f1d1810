"""Predictions with some of the random effects, as lme4's ``re.form``: which they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import BoolArray
from flashmm.exceptions import InputError
from flashmm.formulas.new_data_recipe import RandomRows
from flashmm.results.fitted import FittedModel
from flashmm.stats.selection import random_positions

__all__ = ["Wanted", "wanted_effects"]


@dataclass(frozen=True)
class Wanted:
    """Which random effects a prediction has.

    Parameters
    ----------
    columns, params
        Masks over the columns of Z (q,) and the variance parameters (k,); None for all.
    terms
        Positions of the terms that own any of them; None for all.
    """

    columns: BoolArray | None = None
    params: BoolArray | None = None
    terms: frozenset[int] | None = None

    def of(self, random: RandomRows, rest: RandomRows | None) -> RandomRows:
        """Rows of Z with these effects alone; ``rest`` says what the others add to a variance."""
        assert self.columns is not None
        assert self.params is not None
        Z = sp.csr_array(random.Z @ sp.diags_array(self.columns.astype(np.float64)))
        new = random.new * self.params
        if rest is not None:
            new = new + rest.new * ~self.params
        return RandomRows(Z, new, random.unknown)


def wanted_effects(fitted: FittedModel, random: Any, level: str) -> Wanted:
    """The random effects that are named by term or by variance; all for None."""
    if random is None:
        return Wanted()
    if level != "conditional":
        raise InputError(
            '`random` says which random effects a prediction at level="conditional" has; this one '
            f"is at level={level!r}."
        )
    structure = fitted.stats.structure
    chosen = random_positions(structure, random)
    columns = np.zeros(structure.q, dtype=bool)
    params = np.zeros(len(structure.param_names), dtype=bool)
    for position, effect in chosen:
        term, start = structure.terms[position], structure.offsets[position]
        step = 1 if term.is_whole else len(term.effects)
        columns[start + effect : start + term.n_columns : step] = True
    for i, parameter in enumerate(structure.parameters):
        effects = (parameter.row, parameter.column)
        whole = structure.terms[parameter.term].is_whole
        ends = {(parameter.term, 0 if whole else max(effect, 0)) for effect in effects}
        params[i] = ends <= chosen
    return Wanted(columns, params, frozenset(position for position, _ in chosen))
