"""The table of samples behind formulas: the names they use, clean columns, finite matrices."""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from keyword import iskeyword
from numbers import Number
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from formulaic import ModelSpec, SimpleFormula
from formulaic.errors import DataMismatchWarning
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import sanitize_variable_names
from numpy.typing import NDArray

from flashmm.arrays.foreign_frames import is_foreign
from flashmm.arrays.labels import as_pandas
from flashmm.arrays.types import BoolArray, IntArray
from flashmm.exceptions import InputError, listing, nearest
from flashmm.formulas.calls import refuse_bases, refuse_bitwise
from flashmm.formulas.column_kinds import absent_values, usual_type
from flashmm.formulas.materializer import Materializer
from flashmm.formulas.summaries import MARK, differs, only_by_rows, samples_to_try, with_constants
from flashmm.slips.cures import FORMULA_WORDS, FUNCTIONS, known

__all__ = [
    "Columns",
    "Names",
    "check_data",
    "clean",
    "cleaned",
    "evaluating",
    "missing_rows",
    "number_label",
    "numbers",
    "refuse_infinite",
]

# Types that expressions such as I(x.astype(float)) name.
_VALUE_BUILTINS = frozenset({"float", "int", "bool", "str"})

# Types that formulaic reads as they are meant.
_PLAIN = (np.dtype(np.float64), np.dtype(np.int64))


def check_data(data: object) -> pd.DataFrame:
    """Return the table of samples, a dict of columns converted; refuse what is not one."""
    if is_foreign(data):
        data = as_pandas(data)
    if isinstance(data, Mapping):
        try:
            data = pd.DataFrame(dict(data))
        except ValueError as error:
            raise InputError(f"`data` does not form a table: {error}.") from error
    if not isinstance(data, pd.DataFrame):
        cure = " Pass its `data`." if isinstance(getattr(data, "data", None), pd.DataFrame) else ""
        raise InputError(
            "`data` must be a table with one row per sample (a DataFrame of pandas or polars, a "
            f"pyarrow Table, a dict of columns), not {_kind(data)}.{cure}"
        )
    if len(data) == 0:
        raise InputError("`data` has no rows.")
    if not data.columns.is_unique:
        repeated = data.columns[data.columns.duplicated()].unique()
        raise InputError(f"`data` has several columns called {listing(repeated)}. Rename them.")
    return data


def _kind(value: object) -> str:
    """The type of a value, with its package unless that is Python."""
    kind = type(value)
    package = kind.__module__.split(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


class Names:
    """Collect and check the names that formulas use.

    Parameters
    ----------
    data
        One row per sample.
    context
        Further names that formulas may use; a column of data goes first.
    """

    def __init__(self, data: pd.DataFrame, context: dict[str, Any]) -> None:
        self.data = data
        self.available = [column for column in data.columns if isinstance(column, str)]
        self.known = set(self.available)
        self.context = context
        self.columns: list[str] = []
        self.functions: dict[str, str] = {}

    def add_column(self, name: str, source: str) -> None:
        """Note that a formula uses a column."""
        if name not in self.known:
            self._unknown(name, source)
        if name not in self.columns:
            self.columns.append(name)

    def _unknown(self, name: str, source: str) -> None:
        raise InputError(
            f"{source} uses {name!r}, which is not a column of `data`. "
            f"{known(FORMULA_WORDS, name) or nearest(name, self.available)}"
        )

    def add_formula(self, formula: SimpleFormula, source: str) -> None:
        """Note every column and function that the formula uses."""
        for factor in (factor for term in formula for factor in term.factors):
            method = factor.eval_method.value
            if method == "lookup":
                if factor.expr in self.known or factor.expr not in self.context:
                    self.add_column(factor.expr, source)
            elif method == "python":
                self._add_expression(factor.expr, source)

    def _add_expression(self, expression: str, source: str) -> None:
        aliases: dict[str, str] = {}
        environment: dict[str, Any] = dict.fromkeys(self.available)
        for name in re.findall(r"`([^`]*)`", expression):
            if iskeyword(name) or name == "__debug__":
                raise InputError(
                    f"{source}: {name!r} is a word of Python, which has a meaning of its own in "
                    f"{expression!r}. Rename the column."
                )
        try:
            code = sanitize_variable_names(expression, environment, aliases)
            tree = ast.parse(code, mode="eval")
        except SyntaxError as error:
            raise InputError(f"{source}: {expression!r} cannot be read: {error.msg}.") from error
        refuse_bitwise(
            tree,
            lambda node: self._is_condition(node, aliases),
            source,
        )
        if "log" not in self.context:
            refuse_bases(tree, source)
        called, bases, bound = set(), {}, set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called.add(node.func)
                if isinstance(node.func, ast.Name) and node.func.id == "Q":
                    # Q("my column") names its column in a string.
                    for argument in node.args:
                        if isinstance(argument, ast.Constant):
                            self.add_column(str(argument.value), source)
            elif isinstance(node, ast.Attribute):
                bases[node.value] = ast.unparse(node)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                bound.add(node.id)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Name) or node.id in bound:
                continue
            name = aliases.get(node.id, node.id)
            provided = name in self.context or name in TRANSFORMS
            if node in called:
                if name == "offset":
                    raise InputError(
                        f"{source}: offset(...) belongs in `fixed`, as a term of its own."
                    )
                if not provided and (cure := known(FUNCTIONS, name)):
                    raise InputError(f"{source} calls {name!r}, which is not known here. {cure}")
                if not provided and not hasattr(builtins, name):
                    in_numpy = (
                        f"Write np.{name}(...). "
                        if isinstance(getattr(np, name, None), np.ufunc)
                        else ""
                    )
                    raise InputError(
                        f"{source} calls {name!r}, which is not a known function. {in_numpy}"
                        f"{nearest(name, sorted({*TRANSFORMS, *self.context}))} Pass functions "
                        f"of your own as context={{{name!r}: {name}}}."
                    )
                self.functions[name] = source
            elif node in bases and provided and node.id not in aliases:
                # np.log: a column called np must not get in the way.
                self.functions[name] = source
            elif name in self.known:
                self.add_column(name, source)
            elif bases.get(node) in self.known:
                raise InputError(
                    f"{source}: inside a function, the column {bases[node]!r} needs backticks: "
                    f"`{bases[node]}`."
                )
            elif not provided and name not in _VALUE_BUILTINS:
                self._unknown(name, source)

    def _is_condition(self, node: ast.AST, aliases: Mapping[str, str]) -> bool:
        if isinstance(node, ast.Name):
            return self._is_boolean(aliases.get(node.id, node.id))
        if isinstance(node, ast.Constant):  # of Q("my column")
            return isinstance(node.value, bool) or self._is_boolean(node.value)
        return False

    def _is_boolean(self, name: Any) -> bool:
        if name not in self.known:
            values = self.context.get(name)
            return getattr(getattr(values, "dtype", None), "kind", "") == "b"
        values = self.data[name]
        if pd.api.types.is_object_dtype(values.dtype):
            return str(pd.api.types.infer_dtype(values, skipna=True)) == "boolean"
        return bool(pd.api.types.is_bool_dtype(values.dtype))

    def check(self) -> None:
        """Refuse a name that is a function in one place and a column in another."""
        for name in self.columns:
            if name in self.functions:
                raise InputError(
                    f"{self.functions[name]} calls the function {name!r}, but {name!r} is also a "
                    "column that the formulas use. Rename the column."
                )


def missing_rows(data: pd.DataFrame, columns: list[str], missing: str) -> BoolArray:
    """Rows with a missing value in a used column, shape (n_rows,); refuse or drop them."""
    dropped = np.zeros(len(data), dtype=bool)
    reports = []
    for column in columns:
        absent = absent_values(data[column], column)
        if absent.any():
            dropped |= absent
            rows = listing(data.index[absent][:3])
            reports.append(f"{int(absent.sum())} in {column!r} (first rows {rows})")
    if missing == "raise" and reports:
        raise InputError(
            f"`data` has missing values where the formulas use it: {'; '.join(reports)}. "
            'Fill them in, or leave these samples out with missing="drop".'
        )
    if dropped.all():
        raise InputError(
            f"Every row of `data` has a missing value in a column used: {'; '.join(reports)}."
        )
    return dropped


def clean(values: pd.Series[Any], column: str) -> pd.Series[Any]:
    """`cleaned` with an index of its own."""
    return pd.Series(cleaned(values, column))


def cleaned(values: pd.Series[Any], column: str) -> Any:
    """Reduce a column without missing values to a type that formulaic reads as meant, an array.

    Unused categories go, and nullable, sparse and object numbers become plain ones; formulaic
    would take the last for categories. The result may share the memory of ``values``.
    """
    # A categorical type would write out its levels to be compared.
    if isinstance(values.dtype, np.dtype) and values.dtype in _PLAIN:
        return values.array
    values = usual_type(values, column)
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        values = values.cat.remove_unused_categories()
        levels: Iterable[object] = values.cat.categories
        _refuse_mixed_booleans({type(level) for level in levels}, column)
    elif pd.api.types.is_object_dtype(dtype):
        kind = pd.api.types.infer_dtype(values)
        if kind in {"integer", "floating", "mixed-integer-float", "decimal"}:
            values = pd.Series(pd.to_numeric(values.astype(float) if kind == "decimal" else values))
        elif kind == "boolean":
            values = values.astype(bool)
        if kind.startswith("mixed"):
            types = set(values.map(type))
            _refuse_mixed_booleans(types, column)
            if all(issubclass(each, Number) for each in types):  # fractions, decimals beside floats
                values, types = values.astype(float), set()
            levels = values.unique() if types else ()
        else:
            levels = ()
    else:
        levels = ()
        if pd.api.types.is_string_dtype(dtype):
            values = values.astype(object)
        elif pd.api.types.is_bool_dtype(dtype):
            values = values.astype(bool)
        elif pd.api.types.is_integer_dtype(dtype):
            # Products of small integers would wrap around.
            values = values.astype(np.int64)
        elif pd.api.types.is_float_dtype(dtype):
            values = values.astype(np.float64)
    printed = Counter(str(level) for level in levels)
    alike = [name for name, count in printed.items() if count > 1]
    if alike:
        raise InputError(
            f"Column {column!r} of `data` has different values that print alike: "
            f"{listing(alike)}. Convert it to one type, e.g. with .astype(str)."
        )
    return values.array


def _refuse_mixed_booleans(types: set[type], column: str) -> None:
    """Raise where True and 1, which are equal, may stand side by side."""
    booleans = {bool, np.bool_}
    if types & booleans and any(issubclass(t, Number) for t in types - booleans):
        raise InputError(
            f"Column {column!r} of `data` mixes booleans with numbers: True and 1 would be one "
            "level. Convert it to one type, e.g. with .astype(str) or .astype(float)."
        )


def refuse_infinite(data: pd.DataFrame, labels: pd.Index[Any]) -> None:
    """Raise for an infinite number, which would spoil whole columns of scale(x) or poly(x, 2)."""
    for column in data.columns:
        values = data[column]
        if values.dtype.kind == "f":
            infinite = np.isinf(np.asarray(values))
            if infinite.any():
                raise InputError(
                    f"Column {column!r} of `data` is infinite in rows {listing(labels[infinite])}."
                )


def number_label(number: float, whole: bool) -> str:
    """A number as the label of a level."""
    return str(int(number)) if whole else str(number)


@contextmanager
def evaluating(source: str) -> Iterator[None]:
    """Say which formula cannot be evaluated, and why."""
    try:
        # What log(0) gives is reported by `Columns.refuse_non_finite`; a level outside
        # C(x, levels=...) would silently become a row of zeros.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", DataMismatchWarning)
            # Of pandas 2, where intervals are levels.
            warnings.filterwarnings("ignore", "Dtype inference", FutureWarning)
            yield
    except MemoryError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source} cannot be evaluated: {reason}") from error


def numbers(matrix: Any, n: int, output: Literal["numpy", "sparse"]) -> Any:
    """The columns of formulaic's matrix of n rows as float64: dense, or sparse CSC."""
    values = matrix.__wrapped__
    if values.dtype.kind not in "biuf":
        raise TypeError(f"its columns are {values.dtype}, not numbers")
    values = (
        np.asarray(values, dtype=np.float64)
        if output == "numpy"
        else sp.csc_array(values, dtype=np.float64)
    )
    if values.shape[0] != n:
        raise ValueError(f"it gives {values.shape[0]} rows for {n} samples")
    return values


def _non_finite(values: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows and columns of the entries that are not finite."""
    if sp.issparse(values):
        entries = values.tocoo()
        wrong = ~np.isfinite(entries.data)
        return entries.row[wrong], entries.col[wrong]
    rows, columns = np.nonzero(~np.isfinite(values))
    return rows, columns


class Columns:
    """The columns that formulas make of the rows in use.

    Parameters
    ----------
    data
        Clean columns of the n rows kept, see `clean`. It holds only what formulas use, so a
        column called C or log cannot hide the function.
    context
        Further names that formulas may use.
    labels
        Labels of the n rows, for messages.
    """

    def __init__(self, data: pd.DataFrame, context: dict[str, Any], labels: pd.Index[Any]) -> None:
        self.data = data
        self.labels = labels
        self.context = context
        self._codes: dict[str, tuple[NDArray[np.int32], list[str]]] = {}

    def build(
        self, formula: SimpleFormula | ModelSpec, source: str, output: Literal["numpy", "sparse"]
    ) -> tuple[Any, Any]:
        """Columns of a formula, finite float64 (dense, or sparse CSC), and formulaic's spec.

        A spec in place of the formula makes the columns that it made before.
        """
        with evaluating(source):
            matrix = Materializer(self.data, context=self.context).get_model_matrix(
                formula, output=output, na_action="ignore"
            )
            values = numbers(matrix, len(self.data), output)
        self.refuse_non_finite([(0, values)], matrix.model_spec.column_names, source)
        return values, matrix.model_spec

    def of_many_samples(self, formula: SimpleFormula, spec: ModelSpec) -> tuple[str, ...]:
        """Expressions of a formula whose value in one sample depends on the other samples.

        They are found by computing them on some of the samples; what is plain arithmetic, or
        keeps what it learns, is not computed again.
        """
        found = []
        names = Materializer(self.data, context=self.context).layered_context
        n = len(self.data)
        for factor in dict.fromkeys(factor for term in formula for factor in term.factors):
            if factor.eval_method.value != "python":
                continue
            learnt = spec.transform_state.get(f"{MARK}{factor.expr}", {})
            if only_by_rows(with_constants(factor.expr, learnt, names)[0], names):
                continue
            whole = self._factor(factor, spec, np.arange(n, dtype=np.intp))
            for some in samples_to_try(n):
                values = self._factor(factor, spec, some)
                if values is not None and differs(values, whole, some):
                    found.append(str(factor.expr))
                    break
        return tuple(found)

    def _factor(self, factor: Any, spec: ModelSpec, positions: NDArray[np.intp]) -> Any:
        """What a factor gives for some samples; None where it fails."""
        n = len(self.data)
        context = {
            # What the user gives by sample goes with the samples.
            name: value[positions] if isinstance(value, np.ndarray) and len(value) == n else value
            for name, value in self.context.items()
        }
        data = self.data.iloc[positions].reset_index(drop=True)
        materializer = Materializer(data, context=context)
        try:
            with evaluating("It"):
                return materializer._evaluate_factor(factor, spec, set()).values
        except InputError:
            return None

    def refuse_non_finite(
        self, parts: Iterable[tuple[int, Any]], names: Sequence[str], source: str
    ) -> None:
        """Raise for the first column of a formula that is not finite in some rows.

        Parameters
        ----------
        parts
            Columns of successive rows and the position of the first of these rows.
        names, source
            Names of the columns, and where the formula stands.
        """
        worst = len(names)
        found: list[IntArray] = []
        for start, values in parts:
            rows, columns = _non_finite(values)
            if columns.size and columns.min() < worst:
                worst, found = int(columns.min()), []
            found.append(start + np.unique(rows[columns == worst]))
        if worst < len(names):
            raise InputError(
                f"{source}: column {names[worst]!r} is not finite in rows "
                f"{listing(self.labels[np.concatenate(found)])}. "
                "Check what its transform makes of these values (log of zero?)."
            )

    def codes(self, group: tuple[str, ...]) -> tuple[NDArray[np.int32], list[str]]:
        """Level of each row, shape (n,), and the labels of the observed levels in order."""
        codes, levels = self._column_codes(group[0])
        for column in group[1:]:
            inner, inner_levels = self._column_codes(column)
            both = codes.astype(np.int64) * len(inner_levels) + inner
            pairs, found = np.unique(both, return_inverse=True)
            codes = found.astype(np.int32)
            outer_of, inner_of = np.divmod(pairs, len(inner_levels))
            levels = [
                f"{levels[a]}:{inner_levels[b]}" for a, b in zip(outer_of, inner_of, strict=True)
            ]
        alike = [level for level, count in Counter(levels).items() if count > 1]
        if alike:
            raise InputError(
                f"Different levels of {':'.join(group)!r} print alike: {listing(alike)}. "
                "Rename the levels that hold ':'."
            )
        return codes, levels

    def _column_codes(self, column: str) -> tuple[NDArray[np.int32], list[str]]:
        if column not in self._codes:
            values = self.data[column]
            if isinstance(values.dtype, pd.CategoricalDtype):
                codes = values.cat.codes.to_numpy(dtype=np.int32)
                levels = [str(level) for level in values.cat.categories]
            elif values.dtype.kind in "biuf":
                numbers, inverse = np.unique(np.asarray(values), return_inverse=True)
                codes = inverse.astype(np.int32)
                # Floats may be integers that once had missing values beside them.
                whole = bool(numbers.dtype.kind != "b" and (numbers == np.round(numbers)).all())
                levels = [number_label(number, whole) for number in numbers.tolist()]
            else:
                found, uniques = pd.factorize(values)
                unsorted = [str(level) for level in uniques]
                order = sorted(range(len(unsorted)), key=unsorted.__getitem__)
                rank = np.empty(len(order), dtype=np.int32)
                rank[order] = np.arange(len(order), dtype=np.int32)
                codes, levels = rank[found], [unsorted[i] for i in order]
            self._codes[column] = codes, levels
        return self._codes[column]
