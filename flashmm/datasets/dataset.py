"""What a data set is: tables, a model of them, where they come from, and on what terms."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from flashmm.exceptions import listing
from flashmm.slips.answers import no_index, no_such_attribute


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A data set, a model that suits it, its source and its licence.

    Attributes
    ----------
    name : str
        That of the function of `flashmm.datasets` that reads it.
    description : str
        What was measured, with units.
    data : pandas.DataFrame (n, columns)
        One row per sample. Factors are text or categories.
    Y : pandas.DataFrame (m, n) or None
        One row per feature, one column per sample, in the order of the rows of `data`. None where
        the response is a column of `data`.
    weights : pandas.DataFrame (m, n) or None
        Weights of the values of `Y`, where there are some.
    formula : str
        A model of the data, as `MultiLMM.from_formula` takes it.
    transform : str or None
        What that model does to `Y` first.
    source : str
        Who measured or made the data, and where these files come from.
    licence : str
        The terms of the files, as far as they are known; flashmm's own licence does not cover
        them. ``license`` is the same.

    Examples
    --------
    >>> import flashmm as fm
    >>> kimma = fm.datasets.kimma()
    >>> kimma
    kimma: 1,000 features, 12 samples, with weights; ~ virus + (1 | ptID)
    >>> kimma.licence
    'MIT, copyright 2021 Kim Dill-McFarland: that of the R package kimma.'
    >>> model = fm.MultiLMM.from_formula(
    ...     kimma.formula, data=kimma.data, Y=kimma.Y, weights=kimma.weights
    ... )
    """

    name: str
    description: str
    data: pd.DataFrame
    formula: str
    source: str
    licence: str
    Y: pd.DataFrame | None = None
    weights: pd.DataFrame | None = None
    transform: str | None = None

    @property
    def license(self) -> str:
        """The licence, under its American spelling."""
        return self.licence

    __getitem__ = no_index("A data set", "columns are those of its table, data['x']")
    __iter__ = None

    def __repr__(self) -> str:
        parts = [f"{len(self.data):,} samples"]
        if self.Y is not None:
            parts.insert(0, f"{len(self.Y):,} features")
        if self.weights is not None:
            parts.append("with weights")
        return f"{self.name}: {', '.join(parts)}; {self.formula}"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"Data sets have no attribute {name!r}")
            cure = "there are " + listing([field.name for field in fields(self)], 12)
            if name in self.data:
                cure = f"it is a column, data[{name!r}]"
            elif hasattr(pd.DataFrame, name):
                cure = f"it is one of their table, `data.{name}`"
            return no_such_attribute(self, name, "Data sets", cure)
