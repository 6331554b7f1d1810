"""Results written into AnnData, and tables as pertpy and scanpy name them."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import references as ref
import scipy.sparse as sp

import flashmm as fm
from flashmm.exceptions import InputError

anndata = pytest.importorskip("anndata")

FIXED = "~ 0 + log(libsize) + cluster_id + cluster_id:group_id"
ARRAYS = ("params", "bse", "pvalues", "pvalues_adjusted", "theta", "bse_theta")


def small(features: int = 12):
    sim = fm.simulate.rnaseq(n_genes=features, n_cells=300, n_samples=8, n_clusters=2, rng=3)
    adata = anndata.AnnData(sp.csr_matrix(sim.counts.to_numpy().T), obs=sim.metadata)
    adata.var_names = list(sim.counts.index)
    model = fm.MultiLMM.from_anndata(
        adata, "~ 0 + log(libsize) + cls + cls:trt", "~ 0 + sam", transform="log2p1"
    )
    return adata, model.fit(parameter_space="psd")


def test_kang_through_a_file(tmp_path):
    """All cells and genes of Kang et al. (2018): written, read, equal to the tables."""
    kang = ref.kang()
    genes = pd.Index([str(gene) for gene in kang.genes], dtype=object)
    adata = anndata.AnnData(
        sp.csr_matrix(kang.counts.T, dtype=np.float32),
        obs=kang.cells.set_axis(kang.cells.index.astype(str)),
        var=pd.DataFrame(index=genes),
    )
    result = fm.MultiLMM.from_anndata(adata, FIXED, "~ 0 + sample_id", transform="log2p1").fit(
        parameter_space="psd"
    )
    rng = np.random.default_rng(0)
    order = rng.permutation(genes.size)
    shuffled = adata[:, order].copy()
    assert result.to_anndata(shuffled) is None
    shuffled.write_h5ad(tmp_path / "kang.h5ad")
    read = anndata.read_h5ad(tmp_path / "kang.h5ad")
    names = read.uns["flashmm"]
    assert names["coef"].tolist() == result.params.columns.tolist()
    assert names["param"].tolist() == result.theta.columns.tolist()
    assert names["options"]["parameter_space"] == "psd"
    assert names["df"] == "satterthwaite"
    for name, table in {
        "params": result.params,
        "bse": result.bse,
        "pvalues": result.pvalues,
        "theta": result.theta,
        "bse_theta": result.bse_theta,
    }.items():
        expected = table.loc[read.var_names].to_numpy()
        np.testing.assert_array_equal(read.varm[f"flashmm_{name}"], expected)
    adjusted = result.t_test().adjusted().loc[read.var_names].to_numpy()
    np.testing.assert_array_equal(read.varm["flashmm_pvalues_adjusted"], adjusted)
    assert read.var["flashmm_status"].tolist() == result.status.loc[read.var_names].tolist()
    np.testing.assert_array_equal(read.var["flashmm_loglik"], result.llf.loc[read.var_names])
    np.testing.assert_array_equal(read.var["flashmm_n_iter"], result.n_iter.loc[read.var_names])


def test_zarr(tmp_path):
    pytest.importorskip("zarr")
    adata, result = small()
    result.to_anndata(adata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, about the versions of zarr
        adata.write_zarr(tmp_path / "cells.zarr")
    read = anndata.read_zarr(tmp_path / "cells.zarr")
    np.testing.assert_array_equal(read.varm["flashmm_params"], result.params)


def test_genes_without_a_fit():
    adata, result = small()
    fewer = fm.MultiLMM.from_anndata(
        adata[:, 3:7].copy(), "~ 0 + log(libsize) + cls + cls:trt", "~ 0 + sam", transform="log2p1"
    ).fit(parameter_space="psd")
    fewer.to_anndata(adata)
    assert (adata.var["flashmm_status"] == "not fitted").tolist() == [True] * 3 + [False] * 4 + [
        True
    ] * 5
    assert (adata.var["flashmm_n_iter"] == -1).sum() == 8
    for name in ARRAYS:
        values = adata.varm[f"flashmm_{name}"]
        assert np.isnan(values).all(axis=1).sum() == 8
    np.testing.assert_allclose(
        adata.varm["flashmm_params"][3:7], result.params.to_numpy()[3:7], rtol=1e-9
    )


def test_features_that_are_no_genes_are_counted():
    adata, result = small()
    with pytest.warns(UserWarning, match="5 of 12 features are not among the genes"):
        result.to_anndata(part := adata[:, :7].copy())
    np.testing.assert_array_equal(part.varm["flashmm_bse"], result.bse.to_numpy()[:7])


def test_a_copy_leaves_the_original_alone():
    adata, result = small()
    written = result.to_anndata(adata, copy=True, key_added="mixed")
    assert not adata.varm
    assert "mixed" not in adata.uns
    assert set(written.varm) == {f"mixed_{name}" for name in ARRAYS}


def test_own_keys_are_replaced_and_others_kept():
    adata, result = small()
    adata.varm["flashmm_tests_of_mine"] = np.ones((12, 1))
    adata.varm["PCs"] = np.ones((12, 2))
    tests = result.t_test(["cls1:trtB", "cls2:trtB - cls1:trtB"])
    result.to_anndata(adata, key_added="fit", tests=tests)
    result.to_anndata(adata, key_added="fit2", tests=tests)
    assert adata.varm["fit_tests_estimate"].shape == (12, 2)
    np.testing.assert_array_equal(adata.varm["fit_tests_p"], tests.pvalue)
    np.testing.assert_array_equal(adata.varm["fit_tests_p_adjusted"], tests.adjusted())
    assert adata.uns["fit"]["contrast"].tolist() == tests.contrasts
    result.to_anndata(adata, key_added="fit")
    assert "fit_tests_p" not in adata.varm
    assert "contrast" not in adata.uns["fit"]
    assert {"fit2_tests_p", "flashmm_tests_of_mine", "PCs"} <= set(adata.varm)


def test_other_degrees_of_freedom():
    adata, result = small()
    result.to_anndata(adata, df="residual")
    np.testing.assert_array_equal(
        adata.varm["flashmm_pvalues"], result.t_test(df="residual").pvalue
    )
    assert adata.uns["flashmm"]["df"] == "residual"


@pytest.mark.parametrize(
    ("key", "message"), [("a/b", "must not contain '/'"), ("", "must be some text"), (3, "text")]
)
def test_keys_that_cannot_be(key, message):
    adata, result = small()
    with pytest.raises(InputError, match=message):
        result.to_anndata(adata, key_added=key)


def test_refusals():
    adata, result = small()
    with pytest.raises(InputError, match="must be an AnnData object, not DataFrame"):
        result.to_anndata(adata.to_df())
    other = adata.copy()
    other.var_names = [f"x{i}" for i in range(12)]
    with pytest.raises(InputError, match=r"None of the 12 features \('Gene1'.* is among the genes"):
        result.to_anndata(other)
    other.var_names = ["Gene1"] * 12
    with pytest.raises(InputError, match=r"repeat: 'Gene1'.*var_names_make_unique"):
        result.to_anndata(other)
    with pytest.raises(InputError, match="joint tests have no estimates"):
        result.to_anndata(adata, tests=result.f_test(["cls1:trtB", "cls2:trtB"]))
    with pytest.raises(InputError, match="must hold the features of these results"):
        result.to_anndata(adata, tests=result.t_test(features=["Gene2"]))
    assert not adata.varm


def test_tables_of_pertpy_and_scanpy():
    _, result = small()
    tests = result.t_test({"one": "cls1:trtB", "two": "cls2:trtB"})
    ours = tests.top_table("two", n=None)
    pertpy = tests.top_table("two", n=None, style="pertpy")
    assert pertpy.columns.tolist() == [
        *("variable", "log_fc", "p_value", "adj_p_value", "t_value", "sd", "df", "contrast"),
        "status",
    ]
    assert pertpy["variable"].tolist() == ours.index.tolist()
    assert set(pertpy["contrast"]) == {"two"}
    for name, own in {"log_fc": "estimate", "p_value": "p", "adj_p_value": "p_adjusted"}.items():
        np.testing.assert_array_equal(pertpy[name], ours[own])
    scanpy = tests.top_table("two", n=4, style="scanpy")
    assert scanpy.columns.tolist() == ["names", "scores", "logfoldchanges", "pvals", "pvals_adj"]
    np.testing.assert_array_equal(scanpy["scores"], ours["t"].head(4))
    with pytest.raises(InputError, match="Unknown style='dream'"):
        tests.top_table("two", style="dream")
    with pytest.raises(InputError, match="joint tests have no estimate"):
        result.f_test(["cls1:trtB", "cls2:trtB"]).top_table(style="pertpy")
