"""The benchmark of data sources runs and measures what it says. Nothing here is timed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks import data as benchmark

pytest.importorskip("anndata")


def test_the_quick_size_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark, "staged", lambda stage, *given: benchmark.STAGES[stage]([str(x) for x in given])
    )
    monkeypatch.setattr(
        benchmark, "best", lambda function, _=1: 1.0 if function() is not None else 0.0
    )
    monkeypatch.setattr(benchmark, "environment", dict)
    monkeypatch.setattr(benchmark, "beside_flashmm", lambda *_: {"missing": "not asked"})
    assert benchmark.main(["--size", "quick", "--out", str(tmp_path / "out.json")]) == 0
    measured = json.loads((tmp_path / "out.json").read_text())
    memory, file = measured["memory"][0], measured["file"]
    assert memory["p"] == file["p"] == 62
    assert 0.05 < memory["elements"] / (100 * 2000) < 0.11
    assert memory["nanoseconds_log2p1"] > 0
    assert (file["cells"], file["genes"]) == (3000, 40)
    assert file["tested"] > 30
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
