"""Imports run one way, in the order of the flow, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import flashmm

PACKAGE = Path(flashmm.__file__).parent

# A room may import from itself and from the rooms above it in this list; rooms on one floor do
# not know of each other. formula -> design -> statistics -> likelihood -> solver -> results.
FLOORS = [
    ("exceptions",),
    ("progress", "slips"),
    ("citation",),
    ("arrays", "storage"),
    ("sources",),
    ("designs",),
    ("formulas",),
    ("stats",),
    ("likelihood",),
    ("solvers",),
    ("inference",),
    ("plots",),
    ("results",),
    ("datasets", "simulate", "constructors"),
    ("counts",),
    ("model",),
    ("__init__",),
]
FLOOR_OF = {name: depth for depth, names in enumerate(FLOORS) for name in names}

# Rooms (or single modules) that may use a heavy package.
EDGE = {
    "pandas": {
        *("formulas", "sources", "results", "constructors", "simulate", "counts", "datasets"),
        *("arrays.numeric", "arrays.labels", "arrays.foreign_frames"),
        *("designs.from_arrays", "designs.per_sample"),
        *("designs.covariances", "designs.pedigrees", "designs.relationship_files"),
        *("stats.algebra", "stats.checks", "stats.selection", "stats.from_formulas"),
        *("stats.grouping", "stats.groups"),
        *("solvers.start", "inference.contrasts"),
    },
    "formulaic": {"formulas"},
    "xarray": {
        *("results", "storage", "simulate.power"),
        *("sources.dataarrays", "sources.make"),
        "stats.stored",
        "stats.stored_groups",
        "stats.stored_own_rows",
    },
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def nodes(module: str) -> tuple[ast.AST, ...]:
    """Nodes of a module that say what it imports."""
    kept = (ast.If, ast.Import, ast.ImportFrom, ast.Call)
    return tuple(node for node in ast.walk(parsed(module)) if isinstance(node, kept))


def named(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def type_checking_lines(module: str) -> set[int]:
    """Lines inside ``if TYPE_CHECKING:`` blocks: never run."""
    return {
        line
        for node in nodes(module)
        if isinstance(node, ast.If) and named(node.test, "TYPE_CHECKING")
        for line in range(node.lineno, (node.body[-1].end_lineno or node.lineno) + 1)
    }


@cache
def imports(module: str, *, typing: bool = False) -> frozenset[str]:
    """Modules that a module imports, inside functions too; for types alone when ``typing``."""
    skipped = set() if typing else type_checking_lines(module)
    found = set()
    for node in nodes(module):
        if getattr(node, "lineno", None) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name.removeprefix("flashmm.") in MODULES else node.module)
        elif isinstance(node, ast.Call) and named(node.func, "lazy"):
            found |= {x.value for x in node.args[:1] if isinstance(x, ast.Constant)}
    return frozenset(found)


def internal(module: str) -> set[str]:
    """Modules of the package that a module imports, those for types included."""
    names = {name.removeprefix("flashmm.") for name in imports(module, typing=True)}
    return {name for name in names if name in MODULES} - {module}


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def test_the_reader_of_imports_reads():
    assert {"designs.design", "exceptions"} <= internal("formulas.build")
    assert "storage.files" in internal("stats.manners")
    assert "xarray" in imports("stats.summary_stats", typing=True)  # for type checking only
    assert "xarray" not in imports("stats.summary_stats")


def test_modules_of_the_package_need_no_guard():
    # Imports run one way, so what types alone need can be imported like the rest.
    for module in set(MODULES) - {"__init__"}:
        guarded = imports(module, typing=True) - imports(module)
        assert not {name for name in guarded if name.startswith("flashmm.")}, module


def test_the_reader_of_imports_reads_what_is_imported_later():
    assert {"scipy.stats", "scipy.optimize"} <= imports("inference.moderation")


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} == set(FLOOR_OF)


def test_imports_follow_the_flow():
    wrong = [
        f"{module} imports {name}, which is not above it"
        for module in MODULES
        for name in internal(module)
        if room(name) != room(module) and FLOOR_OF[room(name)] >= FLOOR_OF[room(module)]
    ]
    assert not wrong


def test_modules_do_not_import_each_other_in_circles():
    """Imports for type checking count: a circle of types is a circle of thoughts."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for name in sorted(internal(module)):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_no_import_hides_in_a_function():
    """Optional packages alone are imported where they are used."""
    for module in MODULES:
        functions = [
            range(node.lineno, (node.end_lineno or node.lineno) + 1)
            for node in ast.walk(parsed(module))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
        for node in nodes(module):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flashmm"):
                assert not any(node.lineno in lines for lines in functions), (module, node.module)


def test_nothing_imports_the_model():
    assert {module for module in MODULES if "model" in internal(module)} == {"__init__"}


@pytest.mark.parametrize("package", EDGE)
def test_heavy_packages_stay_at_the_edge(package):
    users = {
        module
        for module in MODULES
        if any(name.split(".")[0] == package for name in imports(module))
    }
    allowed = EDGE[package]
    assert {name for name in users if {name, room(name)}.isdisjoint(allowed)} == set()
    idle = {name for name in allowed if not any(name in (user, room(user)) for user in users)}
    assert idle == set()


def test_public_names_exist_and_are_all_of_them():
    assert sorted(flashmm.__all__) == flashmm.__all__
    for name in flashmm.__all__:
        assert getattr(flashmm, name) is not None
    assert set(dir(flashmm)) == {*flashmm.__all__, "__version__"}


def test_modules_that_moved_are_found_where_the_docs_of_0_1_named_them():
    for name, member in [
        ("formula", "build_design"),
        ("schema", "describe"),
        ("solvers", "within"),
        ("solvers.status", "Status"),
    ]:
        module = importlib.import_module(f"flashmm.{name}")
        assert getattr(module, member).__module__.startswith("flashmm.")


def run_python(code: str) -> str:
    """What a new process prints, stripped."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_what_takes_long_to_import_waits_for_its_first_use():
    code = """if True:
        import sys
        import flashmm as fm
        heavy = {"numpy", "scipy", "pandas", "xarray", "formulaic", "narwhals", "anndata", "tqdm"}
        print(sorted(heavy & set(sys.modules)))
        names = set(dir(fm))
        assert {"MultiLMM", "simulate", "power", "voom", "__version__"} <= names
        import numpy as np
        Y = np.random.default_rng(0).normal(size=(3, 20))
        donor = [f"d{i}" for i in range(5)] * 4
        result = fm.MultiLMM.from_formula(
            "~ x", "(1 | g)", data={"x": np.arange(20.0), "g": donor}, Y=Y
        ).fit(parameter_space="psd")
        result.t_test("x", df="satterthwaite").top_table(), result.summary()
        slow = {"scipy.stats", "scipy.optimize", "anndata", "matplotlib", "flashmm.simulate"}
        print(sorted(slow & set(sys.modules)))
        assert set(dir(fm)) == names
    """
    assert run_python(code) == "[]\n[]"


def test_rooms_and_moved_modules_are_attributes_without_an_import_of_their_own():
    code = """if True:
        import flashmm
        assert flashmm.simulate.rnaseq and flashmm.results.summary and flashmm.exceptions
        assert flashmm.formula.build_design.__module__ == "flashmm.formulas.build"
        assert flashmm.schema.describe.__module__ == "flashmm.storage.schema"
        from flashmm.formula import build_design
        from flashmm import __version__, power
        assert callable(power) and isinstance(__version__, str)
        for wrong in ("lmm", "_hidden", "__wrapped__"):
            assert not hasattr(flashmm, wrong), wrong
            assert not hasattr(flashmm.formula, wrong), wrong
    """
    assert not run_python(code)


def test_public_names_are_those_of_their_homes():
    """What a type checker reads is what runs."""
    tree = parsed("__init__")
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("flashmm.")
        for alias in node.names
    }
    assert {f"flashmm.{home}" for home in flashmm._HOMES.values()} == set(typed.values()) - {
        "flashmm.arrays.lazy"
    }
    assert {name: f"flashmm.{home}" for name, home in flashmm._HOMES.items()} == {
        name: home for name, home in typed.items() if name != "lazy"
    }
    assert set(flashmm._HOMES) | {"datasets", "simulate"} == set(flashmm.__all__)


def test_slow_packages_wait_in_every_module():
    """``from flashmm.inference import tails`` has the tails; `flashmm.arrays.lazy` the rest."""
    slow = ("scipy.stats", "scipy.optimize", "scipy.interpolate", "anndata", "matplotlib", "dask")
    found = {
        (module, name)
        for module in MODULES
        for node in parsed(module).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        for name in (
            getattr(node, "module", None) or alias.name,
            f"{getattr(node, 'module', '')}.{alias.name}",
        )
        if any(f"{name}.".startswith(f"{each}.") for each in slow)
    }
    assert not found
