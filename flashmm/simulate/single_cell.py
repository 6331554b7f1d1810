"""Simulated data with a known truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError, listing, warn
from flashmm.simulate.inputs import (
    by_cluster,
    check_effects,
    check_treatment,
    checked_counts,
    checked_metadata,
    default_cells,
    distinct_values,
    generator,
    matched_metadata,
    whole_number,
)
from flashmm.slips.answers import answered

__all__ = ["SimulatedRNASeq", "rnaseq"]


@dataclass(frozen=True, eq=False)
class SimulatedRNASeq:
    """Simulated counts of single cells, and the truth behind them.

    Attributes
    ----------
    ref_mean_dispersion : pandas.DataFrame (n_reference_genes, 2)
        ``mu``, the mean count per cell, and ``dispersion``, the size parameter phi of the negative
        binomial (variance = mu + mu^2/phi), of every reference gene. A gene whose variance does
        not exceed its mean has a negative or infinite (without counts: NaN) moment estimate.
    metadata : pandas.DataFrame (n_cells, 4 or more)
        ``sam``, ``cls``, ``trt`` and ``libsize`` of each cell, and whatever other columns the
        given metadata had. ``libsize`` is the reference cell's total count, or the mean of these.
    counts : pandas.DataFrame (n_genes, n_cells)
        Counts (int64), genes x cells. The last genes are the differentially expressed ones.
    de_genes : pandas.DataFrame (n_de_genes, 3)
        ``gene``, ``beta`` (natural log fold change) and the ``cluster`` where it applies.
    treatment : str
        The condition that carries the effects.

    Examples
    --------
    >>> import flashmm as fm
    >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
    >>> sim.counts.shape, list(sim.metadata)
    ((20, 300), ['sam', 'cls', 'trt', 'libsize'])
    >>> sim.de_genes.columns.tolist()
    ['gene', 'beta', 'cluster']
    """

    ref_mean_dispersion: pd.DataFrame
    metadata: pd.DataFrame
    counts: pd.DataFrame
    de_genes: pd.DataFrame
    treatment: str


@answered
def rnaseq(
    counts: Any = None,
    *,
    n_genes: int | None = None,
    n_cells: int | None = None,
    metadata: pd.DataFrame | None = None,
    samples_nested: bool = True,
    n_samples: int = 25,
    n_clusters: int = 10,
    n_treatments: int = 2,
    treatment: str | None = None,
    n_de_genes: int | None = None,
    n_de_genes_by_cluster: Mapping[Any, int] | Sequence[int] | None = None,
    p_de_genes_by_cluster: Mapping[Any, float] | Sequence[float] | None = None,
    adjust_library_size: bool = True,
    direction: Literal["both", "up", "down"] = "both",
    min_beta: float = 0.25,
    max_beta: float = 1.0,
    var_random_effects: float = 0.1,
    rng: int | np.random.Generator | None = None,
) -> SimulatedRNASeq:
    r"""Simulate single-cell RNA-seq counts of several samples, clusters and treatments.

    The count of gene g in cell c of sample s is negative binomial with size :math:`\phi_g` and

    .. math:: \log \mu_{gc} = \log\mu_g + b_{gs} + \log(L_c) - \overline{\log L}
              + \beta_g [c \text{ treated and in the cluster of } g],

    :math:`b_{gs} \sim N(0, \text{var\_random\_effects})`. Mean and size come from reference
    counts by the method of moments: :math:`\phi = \mu^2 / (s^2 - \mu)` with the sample mean and
    variance of the gene over all reference cells. Each differentially expressed (DE) gene has its
    effect in one cluster only.

    Parameters
    ----------
    counts : ndarray, DataFrame or scipy.sparse matrix (n_reference_genes, n_reference_cells)
        Reference counts, genes x cells. Without it `n_genes` genes are drawn, with mean and size
        both 1 + Poisson(1), and used as they are.
    n_genes, n_cells : int
        Numbers to simulate. Default: as many as in the reference (`n_cells`: as in `metadata`).
        When the number of genes is that of the reference, genes keep their names and order. Fewer
        are drawn at random; more repeat the reference, the repeats named ``name.1``. Cells
        likewise.
    metadata : pandas.DataFrame (n_reference_cells, 3 or more)
        Columns ``sam``, ``cls`` and ``trt`` of the reference cells, matched by label when the
        counts carry labels. A column ``libsize`` is replaced. Default: drawn at random.
    samples_nested : bool
        For random metadata: whether each sample belongs to one treatment, as a donor does to a
        disease group, or every sample is seen under every treatment. Each treatment then gets
        at least one sample.
    n_samples, n_clusters, n_treatments : int
        For random metadata: the numbers of samples, of clusters (cell types; labelled
        "1", "2", ...) and of treatments (labelled "A", "B", ...).
    treatment : str
        The treated condition. Default: the last one in sorted order. All other conditions are
        controls.
    n_de_genes : int
        Number of DE genes, shared out among the clusters at random. Default: one per cluster
        on average.
    n_de_genes_by_cluster : dict, Series or sequence of int
        Number of DE genes by cluster label, or in the sorted order of the labels (as strings:
        "1", "10", "2"). Clusters that a dict leaves out have none. It sets `n_de_genes`.
    p_de_genes_by_cluster : dict, Series or sequence of float
        Relative probability that a DE gene is specific to each cluster. Default: equal.
    adjust_library_size : bool
        Whether cells differ in library size as in the reference; otherwise all have the mean.
    direction : {"both", "up", "down"}
        Sign of the log fold changes: random, as given and positive, or as given and negative.
    min_beta, max_beta : float
        Log fold changes (natural log) are uniform between these: of the same sign for "both",
        positive for "up", negative for "down".
    var_random_effects : float
        Variance of the samples' random effects on the natural log scale.
    rng : int, numpy.random.Generator or None
        Seed or source of random numbers.

    Returns
    -------
    SimulatedRNASeq
        Counts, metadata, DE genes, the reference's moments and the treatment.

    Raises
    ------
    InputError
        If the arguments contradict one another, or the reference holds no gene with a variance
        above its mean, a cell without counts, or something that is not a count.

    Warns
    -----
    UserWarning
        If reference genes must be replaced (variance not above the mean) although as many genes
        as the reference has were wanted, if `n_de_genes` differs from the sum of
        `n_de_genes_by_cluster`, or if all or none of the cells are treated.

    Notes
    -----
    The model is that of ``simuRNAseq`` in the R package FLASHMM. The arguments correspond:

    =====================  =========================
    R                      here
    =====================  =========================
    counts                 counts
    nGenes                 n_genes
    nCells                 n_cells
    metadata               metadata
    samples.nested         samples_nested
    nsam                   n_samples
    ncls                   n_clusters
    ntrt                   n_treatments
    trt                    treatment
    nDEgenes               n_de_genes
    nDEgenesType           n_de_genes_by_cluster
    pDEgenesType           p_de_genes_by_cluster
    adjust.library.size    adjust_library_size
    direction              direction
    minbeta                min_beta
    maxbeta                max_beta
    var.randomeffects      var_random_effects
    set.seed               rng
    =====================  =========================

    What R only prints is left to the result: ``treatment`` names the treated condition (one of
    several, the others being controls), ``de_genes`` has the numbers by cluster, and fewer genes
    than the reference has are drawn from those whose variance exceeds their mean. Without
    `counts`, R estimates mean and size from counts drawn with them; here they are used directly.

    References
    ----------
    Xu, Pouyabahar, Voisin, Heydari, Bader (2026), Nature Communications,
    doi 10.1038/s41467-026-69063-2.

    Examples
    --------
    >>> simulated = rnaseq(n_genes=50, n_cells=400, n_clusters=4, n_de_genes=6, rng=2412)
    >>> simulated.counts.shape, simulated.treatment, len(simulated.de_genes)
    ((50, 400), 'B', 6)
    >>> again = rnaseq(simulated.counts, metadata=simulated.metadata, n_genes=10, rng=1)
    >>> again.counts.shape
    (10, 400)
    """
    check_effects(direction, min_beta, max_beta, var_random_effects)
    random = generator(rng)
    n_genes = None if n_genes is None else whole_number("n_genes", n_genes, 1)
    n_cells = None if n_cells is None else whole_number("n_cells", n_cells, 1)
    metadata = None if metadata is None else checked_metadata(metadata)
    reference = _reference(counts, n_genes, n_cells, metadata, random)
    cells, libsize = reference.cells, reference.libsize
    if metadata is None:
        size = _MetadataSize(samples_nested, n_samples, n_clusters, n_treatments)
        metadata = _drawn_metadata(cells, size, random)
    else:
        metadata = matched_metadata(metadata, cells)
    if adjust_library_size and np.any(libsize <= 0):
        raise InputError(
            f"reference cells without any count: {listing(cells[libsize <= 0])}; leave them "
            "out or set adjust_library_size=False"
        )
    metadata = metadata.assign(libsize=libsize if adjust_library_size else libsize.mean())
    if treatment is not None:
        check_treatment(treatment, metadata["trt"])

    # The genes and cells to simulate.
    n_genes = len(reference.moments) if n_genes is None else n_genes
    genes, rows = _chosen_genes(reference, n_genes, random)
    if n_cells is not None:
        every_cell = np.ones(len(metadata), dtype=bool)
        cells, chosen = _sample(metadata.index, every_cell, n_cells, random)
        metadata = metadata.iloc[chosen].set_axis(cells)
    if treatment is None:
        treatment = distinct_values(metadata["trt"])[-1]
    treated = _treated(metadata["trt"], treatment)

    # The truth: which genes change where, and by how much.
    clusters = distinct_values(metadata["cls"])
    per_cluster = _de_genes_per_cluster(
        clusters, n_de_genes, n_de_genes_by_cluster, p_de_genes_by_cluster, random
    )
    n_changed = _at_most(int(per_cluster.sum()), n_genes)
    cluster_code = np.repeat(np.arange(len(clusters)), per_cluster)
    signs = [-1.0, 1.0] if direction == "both" else [1.0]
    beta = random.uniform(min_beta, max_beta, n_changed) * random.choice(signs, n_changed)
    changed_in = pd.Series(clusters, dtype=object).take(cluster_code).to_numpy()
    first = n_genes - n_changed
    de_genes = pd.DataFrame({"gene": genes[first:], "beta": beta, "cluster": changed_in})

    mu, phi = reference.moments.to_numpy()[rows].T[:, :, None]
    sample_code, samples = pd.factorize(metadata["sam"])
    effects = random.normal(scale=var_random_effects**0.5, size=(n_genes, len(samples)))
    offset = np.log(metadata["libsize"].to_numpy(dtype=float))
    log_mean = (effects + np.log(mu))[:, sample_code]
    log_mean += offset - offset.mean()
    cell_cluster = pd.Categorical(metadata["cls"], categories=clusters).codes
    log_mean[first:] += beta[:, None] * ((cell_cluster == cluster_code[:, None]) & treated)
    drawn = _negative_binomial(log_mean, phi, random)
    simulated = pd.DataFrame(drawn, index=genes, columns=metadata.index)
    return SimulatedRNASeq(reference.moments, metadata, simulated, de_genes, treatment)


def _at_most(n_changed: int, n_genes: int) -> int:
    """Check that there are enough genes to hold the DE genes."""
    if n_changed > n_genes:
        raise InputError(
            f"{n_changed} DE genes are wanted (n_de_genes, by default one per cluster), but only "
            f"{n_genes} genes are simulated"
        )
    return n_changed


def _treated(conditions: pd.Series, treatment: Any) -> BoolArray:
    """Tell which cells are treated (n_cells,)."""
    treated: BoolArray = (conditions == treatment).to_numpy()
    if treated.all() or not treated.any():
        some = "all" if treated.all() else "none"
        warn(
            f"{some} of the cells are in condition {treatment!r}: there is nothing to compare",
            UserWarning,
        )
    return treated


def _negative_binomial(
    log_mean: FloatArray, phi: FloatArray, random: np.random.Generator
) -> IntArray:
    """Draw counts as Poisson with gamma distributed means; overwrites `log_mean`."""
    if log_mean.max() > 34:  # exp(34) = 6e14: counts stay exact in float64
        raise InputError(
            "simulated means exceed 5e14 counts: lower var_random_effects, max_beta or the counts"
        )
    mean = np.exp(log_mean, out=log_mean)
    mean *= random.standard_gamma(phi, size=mean.shape) / phi
    return random.poisson(mean)


@dataclass(frozen=True, eq=False)
class _Reference:
    """Moments (n_genes, 2), usable genes (n_genes,), cell labels and library sizes (n_cells,)."""

    moments: pd.DataFrame
    usable: BoolArray
    cells: pd.Index
    libsize: FloatArray


@dataclass(frozen=True)
class _MetadataSize:
    """What is known of metadata that is drawn at random."""

    nested: bool
    n_samples: int
    n_clusters: int
    n_treatments: int


def _reference(
    counts: Any,
    n_genes: int | None,
    n_cells: int | None,
    metadata: pd.DataFrame | None,
    random: np.random.Generator,
) -> _Reference:
    """Take the moments of the reference counts, or draw a reference when there are none."""
    if counts is not None:
        matrix, genes, labels = checked_counts(counts)
        moments, libsize, usable = _moments(matrix, genes)
        cells = default_cells(matrix.shape[1], metadata) if labels is None else labels
        return _Reference(moments, usable, cells, libsize)
    n_reference_cells = n_cells if metadata is None else len(metadata)
    if n_genes is None or n_reference_cells is None:
        raise InputError("without reference counts, n_genes and n_cells must be given")
    mu = 1.0 + random.poisson(1.0, n_genes)
    phi = 1.0 + random.poisson(1.0, n_genes)
    shape = (n_reference_cells, n_genes)
    libsize = random.negative_binomial(phi, phi / (phi + mu), shape).sum(axis=1).astype(float)
    # With few genes a cell may have no count at all, which has no logarithm.
    libsize = np.maximum(libsize, 1.0)
    names = pd.Index([f"Gene{i + 1}" for i in range(n_genes)])
    moments = pd.DataFrame({"mu": mu, "dispersion": phi}, index=names)
    cells = default_cells(n_reference_cells, metadata)
    return _Reference(moments, np.ones(n_genes, dtype=bool), cells, libsize)


def _moments(matrix: Any, genes: pd.Index) -> tuple[pd.DataFrame, FloatArray, BoolArray]:
    """Estimate mean and size per gene; also library sizes, and which genes can be simulated."""
    n = matrix.shape[1]
    total = np.asarray(matrix.sum(axis=1), dtype=float)
    squares = np.asarray((matrix * matrix).sum(axis=1), dtype=float)
    # excess = n (n - 1) (variance - mean). Sums of counts are exact, so a gene counted once, whose
    # variance equals its mean, gives exactly zero; rounding only enters beyond 2^53.
    excess = n * squares - total**2 - (n - 1) * total
    usable = (total > 0) & (excess > 8 * np.finfo(float).eps * n * squares)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = (n - 1) * total**2 / (n * excess)
    reference = pd.DataFrame({"mu": total / n, "dispersion": dispersion}, index=genes)
    if not usable.any():
        raise InputError(
            "no reference gene has a variance above its mean, so no negative binomial fits: are "
            "the counts genes x cells, and counts?"
        )
    return reference, np.asarray(matrix.sum(axis=0), dtype=float), usable


def _chosen_genes(
    reference: _Reference, n_genes: int, random: np.random.Generator
) -> tuple[pd.Index, IntArray]:
    """Choose the genes to simulate: their names and their rows in the reference."""
    usable = reference.usable
    if n_genes == len(usable) and not usable.all():
        warn(
            f"{np.count_nonzero(~usable)} of {len(usable)} reference genes have a variance not "
            "above their mean; each is replaced by another one, drawn at random",
            UserWarning,
        )
    return _sample(reference.moments.index, usable, n_genes, random)


def _drawn_metadata(
    cells: pd.Index, size: _MetadataSize, random: np.random.Generator
) -> pd.DataFrame:
    """Draw sample, cluster and treatment of each cell."""
    n_samples = whole_number("n_samples", size.n_samples, 1)
    n_clusters = whole_number("n_clusters", size.n_clusters, 1)
    n_treatments = whole_number("n_treatments", size.n_treatments, 1)
    if n_treatments > 26:
        raise InputError(f"n_treatments is at most 26 (labels A to Z), not {n_treatments}")
    n = len(cells)
    letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), dtype=object)
    cluster = random.integers(n_clusters, size=n) + 1
    code = random.integers(n_treatments, size=n)
    if size.nested:
        if n_samples < n_treatments:
            raise InputError(
                f"nested samples need at least one sample per treatment, but n_samples is "
                f"{n_samples} and n_treatments {n_treatments}"
            )
        # One sample per treatment is certain; chance shares out the others.
        equal = np.full(n_treatments, 1 / n_treatments)
        available = 1 + random.multinomial(n_samples - n_treatments, equal)
        sample = random.integers(available[code]) + 1
        prefix = letters[code]
    else:
        sample = random.integers(n_samples, size=n) + 1
        prefix = np.full(n, "S", dtype=object)
    columns = {"sam": prefix + _as_text(sample), "cls": _as_text(cluster), "trt": letters[code]}
    return pd.DataFrame(columns, index=cells)


def _as_text(numbers: NDArray[Any]) -> NDArray[Any]:
    """Write numbers as an object array of strings."""
    return numbers.astype(str).astype(object)


def _sample(
    labels: pd.Index, usable: BoolArray, n: int, random: np.random.Generator
) -> tuple[pd.Index, IntArray]:
    """Choose n of the usable rows: their labels, made unique, and their positions.

    When n is the number of rows, all stay in place but those that are not usable.
    """
    candidates = np.flatnonzero(usable)
    if n == len(labels):
        rows = np.arange(n)
        n_replaced = n - len(candidates)
        rows[~usable] = random.choice(candidates, n_replaced, n_replaced > len(candidates))
    else:
        passes = np.tile(candidates, n // len(candidates))
        rest = random.choice(candidates, n % len(candidates), replace=False)
        rows = random.permutation(np.concatenate([passes, rest]))
    chosen = labels[rows]
    if chosen.is_unique:
        return chosen, rows
    # Count the repeats of each label; a row in its own place keeps its label.
    own_first = np.argsort(rows != np.arange(n), kind="stable")
    repeats = pd.Series(rows[own_first]).groupby(rows[own_first]).cumcount().to_numpy()
    again = np.empty(n, dtype=np.int64)
    again[own_first] = repeats
    separator = "."
    while True:
        suffix = np.where(again > 0, separator + _as_text(again), "")
        renamed = pd.Index(chosen.astype(str).to_numpy(dtype=object) + suffix)
        if renamed.is_unique:
            return renamed, rows
        separator += "."


def _de_genes_per_cluster(
    clusters: Sequence[Any],
    n_de_genes: int | None,
    numbers: Any,
    probabilities: Any,
    random: np.random.Generator,
) -> IntArray:
    """Share out the DE genes: how many are specific to each cluster (n_clusters,)."""
    if n_de_genes is not None:
        n_de_genes = whole_number("n_de_genes", n_de_genes, 0)
    if numbers is not None:
        if probabilities is not None:
            raise InputError("give n_de_genes_by_cluster or p_de_genes_by_cluster, not both")
        exact = by_cluster("n_de_genes_by_cluster", numbers, clusters)
        if np.any(exact % 1):
            raise InputError(f"n_de_genes_by_cluster must hold whole numbers, not {numbers!r}")
        per_cluster = exact.astype(np.int64)
        if n_de_genes is not None and n_de_genes != per_cluster.sum():
            warn(
                f"n_de_genes is {n_de_genes}, but n_de_genes_by_cluster sums to "
                f"{per_cluster.sum()}, which is used",
                UserWarning,
            )
    else:
        weights = np.ones(len(clusters))
        if probabilities is not None:
            weights = by_cluster("p_de_genes_by_cluster", probabilities, clusters)
        if not weights.sum() > 0:
            raise InputError("p_de_genes_by_cluster is zero for every cluster")
        wanted = len(clusters) if n_de_genes is None else n_de_genes
        per_cluster = random.multinomial(wanted, weights / weights.sum()).astype(np.int64)
    return per_cluster
