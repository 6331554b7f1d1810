"""Every public function, class and method shows an example; pytest runs them all as doctests."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

import flashmm as fm
from flashmm.results.plots_of_fits import ResultPlots
from flashmm.results.plots_of_one_feature import FeaturePlots
from flashmm.results.plots_of_tests import TestPlots


def described() -> dict[str, object]:
    """Public names and what they are, methods under the class that defines them."""
    found: dict[str, object] = {}
    for name in fm.__all__:
        value = getattr(fm, name)
        if inspect.ismodule(value):
            found |= {f"{name}.{each}": getattr(value, each) for each in value.__all__}
        elif not (inspect.isclass(value) and issubclass(value, BaseException)):
            found[name] = value
    found |= {f"plots.{name}": getattr(fm.plots, name) for name in fm.plots.__all__}
    for cls in [value for value in found.values() if inspect.isclass(value)]:
        found |= methods(cls)
    for cls in (ResultPlots, FeaturePlots, TestPlots):
        found[cls.__name__] = cls
        found |= methods(cls)
    return found


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """Public methods that flashmm defines, by qualified name."""
    for base in cls.__mro__:
        if not base.__module__.startswith("flashmm"):
            continue
        for name, value in vars(base).items():
            inner = getattr(value, "__func__", value)
            if not name.startswith("_") and inspect.isfunction(inner):
                yield f"{base.__qualname__}.{name}", inner


DESCRIBED = described()


def test_all_kinds_of_names_are_looked_at():
    kinds = ("load", "simulate.rnaseq", "datasets.kang", "plots.volcano", "SummaryStats.take")
    assert {*kinds, "Status", "TTestResults", "ResultPlots.volcano"} <= set(DESCRIBED)
    assert len(DESCRIBED) > 200


@pytest.mark.parametrize("name", DESCRIBED)
def test_has_an_example(name):
    text = DESCRIBED[name].__doc__ or ""
    assert "Examples\n" in text
    assert ">>> " in text
