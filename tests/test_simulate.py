"""The simulator: its shapes and labels, its model within Monte Carlo error, its refusals."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from flashmm.exceptions import InputError
from flashmm.simulate.single_cell import SimulatedRNASeq, rnaseq


def reference_counts(n_genes: int = 12, n_cells: int = 60, mean: float = 20.0) -> pd.DataFrame:
    """Return overdispersed counts with labels."""
    drawn = np.random.default_rng(3).negative_binomial(2.0, 2 / (2 + mean), (n_genes, n_cells))
    genes = [f"G{i}" for i in range(n_genes)]
    return pd.DataFrame(drawn, index=genes, columns=[f"c{i}" for i in range(n_cells)])


def reference_metadata(counts: pd.DataFrame) -> pd.DataFrame:
    """Return metadata of four samples, three clusters and two treatments."""
    k = np.arange(counts.shape[1])
    return pd.DataFrame(
        {
            "sam": np.array(["s1", "s2", "s3", "s4"])[k % 4],
            "cls": np.array(["T", "B", "NK"])[k % 3],
            "trt": np.array(["ctrl", "stim"])[k % 2],
            "age": k,
        },
        index=counts.columns,
    )


def assert_same(a: SimulatedRNASeq, b: SimulatedRNASeq) -> None:
    for name in ("ref_mean_dispersion", "metadata", "counts", "de_genes"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name))
    assert a.treatment == b.treatment


# ---- shapes and labels --------------------------------------------------------------------------


def test_without_reference() -> None:
    result = rnaseq(n_genes=40, n_cells=500, n_samples=6, n_clusters=3, rng=1)
    assert result.counts.shape == (40, 500)
    assert set(result.counts.dtypes) == {np.dtype(np.int64)}
    assert list(result.counts.index[[0, -1]]) == ["Gene1", "Gene40"]
    assert list(result.counts.columns[[0, -1]]) == ["Cell1", "Cell500"]
    assert list(result.metadata.columns) == ["sam", "cls", "trt", "libsize"]
    assert result.metadata.index.equals(result.counts.columns)
    assert set(result.metadata["cls"]) == {"1", "2", "3"}
    assert set(result.metadata["trt"]) == {"A", "B"}
    assert result.treatment == "B"
    assert list(result.ref_mean_dispersion.columns) == ["mu", "dispersion"]
    assert result.ref_mean_dispersion.index.equals(result.counts.index)
    assert list(result.de_genes.columns) == ["gene", "beta", "cluster"]
    assert list(result.de_genes["gene"]) == list(result.counts.index[-3:])
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.treatment = "A"  # type: ignore[misc]


def test_defaults_are_those_of_simurnaseq() -> None:
    result = rnaseq(n_genes=30, n_cells=4000, rng=1)
    assert result.metadata["sam"].nunique() == 25
    assert result.metadata["cls"].nunique() == 10
    assert len(result.de_genes) == 10
    size = result.de_genes["beta"].abs()
    assert size.between(0.25, 1.0).all()
    assert result.de_genes["beta"].min() < 0 < result.de_genes["beta"].max()


def test_a_seed_reproduces_and_a_generator_advances() -> None:
    arguments: dict[str, Any] = {"n_genes": 20, "n_cells": 60, "n_clusters": 3}
    assert_same(rnaseq(**arguments, rng=7), rnaseq(**arguments, rng=7))
    assert_same(rnaseq(**arguments, rng=7), rnaseq(**arguments, rng=np.random.default_rng(7)))
    generator = np.random.default_rng(7)
    first, second = (rnaseq(**arguments, rng=generator) for _ in range(2))
    assert not first.counts.equals(second.counts)
    assert not first.counts.equals(rnaseq(**arguments, rng=8).counts)


def test_a_reference_keeps_its_names_and_order() -> None:
    counts = reference_counts()
    metadata = reference_metadata(counts)
    kept = metadata.copy()
    result = rnaseq(counts, metadata=metadata.iloc[::-1], rng=1)
    assert result.counts.index.equals(counts.index)
    assert result.counts.columns.equals(counts.columns)
    pd.testing.assert_frame_equal(result.metadata.drop(columns="libsize"), kept)
    pd.testing.assert_frame_equal(metadata, kept)
    assert_array_equal(result.metadata["libsize"], counts.sum().to_numpy())
    assert result.treatment == "stim"
    flat = rnaseq(counts, metadata=metadata, adjust_library_size=False, rng=1)
    assert_allclose(flat.metadata["libsize"], counts.sum().mean(), rtol=1e-15)


def test_moments_are_the_method_of_moments() -> None:
    counts = reference_counts()
    counts.iloc[2] = 0
    counts.iloc[3] = 0
    counts.iloc[3, 5] = 1  # variance equal to its mean: no size
    counts.iloc[4] = 5  # no variance
    result = rnaseq(counts, n_genes=5, n_de_genes=0, rng=1)
    mu, variance = counts.mean(axis=1), counts.var(axis=1)
    usable = variance > mu * (1 + 1e-12)
    assert usable.sum() == 9
    assert_allclose(result.ref_mean_dispersion["mu"], mu, rtol=1e-14)
    expected = mu**2 / (variance - mu)
    found = result.ref_mean_dispersion["dispersion"]
    assert_allclose(found[usable], expected[usable], rtol=1e-12)
    assert np.isnan(found["G2"])
    assert found["G3"] == np.inf
    assert_allclose(found["G4"], expected["G4"], rtol=1e-12)
    assert set(result.counts.index) <= set(counts.index[usable])
    assert result.counts.index.is_unique


def test_unusable_genes_are_replaced_with_a_warning() -> None:
    counts = reference_counts()
    counts.iloc[[0, 7]] = 0
    with pytest.warns(UserWarning, match="2 of 12 reference genes") as caught:
        result = rnaseq(counts, rng=1)
    assert caught[0].filename == __file__
    assert result.counts.index.is_unique
    own = np.delete(np.arange(12), [0, 7])
    assert result.counts.index[own].equals(counts.index[own])
    assert all(name.endswith(".1") for name in result.counts.index[[0, 7]])


@pytest.mark.parametrize("form", ["array", "csr", "csc", "coo"])
def test_every_kind_of_counts_gives_the_same(form: str) -> None:
    counts = reference_counts(mean=2.0)
    plain = rnaseq(counts.to_numpy(), rng=1)
    given = counts.to_numpy()
    matrix = given.astype(float) if form == "array" else getattr(sparse, f"{form}_array")(given)
    assert_same(rnaseq(matrix, rng=1), plain)
    labelled = rnaseq(counts, rng=1)
    assert_array_equal(labelled.counts.to_numpy(), plain.counts.to_numpy())
    assert list(plain.counts.index[:2]) == ["Gene1", "Gene2"]
    assert list(plain.counts.columns[:2]) == ["Cell1", "Cell2"]


def test_unlabelled_counts_take_the_labels_of_the_metadata() -> None:
    counts = reference_counts()
    metadata = reference_metadata(counts)
    result = rnaseq(counts.to_numpy(), metadata=metadata, rng=1)
    assert result.counts.columns.equals(metadata.index)
    drawn = rnaseq(n_genes=8, metadata=metadata, rng=1)
    assert drawn.counts.columns.equals(metadata.index)


@pytest.mark.parametrize(("n_genes", "n_cells"), [(5, 20), (30, 150)])
def test_fewer_or_more_than_the_reference(n_genes: int, n_cells: int) -> None:
    counts = reference_counts()
    metadata = reference_metadata(counts)
    result = rnaseq(counts, n_genes=n_genes, n_cells=n_cells, metadata=metadata, rng=1)
    assert result.counts.shape == (n_genes, n_cells)
    assert result.counts.index.is_unique
    assert result.counts.columns.is_unique
    assert result.metadata.index.equals(result.counts.columns)
    # A cell keeps its row of the metadata, and all are used before one is used again.
    origin = result.metadata.index.str.replace(r"\..*", "", regex=True)
    assert_array_equal(result.metadata["age"], metadata.loc[origin, "age"])
    uses = origin.value_counts()
    assert uses.max() - uses.reindex(counts.columns, fill_value=0).min() <= 1
    genes = result.counts.index.str.replace(r"\..*", "", regex=True)
    assert genes.value_counts().max() == math.ceil(n_genes / 12)
    assert genes.isin(counts.index).all()


def test_repeated_names_stay_distinct_from_names_of_the_reference() -> None:
    counts = reference_counts(2).set_axis(["A", "A.1"])
    result = rnaseq(counts, n_genes=4, n_de_genes=0, rng=1)
    assert sorted(result.counts.index) == ["A", "A..1", "A.1", "A.1..1"]


# ---- samples, clusters, treatments --------------------------------------------------------------


def test_nested_samples_belong_to_one_treatment() -> None:
    for seed in range(20):
        result = rnaseq(n_genes=5, n_cells=300, n_samples=3, n_clusters=2, rng=seed)
        samples = result.metadata.groupby("trt")["sam"].unique()
        assert set(samples.index) == {"A", "B"}
        assert sum(map(len, samples)) == 3
        assert all(name.startswith(trt) for trt, names in samples.items() for name in names)


def test_crossed_samples_see_every_treatment() -> None:
    result = rnaseq(n_genes=5, n_cells=600, samples_nested=False, n_samples=4, n_clusters=2, rng=1)
    assert set(result.metadata["sam"]) == {"S1", "S2", "S3", "S4"}
    assert (result.metadata.groupby("sam")["trt"].nunique() == 2).all()


def test_several_treatments_and_the_treated_one() -> None:
    result = rnaseq(n_genes=9, n_cells=200, n_treatments=3, n_clusters=2, rng=1)
    assert set(result.metadata["trt"]) == {"A", "B", "C"}
    assert result.treatment == "C"
    chosen = rnaseq(n_genes=9, n_cells=200, n_treatments=3, treatment="A", n_clusters=2, rng=1)
    assert chosen.treatment == "A"


def test_one_condition_warns() -> None:
    with pytest.warns(UserWarning, match="all of the cells are in condition 'A'"):
        rnaseq(n_genes=12, n_cells=50, n_treatments=1, rng=1)


def test_numbers_of_de_genes_by_cluster() -> None:
    counts = reference_counts()
    arguments: dict[str, Any] = {"metadata": reference_metadata(counts), "rng": 1}

    def by_cluster(**more: Any) -> dict[str, int]:
        found = rnaseq(counts, **arguments, **more).de_genes["cluster"].value_counts()
        return {str(name): int(number) for name, number in found.items()}

    assert by_cluster(n_de_genes_by_cluster={"T": 4, "NK": 1}) == {"T": 4, "NK": 1}
    assert by_cluster(n_de_genes_by_cluster=pd.Series({"B": 2})) == {"B": 2}
    given = xr.DataArray([4, 1, 0], dims="cluster", coords={"cluster": ["T", "NK", "B"]})
    assert by_cluster(n_de_genes_by_cluster=given) == {"T": 4, "NK": 1}
    # Positions follow the sorted labels: B, NK, T.
    assert by_cluster(n_de_genes_by_cluster=[3, 0, 2]) == {"B": 3, "T": 2}
    assert by_cluster(n_de_genes=5, n_de_genes_by_cluster=[3, 0, 2]) == {"B": 3, "T": 2}
    assert by_cluster(n_de_genes=7, p_de_genes_by_cluster={"NK": 0.5}) == {"NK": 7}
    assert by_cluster(n_de_genes=7, p_de_genes_by_cluster=[0, 0, 3]) == {"T": 7}
    assert by_cluster(n_de_genes=0) == {}
    assert sum(by_cluster().values()) == 3
    with pytest.warns(UserWarning, match="n_de_genes is 4, but n_de_genes_by_cluster sums to 5"):
        assert by_cluster(n_de_genes=4, n_de_genes_by_cluster=[3, 0, 2]) == {"B": 3, "T": 2}


def test_probabilities_share_out_the_de_genes() -> None:
    result = rnaseq(
        n_genes=4000,
        n_cells=40,
        n_clusters=2,
        n_de_genes=4000,
        p_de_genes_by_cluster={"1": 3, "2": 1},
        rng=1,
    )
    share = (result.de_genes["cluster"] == "1").mean()
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


@pytest.mark.parametrize(
    ("direction", "low", "high"), [("up", 0.5, 2), ("down", -2, -0.5), ("both", -2, -0.5)]
)
def test_direction(direction: str, low: float, high: float) -> None:
    result = rnaseq(
        n_genes=400,
        n_cells=20,
        n_de_genes=400,
        direction=direction,  # type: ignore[arg-type]
        min_beta=low,
        max_beta=high,
        rng=1,
    )
    beta = result.de_genes["beta"]
    assert beta.abs().between(0.5, 2).all()
    share_up = {"up": 1.0, "down": 0.0, "both": 0.5}[direction]
    assert abs((beta > 0).mean() - share_up) < 4 * 0.5 / 20 * (direction == "both") + 1e-12
    assert abs(beta.abs().mean() - 1.25) < 4 * 1.5 / math.sqrt(12 * 400)


def test_labels_of_clusters_and_treatments_may_be_numbers_or_categories() -> None:
    counts = reference_counts()
    metadata = reference_metadata(counts)
    metadata["cls"] = np.arange(60) % 3 * 10
    metadata["trt"] = pd.Categorical(metadata["trt"], categories=["stim", "ctrl", "none"])
    result = rnaseq(counts, metadata=metadata, n_de_genes_by_cluster={10: 2}, rng=1)
    assert list(result.de_genes["cluster"]) == [10, 10]
    assert result.treatment == "stim"


# ---- the model, within Monte Carlo error --------------------------------------------------------


def test_null_genes_have_the_moments_of_the_negative_binomial() -> None:
    n = 4000
    result = rnaseq(
        n_genes=150,
        n_cells=n,
        n_de_genes=0,
        var_random_effects=0.0,
        adjust_library_size=False,
        rng=11,
    )
    mu, phi = (result.ref_mean_dispersion[name].to_numpy() for name in ("mu", "dispersion"))
    counts = result.counts.to_numpy()
    variance = mu + mu**2 / phi
    z = (counts.mean(axis=1) - mu) / np.sqrt(variance / n)
    assert np.abs(z).max() < 4.5
    assert abs(np.mean(z**2) - 1) < 5 * math.sqrt(2 / 150)
    assert_allclose(np.mean(counts.var(axis=1) / variance), 1, atol=0.02)
    p_zero = (phi / (phi + mu)) ** phi
    z_zero = ((counts == 0).mean(axis=1) - p_zero) / np.sqrt(p_zero * (1 - p_zero) / n)
    assert np.abs(z_zero).max() < 4.5


def test_a_reference_passes_its_mean_and_size_on() -> None:
    counts = reference_counts(n_genes=8, n_cells=400)
    n = 20_000
    metadata = reference_metadata(counts)
    result = rnaseq(
        counts,
        n_cells=n,
        metadata=metadata,
        n_de_genes=0,
        var_random_effects=0.0,
        adjust_library_size=False,
        rng=2,
    )
    mu, phi = result.ref_mean_dispersion.to_numpy().T
    variance = mu + mu**2 / phi
    z = (result.counts.mean(axis=1) - mu) / np.sqrt(variance / n)
    assert np.abs(z).max() < 4.5
    assert_allclose(result.counts.var(axis=1), variance, rtol=0.1)


def test_random_effects_have_their_variance_and_are_shared_within_a_sample() -> None:
    n_genes, n_samples, variance = 60, 100, 0.3
    counts = reference_counts(n_genes=n_genes, n_cells=100, mean=2000.0)
    result = rnaseq(
        counts,
        n_cells=5000,
        samples_nested=False,
        n_samples=n_samples,
        n_de_genes=0,
        var_random_effects=variance,
        adjust_library_size=False,
        rng=5,
    )
    groups = result.counts.T.groupby(result.metadata["sam"].to_numpy())
    log_means = np.log(groups.mean().to_numpy())
    # What a mean of n counts with size phi adds: about 1/(n phi), the Poisson part being tiny.
    phi = result.ref_mean_dispersion["dispersion"].to_numpy()
    noise = np.mean((1 / groups.size().to_numpy())[:, None] / phi)
    pooled = log_means.var(axis=0, ddof=1).mean()
    n_groups = len(log_means)
    assert n_groups > 50
    standard_error = (variance + noise) * math.sqrt(2 / (n_genes * (n_groups - 1)))
    assert abs(pooled - variance - noise) < 5 * standard_error
    # Genes are independent: the mean correlation between genes is zero.
    correlation = np.corrcoef(log_means.T)[np.triu_indices(n_genes, 1)]
    assert abs(correlation.mean()) < 5 / math.sqrt(len(correlation) * n_groups)


def test_library_sizes_scale_the_means() -> None:
    counts = reference_counts(n_genes=50, n_cells=200, mean=300.0)
    counts.iloc[:, 100:] *= 4
    result = rnaseq(
        counts, n_treatments=2, n_de_genes=0, var_random_effects=0.0, n_clusters=2, rng=3
    )
    log_libsize = np.log(result.metadata["libsize"])
    mu = result.ref_mean_dispersion["mu"].to_numpy()
    expected = mu.sum() * np.exp(log_libsize - log_libsize.mean())
    assert_allclose((result.counts.sum() / expected).mean(), 1, atol=0.05)
    halves = result.counts.sum().to_numpy().reshape(2, 100).mean(axis=1)
    library = result.metadata["libsize"].to_numpy().reshape(2, 100).mean(axis=1)
    assert_allclose(halves[1] / halves[0], library[1] / library[0], rtol=0.06)


def test_de_genes_change_in_their_cluster_when_treated_and_nowhere_else() -> None:
    counts = reference_counts(n_genes=30, n_cells=300, mean=500.0)
    result = rnaseq(
        counts,
        n_cells=12_000,
        n_clusters=3,
        n_treatments=3,
        treatment="B",
        n_de_genes_by_cluster={"1": 6, "3": 9},
        var_random_effects=0.0,
        adjust_library_size=False,
        rng=4,
    )
    mean = result.counts.T.groupby([result.metadata["cls"], result.metadata["trt"]]).mean()
    log_ratio = np.log(mean / result.ref_mean_dispersion["mu"])
    expected = pd.DataFrame(0.0, index=log_ratio.index, columns=log_ratio.columns)
    for gene, beta, cluster in result.de_genes.itertuples(index=False):
        expected.loc[(cluster, "B"), gene] = beta
    assert (expected != 0).sum().sum() == 15
    # Size about 2 and some 1,300 cells in each of the groups: a standard error of 0.02.
    assert_allclose(log_ratio, expected, atol=0.1)
    assert abs((log_ratio - expected).to_numpy().mean()) < 0.005


def test_cells_without_counts_in_a_drawn_reference_do_no_harm() -> None:
    result = rnaseq(n_genes=1, n_cells=200, n_de_genes=0, rng=1)
    assert result.metadata["libsize"].min() == 1
    assert result.counts.to_numpy().sum() > 0


# ---- refusals -----------------------------------------------------------------------------------

COUNTS = reference_counts()
METADATA = reference_metadata(COUNTS)
EMPTY_CELL = COUNTS.copy()
EMPTY_CELL["c3"] = 0
MISSING = METADATA.copy()
MISSING.loc["c4", "cls"] = None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "without reference counts, n_genes and n_cells must be given"),
        ({"n_genes": 5}, "n_genes and n_cells must be given"),
        ({"n_cells": 5}, "n_genes and n_cells must be given"),
        ({"n_genes": 0, "n_cells": 5}, "n_genes must be an integer of at least 1, not 0"),
        ({"n_genes": 5, "n_cells": 2.5}, "n_cells must be an integer of at least 1, not 2.5"),
        ({"n_genes": True, "n_cells": 5}, "n_genes must be an integer"),
        ({"n_samples": 0}, "n_samples must be an integer"),
        ({"n_clusters": 0}, "n_clusters must be an integer"),
        ({"n_treatments": "2"}, "n_treatments must be an integer"),
        ({"n_treatments": 27}, "at most 26"),
        ({"n_treatments": 3, "n_samples": 2}, "at least one sample per treatment"),
        ({"n_de_genes": -1}, "n_de_genes must be an integer of at least 0"),
        ({"n_de_genes": 21}, "21 DE genes are wanted .* but only 20 genes are simulated"),
        ({"n_de_genes_by_cluster": {"11": 2}}, "names '11', which is no cluster .* mean '1'"),
        ({"n_de_genes_by_cluster": [1, 2]}, "one number for each of the 10 clusters"),
        ({"n_de_genes_by_cluster": [0.5] * 10}, "whole numbers"),
        ({"n_de_genes_by_cluster": {"1": -1}}, "negative or non-finite"),
        ({"n_de_genes_by_cluster": ["x"] * 10}, "not a number"),
        ({"n_de_genes_by_cluster": [3] * 10}, "30 DE genes are wanted"),
        ({"p_de_genes_by_cluster": [0] * 10}, "zero for every cluster"),
        ({"p_de_genes_by_cluster": [1, 2]}, "p_de_genes_by_cluster must have one number"),
        ({"p_de_genes_by_cluster": {"1": np.nan}}, "negative or non-finite"),
        (
            {"p_de_genes_by_cluster": [1] * 10, "n_de_genes_by_cluster": [1] * 10},
            "n_de_genes_by_cluster or p_de_genes_by_cluster, not both",
        ),
        ({"treatment": "Z"}, "unknown treatment 'Z'. Available: 'A', 'B'"),
        ({"direction": "upp"}, "unknown direction 'upp'. Did you mean 'up'"),
        ({"min_beta": 1.0, "max_beta": 0.5}, "min_beta .* must be less than max_beta"),
        ({"min_beta": 1.0, "max_beta": 1.0}, "must be less than"),
        ({"min_beta": -1.0}, "direction 'both' needs min_beta and max_beta of the same sign"),
        ({"direction": "up", "min_beta": 0.0}, "direction 'up' needs min_beta > 0"),
        ({"direction": "down"}, "direction 'down' needs max_beta < 0"),
        ({"min_beta": "a"}, "min_beta must be a finite number"),
        ({"max_beta": np.inf}, "max_beta must be a finite number"),
        ({"var_random_effects": -0.1}, "must not be negative"),
        ({"var_random_effects": np.nan}, "var_random_effects must be a finite number"),
        ({"var_random_effects": 1e4}, "means exceed 5e14 counts"),
        ({"rng": "seed"}, "rng must be an integer seed"),
        ({"rng": -1}, "rng must be an integer seed"),
        ({"metadata": {"sam": []}}, "metadata must be a DataFrame, not dict"),
        ({"metadata": METADATA[["sam", "cls"]]}, "metadata lacks 'trt'"),
        ({"metadata": MISSING}, "column 'cls' is missing for cells 'c4'"),
        ({"metadata": pd.concat([METADATA, METADATA])}, "cells of the metadata occur more than"),
        ({"counts": COUNTS, "metadata": METADATA[1:]}, "metadata describes 59 cells, .* have 60"),
        (
            {"counts": COUNTS, "metadata": METADATA.rename({"c9": "x9"})},
            "metadata lacks cells of the reference counts: 'c9'",
        ),
        ({"counts": COUNTS, "metadata": METADATA, "treatment": "stin"}, "Did you mean 'stim'"),
        ({"counts": EMPTY_CELL}, "reference cells without any count: 'c3'"),
        ({"counts": -COUNTS}, "negative, missing or infinite"),
        ({"counts": COUNTS / 0.0}, "negative, missing or infinite"),
        ({"counts": COUNTS.astype(str) + "x"}, "are not numbers"),
        ({"counts": np.ones(5)}, r"genes x cells, .* shape \(5,\)"),
        ({"counts": np.ones((5, 1))}, "at least 2 cells"),
        ({"counts": np.ones((5, 4))}, "no reference gene has a variance above its mean"),
        ({"counts": pd.concat([COUNTS, COUNTS])}, "genes of the reference counts occur more than"),
        ({"counts": COUNTS[["c1", "c1"]]}, "cells of the reference counts occur more than once"),
    ],
)
def test_wrong_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    sized = {"n_genes", "n_cells", "counts"} & set(arguments)
    if arguments and not sized:
        arguments = {"n_genes": 20, "n_cells": 400, "rng": 1, **arguments}
    with pytest.raises(InputError, match=message):
        rnaseq(**arguments)


def test_an_empty_reference_cell_is_fine_without_library_sizes() -> None:
    result = rnaseq(EMPTY_CELL, adjust_library_size=False, rng=1)
    assert result.metadata["libsize"].nunique() == 1
