"""Fixed and random formulas -> Design.

formulaic builds the columns of X and of the effects in Z; `flashmm.formulas.bars` reads the
bars. Names are looked up in the data (and in ``context``), never in the caller's scope.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from formulaic import Formula, SimpleFormula
from formulaic.parser.types import Factor
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.designs.compact import (
    FEW,
    CompactMatrix,
    LayeredMatrix,
    LayerStack,
    compacted,
    many,
    steps,
)
from flashmm.designs.design import INTERCEPT, CovarianceStructure, Design, RandomTerm
from flashmm.exceptions import InputError, check_names, listing, nearest
from flashmm.formulas.along import MOST_EFFECTS, along_a_column
from flashmm.formulas.bars import (
    BarTerm,
    PlainTerm,
    effects_along,
    parse_formula,
    parse_random,
    terms_text,
)
from flashmm.formulas.calls import without_offsets
from flashmm.formulas.coding import check_coding, coded_column, reduced_factors
from flashmm.formulas.new_data_recipe import (
    ColumnRecord,
    DesignRecipe,
    FormulaRecipe,
    TermRecipe,
    record_column,
    with_factors,
)
from flashmm.formulas.rows_in_chunks import FormulaRows, formula_rows
from flashmm.formulas.sample_table import (
    Columns,
    Names,
    check_data,
    cleaned,
    missing_rows,
    refuse_infinite,
)
from flashmm.formulas.structures import Structure
from flashmm.formulas.times import as_times, is_time

__all__ = ["DesignBuild", "build_design"]

RandomFormula: TypeAlias = (
    str | SimpleFormula | Sequence[str | SimpleFormula] | Mapping[str, str | SimpleFormula]
)


# Gives columns of a matrix for some samples.
Rows: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class DesignBuild:
    """A design and the rows of the data that it leaves out.

    Parameters
    ----------
    design
        The design of the n rows kept.
    dropped
        Rows of data left out because a used column is missing there, shape (n_rows,).
    """

    design: Design
    dropped: BoolArray


def build_design(
    fixed: str | SimpleFormula,
    random: RandomFormula | None,
    data: pd.DataFrame,
    *,
    context: Mapping[str, Any] | None = None,
    missing: Literal["raise", "drop"] = "raise",
    known: Collection[str] = (),
) -> DesignBuild:
    """Build X, Z and their labels from formulas and a table of samples.

    Parameters
    ----------
    fixed
        One-sided formula of the fixed effects, e.g. ``"~ 0 + log(libsize) + cls"``. It may hold
        the random effects as bars, ``"~ age + (1 | donor)"``, and ``offset(x)``.
    random
        Random effects: bars (``"(1 + x | g) + (1 | h)"``), a FLASHMM formula whose columns are
        independent with one variance (``"~ 0 + sam"``), a list of these, or a dict whose keys
        name the components. None when ``fixed`` holds the bars.
    data
        One row per sample, n_rows rows.
    context
        Further names that the formulas may use, e.g. functions of your own.
    missing
        ``"raise"`` refuses missing values in the columns used; ``"drop"`` leaves those rows out
        before anything is computed.
    known
        Names of terms or groups whose levels get a known covariance: such terms may have the
        effects and groups of others.

    Returns
    -------
    DesignBuild
        The design and the mask of dropped rows.

    Raises
    ------
    InputError
        If a formula cannot be read, uses a name that is not a column, holds no effects, or
        meets missing or non-finite values; or if ``data`` is not a usable table.

    Examples
    --------
    >>> import pandas as pd
    >>> cells = pd.DataFrame({"age": [1.0, 2.0, 4.0], "donor": ["a", "b", "a"]})
    >>> design = build_design("~ age + (1 | donor)", None, cells).design
    >>> design.coef_names
    ('Intercept', 'age')
    >>> design.structure.column_names
    ('donor[a]', 'donor[b]')
    """
    table = check_data(data)
    if missing not in ("raise", "drop"):
        raise InputError(f"Unknown missing={missing!r}. {nearest(str(missing), ['raise', 'drop'])}")
    plain, text, bars = parse_formula(fixed, "fixed")
    terms: list[BarTerm | PlainTerm] = [*bars]
    if random is not None:
        terms += parse_random(random)
    fixed_text = f"~ {text or '1'}"
    in_fixed = f"`fixed` = {fixed_text!r}"
    plain, offsets = without_offsets(plain, in_fixed)

    names = Names(table, check_names("context", context, "value"))
    names.add_formula(plain, in_fixed)
    if offsets is not None:
        names.add_formula(offsets, in_fixed)
    for term in terms:
        source = f"Random term {term.text!r}"
        if isinstance(term, BarTerm):
            names.add_formula(term.effects, source)
            for column in term.group:
                names.add_column(column, source)
        else:
            names.add_formula(term.formula, source)
    names.check()

    dropped = missing_rows(table, names.columns, missing)
    used = {column: table[column] for column in names.columns}
    labels = table.index
    if dropped.any():
        used = {column: values[~dropped] for column, values in used.items()}
        labels = labels[~dropped]
    kept = pd.DataFrame(  # a copy: functions of the formulas may not reach the caller's data
        {column: cleaned(values, column) for column, values in used.items()},
        index=range(len(labels)),
    )
    refuse_infinite(kept, labels)
    terms, times = _with_times(terms, kept, table)

    columns = Columns(kept, names.context, labels)
    X = formula_rows(columns, plain, in_fixed, "numpy")
    check_coding(X.spec, kept, in_fixed)
    coef_names = tuple(str(name) for name in X.spec.column_names)
    repeated = [name for name, count in Counter(coef_names).items() if count > 1]
    if repeated:
        raise InputError(
            f"{in_fixed} gives several columns the same name: {listing(repeated)}. "
            "Rename the columns of data behind them."
        )

    built = [
        _bar_columns(term, columns, table)
        if isinstance(term, BarTerm)
        else _plain_columns(term, columns)
        for term in terms
    ]
    structure = CovarianceStructure(_name_terms(terms, [block.term for block in built], known))
    offset, noted = None, None
    if offsets is not None:
        held = _offset(columns, offsets, in_fixed)
        offset = held.rows(slice(None)).sum(axis=1)
        noted = offsets, held.spec, float(offset.mean())
    recipe = _recipe(kept, names.context, (plain, X.spec), built, structure, noted, times)
    design = Design(
        X=_fixed_matrix(X, len(kept)),
        Z=_random_matrix([block.rows for block in built], len(kept), structure.q),
        coef_names=coef_names,
        structure=structure,
        fixed=fixed_text,
        random=_random_text(terms),
        recipe=recipe,
        offset=offset,
    )
    return DesignBuild(design, dropped)


def _with_times(
    terms: list[BarTerm | PlainTerm], data: pd.DataFrame, given: pd.DataFrame
) -> tuple[list[BarTerm | PlainTerm], dict[str, ColumnRecord]]:
    """Terms along dates and the like by columns of their text, which are put beside the others.

    Formulas may need the dates themselves. Returns what to note of the columns of text.
    """
    result: list[BarTerm | PlainTerm] = []
    noted: dict[str, ColumnRecord] = {}
    for term in terms:
        if isinstance(term, BarTerm) and term.along and is_time(data[term.along], term.covariance):
            name = f"{term.along}_text"
            while name in given.columns:
                name += "_"
            if name not in noted:
                times = as_times(data[term.along], term.along)
                data[name] = times.text
                levels = tuple(str(label) for label in times.text.categories)
                noted[name] = ColumnRecord(times.kind, levels, of=term.along, zone=times.zone)
            result.append(replace(term, effects=effects_along(name)))
        else:
            result.append(term)
    return result, noted


@dataclass(frozen=True)
class _Block:
    """A random term, what gives its columns of Z for some samples, and how they are made."""

    term: RandomTerm
    rows: Rows
    effects: SimpleFormula
    spec: Any
    group: tuple[str, ...]


def _fixed_matrix(X: FormulaRows, n: int) -> FloatArray | CompactMatrix:
    """X, of many samples in compact form."""
    if not many(n):
        return np.asarray(X.rows(slice(None)))
    if X.coded is not None and X.coded.in_table.size > FEW:
        return X.coded.compact()
    return compacted(X.rows, n)


def _random_matrix(blocks: list[Rows], n: int, q: int) -> sp.csr_array | LayeredMatrix:
    """Z, of many samples in compact form."""

    def rows(here: slice) -> sp.csr_array:
        if not blocks:
            return sp.csr_array((len(range(n)[here]), 0))
        parts = [block(here) for block in blocks]
        Z = sp.csr_array(sp.hstack(parts, format="csr") if len(parts) > 1 else parts[0])
        Z.eliminate_zeros()
        return Z

    if not many(n):
        return rows(slice(None))
    stack = LayerStack(q)
    for here in steps(n):
        stack.add(rows(here))
    return stack.together()


def _recipe(
    data: pd.DataFrame,
    context: Mapping[str, Any],
    fixed: tuple[SimpleFormula, Any],
    blocks: list[_Block],
    structure: CovarianceStructure,
    offset: tuple[SimpleFormula, Any, float] | None,
    times: Mapping[str, ColumnRecord],
) -> DesignRecipe:
    """Note how the columns were made, for new data."""

    def formula(parsed: SimpleFormula, spec: Any, output: Literal["numpy", "sparse"]) -> Any:
        used = Names(data, dict(context))
        used.add_formula(parsed, "")
        names = tuple(str(name) for name in spec.column_names)
        together: tuple[str, ...] = ()
        if any(f.eval_method is Factor.EvalMethod.PYTHON for term in parsed for f in term.factors):
            own = Columns(data[used.columns], dict(context), data.index)
            together = own.of_many_samples(parsed, spec)
        return FormulaRecipe(
            terms_text(parsed), tuple(used.columns), names, spec, output, together=together
        )

    X = formula(*fixed, "numpy")
    terms = tuple(
        TermRecipe(term.name, formula(block.effects, block.spec, "sparse"), block.group)
        for term, block in zip(structure.terms, blocks, strict=True)
    )
    added = None if offset is None else formula(*offset[:2], "numpy")
    parts = [X, *(term.effects for term in terms), *([] if added is None else [added])]
    in_formula = {name for part in parts for name in part.columns}
    recipe = DesignRecipe(
        columns={
            name: times.get(name) or record_column(data[name], in_formula=name in in_formula)
            for name in data.columns
        },
        fixed=X,
        terms=terms,
        factors=(),
        combinations=np.zeros((1, 0), dtype=np.intp),
        counts=np.array([len(data)], dtype=np.intp),
        context=context,
        offset=added,
        offset_mean=0.0 if offset is None else offset[2],
    )
    return with_factors(recipe, data, _coded_columns(X.spec))


def _coded_columns(spec: Any) -> set[str]:
    """Columns that a formula takes for levels: under C(), or in a function that gives text.

    What a condition such as I(x > 2) looks at stays a number.
    """
    found = set()
    for factor, variables in spec.factor_variables.items():
        kind, state = spec.encoder_state.get(factor.expr, (None, {}))
        if kind is None or kind.value != "categorical":
            continue
        name, _ = coded_column(factor.expr)
        condition = not name and set(state.get("categories", [None])) <= {False, True}
        if not condition:
            found |= {name} if name else {str(variable) for variable in variables}
    return found


def _offset(columns: Columns, offsets: SimpleFormula, source: str) -> FormulaRows:
    """The offsets of a formula, one column each."""
    made = formula_rows(columns, offsets, source, "numpy")
    kinds = [kind.value for kind, _ in made.spec.encoder_state.values()]
    if "categorical" in kinds or len(made.spec.column_names) != len(offsets):
        raise InputError(f"{source}: an offset must hold one number per sample.")
    return made


def _bar_columns(term: BarTerm, columns: Columns, given: pd.DataFrame) -> _Block:
    """Build the columns of ``(effects | group)``, level by level, shape (n, L * s)."""
    source = f"Random term {term.source!r}"
    effects = formula_rows(columns, term.effects, source, "sparse")
    spec = effects.spec
    check_coding(spec, columns.data, source)
    names = tuple(str(name) for name in spec.column_names)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise InputError(
            f"{source}: the effects must have columns with distinct names, not {listing(names)}."
        )
    if term.split:
        kinds = [kind.value for kind, _ in spec.encoder_state.values()]
        group = term.group_text
        if "categorical" in kinds:
            raise InputError(
                f"{source}: `||` keeps the correlations between the levels of a factor "
                f"({term.effects_text.removeprefix('0 + ')}). For effects without correlations "
                f"write diag({term.effects_text} | {group})."
            )
        if len(names) > 1:
            raise InputError(
                f"{source}: {term.effects_text.removeprefix('0 + ')} has {len(names)} columns, "
                f"which `||` would correlate. Write diag({term.effects_text} | {group})."
            )
    codes, levels = columns.codes(term.group)
    random_term = RandomTerm(
        name=term.name or term.group_text,
        group=term.group_text,
        levels=tuple(levels),
        effects=names,
        covariance=_covariance(term, len(names), source),
    )
    if term.along:
        values = columns.data[term.along]
        random_term = along_a_column(random_term, values, given[term.along], term.along, source)
    turn = None if random_term.turn is None else sp.csr_array(random_term.turn)

    def rows(samples: slice) -> sp.csr_array:
        if effects.dense is not None and turn is None:
            return _by_level(effects.dense[samples], codes[samples], len(levels))
        own = effects.rows(samples)
        entries = (own if turn is None else sp.csr_array(own) @ turn).tocoo()
        position = codes[samples][entries.row] * len(names) + entries.col
        return sp.csr_array(
            (entries.data, (entries.row, position.astype(entries.row.dtype))),
            shape=(entries.shape[0], len(levels) * len(names)),
        )

    return _Block(random_term, rows, term.effects, spec, term.group)


def _by_level(effects: FloatArray, codes: NDArray[np.int32], levels: int) -> sp.csr_array:
    """Rows of Z for dense effects (n_b, s) of samples whose levels are ``codes`` (n_b,)."""
    n, s = effects.shape
    position = codes[:, None] * s + np.arange(s, dtype=codes.dtype)
    start = np.arange(0, n * s + 1, s, dtype=codes.dtype)
    return sp.csr_array((effects.ravel(), position.ravel(), start), shape=(n, levels * s))


def _covariance(term: BarTerm, effects: int, source: str) -> Structure:
    """The structure of a term with so many effects; of one effect all are the same."""
    if term.along:
        return term.covariance
    if effects == 1 or (effects == 2 and term.covariance == "csh"):
        return "full"
    if term.covariance == "csh" and effects > MOST_EFFECTS:
        raise InputError(
            f"{source} has {effects} effects with variances of their own; up to {MOST_EFFECTS} are "
            "possible. Write cs(... | g) for one variance."
        )
    return term.covariance


def _plain_columns(term: PlainTerm, columns: Columns) -> _Block:
    """Build the columns of a FLASHMM formula, one variance for all of them."""
    source = f"Random term {term.text!r}"
    terms = list(term.formula)
    group = term.source.removeprefix("0 + ")
    bare = None
    if all(len(t.factors) == 1 for t in terms):
        factors = [t.factors[0] for t in terms if t.degree > 0]
        bare = factors[0].expr if len(factors) == 1 else None
    if bare is not None and bare in columns.data.columns:
        values = columns.data[bare]
        if values.dtype.kind in "iu" and values.nunique() > 1:
            raise InputError(
                f"{source}: {bare!r} holds integers, so the formula takes it for one numeric "
                f"effect. If it names groups, write '~ 0 + C({bare})' or '(1 | {bare})'; if it is "
                "a number, convert the column to float."
            )
    made = formula_rows(columns, term.formula, source, "sparse")
    spec = made.spec
    without = list(reduced_factors(spec))
    if without:
        raise InputError(
            f"{source}: {listing(without)} would lose its first level, and the others would "
            "differ from it. Give each factor a component of its own, as a list "
            "['~ 0 + a', '~ 0 + b'] or bars '(1 | a) + (1 | b)'; write a:b for combinations."
        )
    names = tuple(str(name) for name in spec.column_names)
    if bare is not None and len(terms) == 1 and bare in spec.encoder_state:
        categories = spec.encoder_state[bare][1].get("categories", [])
        levels = tuple(str(category) for category in categories)
        # Custom contrasts have other columns than the levels.
        if names == tuple(f"{bare}[{level}]" for level in levels):
            names, group = levels, bare
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise InputError(
            f"{source}: the columns must have distinct names, not {listing(repeated or names)}."
        )
    random_term = RandomTerm(term.name or group, group, names, (INTERCEPT,), "identity")
    if group != bare or bare not in columns.data.columns:
        return _Block(random_term, made.rows, term.formula, spec, ())
    # One effect for each level of a column, as (1 | column) has.
    one = Formula("1")
    spec = formula_rows(columns, one, source, "sparse").spec
    return _Block(random_term, made.rows, one, spec, (bare,))


def _name_terms(
    terms: list[BarTerm | PlainTerm], built: list[RandomTerm], known: Collection[str] = ()
) -> tuple[RandomTerm, ...]:
    """Give each term a name of its own: the group, or ``g[x]`` when others share it."""
    owned = Counter(
        (term.group, effect)
        for source, term in zip(terms, built, strict=True)
        if not (source.name and source.name in known)
        for effect in term.effects
    )
    twice = [f"{effect} of {group}" for (group, effect), count in owned.items() if count > 1]
    if twice:
        hint = ", or give each but one a known covariance by its own name" if known else ""
        raise InputError(
            f"`random` holds the same effect more than once: {listing(twice)}. Remove one{hint}."
        )
    shared = Counter(term.group for term in built)
    named = []
    for source, term in zip(terms, built, strict=True):
        name = term.name
        if isinstance(source, BarTerm) and not source.name and shared[term.group] > 1:
            label = source.effects_text.removeprefix("0 + ")
            if source.along and (term.group, label) in owned:  # beside a slope of the same times
                label = f"{source.covariance}({label})"
            name = term.group if label == "1" else f"{term.group}[{label}]"
        named.append(replace(term, name=name))
    repeated = [name for name, count in Counter(t.name for t in named).items() if count > 1]
    if repeated:
        raise InputError(
            f"Two random terms are called {listing(repeated)}. Name the components with a dict."
        )
    return tuple(named)


def _random_text(terms: list[BarTerm | PlainTerm]) -> str:
    named = any(term.name for term in terms)
    texts = [f"{term.name}: {term.text}" if term.name else term.text for term in terms]
    bars_only = not named and all(isinstance(term, BarTerm) for term in terms)
    return (" + " if bars_only else ", ").join(texts)
