"""What a formula did to the data it was fitted on, kept so that new rows get the same columns.

A `DesignRecipe` holds no sample: the types, levels and means of the columns that the formulas
use, and formulaic's model specs with the state of their transforms. `flashmm.formulas.recipe_text`
writes it as text.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.compact import steps
from flashmm.designs.curves import distances
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.exceptions import InputError, check_names, listing, nearest
from flashmm.formulas.coded_rows import distinct
from flashmm.formulas.column_kinds import absent_values
from flashmm.formulas.loaded import LoadedFormula
from flashmm.formulas.sample_table import Columns, check_data, clean, number_label, refuse_infinite
from flashmm.formulas.times import text_of_times

__all__ = [
    "ColumnRecord",
    "DesignRecipe",
    "FormulaRecipe",
    "RandomRows",
    "TermRecipe",
    "record_column",
]

Kind = Literal["number", "integer", "boolean", "text", "category", "date", "duration", "period"]


@dataclass(frozen=True)
class ColumnRecord:
    """One column of the data that a model was built on.

    Parameters
    ----------
    kind
        ``"number"``, ``"integer"``, ``"boolean"``, ``"text"`` or ``"category"``; ``"date"``,
        ``"duration"`` or ``"period"`` of times, whose levels are text.
    levels
        The distinct values, in the order of the model; empty for numbers.
    ordered
        Whether a category is ordered.
    whole
        Whether all numbers are whole, which decides how they are written as levels.
    mean
        Mean over the samples; NaN for what is no number.
    of
        The column of data that times are of.
    zone
        The time zone whose clock dates are of; empty without one.
    """

    kind: Kind
    levels: tuple[Any, ...] = ()
    ordered: bool = False
    whole: bool = False
    mean: float = float("nan")
    of: str = ""
    zone: str = ""


@dataclass(frozen=True)
class FormulaRecipe:
    """A formula without bars and what it became.

    Parameters
    ----------
    text
        The formula.
    columns
        Columns of data that it uses.
    names
        Names of the columns that it makes.
    spec
        formulaic's model spec.
    output
        ``"numpy"`` or ``"sparse"``.
    loaded
        How to make the columns of a formula that comes from a file; None for one that does not.
    together
        Expressions whose value in one sample depends on other samples: none for new data.
    """

    text: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    spec: Any
    output: Literal["numpy", "sparse"]
    loaded: LoadedFormula | None = None
    together: tuple[str, ...] = ()


@dataclass(frozen=True)
class TermRecipe:
    """One random term.

    Parameters
    ----------
    name
        Name of the term in the covariance structure.
    effects
        The formula of the effects of one level, or, without a group, of all columns of Z.
    group
        Columns whose combinations are the levels; empty for a formula such as ``~ 0 + x:sam``
        whose columns are independent effects by themselves.
    """

    name: str
    effects: FormulaRecipe
    group: tuple[str, ...] = ()


@dataclass(frozen=True)
class RandomRows:
    """Rows of Z for new data.

    Parameters
    ----------
    Z
        Columns of the levels that the model knows, sparse, shape (c, q).
    new
        Sums over the effects of unknown levels: row i of ``new @ theta`` is the variance of
        their share of row i; shape (c, k), theta with its residual.
    unknown
        Levels that the model does not know, by term.
    """

    Z: sp.csr_array
    new: FloatArray
    unknown: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class DesignRecipe:
    """How X and Z are made of a table of samples.

    Parameters
    ----------
    columns
        Type, levels and mean of every column in use.
    fixed
        The formula of X.
    terms
        The random terms.
    factors
        Columns of the formula of X that a reference grid takes at their levels, not their mean.
    combinations
        Combinations of their levels among the samples, positions in ``levels``, shape
        (n_combinations, n_factors).
    counts
        Samples in each combination, shape (n_combinations,).
    context
        Further names that the formulas use; not written to files.
    offset
        The formula whose columns add up to the offset; None without one.
    offset_mean
        Mean of the offset over the samples.
    """

    columns: Mapping[str, ColumnRecord]
    fixed: FormulaRecipe
    terms: tuple[TermRecipe, ...]
    factors: tuple[str, ...]
    combinations: IntArray
    counts: IntArray
    context: Mapping[str, Any] = field(default_factory=dict)
    offset: FormulaRecipe | None = None
    offset_mean: float = 0.0

    @property
    def grid_columns(self) -> tuple[str, ...]:
        """Columns that the mean of a sample depends on, those of the offset last."""
        added = () if self.offset is None else self.offset.columns
        return tuple(dict.fromkeys((*self.fixed.columns, *added)))

    def offset_rows(self, data: object, context: Mapping[str, Any] | None = None) -> FloatArray:
        """The offset of new data, shape (c,); zeros without one. Raises as `fixed_rows`."""
        table = check_data(data)
        if self.offset is None:
            return np.zeros(len(table))
        made = np.asarray(self._evaluate(self.offset, table, "The offset", context))
        return np.asarray(made.sum(axis=1))

    def fixed_rows(self, data: object, context: Mapping[str, Any] | None = None) -> FloatArray:
        """Rows of X for new data, shape (c, p).

        Raises
        ------
        InputError
            If a column is absent, missing a value, of another type, or has a level that the
            model does not know.
        """
        return np.asarray(
            self._evaluate(self.fixed, check_data(data), "The fixed formula", context)
        )

    def random_rows(
        self,
        data: object,
        structure: CovarianceStructure,
        *,
        known: bool,
        context: Mapping[str, Any] | None = None,
        terms: frozenset[int] | None = None,
    ) -> RandomRows:
        """Rows of Z for new data.

        Parameters
        ----------
        data
            One row per sample, c rows.
        structure
            The random terms of the model.
        known
            Whether the levels of the grouping factors are looked up; otherwise every level
            counts as unknown, and the grouping columns need not be there.
        context
            Further names that the formulas use.
        terms
            Positions of the terms that are wanted, the columns of others being zero; None for all.

        Returns
        -------
        RandomRows
        """
        table = check_data(data)
        recipes = {term.name: term for term in self.terms}
        c = len(table)
        new = np.zeros((c, len(structure.param_names)))
        blocks, unknown = [], {}
        for position, term in enumerate(structure.terms):
            if terms is not None and position not in terms:
                blocks.append(sp.csr_array((c, term.n_columns)))
                continue
            recipe = recipes[term.name]
            source = f"Random term {term.name!r}"
            away: BoolArray = np.zeros(c, dtype=bool)
            if term.positions:
                rows, away = self._rows_along(recipe.effects, table, source)
            else:
                rows = sp.csr_array(self._evaluate(recipe.effects, table, source, context))
            codes = np.full(c, -1, dtype=np.intp)
            if recipe.group:
                # A model from which an effect was dropped has fewer than the formula makes.
                if not term.positions:  # whose effects have names of their own, and are all there
                    rows = rows[:, [recipe.effects.names.index(name) for name in term.effects]]
                s = len(term.effects)
                if term.turn is not None:
                    rows = sp.csr_array(rows @ sp.csr_array(term.turn))
                if known:
                    labels = self._labels(recipe.group, table, source)
                    codes = pd.Index(term.levels).get_indexer(pd.Index(labels, dtype=object))
                    absent = pd.unique(labels[codes < 0])
                    if absent.size:
                        unknown[term.name] = tuple(str(label) for label in absent)
                    _refuse_away(table, away & (codes >= 0), term, source)
                entries = rows.tocoo()
                here = codes[entries.row] >= 0
                columns = codes[entries.row[here]] * s + entries.col[here]
                block = sp.csr_array(
                    (entries.data[here], (entries.row[here], columns)), shape=(c, term.n_columns)
                )
            else:
                block = rows if known else sp.csr_array((c, term.n_columns))
                codes[:] = 0 if known else -1
            effects, of_unknown = rows.toarray(), 1.0
            if term.root is not None:  # a level that is not known is an average one
                of_unknown = term.root.mean_diagonal
            for i, parameter in enumerate(structure.parameters):
                if parameter.term == position:
                    weight = _weight(effects, parameter, term)
                    new[:, i] = np.where(codes < 0, of_unknown * weight, 0.0)
            blocks.append(block)
        Z = sp.hstack(blocks, format="csr") if blocks else sp.csr_array((c, 0))
        return RandomRows(sp.csr_array(Z), new, unknown)

    def _evaluate(
        self,
        formula: FormulaRecipe,
        table: pd.DataFrame,
        source: str,
        context: Mapping[str, Any] | None,
    ) -> Any:
        if formula.together:
            raise InputError(
                f"{source} ({formula.text!r}) cannot be computed for new data: what "
                f"{formula.together[0]!r} gives for one sample depends on the other samples. Use "
                "center(x), scale(x) or poly(x, 2), which keep what they learn, or store its "
                "values as a column of data before the fit."
            )
        labels = table.index
        kept = pd.DataFrame(
            {name: self._column(name, table, source) for name in formula.columns},
            index=range(len(table)),
        )
        refuse_infinite(kept, labels)
        names = {**self.context, **check_names("context", context, "value")}
        columns = Columns(kept, names, labels)
        if formula.loaded is None:
            values, spec = columns.build(formula.spec, source, formula.output)
        else:
            values, spec = formula.loaded.build(formula.spec, columns, source, formula.output)
        if tuple(str(name) for name in spec.column_names) != formula.names:
            raise InputError(
                f"{source} ({formula.text!r}) makes other columns of the new data than of the "
                f"data the model was built on: {listing(spec.column_names)}. Pass the matrices "
                "X and Z instead."
            )
        return values

    def _present(self, name: str, table: pd.DataFrame, source: str) -> pd.Series[Any]:
        """A column without missing values."""
        if name not in table.columns:
            available = [column for column in table.columns if isinstance(column, str)]
            raise InputError(
                f"{source} needs the column {name!r}, which the new data do not have. "
                f"{nearest(name, available)}"
            )
        values = table[name]
        absent = absent_values(values, name)
        if absent.any():
            raise InputError(
                f"Column {name!r} of the new data is missing in rows "
                f"{listing(table.index[absent][:3])} ({int(absent.sum())} in all)."
            )
        return values

    def _column(self, name: str, table: pd.DataFrame, source: str) -> pd.Series[Any]:
        """A column of the type it had when the model was built, known levels only."""
        record = self.columns[name]
        if record.of:
            return self._times(record, table, source)
        values = clean(self._present(name, table, source), name)
        if (
            record.kind == "boolean"
            and isinstance(values.dtype, pd.CategoricalDtype)
            and pd.api.types.is_bool_dtype(values.cat.categories.dtype)
        ):
            values = values.astype(bool)
        if record.kind in ("number", "integer", "boolean"):
            wanted = "b" if record.kind == "boolean" else "iuf"
            if values.dtype.kind not in wanted:
                noun, to = ("booleans", "bool") if wanted == "b" else ("numbers", "float")
                raise InputError(
                    f"Column {name!r} held {noun} when the model was built; in the new data its "
                    f"type is {values.dtype}. Convert it with .astype({to}), if that is meant."
                )
        if record.kind == "integer" and (values == np.round(values)).all():
            values = values.astype(np.int64)
        elif record.kind == "number":
            values = values.astype(np.float64)
        _refuse_unseen(values, record, name)
        if record.kind == "category":
            kind = pd.CategoricalDtype(list(record.levels), ordered=record.ordered)
            values = values.astype(object).astype(kind)
        elif record.kind == "text":
            values = values.astype(object)
        return values

    def _times(self, record: ColumnRecord, table: pd.DataFrame, source: str) -> pd.Series[Any]:
        """The text of a column of times, as that of the data that the model was built on."""
        kind: Any = record.kind
        values = clean(self._present(record.of, table, source), record.of)
        return text_of_times(values, record.of, kind, record.zone)

    def _rows_along(
        self, effects: FormulaRecipe, table: pd.DataFrame, source: str
    ) -> tuple[sp.csr_array, BoolArray]:
        """Which effect of a term along times each row has, (c, s), and which rows have none, (c,).

        These stand at the first: a level that is not known has the same variance at any time.
        """
        name = effects.columns[0]
        values = self._column(name, table, source)
        (_, state), *_ = effects.spec.encoder_state.values()
        categories = list(state["categories"])
        codes = pd.Index(categories).get_indexer(pd.Index(values))
        shape = (codes.size, len(categories))
        entries = (np.ones(codes.size), (np.arange(codes.size), np.maximum(codes, 0)))
        return sp.csr_array(entries, shape=shape), codes < 0

    def _labels(
        self, group: tuple[str, ...], table: pd.DataFrame, source: str
    ) -> NDArray[np.object_]:
        """The level of each row, written as the model writes its levels, shape (c,)."""
        parts = []
        for name in group:
            values = clean(self._present(name, table, source), name)
            whole = self.columns[name].whole
            if values.dtype.kind in "biuf":
                numbers, inverse = np.unique(np.asarray(values), return_inverse=True)
                names = [
                    number_label(number, whole and number == round(number))
                    for number in numbers.tolist()
                ]
                parts.append(np.array(names, dtype=object)[inverse])
            else:
                parts.append(np.array([str(value) for value in values], dtype=object))
        labels = parts[0]
        for part in parts[1:]:
            labels = labels + ":" + part
        return labels


def _refuse_away(table: pd.DataFrame, away: BoolArray, term: RandomTerm, source: str) -> None:
    """Raise for rows of known levels at times of which the model has no effects."""
    if away.any():
        raise InputError(
            f"{source}: the new data have times in rows {listing(table.index[away][:3])} "
            f"({int(away.sum())} in all) that the model was not built on; it has the effects "
            f'{listing(term.effects, 10)}. Times of any kind are predicted with level="population".'
        )


def _refuse_unseen(values: pd.Series[Any], record: ColumnRecord, name: str) -> None:
    """Raise for levels that the model does not know."""
    if not record.levels:
        return
    unseen = [value for value in pd.unique(values) if value not in set(record.levels)]
    if unseen:
        raise InputError(
            f"Column {name!r} of the new data has levels that the model does not know: "
            f"{listing(unseen)}. It was built on {listing(record.levels, 10)}."
        )


def _weight(effects: FloatArray, parameter: Any, term: RandomTerm) -> FloatArray:
    """What theta_i is multiplied by in e'D e for the effects e of one level, shape (c,)."""
    if parameter.row < -2:
        apart = distances(term.positions)[1] == -3 - parameter.row
        return np.asarray(((effects @ apart) * effects).sum(axis=1))
    if parameter.row < 0:
        own = effects if parameter.row == -1 else effects[:, 1:]
        return np.asarray((own * own).sum(axis=1))
    product = effects[:, parameter.row] * effects[:, parameter.column]
    return np.asarray(product if parameter.is_variance else 2.0 * product)


def record_column(values: pd.Series[Any], *, in_formula: bool) -> ColumnRecord:
    """Note type, levels and mean of a clean column; levels only where a formula uses it."""
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        levels = tuple(values.cat.categories) if in_formula else ()
        return ColumnRecord("category", levels, bool(dtype.ordered))
    if dtype.kind in "iufb":
        numbers = np.asarray(values, dtype=np.float64)
        kind: Kind = {"b": "boolean", "f": "number"}.get(dtype.kind, "integer")  # type: ignore[assignment]
        whole = bool((numbers == np.round(numbers)).all()) and dtype.kind != "b"
        return ColumnRecord(kind, whole=whole, mean=float(numbers.mean()))
    if not in_formula:
        return ColumnRecord("text")
    return ColumnRecord("text", tuple(sorted(pd.unique(values), key=str)))


def with_factors(
    recipe: DesignRecipe, data: pd.DataFrame, categorical: Container[str]
) -> DesignRecipe:
    """Settle which columns of X are factors, and count the combinations of their levels.

    Parameters
    ----------
    recipe
        A recipe whose factors are not settled.
    data
        The clean columns of the samples.
    categorical
        Columns of numbers that the formula takes for levels, as in C(x).
    """
    columns = dict(recipe.columns)
    factors = []
    for name in recipe.grid_columns:
        record = columns[name]
        if record.kind in ("boolean", "integer", "number"):
            if record.kind != "boolean" and name not in categorical:
                continue
            levels = tuple(np.unique(np.asarray(data[name])).tolist())
            columns[name] = replace(record, levels=levels)
        factors.append(name)
    if not factors:
        return recipe
    combinations, counts = np.zeros((0, len(factors)), dtype=np.intp), np.zeros(0, dtype=np.intp)
    for here in steps(len(data)):
        codes = [
            pd.Index(columns[name].levels).get_indexer(pd.Index(data[name].iloc[here]))
            for name in factors
        ]
        found, times = _counted(codes, [len(columns[name].levels) for name in factors])
        combinations, same = np.unique(
            np.vstack([combinations, found]), axis=0, return_inverse=True
        )
        counts = np.bincount(same.ravel(), np.append(counts, times)).astype(np.intp)
    return replace(
        recipe,
        columns=columns,
        factors=tuple(factors),
        combinations=combinations,
        counts=counts,
    )


def _counted(codes: list[IntArray], sizes: list[int]) -> tuple[IntArray, IntArray]:
    """Combinations of codes, in order, and how often each occurs."""
    # Factor by factor: a product of all numbers of levels may not fit an integer.
    flat = np.zeros(codes[0].size, dtype=np.intp)
    combinations = np.zeros((1, 0), dtype=np.intp)
    for code, size in zip(codes, sizes, strict=True):
        found, flat = distinct(flat * size + code)
        before, own = np.divmod(found, size)
        combinations = np.column_stack([combinations[before], own])
    return combinations, np.bincount(flat)
