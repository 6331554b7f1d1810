"""The benchmark of data sources runs and measures what it says. Nothing here is timed."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from benchmarks import data as benchmark
from benchmarks import waiting
from benchmarks.exchange import read_matrix, write_counts
from benchmarks.report import data_tables

from flashmm import ConvergenceWarning

pytest.importorskip("anndata")

PARTS = (("data", "<f4"), ("indices", "<i4"), ("indptr", "<i4"))


def test_the_quick_size_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark, "staged", lambda stage, *given: benchmark.STAGES[stage]([str(x) for x in given])
    )
    monkeypatch.setattr(
        benchmark, "best", lambda function, _=1: 1.0 if function() is not None else 0.0
    )
    monkeypatch.setattr(benchmark, "environment", dict)
    monkeypatch.setattr(benchmark, "run_flashmm", lambda *_: {"missing": "not asked"})
    assert benchmark.main(["--size", "quick", "--out", str(tmp_path / "out.json")]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())
    memory, file = measured["memory"][0], measured["file"]
    assert memory["p"] == file["p"] == 62
    assert 0.05 < memory["elements"] / (100 * 2000) < 0.11
    assert memory["nanoseconds_log2p1"] > 0
    assert (file["cells"], file["genes"]) == (3000, 40)
    assert file["tested"] > 30
    assert (measured["beside"]["cells"], measured["beside"]["genes"]) == (2000, 40)
    assert "| 2,000 | 40 |" in data_tables(measured)
    assert [row["cells"] for row in measured["peak"]] == [2000, 8000]
    assert all(row["p"] == 62 and row["megabytes"] > 0 for row in measured["peak"])
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    capsys.readouterr()


def test_the_file_is_what_anndata_reads(tmp_path):
    import anndata  # noqa: PLC0415

    elements = benchmark.write_h5ad(tmp_path / "cells.h5ad", 5000, 40)
    adata = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert adata.shape == (5000, 40)
    assert adata.X.nnz == elements
    assert adata.X.data.min() >= 1
    assert np.all(adata.X.data == np.floor(adata.X.data))


def test_a_peer_gets_the_counts_of_the_file(tmp_path):
    import anndata  # noqa: PLC0415

    path = tmp_path / "cells.h5ad"
    benchmark.write_h5ad(path, 300, 20)
    X, codes = np.arange(600.0).reshape(300, 2), np.arange(300.0)
    write_counts(tmp_path, path, X, codes)
    np.testing.assert_array_equal(read_matrix(tmp_path, "X"), X)
    np.testing.assert_array_equal(read_matrix(tmp_path, "codes")[:, 0], codes)
    assert read_matrix(tmp_path, "genes").tolist() == [[20]]
    parts = [np.fromfile(tmp_path / f"{name}.bin", dtype) for name, dtype in PARTS]
    expected = anndata.read_h5ad(path).X.toarray()
    np.testing.assert_array_equal(sp.csr_array(tuple(parts), shape=(300, 20)).toarray(), expected)


@pytest.mark.parametrize("agrees", [True, False])
def test_a_ratio_is_shown_only_where_the_answers_agree(agrees):
    peer = {"genes": 5, "seconds_statistics": 2.0, "seconds_per_gene": 0.05}
    peer |= {"seconds_for_all": 4.0, "ratio": 12.0}
    peer["agreement"] = {"agrees": agrees, "same": 4, "features": 5}
    measured = {"memory": [], "peak": [], "beside": {"cells": 10, "genes": 40, "seconds": 0.5}}
    measured["beside"]["flashmm_r"] = peer
    measured["file"] = benchmark_file()
    assert ("| 12 |" in data_tables(measured)) == agrees
    assert ("answers differ" in data_tables(measured)) != agrees


def benchmark_file():
    numbers = dict.fromkeys(("seconds", "seconds_statistics", "seconds_fit", "seconds_test"), 1.0)
    return numbers | {"cells": 1, "genes": 1, "gigabytes": 1.0, "flashmm_r": {"missing": "no"}}


def test_what_a_user_waits_for_is_measured(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")

    def staged(name, given, tree, **_):
        assert tree.joinpath("flashmm").is_dir()
        return waiting.STAGES[name]([str(x) for x in given])

    monkeypatch.setattr(waiting, "staged", staged)
    monkeypatch.setattr(waiting, "while_busy", lambda function: function())
    monkeypatch.setattr(waiting, "lmer", lambda _: {"(1 | Subject)": 20.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        options = ["--rounds", "1", "--before", str(waiting.ROOT)]
        assert waiting.main([*options, "--out", str(tmp_path / "out.json")]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())
    assert measured["now"].keys() == measured["before"].keys() == waiting.STAGES.keys()
    assert measured["now"]["single"]["(1 | Subject)"] > 0
    assert measured["now"]["stream"]["statistics"] > 0
    assert measured["now"]["threads"].keys() == {"t_test", "table", "own rows"}
    lines = capsys.readouterr().out
    assert "| stream: statistics over reading |" in lines
    assert "| lmer alone: (1 \\| Subject) | 20 |" in lines
