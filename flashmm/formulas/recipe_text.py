"""A DesignRecipe as text, and back.

formulaic's model specs hold code objects; what they need to treat new rows like the old ones is
plain data: the formula, the state of its transforms (the mean that scale() took off, the knots
of bs()) and the categories of its factors. The rest is rebuilt.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from formulaic import Formula, ModelSpec
from formulaic.parser.types import Factor

from flashmm.exceptions import InputError
from flashmm.formulas.recipe import ColumnRecord, DesignRecipe, FormulaRecipe, TermRecipe

__all__ = ["recipe_from_text", "recipe_to_text"]

_MARK = "__flashmm__"


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
                name: [r.kind, [_plain(v) for v in r.levels], r.ordered, r.whole, _plain(r.mean)]
                for name, r in recipe.columns.items()
            },
            "fixed": _formula(recipe.fixed),
            "terms": [[t.name, _formula(t.effects), list(t.group)] for t in recipe.terms],
            "factors": list(recipe.factors),
            "combinations": recipe.combinations.tolist(),
            "counts": recipe.counts.tolist(),
            "offset": None if recipe.offset is None else _formula(recipe.offset),
            "offset_mean": recipe.offset_mean,
        }
    )


def recipe_from_text(text: str) -> DesignRecipe:
    """The inverse of `recipe_to_text`; the context is empty."""
    values = json.loads(text)
    factors = tuple(values["factors"])
    counts = np.array(values["counts"], dtype=np.intp)
    combinations = np.array(values["combinations"], dtype=np.intp)
    return DesignRecipe(
        columns={
            name: ColumnRecord(kind, tuple(map(_restored, levels)), ordered, whole, _restored(mean))
            for name, (kind, levels, ordered, whole, mean) in values["columns"].items()
        },
        fixed=_restored_formula(values["fixed"]),
        terms=tuple(
            TermRecipe(name, _restored_formula(effects), tuple(group))
            for name, effects, group in values["terms"]
        ),
        factors=factors,
        combinations=combinations.reshape(counts.size, len(factors)),
        counts=counts,
        offset=None if values.get("offset") is None else _restored_formula(values["offset"]),
        offset_mean=float(values.get("offset_mean", 0.0)),
    )


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
    }


def _restored_formula(values: dict[str, Any]) -> FormulaRecipe:
    spec = ModelSpec(
        formula=Formula(values["text"]),
        materializer="flashmm",
        na_action="ignore",
        output=values["output"],
        transform_state=_restored(values["transforms"]),
        encoder_state={
            expression: (Factor.Kind(kind), _restored(state))
            for expression, kind, state in values["encoders"]
        },
    )
    return FormulaRecipe(
        values["text"], tuple(values["columns"]), tuple(values["names"]), spec, values["output"]
    )


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


def _restored(value: Any) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value[_MARK], value["value"]
    if kind == "float":
        return float(inner)
    if kind == "dict":
        return {_restored(k): _restored(v) for k, v in inner}
    items = [_restored(item) for item in inner]
    if kind == "tuple":
        return tuple(items)
    return np.array(items, dtype=value["dtype"]).reshape(value["shape"])
