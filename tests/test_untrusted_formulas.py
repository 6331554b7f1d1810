"""A saved result runs no code: formulas of a file use a closed list, nothing else is computed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from test_predictions import samples

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.formulas import closed_grammar as module
from flashmm.formulas.build import build_design
from flashmm.formulas.closed_grammar import read_expression
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text
from flashmm.storage.checksum import fingerprint

MARKER = "flashmm_marker"  # what an attack would set


def fit(fixed="~ log(k) + f + scale(x)", random="(1 + x | g)", **options):
    data = samples()
    Y = np.random.default_rng(1).normal(size=(2, len(data)))
    model = fm.MultiLMM.from_formula(fixed, random, data, Y, **options)
    return data, model.fit(parameter_space="psd")


def rewritten(path, change) -> None:
    """Change the recipe in a file and make its checksum right again."""
    ds = xr.load_dataset(path, engine="h5netcdf")
    text = change(str(ds["recipe"].to_numpy()[0]))
    ds = ds.assign(recipe=("recipes", np.array([text], dtype=object)))
    del ds.attrs["flashmm_checksum"]
    ds.attrs["flashmm_checksum"] = fingerprint(ds)
    ds.to_netcdf(path, engine="h5netcdf")


ATTACKS = {
    # text of a factor: what the message must name
    f"print({MARKER!r})": "print",
    "open('flashmm_marker', 'w')": "open",
    f"setattr(np, {MARKER!r}, 1)": "setattr",
    f"exec('import numpy; numpy.{MARKER} = 1')": "exec",
    "eval('1')": "eval",
    "__import__('os')": "__import__",
    "I(__import__('os').getcwd())": "getcwd",
    "getattr(k, 'mean')": "getattr",
    "k.mean()": "k.mean",
    "k.__class__": "k.__class__",
    "k.values": "k.values",
    "().__class__.__bases__[0].__subclasses__()": "__subclasses__",
    "np.load('x')": "np.load",
    "np.save('x', k)": "np.save",
    "np.memmap('x')": "np.memmap",
    "np.fromfile('x')": "np.fromfile",
    "np.zeros(1000000000)": "np.zeros",
    "np.tile(k, 1000000000)": "np.tile",
    "np.lib.npyio.os.getcwd()": "getcwd",
    "np.log.__call__(k)": "__call__",
    "np.log(k, k)": "2 arguments",
    "np.log(k, out=k)": "out",
    "np.log(k, where=k)": "where",
    "np.frompyfunc(print, 1, 1)(k)": "call",
    "np": "np",
    "contr": "contr",
    "contr.sum.__init__": "contr.sum.__init__",
    "log": "log",
    "log.at(k, 0)": "log.at",
    "k[0]": "subscript",
    "k[k.argmax()]": "subscript",
    "[k for k in [1]][0]": "subscript",
    "[x for x in [k]]": "ListComp",
    "I({x for x in [k]})": "SetComp",
    "I({x: x for x in [k]})": "DictComp",
    "sum(x for x in [k])": "sum",
    "(lambda: k)()": "lambda",
    "I(lambda: k)": "lambda",
    "I(f'{k.mean()}')": "f-string",
    "I((y := k))": "assignment",
    "I(k if k is k else k)": "if",
    "I(k and k)": "and",
    "I(not k)": "not",
    "I(*[k])": "*",
    "I(**{'data': k})": "**",
    "I(k, _state={})": "_state",
    "scale(k, _state={})": "_state",
    "scale(k, _context=k)": "_context",
    "log(x=k, y=k)": "y",
    "C(k, contrasts=print)": "print",
    "C(k, __class__=1)": "__class__",
    "C(k, levels=[print])": "list",
    "C(k, levels=[x for x in k])": "ListComp",
    "C(k, levels={1, 2})": "Set",
    "hashed(k, levels=4, hash_func=print)": "hash_func",
    "hashed(k, levels=1000000000)": "levels",
    "poly(k, 1000000000)": "degree",
    "poly(k, degree=10**9)": "degree",
    "poly(k, degree=k)": "degree",
    "bs(k, df=1000000000)": "df",
    "bs(k, degree=1000000)": "degree",
    "cr(k, df=1000000000)": "df",
    "round(k, 1000000000)": "decimals",
    "np.round(k, 1000000000)": "decimals",
    "Q('nothing')": "nothing",
    "Q(k)": "Q",
    "I(k ^ 2)": "^",
    "I(k << 1000000000)": "<<",
    "I(1 >> k)": ">>",
    "I(k @ k)": "@",
    "I(k is k)": "comparison",
    "I(k in [1])": "comparison",
    "I(1 < k < 2)": "comparison",
    "I(1j)": "complex",
    "I(b'x')": "bytes",
    "I(...)": "ellipsis",
    "I(None.x)": "None.x",
    "I('%1000000000d' % unknown)": "unknown",
    "breakpoint()": "breakpoint",
    "input()": "input",
    "globals()": "globals",
    "vars(k)": "vars",
    "type('x', (), {})": "type",
    "isinstance(k, k)": "isinstance",
    "help(k)": "help",
    "exit()": "exit",
    "unknown(k)": "unknown",
    "unknown + k": "unknown",
    "await_(k)": "await_",
}


@cache
def recipe_text(fixed="~ log(k) + f + scale(x)", random="(1 + x | g)") -> str:
    return recipe_to_text(build_design(fixed, random, samples()).design.recipe)


def with_factor(text: str, attack: str) -> str:
    """A recipe with something else in place of the factor log(k)."""
    factor = attack if attack.endswith(")") and attack[0] not in "([{" else f"{{{attack}}}"
    values = json.loads(text)
    values["fixed"]["text"] = values["fixed"]["text"].replace("log(k)", factor)
    return json.dumps(values)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_formula_of_a_file_may_not(attack):
    with pytest.raises(InputError) as caught:
        recipe_from_text(with_factor(recipe_text(), attack))
    assert ATTACKS[attack].lower() in str(caught.value).lower()
    assert not hasattr(np, MARKER)
    assert not Path("flashmm_marker").exists()


def test_files_are_refused_when_they_are_loaded(tmp_path):
    _, result = fit()
    attacks = [f"setattr(np, {MARKER!r}, 1)", "k.mean()", "open('flashmm_marker', 'w')"]
    for attack in attacks:
        result.save(tmp_path / "r.nc")
        rewritten(tmp_path / "r.nc", lambda text, attack=attack: with_factor(text, attack))
        with pytest.raises(InputError, match=ATTACKS[attack]):
            fm.MultiLMMResults.load(tmp_path / "r.nc")
        assert not hasattr(np, MARKER)
        assert not Path("flashmm_marker").exists()


@pytest.mark.parametrize("attack", ["print(k)", "k.mean()", "open('x')"])
@pytest.mark.parametrize("place", ["everywhere", "random", "encoders", "transforms", "names"])
def test_wherever_it_stands(attack, place):
    def change(text):
        if place == "everywhere":
            return text.replace("log(k)", attack)
        values = json.loads(text)
        effects = values["terms"][0][1]
        if place == "random":
            effects["text"] = effects["text"].replace("log(k)", attack)
        elif place == "encoders":
            effects["encoders"][0][2] = {"__flashmm__": "dict", "value": [["contrasts", attack]]}
        elif place == "transforms":
            effects["transforms"]["value"][0][1]["value"][1][1] = attack
        else:
            effects["names"][0] = attack
        return json.dumps(values)

    with pytest.raises(InputError):
        recipe_from_text(change(recipe_text("~ x", "(0 + log(k) + scale(x) | g)")))


def test_nothing_of_a_file_reaches_eval(tmp_path, monkeypatch):
    data, result = fit("~ log(k) + C(f, contr.sum) + scale(x) + {x**2}")
    expected = result.predict(data, level="conditional")
    means = result.marginal_means("f").to_frame()
    result.save(tmp_path / "r.nc")

    def refuse(*args, **kwargs):
        raise AssertionError("formulaic evaluates the text of a file")

    monkeypatch.setattr("formulaic.materializers.base.stateful_eval", refuse)
    monkeypatch.setattr("formulaic.utils.stateful_transforms.stateful_eval", refuse)
    loaded = fm.MultiLMMResults.load(tmp_path / "r.nc")
    xr.testing.assert_allclose(loaded.predict(data, level="conditional"), expected, rtol=1e-12)
    pd.testing.assert_frame_equal(loaded.marginal_means("f").to_frame(), means)
    with pytest.raises(InputError, match="evaluates the text"):
        result.predict(data)  # what is not from a file goes the usual way


def test_no_module_that_reads_files_calls_eval():
    for path in Path(module.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path


@pytest.mark.parametrize(
    "text",
    [
        "(x + k)**50",
        "x * k",
        "x / k",
        "(x + k)",
        "x ~ k",
        "x | k",
        "x %in% k",
        "[x ~ k]",
        ".",
        "x - k",
        "1 + x\\k",
        "nothing",
        "`no column`",
        "log(k",
        "{k",
        "'",
        "",
        "log(k)log(k)",
    ],
)
def test_formulas_are_sums_of_products(text):
    recipe = json.loads(recipe_text("~ x + k", "(1 | g)"))
    recipe["fixed"]["text"] = text
    with pytest.raises(InputError):
        recipe_from_text(json.dumps(recipe))


# ---- names that the user passes ----------------------------------------------------------


def test_context_is_declared_and_comes_from_the_reader_alone(tmp_path):
    context = {"twice": lambda v: 2 * v, "shift": 3.0, "unused": print}
    data, result = fit("~ twice(x) + {k + shift}", context=context)
    expected = result.predict(data)
    result.save(tmp_path / "r.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "r.nc")
    with pytest.raises(InputError, match=r"'(twice|shift)' is not defined"):
        loaded.predict(data)
    xr.testing.assert_allclose(loaded.predict(data, context=context), expected, rtol=1e-12)
    loaded.save(tmp_path / "again.nc")
    again = fm.MultiLMMResults.load(tmp_path / "again.nc")
    xr.testing.assert_allclose(again.predict(data, context=context), expected, rtol=1e-12)
    recipe = json.loads(recipe_to_text(result.recipe))
    assert recipe["context"] == ["shift", "twice"]


@pytest.mark.parametrize(
    "name", ["open", "print", "__import__", "_x", "eval", "np", "contr", "a.b", "", 3, None]
)
def test_names_that_no_context_can_have(name):
    recipe = json.loads(recipe_text("~ x + k", "(1 | g)"))
    recipe["context"] = [name]
    with pytest.raises(InputError):
        recipe_from_text(json.dumps(recipe))


def test_a_declared_name_is_not_looked_up_in_python():
    """A file may declare a name; it stays unknown until the reader passes it."""
    values = json.loads(with_factor(recipe_text(), "os(k)"))
    values["context"] = ["os"]
    recipe = recipe_from_text(json.dumps(values))
    with pytest.raises(InputError, match="'os' is not defined"):
        recipe.fixed_rows(samples())


def test_columns_called_like_functions():
    data = samples().rename(columns={"x": "open", "k": "log", "f": "np"})
    design = build_design("~ open + log + np + np:open", "(1 | g)", data).design
    recipe = recipe_from_text(recipe_to_text(design.recipe))
    np.testing.assert_allclose(recipe.fixed_rows(data), design.X, rtol=1e-12)
    values = read_expression("np.log(np) + open", frozenset({"np", "open"}))
    assert values.value({"np": np.ones(2), "open": np.ones(2)}, {}, {}).tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="calls 'open'"):
        read_expression("open('x')", frozenset({"open"}))


# ---- what formulas may ------------------------------------------------------------------


LEGITIMATE = [
    "~ log(k) + log2(k) + log10(k) + exp(x)",
    "~ scale(x) + center(x):f + standardize(x)",
    "~ poly(x, 3) + poly(k, 2, raw=True)",
    "~ bs(x, df=5) + cs(k, df=3)",
    "~ cr(x, df=4, constraints='center') + cc(x, df=3)",
    "~ C(k) + C(f, contr.sum):x",
    "~ C(f, Treatment('b')) + C(k, contr.helmert)",
    "~ C(f, contr.treatment('c')) + C(c, levels=['lo', 'hi'])",
    "~ C(f, contr.poly) + C(k, {'late': [0, 0, 1]})",
    "~ np.log(k + 1) + np.sqrt(k) + np.where(x > 0, x, 0)",
    "~ I(x**2) + I(k**2) + {x * 2} + I(-x / (k + 1.5))",
    "~ I((x > 0) * x) + I(np.maximum(x, -1)) + np.clip(x, -1, 1)",
    "~ abs(x) + round(x, 1) + I(x % 2) + I(x // 2)",
    "~ hashed(f, levels=4) + x",
    "~ Q('k') + `x`:f + lag(x, 0)",
    "~ scale(log(k)) + scale(x, center=False) + I(scale(x)**2)",
    "~ 0 + f:c + f:scale(x)",
    "~ I(x * np.pi) + I(2**k) + I(x + 1e-3)",
]


@pytest.mark.parametrize("fixed", LEGITIMATE)
def test_loaded_formulas_make_the_same_columns(fixed):
    data = samples()
    random = ["(1 + scale(x) | g)", "(0 + log(k) | h)"]
    design = build_design(fixed, random, data).design
    text = recipe_to_text(design.recipe)
    recipe = recipe_from_text(text)
    assert json.loads(recipe_to_text(recipe))["fixed"]["text"] == json.loads(text)["fixed"]["text"]
    for rows in (data, data.iloc[[41, 3, 3, 17]]):
        np.testing.assert_array_equal(recipe.fixed_rows(rows), design.recipe.fixed_rows(rows))
        ours, theirs = (
            r.random_rows(rows, design.structure, known=True).Z.toarray()
            for r in (recipe, design.recipe)
        )
        np.testing.assert_array_equal(ours, theirs)
    again = recipe_from_text(recipe_to_text(recipe))
    np.testing.assert_array_equal(again.fixed_rows(data), recipe.fixed_rows(data))


def test_names_in_backticks():
    data = samples().rename(columns={"x": "my x", "k": "1st"})
    design = build_design("~ scale(`my x`) + log(`1st`) + {`my x` * `1st`}", "(1 | g)", data).design
    recipe = recipe_from_text(recipe_to_text(design.recipe))
    np.testing.assert_allclose(recipe.fixed_rows(data.iloc[:5]), design.X[:5], rtol=1e-12)


def test_loaded_results_test_their_terms(tmp_path):
    _, result = fit("~ scale(x) * f + C(k, contr.sum)")
    result.save(tmp_path / "r.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "r.nc")
    xr.testing.assert_allclose(loaded.anova().ds, result.anova().ds)


def test_formulas_that_a_file_may_not_hold_leave_matrices(tmp_path):
    data, result = fit("~ x.clip(-1, 1) + f")
    result.save(tmp_path / "r.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "r.nc")
    with pytest.raises(InputError, match="do not know how X and Z are made"):
        loaded.predict(data)
    rows = result.recipe.fixed_rows(data)
    xr.testing.assert_allclose(loaded.predict(X=rows), result.predict(X=rows))


# ---- size ----------------------------------------------------------------------------------


def test_huge_powers_cost_nothing():
    x = frozenset({"x"})
    column = {"x": np.array([1, 2, 3])}
    for text in ("x + 9**9**9", "x * 9**9**9**9", "x**(9**9)", f"x + {10**300}", "x + 10**-400"):
        value = read_expression(text, x).value(column, {}, {})
        assert value.dtype == np.float64
    np.testing.assert_array_equal(read_expression("x**3", x).value(column, {}, {}), [1, 8, 27])
    with pytest.raises(InputError, match="text"):
        read_expression("'%999999999d' % x", x).value(column, {}, {})
    with pytest.raises(InputError, match="text"):
        read_expression("'x' * 999999999", x).value(column, {}, {})
    letters = {"x": pd.Series(["a", "b"], dtype=object)}
    for text in ("x * 999999999", "np.multiply(x, 999999999)", "-x"):
        with pytest.raises(InputError, match="text"):
            read_expression(text, x).value(letters, {}, {})
    with pytest.raises(InputError, match="conditions"):
        read_expression("x & x", x).value(column, {}, {})


DEEP = {
    "parentheses": "(" * 50000 + "x" + ")" * 50000,
    "signs": "-" * 99000 + "x",
    "powers": "x" + "**x" * 30000,
    "sums": "x" + "+x" * 40000,
    "calls": "log(" * 20000 + "x" + ")" * 20000,
    "brackets": "[" * 90000,
    "not": "not " * 20000 + "x",
    "lambdas": "lambda:" * 10000 + "x",
    "attributes": "x" + ".a" * 40000,
    "calls of calls": "x" + "()" * 40000,
    "comparisons": "x" + "<x" * 40000,
    "conditions": "x if x else " * 7000 + "x",
    "a long number": "9" * 90000,
    "long text": "x" * 1000000,
    "backticks": "`" * 99999,
    "null": "x" + chr(0),
}
SCRIPT = """
import json, sys, time
sys.path.insert(0, {root!r})
from flashmm.exceptions import InputError
from flashmm.formulas.closed_grammar import read_expression
from flashmm.formulas.loaded import read_formula
x = frozenset("x")
for kind, text in json.load(sys.stdin).items():
    for read in (
        lambda: read_expression(text, x),
        lambda: read_formula("1 + I(" + text + ")", x, frozenset(), "It"),
        lambda: read_formula(text, x, frozenset(), "It"),
    ):
        start = time.perf_counter()
        try:
            read()
        except InputError:
            print(kind, "refused", sep=": ", flush=True)
        assert time.perf_counter() - start < 100
"""


def test_deep_and_long_text_ends_no_interpreter():
    """In a process of its own: the text that is read could end it."""
    script = SCRIPT.format(root=str(Path(fm.__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(DEEP),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
    assert done.stdout.splitlines() == [f"{kind}: refused" for kind in DEEP for _ in range(3)]


def test_products_of_many_levels_are_not_made():
    """A few thousand levels in three factors would be more columns than memory holds."""
    values = json.loads(recipe_text("~ 0 + f:c:h", "(1 | g)"))
    many = [f"level {i}" for i in range(3000)]
    for name in "fch":
        values["columns"][name][1] = many
    for encoder in values["fixed"]["encoders"]:
        encoder[2]["value"] = [["categories", many]]
    with pytest.raises(InputError, match="many more columns"):
        recipe_from_text(json.dumps(values))


def test_a_recipe_nested_without_end():
    for text in ("[" * 100_000, '{"a":' * 100_000, "nonsense", "3", "null", '"text"', "[]", "{}"):
        with pytest.raises(InputError):
            recipe_from_text(text)


@given(st.text(alphabet="xk()[]{}.,:+-*/'\"~|^%&=<>!@#_0123456789 \\`lognpQCI", max_size=40))
def test_any_text_is_read_or_refused(text):
    columns = frozenset({"x", "k"})
    try:
        expression = read_expression(text, columns)
    except InputError:
        return
    for node in ast.walk(expression.tree):
        assert not isinstance(
            node, (ast.Subscript, ast.Lambda, ast.JoinedStr, ast.NamedExpr, ast.Starred)
        )
