"""AnnData in memory, backed, lazy and on disk: the Kang cells give the same results everywhere."""

from __future__ import annotations

import sys
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
RANDOM = "~ 0 + sample_id"


@pytest.fixture(scope="module")
def cells():
    """The Kang cells with their genes as AnnData holds them: cells x genes, CSR, float32."""
    kang = ref.kang()
    var = pd.DataFrame(index=pd.Index(kang.genes, dtype=object))
    var["even"] = np.arange(len(var)) % 2 == 0
    obs = kang.cells.set_axis(kang.cells.index.astype(str))
    for factor in ("cluster_id", "sample_id", "group_id"):
        obs[factor] = obs[factor].astype("category")  # writing would order text in its own way
    return anndata.AnnData(sp.csr_matrix(kang.counts.T, dtype=np.float32), obs=obs, var=var)


@pytest.fixture(scope="module")
def expected():
    kang = ref.kang()
    Y = pd.DataFrame.sparse.from_spmatrix(kang.counts, kang.genes, kang.cells.index)
    return fm.MultiLMM.from_formula(FIXED, RANDOM, kang.cells, Y, transform="log2p1")


def assert_same_sums(stats, expected, rtol=1e-12) -> None:
    assert stats.n == expected.n
    assert stats.feature_names.tolist() == expected.feature_names.tolist()
    assert stats.coef_names == expected.coef_names
    assert stats.structure == expected.structure
    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        left, right = getattr(stats, name), getattr(expected, name)
        np.testing.assert_allclose(
            left, right, rtol=rtol, atol=rtol * np.abs(right).max(), err_msg=name
        )


def build(adata, **options):
    return fm.MultiLMM.from_anndata(adata, FIXED, RANDOM, transform="log2p1", **options)


def with_x(cells, make):
    return anndata.AnnData(make(cells.X), obs=cells.obs, var=cells.var)


MATRICES = {
    "CSR": lambda X: X,
    "CSR array": sp.csr_array,
    "CSC": sp.csc_matrix,
    "dense": lambda X: X.toarray(),
    "dense, by genes": lambda X: np.asfortranarray(X.toarray()),
    "counts as integers": lambda X: X.astype(np.int32),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_in_memory(kind, cells, expected):
    adata = with_x(cells, MATRICES[kind])
    assert_same_sums(build(adata[::-1]).stats, expected.stats)
    in_any_order = np.random.default_rng(0).permutation(cells.n_obs)
    stats = fm.MultiLMM.from_formula(
        FIXED, RANDOM, cells.obs.iloc[in_any_order], adata, transform="log2p1"
    ).stats  # matched by the names of the cells
    assert_same_sums(stats, expected.stats)


FILES = {
    "CSR": ("CSR", {}),
    "CSC": ("CSC", {}),
    "dense": ("dense", {}),
    "compressed": ("CSR", {"compression": "gzip"}),
}


@pytest.mark.parametrize("kind", FILES)
def test_h5ad_backed_and_by_its_path(kind, cells, expected, tmp_path, monkeypatch):
    matrix, options = FILES[kind]
    path = tmp_path / "kang.h5ad"
    with_x(cells, MATRICES[matrix]).write_h5ad(path, **options)
    monkeypatch.setattr("flashmm.stats.streaming.BLOCK_BYTES", 2**18)  # several blocks
    assert_same_sums(build(str(path)).stats, expected.stats)
    backed = anndata.read_h5ad(path, backed="r")
    assert_same_sums(build(backed).stats, expected.stats)
    by_path = fm.MultiLMM.from_formula(FIXED, RANDOM, cells.obs, path, transform="log2p1")
    assert_same_sums(by_path.stats, expected.stats)
    backed.file.close()


def test_a_view_of_a_backed_object(cells, tmp_path):
    cells.write_h5ad(tmp_path / "kang.h5ad")
    backed = anndata.read_h5ad(tmp_path / "kang.h5ad", backed="r")
    mask = np.arange(cells.n_obs) % 3 != 0
    assert_same_sums(build(backed[mask]).stats, build(cells[mask]).stats)
    backed.file.close()


@pytest.mark.parametrize("kind", ["CSR", "dense"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_zarr_by_its_path(kind, cells, expected, tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    with_x(cells, MATRICES[kind]).write_zarr(tmp_path / "kang.zarr")
    monkeypatch.setattr("flashmm.stats.streaming.BLOCK_BYTES", 2**18)
    assert_same_sums(build(tmp_path / "kang.zarr").stats, expected.stats)


@pytest.mark.parametrize("kind", ["CSR", "dense"])
def test_dask_in_anndata(kind, cells, expected):
    da = pytest.importorskip("dask.array")

    def chunked(X):
        return da.from_array(MATRICES[kind](X), chunks=(300, X.shape[1]), asarray=False)

    assert_same_sums(build(with_x(cells, chunked)).stats, expected.stats)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_lazy(cells, expected, tmp_path):
    pytest.importorskip("dask")
    experimental = pytest.importorskip("anndata.experimental")
    if not hasattr(experimental, "read_lazy"):
        pytest.skip("this anndata reads nothing lazily")
    cells.write_h5ad(tmp_path / "kang.h5ad")
    assert_same_sums(build(experimental.read_lazy(tmp_path / "kang.h5ad")).stats, expected.stats)


def test_the_fit_from_a_file_is_the_fit_from_memory(cells, expected, tmp_path):
    cells.write_h5ad(tmp_path / "kang.h5ad")
    genes = expected.stats.feature_names[:60]
    mask = np.isin(cells.var_names, genes)
    left = build(tmp_path / "kang.h5ad", mask_var=mask).fit(parameter_space="psd")
    right = fm.MultiLMM(expected.stats.take(genes)).fit(parameter_space="psd")
    np.testing.assert_allclose(left.tvalues, right.tvalues, rtol=1e-8)
    np.testing.assert_allclose(left.theta, right.theta, rtol=1e-7, atol=1e-10)


# ---- layers, masks, what is refused ------------------------------------------------------


def test_layers_and_masks(cells, expected, tmp_path):
    adata = cells.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = None
    adata.write_h5ad(tmp_path / "layers.h5ad")
    even = expected.stats.feature_names[::2]
    for source in (adata, tmp_path / "layers.h5ad"):
        stats = build(source, layer="counts", mask_var="even").stats
        assert_same_sums(stats, expected.stats.take(even))
        with pytest.raises(InputError, match=r"has no X. Name one of its layers: 'counts'"):
            build(source)
        with pytest.raises(InputError, match=r"no layer 'count'. Did you mean 'counts'"):
            build(source, layer="count")
    with pytest.raises(InputError, match=r"'eve', which is no column of var. Did you mean 'even'"):
        build(cells, mask_var="eve")
    with pytest.raises(InputError, match="must hold booleans"):
        build(cells, mask_var=np.arange(cells.n_vars))
    with pytest.raises(InputError, match=r"has shape \(3,\), but there are 1267 genes"):
        build(cells, mask_var=np.ones(3, bool))


def test_cells_with_the_same_name_go_by_position(cells, expected):
    adata = cells.copy()
    adata.obs_names = ["cell"] * adata.n_obs
    assert_same_sums(build(adata).stats, expected.stats)


def test_what_is_no_anndata_is_refused(cells, tmp_path):
    with pytest.raises(InputError, match=r"There is no file '.*absent.h5ad'"):
        build(tmp_path / "absent.h5ad")
    with pytest.raises(InputError, match=r"neither an .h5ad nor a .zarr"):
        build("counts.csv")
    with pytest.raises(InputError, match="must be an AnnData object or the path"):
        build(cells.X)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["X"] = np.eye(3)
    with pytest.raises(InputError, match="is no AnnData file: it has no 'obs', 'var'"):
        build(tmp_path / "other.h5ad")
    named = cells.copy()
    named.var_names = ["gene"] * named.n_vars
    with pytest.raises(InputError, match="Duplicate feature names: 'gene'"):
        build(named)


def test_a_missing_package_is_named(cells, tmp_path, monkeypatch):
    cells.write_h5ad(tmp_path / "kang.h5ad")
    (tmp_path / "kang.zarr").mkdir()
    for package, path in (("anndata.io", "kang.h5ad"), ("zarr", "kang.zarr")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            extra = package.split(".")[0]
            with pytest.raises(InputError, match=rf"pip install 'multilmm\[{extra}\]'"):
                build(tmp_path / path)


# ---- damage ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(share, cells, tmp_path):
    path = tmp_path / "kang.h5ad"
    cells.write_h5ad(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"cannot be read; .* damaged"):
        build(path)


def test_a_damaged_block_is_named(cells, tmp_path):
    path = tmp_path / "kang.h5ad"
    cells.write_h5ad(path, compression="gzip")
    content = bytearray(path.read_bytes())
    h5py = pytest.importorskip("h5py")
    with h5py.File(path) as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(InputError, match="Block 0 of Y cannot be read; the file may be damaged"):
        build(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -2.0])
def test_a_bad_value_in_one_block_is_named(value, cells, tmp_path, monkeypatch):
    adata = cells.copy()
    position = int(adata.X.indptr[1000])
    adata.X.data[position] = value
    gene = adata.var_names[adata.X.indices[position]]
    adata.write_h5ad(tmp_path / "kang.h5ad")
    monkeypatch.setattr("flashmm.stats.streaming.BLOCK_BYTES", 2**18)
    with pytest.raises(InputError) as caught:
        build(tmp_path / "kang.h5ad")
    message = str(caught.value)
    assert f"feature {gene!r}, sample {adata.obs_names[1000]!r} (block " in message
    assert "(block 0)" not in message


# ---- places inside a store, and open groups ----------------------------------------------

PLACES = [
    "table.h5ad",
    "x.h5mu/mod/rna",
    "x.zarr",
    "x.zarr/tables/table",
    "x.zarr/tables/a.b",
    "x.zarr.zip",
]


def put(cells, tmp_path, place):
    """Write the cells at a place inside a store; give the store's file and the place in it."""
    path = tmp_path / place
    store, *inside = place.split("/")
    if "zarr" in store:
        zarr = pytest.importorskip("zarr")
        where = tmp_path / store
        target = zarr.storage.ZipStore(where, mode="w") if store.endswith("zip") else where
        root = zarr.open_group(target, mode="w")
    else:
        where = tmp_path / store
        root = pytest.importorskip("h5py").File(where, "w")
    group = root.require_group("/".join(inside[:-1])) if inside[1:] else root
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata.io.write_elem(group, inside[-1] if inside else "/", cells)
    for opened in (root, getattr(root, "store", None)):
        if hasattr(opened, "close"):
            opened.close()
    return path, where, "/".join(inside)


@pytest.mark.parametrize("place", PLACES)
def test_a_table_inside_a_store(place, cells, expected, tmp_path):
    path, where, inside = put(cells, tmp_path, place)
    assert_same_sums(build(path).stats, expected.stats)
    assert_same_sums(build(f"{path}/").stats, expected.stats)
    by_path = fm.MultiLMM.from_formula(FIXED, RANDOM, cells.obs, path, transform="log2p1")
    assert_same_sums(by_path.stats, expected.stats)
    if inside:
        with pytest.raises(InputError, match=rf"holds '{inside}'.*Add that to the path"):
            build(where)
        with pytest.raises(InputError, match=r"There is no 'nothing' in "):
            build(f"{where}/nothing/{inside}")


@pytest.mark.parametrize("place", PLACES)
def test_an_open_group(place, cells, expected, tmp_path):
    _, where, inside = put(cells, tmp_path, place)
    if "zarr" in where.name:
        zarr = pytest.importorskip("zarr")
        store = zarr.storage.ZipStore(where, mode="r") if where.suffix == ".zip" else where
        root = zarr.open_group(store, mode="r")
    else:
        h5py = pytest.importorskip("h5py")
        root = h5py.File(where, "r")
    group = root[inside] if inside else root
    assert_same_sums(build(group).stats, expected.stats)
    as_y = fm.MultiLMM.from_formula(FIXED, RANDOM, cells.obs.iloc[::-1], group, transform="log2p1")
    assert_same_sums(as_y.stats, expected.stats)
    matrix = fm.MultiLMM.from_formula(
        FIXED, RANDOM, cells.obs, group["X"], transform="log2p1", rows="samples"
    )
    np.testing.assert_allclose(matrix.stats.XY, expected.stats.XY, rtol=1e-12)
    if inside:
        with pytest.raises(InputError, match=rf"is no AnnData table, but holds '{inside}'"):
            build(root)
    with pytest.raises(InputError, match="no AnnData"):
        build(group["obs"])
    with pytest.raises(InputError, match=r"is an array, not an AnnData table|must be an AnnData"):
        build(group["X/data"])


def test_other_places(cells, tmp_path):
    path, where, _ = put(cells, tmp_path, "x.h5mu/mod/rna")
    with pytest.raises(InputError, match="is an array"):
        build(path / "X" / "data")
    with pytest.raises(InputError, match="There is no 'deeper'"):
        build(path / "X" / "data" / "deeper")
    with pytest.raises(InputError, match="There is no file"):
        build(tmp_path / "absent.zarr" / "tables" / "table")
    with pytest.raises(InputError, match="Did you mean 'rna'"):
        build(where / "mod" / "rnaa")
