"""The fitted model and the methods around it: one function, one thin method, nothing between."""

from __future__ import annotations

import ast
import pickle
import textwrap
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.results import fitted as module
from flashmm.results.fixed_effects import t_test
from flashmm.results.variance_tests import variance_test

METHODS = sorted(Path(module.__file__).parent.glob("methods/*.py"))


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"x": rng.normal(size=60), "g": np.repeat(list("abcdefghij"), 6)})
    Y = rng.normal(size=(5, 60)) + rng.normal(size=(5, 10)).repeat(6, axis=1)
    Y = pd.DataFrame(Y, index=[f"gene{i}" for i in range(5)])
    return fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y).fit(parameter_space="psd")


def test_functions_take_positions_and_methods_names(result):
    positions = np.array([3, 1])
    by_function = t_test(result.fitted, positions, "x").ds
    assert by_function.identical(result.t_test("x", features=["gene3", "gene1"]).ds)
    alone = result.sel("gene1").t_test("x").ds
    xr.testing.assert_allclose(alone, by_function.isel(feature=[1]), rtol=1e-10)
    test = variance_test(result.fitted, positions)
    assert test.identical(result.variance_test(features=["gene3", "gene1"]))


def test_the_example_of_how_to_add_a_capability_runs(result):
    code = module.__doc__.split("asks `fitted` for all that it needs::")[1].split("2. *The")[0]
    namespace = {}
    imports = "from __future__ import annotations\nimport xarray as xr\n"
    exec(compile(imports + textwrap.dedent(code), "example", "exec"), namespace)
    ratio = namespace["signal_to_noise"](result.fitted, np.array([2]))
    expected = result.sel("gene2").params.iloc[-1]
    assert ratio.sel(feature="gene2").item() == pytest.approx(expected, rel=1e-12)


def test_a_fitted_model_is_frozen_and_travels(result):
    with pytest.raises(FrozenInstanceError):
        result.fitted.options = None
    assert np.isfinite(result.pvalues.to_numpy()).all()  # fills what is computed once
    again = pickle.loads(pickle.dumps(result))
    pd.testing.assert_frame_equal(again.pvalues, result.pvalues)
    assert again.summary().as_text() == result.summary().as_text()


def test_one_feature_is_no_fit_to_compare_with(result):
    with pytest.raises(InputError, match="FeatureResults"):
        result.compare_lr_test(result.sel("gene1"))


@pytest.mark.parametrize("path", METHODS, ids=lambda path: path.stem)
def test_groups_of_methods_know_the_fitted_model_alone(path):
    """What a method asks of self: the fitted model, or what its own group defines."""
    for group in ast.parse(path.read_text("utf-8")).body:
        if not isinstance(group, ast.ClassDef):
            continue
        own = {node.name for node in group.body if isinstance(node, ast.FunctionDef)}
        own |= {ast.unparse(node.target) for node in group.body if isinstance(node, ast.AnnAssign)}
        asked = {
            node.attr
            for node in ast.walk(group)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        }
        assert asked <= own | {"fitted", "_of"}
