"""Covariances and pedigrees as people have them: other labels, tables, files, unknown parents."""

from __future__ import annotations

import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import xarray as xr
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.designs.pedigrees import inbreeding

NAMES = list("abcdef")


def matrix(names=NAMES):
    root = np.random.default_rng(0).normal(size=(len(names), 9))
    return pd.DataFrame(root @ root.T / 9.0, names, names)


def fit(g, K, random="(1 | g)", name="g"):
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.repeat(g, 4), "h": np.tile(list("uv"), 2 * len(g))})
    Y = rng.normal(size=(2, len(data))) + 2.0 * rng.normal(size=(2, len(g))).repeat(4, axis=1)
    model = fm.MultiLMM.from_formula("~ 1", random, data, Y, covariances={name: K})
    return model.fit(parameter_space="psd")


def test_ids_from_zero_are_the_labels_that_pandas_gives():
    """``pd.DataFrame(K)`` and ``index=range(q)`` label rows 0, 1, ...: with such ids by these."""
    K = matrix().to_numpy()
    for levels in (range(6), [4, 0, 2]):
        expected = fit([f"i{i}" for i in levels], fm.Covariance(K, [f"i{i}" for i in range(6)]))
        for given in (pd.DataFrame(K), pd.DataFrame(K, range(6), range(6)), K):
            assert_allclose(fit(list(levels), given).llf, expected.llf, rtol=1e-12)
    with pytest.raises(fm.InputError, match="without names"):
        fit(range(2, 8), pd.DataFrame(K))


def test_tables_whose_first_column_names_the_levels():
    K, expected = matrix(), fit(NAMES, matrix())
    tables = [K.rename_axis("id").reset_index()]
    if pl := pytest.importorskip("polars"):
        tables.append(pl.from_pandas(tables[0]))
    for table in tables:
        assert_allclose(fit(NAMES, table).llf, expected.llf, rtol=1e-12)
    root = pd.DataFrame(np.linalg.cholesky(K)).assign(id=NAMES)
    assert_allclose(fit(NAMES, fm.Covariance.from_root(root)).llf, expected.llf, rtol=1e-12)


def test_labels_of_two_parts_are_levels_of_an_interaction():
    both = pd.MultiIndex.from_product([NAMES, list("uv")])
    K = matrix([f"{a}:{b}" for a, b in both])
    expected = fit(NAMES, K, "(1 | g:h)", "g:h")
    found = fit(NAMES, K.set_axis(both).set_axis(both, axis=1), "(1 | g:h)", "g:h")
    assert_allclose(found.llf, expected.llf, rtol=1e-12)
    for levels in (both, list(both)):
        assert fm.Covariance(K.to_numpy(), levels=levels).levels == tuple(K.index)


def test_bytes_and_missing_labels():
    names = [name.encode() for name in NAMES]
    assert fm.Covariance(matrix(names)).levels == tuple(NAMES)
    for names in ([*NAMES[:5], None], [*NAMES[:5], np.nan], [("f", "a"), ("f", None)]):
        with pytest.raises(fm.InputError, match="Missing level names"):
            fm.Covariance(matrix(NAMES[: len(names)]).set_axis(names).set_axis(names, axis=1))


def test_what_is_no_matrix_is_refused():
    K = matrix()
    holes = K.mask(np.eye(6, k=1).astype(bool))
    for given, words in [
        (xr.DataArray(np.ones((2, 6, 6)), dims=("k", "i", "j")), "'k', 'i', 'j' are no table"),
        (xr.Dataset({"K": (("i", "j"), K)}), "Take one of its variables"),
        ("kinship.csv", r"read_covariance\(path\)"),
        (holes, "5 values that are missing or infinite: the first between 'a' and 'b'"),
    ]:
        with pytest.raises(fm.InputError, match=words):
            fit(NAMES, given)
    with pytest.raises(fm.InputError, match="in row 2 and column 1"):
        fm.Covariance(sp.csr_array([[1.0, 0.0], [np.nan, 1.0]]))


# ---- pedigrees ---------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["-9", "-1", "*", "?", "unknown", "N/A", "NaN", "null", " "])
def test_what_stands_for_an_unknown_parent(unknown):
    table = pd.DataFrame({"id": list("abc"), "sire": [unknown, "0", "a"], "dam": [unknown] * 3})
    assert fm.relationship_matrix(table).index.tolist() == ["a", "b", "c"]
    assert fm.relationship_matrix(table).loc["c"].tolist() == [0.5, 0.0, 1.0]


def test_pedigrees_in_other_tables_and_with_odd_names():
    pl = pytest.importorskip("polars")
    columns = {"id": ["c", "a"], "sire": ["a", None], "dam": ["b", None]}
    expected = fm.relationship_matrix(pd.DataFrame(columns))
    pd.testing.assert_frame_equal(fm.relationship_matrix(pl.DataFrame(columns)), expected)
    odd = pd.DataFrame({"id": [np.inf, 2.0], "sire": [np.nan, np.inf], "dam": [np.nan] * 2})
    assert fm.relationship_matrix(odd).index.tolist() == ["inf", "2"]
    for table, words in [
        (pd.DataFrame({"id": [0, 1], "sire": [0, 0], "dam": [0, 0]}), "'0' stands for unknown"),
        (pd.DataFrame(columns=["id", "sire", "dam"]), "no rows"),
        (pd.DataFrame([list("aabc")], columns=["id", "id", "sire", "dam"]), "columns called 'id'"),
    ]:
        with pytest.raises(fm.InputError, match=words):
            fm.pedigree_covariance(table)


def test_inbreeding_of_overlapping_generations():
    """Equal to the tabular method, parents chosen anew for each of 400, themselves included."""
    rng = np.random.default_rng(0)
    q = 400
    sire, dam = (np.maximum(rng.integers(-20, np.maximum(np.arange(q), 1)), -1) for _ in "sd")
    sire[0] = dam[0] = -1
    A = np.zeros((q, q))
    for i in range(q):
        for parent in (sire[i], dam[i]):
            if parent >= 0:
                A[i, :i] += 0.5 * A[parent, :i]
        A[:i, i] = A[i, :i]
        A[i, i] = 1.0 + (0.5 * A[sire[i], dam[i]] if min(sire[i], dam[i]) >= 0 else 0.0)
    assert_allclose(inbreeding(sire, dam), np.diag(A) - 1.0, atol=1e-14)


# ---- files -------------------------------------------------------------------------------------


def grm(folder, names, *, values=None, text=None, prefix="made"):
    (folder / f"{prefix}.grm.id").write_bytes(names)
    if values is not None:
        np.asarray(values, "<f4").tofile(folder / f"{prefix}.grm.bin")
    if text is not None:
        (folder / f"{prefix}.grm.gz").write_bytes(text)
    return folder / prefix


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (b"#FID\tIID\nf ann\nf bob\n", "individual"),
        (b"FID IID\nf ann\nf bob\n", "individual"),
        (b"#IID\nann\nbob\n", "individual"),
        (b"\xef\xbb\xbff ann\r\nf bob\r\n", "family:individual"),
    ],
)
def test_names_of_individuals_as_programs_write_them(tmp_path, names, labels):
    prefix = grm(tmp_path, names, values=[1, 0.25, 0.75], prefix="a.id")
    for ending in ("", ".grm", ".grm.bin", ".grm.id", ".grm.N.bin"):
        found = fm.read_grm(f"{prefix}{ending}", labels=labels)
        family = "f:" if ":" in labels else ""
        assert list(found.index) == [f"{family}ann", f"{family}bob"]
        assert found.to_numpy().tolist() == [[1.0, 0.25], [0.25, 0.75]]


def test_broken_relationship_files_name_their_fault(tmp_path):
    two = b"f ann\nf bob\n"
    lines = b"1 1 9 1\n2 1 9 .5\n2 2 9 1\n"
    for names, text, words in [
        (two, gzip.compress(lines)[:-9], "cannot be read"),
        (two, gzip.compress(lines.replace(b" 9 ", b" ")), "row, column, number of markers"),
        (two, gzip.compress(lines.replace(b"2 2", b"2 1")), "2 of them for row 2 and column 1"),
        (two, gzip.compress(lines.replace(b"2 2", b"0 0")), "Line 3 .*row 0 and column 0"),
        (b"f \xff\n", gzip.compress(b"1 1 9 1"), "cannot be read as text"),
    ]:
        with pytest.raises(fm.InputError, match=words):
            fm.read_grm(grm(tmp_path, names, text=text))
    with pytest.raises(fm.InputError, match="no families"):
        fm.read_grm(grm(tmp_path, b"#IID\nann\n", values=[1]), labels="family:individual")


def test_tables_keep_names_as_they_are_written(tmp_path):
    path = tmp_path / "K.csv"
    for names in (["001", "002"], ["NA", "nan"], ["1.0", "12345678901234567890"], ["1e5", "b c"]):
        path.write_text(f",{names[0]},{names[1]}\n{names[0]},1,.5\n{names[1]},.5,1\n", "utf-8")
        found = fm.read_covariance(path)
        assert [list(found.index), list(found.columns)] == [names, names]
    path.write_text('"";"a";"b"\n"a";1;0,5\n"b";0,5;1\n', "utf-8")
    assert fm.read_covariance(path).loc["a", "b"] == 0.5
    path.write_text('"a" "b"\n"a" 1 0.5\n"b" 0.5 1\n', "utf-8")
    assert fm.read_covariance(path).loc["a", "b"] == 0.5
    for text, words in [
        (",a,b\na,1,\nb,.5,1\n", "lacks 1 of its 4 values: the first in the row 'a'"),
        (",a,a\na,1,.5\na,.5,1\n", "several rows called 'a'"),
        ("1,.5,.2\n.5,1,.3\n.2,.3,1\n", "begin with the number 1"),
    ]:
        path.write_text(text, "utf-8")
        with pytest.raises(fm.InputError, match=words):
            fm.read_covariance(path)


def test_tables_that_are_none_say_so(tmp_path):
    """Levels of a wrong type beside missing values, columns and rows of unequal length."""
    K = np.array([[1.0, np.nan], [np.nan, 1.0]])
    for levels in (5, iter("ab")):
        with pytest.raises(fm.InputError):
            fm.Covariance(K, levels=levels)
    with pytest.raises(fm.InputError, match="no table"):
        fm.relationship_matrix({"id": ["a", "b"], "sire": ["0"], "dam": ["0", "0"]})
    path = tmp_path / "K.csv"
    path.write_text(",a,b\na,1\nb,0.5,1\n")
    with pytest.raises(fm.InputError, match=r"first row has 2 entries, its header 3|no table"):
        fm.read_covariance(path)
