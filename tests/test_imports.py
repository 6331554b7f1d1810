"""Imports run one way, in the order of the flow, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

import flashmm

PACKAGE = Path(flashmm.__file__).parent

# Formula -> Design -> SummaryStats -> Likelihood -> Solver -> Results -> Model. A module may
# import from its own layer and from those above it in this list.
LAYERS = [
    ("exceptions", "progress"),
    ("arrays",),
    ("sources",),
    ("designs",),
    ("formulas",),
    ("stats",),
    ("likelihood",),
    ("solvers",),
    ("inference", "storage"),
    ("results",),
    ("simulate",),
    ("constructors", "model"),
    ("__init__",),
]
LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}

EDGE = {
    "pandas": {
        "constructors",
        *(
            f"arrays.{name}"
            for name in (
                "labels",
                "numeric",
            )
        ),
        *(
            f"designs.{name}"
            for name in (
                "from_arrays",
                "per_sample",
            )
        ),
        *(
            f"formulas.{name}"
            for name in (
                "build",
                "coding",
                "columns",
                "random_terms",
                "recipe",
                "rows",
            )
        ),
        *(f"inference.{name}" for name in ("contrasts",)),
        *(
            f"results.{name}"
            for name in (
                "anndata_out",
                "bootstrap",
                "comparison",
                "contrast_results",
                "estimates",
                "feature_results",
                "marginal_means",
                "predictions",
                "statsmodels_check",
                "summary",
            )
        ),
        *(
            f"simulate.{name}"
            for name in (
                "inputs",
                "single_cell",
            )
        ),
        *(f"solvers.{name}" for name in ("start",)),
        *(
            f"sources.{name}"
            for name in (
                "anndata_kinds",
                "dataarrays",
                "iterables",
                "make",
                "matching",
                "memory",
            )
        ),
        *(
            f"stats.{name}"
            for name in (
                "algebra",
                "checks",
                "selection",
                "summary_stats",
            )
        ),
    },
    "formulaic": {
        *(
            f"formulas.{name}"
            for name in (
                "build",
                "calls",
                "columns",
                "materializer",
                "random_terms",
                "recipe_text",
                "rows",
            )
        ),
    },
    "xarray": {
        *(
            f"results.{name}"
            for name in (
                "assemble",
                "bootstrap",
                "bootstrap_results",
                "contrast_results",
                "estimates",
                "fixed_effects",
                "moderation",
                "on_workers",
                "predictions",
                "random_effects",
                "results",
                "variance_components",
            )
        ),
        *(f"simulate.{name}" for name in ("power",)),
        *(
            f"sources.{name}"
            for name in (
                "dataarrays",
                "make",
            )
        ),
        *(
            f"storage.{name}"
            for name in (
                "files",
                "schema",
                "zarr",
            )
        ),
    },
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@lru_cache
def parsed(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def type_checking_lines(tree: ast.Module) -> set[int]:
    """Lines inside ``if TYPE_CHECKING:`` blocks: never run."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in range(node.lineno, (node.body[-1].end_lineno or node.lineno) + 1)
    }


@lru_cache
def imports(module: str, *, deferred: bool) -> set[str]:
    """Modules that a module imports when it runs; those inside functions when ``deferred``."""
    tree = parsed(module)
    skipped = type_checking_lines(tree)
    if not deferred:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    found = set()
    for node in ast.walk(tree):
        if getattr(node, "lineno", None) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name.removeprefix("flashmm.") in MODULES else node.module)
    return found


def internal(module: str, *, deferred: bool = False) -> set[str]:
    """Modules of the package that a module imports."""
    names = {name.removeprefix("flashmm.") for name in imports(module, deferred=deferred)}
    return {name for name in names if name in MODULES}


def layer(module: str) -> int:
    return LAYER_OF[module.split(".", maxsplit=1)[0]]


def test_the_reader_of_imports_reads():
    assert {"designs.design", "exceptions"} <= internal("formulas.build")
    assert "storage.files" not in internal("stats.summary_stats")
    assert "storage.files" in internal("stats.summary_stats", deferred=True)
    assert "flashmm.results.results" not in imports(
        "results.summary", deferred=True
    )  # for type checking only


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name in MODULES} == set(LAYER_OF)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_flow(module):
    later = {name for name in internal(module) if layer(name) > layer(module)}
    assert not later, f"{module} imports {later}, which come after it"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))
def test_nothing_imports_the_model(module):
    assert "model" not in internal(module, deferred=True)


@pytest.mark.parametrize("module", MODULES)
def test_deferred_imports_are_the_known_one(module):
    """Only save and load of statistics reach forward, to the storage that knows their shape."""
    deferred = internal(module, deferred=True) - internal(module)
    known = {
        "stats.summary_stats": {"storage.files"},
        "stats.own_rows": {"storage.files", "storage.own_rows"},
    }
    assert deferred <= known.get(module, set())


def test_modules_do_not_import_each_other_in_circles():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for name in internal(module) - {module}:
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("package", EDGE)
def test_heavy_packages_stay_at_the_edge(package):
    users = {
        module
        for module in MODULES
        if any(name.split(".")[0] == package for name in imports(module, deferred=True))
    }
    assert users <= EDGE[package], f"{package} reached {users - EDGE[package]}"
    assert users & EDGE[package]


def test_public_names_exist_and_are_all_of_them():
    assert sorted(flashmm.__all__) == flashmm.__all__
    for name in flashmm.__all__:
        assert getattr(flashmm, name) is not None
    assert set(dir(flashmm)) == {*flashmm.__all__, "__version__"}
