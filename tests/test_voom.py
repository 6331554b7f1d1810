"""voom and dream's weights beside those of limma and variancePartition."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from references import REFERENCE

import flashmm as fm
from flashmm.exceptions import InputError

WEIGHTS = REFERENCE / "weights"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(WEIGHTS / f"varpart_{name}.csv.gz", index_col=0)


def samples() -> pd.DataFrame:
    frame = pd.read_csv(WEIGHTS / "varpart_samples.csv", index_col="sample")
    return frame.astype({"Disease": str})


def test_limma():
    found = fm.voom(table("counts"), "~ Disease", data=samples(), norm_factors="norm_factor")
    assert_allclose(found.log2cpm, table("log2cpm"), atol=1e-8)
    assert_allclose(found.weights, table("voom_weights"), rtol=1e-7)
    assert found.span == 0.5
    assert found.weights.index.equals(found.log2cpm.index)
    assert (np.diff(found.trend["x"]) >= 0).all()


def test_dream():
    found = fm.voom(
        table("counts"), "~ Disease", "(1 | Individual)", samples(), norm_factors="norm_factor"
    )
    # Where lmer stopped a little short, its residual variance is off in the sixth digit.
    assert_allclose(found.weights, table("dream_weights"), rtol=1e-5)
    bars = fm.voom(
        table("counts"),
        "~ Disease + (1 | Individual)",
        data=samples(),
        norm_factors=samples()["norm_factor"].iloc[::-1],
    )
    assert_allclose(bars.weights, found.weights, rtol=1e-12)


def test_every_kind_of_counts(tmp_path):
    counts, frame = table("counts"), samples()
    expected = fm.voom(counts, "~ Disease", data=frame)
    shuffled = counts[counts.columns[::-1]]
    kinds = [
        shuffled,
        sp.csr_array(counts.to_numpy()),
        counts.to_numpy(),
        counts.T.to_numpy(),
    ]
    for kind in kinds:
        rows = "samples" if kind.shape[0] == 24 else "features"
        found = fm.voom(kind, "~ Disease", data=frame, rows=rows)
        assert_allclose(found.weights, expected.weights, rtol=1e-12)
    anndata = pytest.importorskip("anndata")
    adata = anndata.AnnData(
        np.zeros((24, 300)), frame, pd.DataFrame(index=counts.index), layers={"raw": counts.T}
    )
    found = fm.voom(adata, "~ Disease", layer="raw")
    assert_allclose(found.weights, expected.weights, rtol=1e-12)
    assert found.weights.index.tolist() == counts.index.tolist()


def test_genes_without_a_count_are_not_in_the_trend():
    counts, frame = table("counts"), samples()
    expected = fm.voom(counts, "~ Disease", data=frame)
    counts.loc["none"] = 0
    found = fm.voom(counts, "~ Disease", data=frame)
    assert "none" not in found.trend.index
    assert_allclose(found.weights.drop("none"), expected.weights, rtol=1e-12)
    assert np.isfinite(found.weights.loc["none"]).all()


def test_totals_may_be_given():
    counts, frame = table("counts"), samples()
    whole = fm.voom(counts, "~ Disease", data=frame)
    part = fm.voom(counts.iloc[:200], "~ Disease", data=frame, lib_size=counts.sum())
    assert_allclose(part.log2cpm, whole.log2cpm.iloc[:200], rtol=1e-12)


def test_bad_counts_are_refused():
    counts, frame = table("counts"), samples()
    negative = counts.astype(float)
    negative.iloc[3, 2] = -1
    with pytest.raises(InputError, match=r"`counts` must not be negative.*MRPL1|must not be neg"):
        fm.voom(negative, "~ Disease", data=frame)
    with pytest.raises(InputError, match="`counts` has a missing value"):
        fm.voom(negative.where(negative >= 0), "~ Disease", data=frame)
    with pytest.raises(InputError, match="Nothing is counted in sample 'sample_02'"):
        fm.voom(counts.assign(sample_02=0), "~ Disease", data=frame)
    with pytest.raises(InputError, match="no residual degrees of freedom"):
        fm.voom(counts, "~ Experiment", data=frame)
    with pytest.raises(InputError, match="`span` must lie between 0 and 1"):
        fm.voom(counts, "~ Disease", data=frame, span=0)
    with pytest.raises(InputError, match="needs `data`"):
        fm.voom(counts, "~ Disease")
    with pytest.raises(InputError, match="`norm_factors` must be positive"):
        fm.voom(counts, "~ Disease", data=frame, norm_factors=np.zeros(24))


def test_plot():
    pytest.importorskip("matplotlib").use("Agg")
    axes = fm.voom(table("counts"), "~ Disease", data=samples()).plot()
    assert len(axes.lines) == 2


def test_tmm_factors_are_those_of_edger():
    pytest.importorskip("rnanorm")
    expected = samples()["norm_factor"]
    found = fm.voom(table("counts"), "~ Disease", data=samples(), norm_factors="TMM")
    assert_allclose(found.lib_size / table("counts").sum(), expected, rtol=1e-12)
    sparse = sp.csr_array(table("counts").to_numpy())
    again = fm.voom(sparse, "~ Disease", data=samples(), norm_factors="TMM")
    assert_allclose(again.weights, found.weights, rtol=1e-12)


def test_samples_of_hardly_any_feature_have_no_tmm_factors():
    pytest.importorskip("rnanorm")
    counts = table("counts")
    counts.iloc[60:, 4] = 0
    with pytest.raises(InputError, match=r"'sample_05' at least three quarters.*1 of 24 samples"):
        fm.voom(counts, "~ Disease", data=samples(), norm_factors="TMM")


def test_tmm_takes_no_totals():
    counts = table("counts")
    with pytest.raises(InputError, match="takes the sums of `counts`"):
        fm.voom(counts, "~ Disease", data=samples(), norm_factors="TMM", lib_size=counts.sum())


def test_a_column_named_tmm_is_taken():
    frame = samples()
    found = fm.voom(
        table("counts"), "~ Disease", data=frame.assign(TMM=frame.norm_factor), norm_factors="TMM"
    )
    expected = fm.voom(table("counts"), "~ Disease", data=frame, norm_factors="norm_factor")
    assert_allclose(found.weights, expected.weights)


def test_tmm_without_rnanorm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rnanorm", None)
    with pytest.raises(InputError, match=r"needs rnanorm: pip install 'multilmm\[tmm\]'"):
        fm.voom(table("counts"), "~ Disease", data=samples(), norm_factors="TMM")


def test_another_rnanorm_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "rnanorm", SimpleNamespace(TMM=None))
    monkeypatch.setattr("flashmm.counts.tmm.metadata.version", lambda _: "3.0.0")
    with pytest.raises(InputError, match=r"needs rnanorm 2\.2.*3\.0\.0 is installed"):
        fm.voom(table("counts"), "~ Disease", data=samples(), norm_factors="TMM")
