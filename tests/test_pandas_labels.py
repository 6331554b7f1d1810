"""Labels of what results return are of the type that pandas itself gives text."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import small_fit as sf
import xarray as xr

import flashmm as fm

CALLS = {
    "ds": lambda r: r.ds,
    "t_test": lambda r: r.t_test(["age", "trt[T.B]"]).ds,
    "t_test.conf_int": lambda r: r.t_test(["age"]).conf_int(),
    "top_table": lambda r: r.top_table("age"),
    "f_test": lambda r: r.f_test(["age", "trt[T.B]"]).ds,
    "anova": lambda r: r.anova().ds,
    "marginal_means": lambda r: r.marginal_means("trt").ds,
    "conf_int": lambda r: r.conf_int(),
    "cov_params": lambda r: r.cov_params(),
    "fim": lambda r: r.fim(),
    "moderate": lambda r: r.moderate(),
    "variance_components": lambda r: r.variance_components(),
    "icc": lambda r: r.icc(),
    "variance_fractions": lambda r: r.variance_fractions(),
    "conf_int_theta": lambda r: r.conf_int_theta(method="wald"),
    "blup": lambda r: r.blup(),
    "blup, se": lambda r: r.blup(se=True),
    "random_effects": lambda r: r.random_effects["batch"],
    "predict": lambda r: r.predict(sf.samples()),
    "predict, se": lambda r: r.predict(sf.samples(), se=True),
    "fittedvalues": lambda r: r.fittedvalues(sf.samples()),
    "resid": lambda r: r.resid(sf.responses(), sf.samples()),
    "params": lambda r: r.params,
    "theta": lambda r: r.theta,
    "llf": lambda r: r.llf,
    "to_frame": lambda r: r.to_frame(),
    "one, params": lambda r: r.sel(sf.FEATURES[3]).params,
    "one, fittedvalues": lambda r: r.sel(sf.FEATURES[3]).fittedvalues(sf.samples()),
    "one, resid": lambda r: r.sel(sf.FEATURES[3]).resid(sf.responses(), sf.samples()),
    "one, ranef": lambda r: r.sel(sf.FEATURES[3]).ranef()["batch"],
    "one, random_effects_cov": lambda r: next(iter(r.sel("gene 3").random_effects_cov.values())),
    "loaded": lambda r: r.ds,
}


@pytest.fixture(scope="module")
def results() -> fm.MultiLMMResults:
    return sf.model().fit(parameter_space="psd")


def indexes(found) -> dict[str, pd.Index]:
    """The labels along each axis of something labelled."""
    if isinstance(found, (xr.DataArray, xr.Dataset)):
        return {str(dim): found.indexes[dim] for dim in found.dims if dim in found.indexes}
    axes = found.axes
    return {f"axis {i}": axis for i, axis in enumerate(axes)}


@pytest.mark.parametrize("call", CALLS)
def test_labels_have_the_type_that_pandas_gives_them(results, call, tmp_path):
    if call == "loaded":
        results.save(tmp_path / "fit.nc")
        results = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    checked = 0
    for axis, index in indexes(CALLS[call](results)).items():
        labels = index.tolist()
        if isinstance(index, pd.MultiIndex) or not all(isinstance(x, str) for x in labels):
            continue
        assert index.dtype == pd.Index(labels).dtype, axis
        checked += 1
    assert checked, call


def test_power(results):
    """Labels of a design's power, too."""
    design = sf.model().stats
    power = fm.power(design, theta=[1, 1, 0, 1, 1], beta=[0, 0, 1], contrast="age", n_sim=2, rng=1)
    assert power.indexes["contrast"].dtype == pd.Index(["age"]).dtype


def test_names_in_bytes_are_what_they_encode():
    """As h5py gives strings of a file; they were called "b'gene'"."""
    data = pd.DataFrame({"x": np.arange(12.0) % 5, "g": np.repeat(list("abc"), 4)})
    Y = np.random.default_rng(0).normal(size=(3, 12))
    names = np.array([b"gene", "g\u00e9ne".encode(), b"\xff"])
    for given in (names, list(names)):
        model = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, Y, feature_names=given)
        assert list(model.feature_names) == ["gene", "g\u00e9ne", "\\xff"]
    result = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, pd.DataFrame(Y, index=names)).fit()
    assert list(result[[b"gene"]].feature_names) == list(result[["gene"]].feature_names) == ["gene"]
    with pytest.raises(fm.InputError, match="Duplicate feature names: 'a'"):
        fm.MultiLMM.from_arrays(Y[:2], np.ones((12, 1)), feature_names=["a", b"a"])
