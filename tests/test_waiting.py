"""Nobody waits: BLAS's threads around small matrices, engines of small designs, progress."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import sys
import threading
import types

import numpy as np
import pandas as pd
import pytest
from formulaic import Formula
from threadpoolctl import threadpool_info, threadpool_limits

import flashmm as fm
from flashmm.arrays import blas
from flashmm.arrays.blas import LARGE, one_blas_thread
from flashmm.formulas.materializer import Materializer
from flashmm.formulas.plain_numbers import plain_numbers
from flashmm.solvers import batches
from flashmm.stats import passes


def threads() -> set[int]:
    return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}


@pytest.fixture
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("BLAS has one thread here")
        yield
        assert threads() == {2}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=60), "g": [f"g{i % 12}" for i in range(60)]})
    return table, rng.normal(size=(5, 60)) + rng.normal(size=(5, 12))[:, np.arange(60) % 12]


@pytest.fixture(scope="module")
def result(data):
    model = fm.MultiLMM.from_formula("~ x", "(x | g)", data[0], data[1])
    return model.fit(parameter_space="psd")


@pytest.mark.usefixtures("two_threads")
def test_blas_is_given_back_its_threads_whoever_leaves_last():
    with one_blas_thread():
        with one_blas_thread():
            assert threads() == {1}
        assert threads() == {1}
    with one_blas_thread(LARGE):
        assert threads() == {2}
    inside, go = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        inside.wait(10)
    go.set()  # the other thread still works
    thread.join()
    assert threads() == {2}
    with pytest.raises(KeyError), one_blas_thread():
        raise KeyError


CALLS = {
    "t_test": lambda r: r.t_test(),
    "satterthwaite": lambda r: r.t_test("x", df="satterthwaite").top_table(),
    "f_test": lambda r: r.f_test("x"),
    "cov_params": lambda r: r.cov_params(),
    "fim": lambda r: r.fim(),
    "blup": lambda r: r.blup(),
    "random_effects": lambda r: r.sel(0).random_effects,
    "conf_int_theta": lambda r: r.conf_int_theta(method="profile", params="Residual"),
    "bootstrap": lambda r: r.bootstrap(2, rng=1),
    "one feature": lambda r: r.sel(0).t_test("x"),
    "summary": lambda r: r.summary(),
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("call", CALLS)
def test_methods_work_on_one_thread_of_blas(call, result, monkeypatch):
    seen = set()
    evaluate = type(result.fitted.likelihood).evaluate
    beta = type(result.fitted).values

    def noted(*args, **kwargs):
        seen.update(threads())
        return evaluate(*args, **kwargs)

    def also_noted(*args, **kwargs):
        seen.update(threads())
        return beta(*args, **kwargs)

    monkeypatch.setattr(type(result.fitted.likelihood), "evaluate", noted)
    monkeypatch.setattr(type(result.fitted), "values", also_noted)
    monkeypatch.setattr(np.linalg, "eigh", _noting(np.linalg.eigh, seen))
    monkeypatch.setattr(np.linalg, "solve", _noting(np.linalg.solve, seen))
    CALLS[call](result)
    assert seen <= {1}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("random", ["(1 | g)", "(x | g)"])
@pytest.mark.parametrize("own", [False, True])
def test_fits_work_on_one_thread_of_blas(random, own, data, monkeypatch):
    seen = set()
    monkeypatch.setattr(batches, "maximise_in_stages", _noting(batches.maximise_in_stages, seen))
    table, Y = data
    if own:
        Y = Y.copy()
        Y[0, 3] = np.nan
    model = fm.MultiLMM.from_formula("~ x", random, table, Y, missing="feature" if own else "raise")
    monkeypatch.setattr(np.linalg, "eigh", _noting(np.linalg.eigh, seen))
    model.fit(parameter_space="psd", n_jobs=1)
    assert seen == {1}


def _noting(function, seen):
    def noted(*args, **kwargs):
        seen.update(threads())
        return function(*args, **kwargs)

    return noted


def test_methods_keep_their_names_and_what_is_large_its_threads(result):
    assert type(result).t_test.__name__ == "t_test"
    assert "contrast" in type(result).t_test.__doc__
    assert type(result).params.__doc__.startswith("Fixed effects")
    assert blas.LARGE >= 500


def test_a_small_design_takes_the_dense_engine_and_finds_what_blocks_find(data):
    model = fm.MultiLMM.from_formula("~ x", "(x | g)", *data)
    dense, blocks = model.fit(), model.fit(engine="blocked")
    assert (dense.options.engine, blocks.options.engine) == ("general", "blocked")
    for name in ("theta", "beta", "se_beta", "loglik"):
        np.testing.assert_allclose(dense.ds[name], blocks.ds[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("memory", [2**30, 2**16])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_fit_says_how_many_features_are_done(memory, n_jobs, data):
    seen = []
    model = fm.MultiLMM.from_formula("~ x", "(x | g)", *data)
    model.fit(
        memory=memory,
        n_jobs=n_jobs,
        parameter_space="psd",
        progress=lambda done, of: seen.append((done, of)),
    )
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) == (1 if memory == 2**30 else 5)


@pytest.fixture
def bars(monkeypatch):
    """Bars that somebody on a terminal would be shown: what they are of, and after how long."""
    made = []

    class Bar:
        def __init__(self, items=None, **options):
            self.items = items
            made.append((options["desc"], options["delay"], options["total"]))

        def __iter__(self):
            return iter(self.items)

        def update(self, count):
            made.append(count)

        def close(self):
            made.append("closed")

    module = types.ModuleType("tqdm.auto")
    module.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", types.ModuleType("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return made


def test_bars_wait_a_few_seconds_unless_asked_for(bars, data, result):
    model = fm.MultiLMM.from_formula("~ x", "(x | g)", *data, progress=False)
    assert not bars
    model.fit(parameter_space="psd")
    assert bars == [("fit", 3.0, 5), 5, "closed"]
    bars.clear()
    model.fit(parameter_space="psd", progress=True)
    assert bars[0] == ("fit", 0.0, 5)
    bars.clear()
    model.fit(parameter_space="psd", progress=False)
    assert not bars
    result.bootstrap(2, rng=1)
    assert bars[0] == ("replicates", 3.0, 10)  # and none for the fits inside
    assert bars[-1] == "closed"
    assert len([bar for bar in bars if isinstance(bar, tuple)]) == 1
    bars.clear()
    result.conf_int_theta(method="profile", params="Residual")
    assert [bar for bar in bars if isinstance(bar, tuple)] == [("profiles", 3.0, 1)]
    bars.clear()
    fm.voom(np.full((4, 60), 5) + np.arange(60) % 7, "~ x", "(1 | g)", data[0], progress=True)
    assert ("fit", 0.0, 4) in bars
    bars.clear()
    fm.MultiLMM.from_formula("~ x", "(x | g)", *data)
    assert bars[0][:2] == ("summary statistics", 3.0)


LONG = {
    "influence": (lambda r, p: r.influence(progress=p), "influence", 12),
    "flip_test": (lambda r, p: r.flip_test(["x", "Intercept"], progress=p), "sign flips", 2),
    "conf_int": (
        lambda r, p: r.conf_int(method="profile", features=[0, 1], progress=p), "profiles", 4,
    ),
    "conf_int_theta": (
        lambda r, p: r.conf_int_theta(method="profile", params="Residual", progress=p),
        "profiles", 1,
    ),
    "bootstrap": (lambda r, p: r.bootstrap(2, rng=1, progress=p), "replicates", 10),
    "bootstrap_test": (
        lambda r, p: r.bootstrap_test("x", n=2, rng=1, progress=p), "replicates", 10,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def grouped(data):
    model = fm.MultiLMM.from_formula("~ x", "(1 | g)", *data, sums_by="g", progress=False)
    return model.fit(parameter_space="psd", progress=False)


@pytest.mark.parametrize("name", LONG)
def test_long_methods_have_a_bar_and_tell_a_function(name, bars, grouped):
    call, desc, total = LONG[name]
    call(grouped, None)
    assert [bar for bar in bars if isinstance(bar, tuple)] == [(desc, 3.0, total)]
    bars.clear()
    call(grouped, False)
    assert not bars
    told = []
    call(grouped, lambda done, of: told.append((done, of)))
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_every_public_method_that_counts_passes_progress_on():
    """Whatever the package counts for a user is asked for, or not, where the user calls it."""
    counting = {
        "from_formula", "from_anndata", "fit", "influence", "flip_test", "conf_int",
        "conf_int_theta", "bootstrap", "bootstrap_test",
    }  # fmt: skip
    for owner in (fm.MultiLMM, fm.MultiLMMResults):
        for name in dir(owner):
            method = inspect.getattr_static(owner, name)
            method = getattr(method, "__func__", method)
            if name.startswith("_") or not callable(method):
                continue
            has = "progress" in inspect.signature(method).parameters
            assert has == (name in counting), name
    for function in (fm.power, fm.voom, fm.SummaryStats.from_design):
        assert "progress" in inspect.signature(function).parameters


def test_no_bar_without_a_terminal_or_without_its_package(bars, data, monkeypatch):
    model = fm.MultiLMM.from_formula("~ x", "(x | g)", *data, progress=False)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model.fit(parameter_space="psd")  # nobody asked
    with pytest.raises(fm.InputError, match="progress=True needs tqdm"):
        model.fit(parameter_space="psd", progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    model.fit(parameter_space="psd", progress=True)
    assert not bars
    assert passes.worker_count(3) == 3


@pytest.mark.parametrize("output", ["numpy", "sparse"])
@pytest.mark.parametrize("text", ["1", "1 + x", "0 + x", "k + x", "x + k - 1", "0", "x + f"])
def test_plain_formulas_make_what_formulaic_makes(text, output):
    """The spec field by field, and the columns to the bit; others are left to formulaic."""
    data = pd.DataFrame({"x": [0.5, 0.0, -2.0], "k": [3, 0, 1], "f": ["a", "b", "a"]})
    formula = Formula(text)
    made = plain_numbers(data, formula, output)
    if "f" in text:
        assert made is None
        return
    right = Materializer(data, context={}).get_model_matrix(
        formula, output=output, na_action="ignore"
    )
    for field in dataclasses.fields(right.model_spec):
        mine, theirs = (getattr(spec, field.name) for spec in (made[1], right.model_spec))
        assert repr(mine) == repr(theirs), field.name
    assert repr(made[1].factor_variables) == repr(right.model_spec.factor_variables)
    dense = right.toarray() if output == "sparse" else right
    np.testing.assert_array_equal(made[0], np.asarray(dense).reshape(3, -1))


def test_expressions_and_booleans_are_left_to_formulaic():
    data = pd.DataFrame({"x": [0.5, 0.0], "b": [True, False]})
    for text in ("np.log(x)", "x:b", "b", "I(x)", "C(x)", "{x + 1}", "2:x", "x:x + b"):
        made = plain_numbers(data, Formula(text), "numpy")
        assert made is None, text


def test_datasets_are_made_when_they_are_asked_for(data):
    model = fm.MultiLMM.from_formula("~ x", "(x | g)", *data)
    result = model.fit()
    tests = result.t_test("x")
    assert not result.fitted.estimates.is_made
    assert np.isfinite(tests.to_frame()["p"]).all()
    assert result.ds is result.ds
    assert result.ds["beta"].dims == ("feature", "coef")
    result.ds["loglik"] = result.ds["loglik"] + 1.0  # what a user changes is what counts
    np.testing.assert_array_equal(result.llf, result.ds["loglik"])
    np.testing.assert_array_equal(result.fitted.array("loglik"), result.ds["loglik"])
    again = pickle.loads(pickle.dumps(tests))
    np.testing.assert_array_equal(again.pvalue, tests.pvalue)
