"""The scripts in examples/ run, from any folder and without a warning, and say what they should."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import references as ref

import flashmm as fm

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


@pytest.fixture
def quickstart(tmp_path, monkeypatch, capsys):
    run("quickstart.py", tmp_path, monkeypatch)
    return capsys.readouterr().out


def test_quickstart_fits_every_gene_and_finds_the_interferon_response(quickstart):
    assert re.search(r"Features \(m\): +1267", quickstart)
    cell_types = ref.kang().cells["cluster_id"].unique()
    for name in cell_types:
        _, table = quickstart.split(f"\n{name}: genes with the strongest response")
        rows = [line.split() for line in table.split("\n\n")[0].splitlines()[3:]]
        assert len(rows) == 6
        assert rows[0][0] == "ISG15"
        p = [float(row[4]) for row in rows]
        assert p == sorted(p)
        assert all(float(row[1]) > 0.5 and float(row[5]) < 1e-3 for row in rows)


def test_the_genes_that_lead_are_those_that_interferon_moves(quickstart):
    """CD14+ monocytes; Satterthwaite's table has ISG15 at number 250."""
    _, table = quickstart.split("\nCD14+ Monocytes: genes with the strongest response")
    names = [line.split()[0] for line in table.split("\n\n")[0].splitlines()[3:]]
    leading = ["ISG15", "APOBEC3A_ENSG00000128383", "IFITM3", "ISG20", "RSAD2", "IFIT3"]
    assert names == leading


def test_script_and_tutorial_test_alike():
    page = (EXAMPLES.parent / "docs" / "tutorial.md").read_text("utf-8")
    script = (EXAMPLES / "quickstart.py").read_text("utf-8")
    for text in (page, script):
        assert 'result.t_test(effects, df="integrated")' in text
        assert 'parameter_space="psd"' in text
        assert "sort_by" not in text
    assert 'top_table("CD14+ Monocytes", n=6)' in page
    assert "top_table(name, n=6)" in script


def test_quickstart_saves_the_fit_in_the_current_folder(quickstart, tmp_path):
    assert [path.name for path in tmp_path.iterdir()] == ["kang.nc"]
    loaded = fm.MultiLMMResults.load(tmp_path / "kang.nc")
    assert list(loaded.params.index) == ref.kang().genes
    assert loaded.converged.all()
    assert loaded.bse.notna().all(axis=None)
    assert loaded.options.parameter_space == "psd"


def test_quickstart_saves_where_it_is_told(tmp_path, monkeypatch):
    target = tmp_path / "elsewhere.nc"
    run("quickstart.py", tmp_path, monkeypatch, str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere.nc"]
