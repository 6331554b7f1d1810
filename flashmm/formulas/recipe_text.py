"""A DesignRecipe as text, and back.

formulaic's model specs hold code objects; what they need to treat new rows like the old ones is
plain data: the formula, the state of its transforms (the mean that scale() took off, the knots
of bs()) and the categories of its factors. The rest is rebuilt. The text may come from anybody:
everything in it is checked, and only `flashmm.formulas.closed_grammar` computes its formulas.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec
from formulaic.parser.types import Factor
from formulaic.transforms import TRANSFORMS
from formulaic.utils.code import sanitize_variable_names

from flashmm.exceptions import InputError, listing
from flashmm.formulas.closed_grammar import check_context_name
from flashmm.formulas.loaded import LoadedFormula, read_formula
from flashmm.formulas.new_data_recipe import ColumnRecord, DesignRecipe, FormulaRecipe, TermRecipe
from flashmm.formulas.summaries import MARK
from flashmm.formulas.times import check_zone

__all__ = ["recipe_from_text", "recipe_to_text"]

_MARK = "__flashmm__"
_TIMES = ("date", "duration", "period")
_KINDS = ("number", "integer", "boolean", "text", "category", *_TIMES)
# Knots of a spline: its matrices are of this size squared.
_MOST_KNOTS = 2000
# Columns that a formula may make for each that it names: before they are counted exactly.
_MOST_COLUMNS = 1000


def recipe_to_text(recipe: DesignRecipe) -> str:
    """The recipe as JSON, without its context.

    Raises
    ------
    InputError
        If a level or a transform's state is not plain data (a date, say).
    """
    return json.dumps(
        {
            "columns": {
                name: [
                    *(r.kind, [_plain(v) for v in r.levels], r.ordered, r.whole, _plain(r.mean)),
                    *((r.of, r.zone) if r.of else ()),
                ]
                for name, r in recipe.columns.items()
            },
            "fixed": _formula(recipe.fixed),
            "terms": [[t.name, _formula(t.effects), list(t.group)] for t in recipe.terms],
            "factors": list(recipe.factors),
            "combinations": recipe.combinations.tolist(),
            "counts": recipe.counts.tolist(),
            "offset": None if recipe.offset is None else _formula(recipe.offset),
            "offset_mean": recipe.offset_mean,
            "context": sorted(_context_names(recipe)),
        }
    )


def recipe_from_text(text: str) -> DesignRecipe:
    """The inverse of `recipe_to_text`; the context is empty.

    Raises
    ------
    InputError
        If the text is no recipe, or its formulas use what a file may not; the message names it.
    """
    try:
        return _recipe(json.loads(text))
    except InputError:
        raise
    except (
        *(AttributeError, IndexError, KeyError, MemoryError, OverflowError),
        *(RecursionError, TypeError, ValueError),
    ) as error:
        raise InputError(
            f"The saved recipe is none that flashmm wrote ({type(error).__name__})."
        ) from None


# ---- writing -----------------------------------------------------------------------------


def _formula(formula: FormulaRecipe) -> dict[str, Any]:
    spec = formula.spec
    return {
        "text": formula.text,
        "columns": list(formula.columns),
        "names": list(formula.names),
        "output": formula.output,
        "transforms": _plain(dict(spec.transform_state)),
        # formulaic keeps the contrasts beside the categories for display only.
        "encoders": [
            [expression, kind.value, _plain({k: v for k, v in state.items() if k != "contrasts"})]
            for expression, (kind, state) in spec.encoder_state.items()
        ],
        "together": list(formula.together),
    }


def _context_names(recipe: DesignRecipe) -> set[str]:
    """Names that the formulas use and that were passed as context."""
    own = {"np": np, "contr": TRANSFORMS["contr"]}  # the same ones are always there
    known = {name for name, value in recipe.context.items() if own.get(name) is not value}
    found: set[str] = set()
    added = [] if recipe.offset is None else [recipe.offset]
    for formula in (recipe.fixed, *(term.effects for term in recipe.terms), *added):
        if formula.loaded is not None:
            found |= formula.loaded.context
            continue
        for factor in (factor for term in formula.spec.formula for factor in term.factors):
            names = {factor.expr}
            if factor.eval_method is Factor.EvalMethod.PYTHON:
                names = set(_names_in(factor.expr, formula.columns))
            found |= (names & known) - set(formula.columns)
    return found


def _names_in(expression: str, columns: tuple[str, ...]) -> Iterator[str]:
    aliases: dict[str, str] = {}
    code = sanitize_variable_names(expression, dict.fromkeys(columns), aliases)
    for node in ast.walk(ast.parse(code, mode="eval")):
        if isinstance(node, ast.Name):
            yield aliases.get(node.id, node.id)


def _plain(value: Any) -> Any:
    """A value as JSON has it; what JSON lacks is marked."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return {_MARK: "float", "value": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {
            _MARK: "array",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "value": [_plain(item) for item in value.ravel().tolist()],
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return {_MARK: "tuple", "value": [_plain(item) for item in value]}
    if isinstance(value, dict):  # keys may be numbers
        return {_MARK: "dict", "value": [[_plain(k), _plain(v)] for k, v in value.items()]}
    raise InputError(f"{value!r} ({type(value).__name__}) cannot be written as text.")


# ---- reading -----------------------------------------------------------------------------


def _recipe(values: dict[str, Any]) -> DesignRecipe:
    columns = {_text(name): _column(*record) for name, record in _mapping(values["columns"])}
    context = frozenset(check_context_name(name) for name in _list(values.get("context", []), str))
    fixed = _restored_formula(values["fixed"], columns, context, "The saved fixed formula")
    terms = []
    for name, effects, group in _list(values["terms"], list):
        source = f"The saved formula of {_text(name)[:80]!r}"
        _check_columns(_list(group, str), columns, source)
        formula = _restored_formula(effects, columns, context, source)
        terms.append(TermRecipe(name, formula, tuple(group)))
    factors = tuple(_list(values["factors"], str))
    _check_columns(factors, columns, "The list of factors")
    counts = np.array([_whole(count) for count in values["counts"]], dtype=np.intp)
    combinations = np.array(
        [[_whole(code) for code in _list(codes, int)] for codes in values["combinations"]],
        dtype=np.intp,
    ).reshape(counts.size, len(factors))
    sizes = [len(columns[name].levels) for name in factors]
    if (combinations < 0).any() or (combinations >= np.array(sizes, dtype=np.intp)).any():
        raise InputError("The saved recipe counts samples at levels that it does not have.")
    offset, mean = values.get("offset"), values.get("offset_mean", 0.0)
    if type(mean) is not float or not np.isfinite(mean):
        raise InputError("The saved recipe holds the mean of an offset that is no number.")
    return DesignRecipe(
        *(columns, fixed, tuple(terms), factors, combinations, counts),
        offset=None
        if offset is None
        else _restored_formula(offset, columns, context, "The saved offset"),
        offset_mean=mean,
    )


def _column(
    kind: Any, levels: Any, ordered: Any, whole: Any, mean: Any, of: Any = "", zone: Any = ""
) -> ColumnRecord:
    if kind not in _KINDS:
        raise InputError(f"The saved recipe holds a column of an unknown kind, {kind!r}.")
    known = tuple(_level(_restored(level)) for level in _list(levels))
    number = _restored(mean)
    if type(number) not in (int, float):
        raise InputError("The saved recipe holds a mean that is no number.")
    if bool(_text(of)) != (kind in _TIMES):
        raise InputError("The saved recipe holds times of no column, or a column of none.")
    if of and not (known and all(type(level) is str for level in known)):
        raise InputError("The saved recipe holds times that are no text.")
    return ColumnRecord(
        *(kind, known, _boolean(ordered), _boolean(whole), float(number)),
        of=of,
        zone=check_zone(_text(zone)),
    )


def _restored_formula(
    values: dict[str, Any],
    columns: Mapping[str, ColumnRecord],
    context: frozenset[str],
    source: str,
) -> FormulaRecipe:
    own = tuple(_list(values["columns"], str))
    _check_columns(own, columns, source)
    text, output = _text(values["text"]), values["output"]
    if output not in ("numpy", "sparse"):
        raise InputError(f"{source} has an unknown output, {output!r}.")
    state = _restored(values["transforms"])
    loaded = read_formula(text, frozenset(own), context, source, _learnt(state, source))
    for expression in loaded.expressions.values():
        unlearnt = expression.unlearnt(state)
        if unlearnt is not None:
            raise InputError(f"{source} lacks what {unlearnt!r} has learnt.")
    _check_state(state, source)
    names = tuple(_list(values["names"], str))
    spec = ModelSpec(
        formula=loaded.formula,
        materializer="flashmm-loaded",
        na_action="ignore",
        output=output,
        transform_state=state,
        encoder_state=dict(
            _encoder(expression, kind, _restored(state), source)
            for expression, kind, state in _list(values["encoders"], list)
        ),
    )
    if not context:
        spec = _tried(loaded, spec, names, columns, source)
    together = tuple(_list(values.get("together", []), str))
    return FormulaRecipe(text, own, names, spec, output, loaded, together)


def _learnt(state: Any, source: str) -> dict[str, Mapping[str, Any]]:
    """What expressions have taken from all samples: expression -> part -> value."""
    if not isinstance(state, dict):
        raise InputError(f"{source} holds states of transforms that are none.")
    found: dict[str, Mapping[str, Any]] = {}
    for key, parts in state.items():
        if isinstance(key, str) and key.startswith(MARK):
            if not isinstance(parts, dict):
                raise InputError(f"{source} holds numbers of {key!r} that are none.")
            for part, value in parts.items():
                if type(part) is not str or not (
                    type(value) in (bool, int, str) or (type(value) is float and np.isfinite(value))
                ):
                    raise InputError(f"{source} holds {str(value)[:80]!r} as {str(part)[:80]!r}.")
            found[key.removeprefix(MARK)] = parts
    return found


def _encoder(expression: Any, kind: Any, state: Any, source: str) -> tuple[str, Any]:
    """What formulaic has noted of the coding of a factor."""
    if not isinstance(state, dict) or not set(state) <= {"categories"}:
        raise InputError(f"{source} holds an unknown coding of {_text(expression)[:80]!r}.")
    for level in _list(state.get("categories", [])):
        _level(level)
    return _text(expression), (Factor.Kind(kind), state)


def _tried(
    loaded: LoadedFormula,
    spec: ModelSpec,
    names: tuple[str, ...],
    columns: Mapping[str, ColumnRecord],
    source: str,
) -> ModelSpec:
    """The spec as the columns of one row complete it, once they are those that it names."""
    row = {name: _example(columns[name], name, source) for name in sorted(loaded.columns)}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # a mean is no level; only the columns matter
            data = pd.DataFrame(row, index=range(1))
            if loaded.width(spec, data) > _MOST_COLUMNS * (1 + len(names)):
                raise InputError(f"it makes many more columns than the {len(names)} it names")
            matrix = loaded.materialise(spec, data, {}, spec.output)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{source} cannot be evaluated: {reason}") from None
    found = tuple(str(name) for name in matrix.model_spec.column_names)
    if found != names:
        raise InputError(
            f"{source} makes the columns {listing(found)}, not {listing(names)} as it says."
        )
    return matrix.model_spec


def _example(record: ColumnRecord, name: str, source: str) -> Any:
    """One value of a column."""
    if record.kind in ("category", *_TIMES):
        kind = pd.CategoricalDtype(list(record.levels), ordered=record.ordered)
        return pd.Series(record.levels[:1], dtype=kind)
    if record.kind == "text":
        if not record.levels:
            raise InputError(f"{source} uses {name!r}, whose levels it does not know.")
        return pd.Series(record.levels[:1], dtype=object)
    if record.kind == "boolean":
        return pd.Series([True])
    return pd.Series(record.levels[:1] or [record.mean])


def _restored(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value[_MARK], value["value"]
    if kind == "float":
        if inner not in ("nan", "inf", "-inf"):
            raise InputError(f"The saved recipe holds {inner!r} where it needs a number.")
        return float(inner)
    if kind == "dict":
        return {_restored(k): _restored(v) for k, v in inner}
    items = [_restored(item) for item in _list(inner)]
    if kind == "tuple":
        return tuple(items)
    dtype = np.dtype(_text(value["dtype"]))
    if kind != "array" or dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(f"The saved recipe holds an unknown {kind!r} of {dtype}.")
    for item in items:
        if type(item) not in (bool, int, float):
            raise InputError(f"The saved recipe holds {item!r} in an array of numbers.")
    return np.array(items, dtype=dtype).reshape([_whole(size) for size in value["shape"]])


def _check_state(state: Any, source: str) -> None:
    """Raise for what no transform learns: anything but numbers, few where they are knots."""
    if not isinstance(state, dict):
        raise InputError(f"{source} holds states of transforms that are none.")

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if type(key) not in (str, int):
                    raise InputError(f"{source} holds the state {key!r}, which is unknown.")
                check(inner)
                if key == "knots" and np.size(inner) > _MOST_KNOTS:
                    raise InputError(f"{source} holds more than {_MOST_KNOTS} knots.")
        elif isinstance(value, (list, tuple)):
            for inner in value:
                check(inner)
        elif value is not None and not isinstance(value, (bool, int, float, np.ndarray)):
            raise InputError(f"{source} holds {value!r} as the state of a transform.")

    check({key: value for key, value in state.items() if not str(key).startswith(MARK)})


# ---- the types of JSON -------------------------------------------------------------------


def _list(value: Any, kind: type | None = None) -> list[Any]:
    if not isinstance(value, list) or (kind and any(type(item) is not kind for item in value)):
        raise InputError("The saved recipe is none that flashmm wrote: a list is missing.")
    return value


def _mapping(value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise InputError("The saved recipe is none that flashmm wrote: a table is missing.")
    return iter(value.items())


def _checked(what: str, kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise InputError(
                f"The saved recipe is none that flashmm wrote: {what} is missing, there is "
                f"{str(value)[:80]!r}."
            )
        return value

    return check


_text = _checked("text", str)
_whole = _checked("a whole number", int)
_boolean = _checked("a truth value", bool)


def _level(value: Any) -> Any:
    if type(value) not in (str, int, float, bool):
        raise InputError(f"The saved recipe holds {str(value)[:80]!r} as a level.")
    return value


def _check_columns(names: Any, columns: Mapping[str, ColumnRecord], source: str) -> None:
    unknown = [name for name in names if name not in columns]
    if unknown:
        raise InputError(f"{source} uses {listing(unknown)}, of which the recipe knows nothing.")
