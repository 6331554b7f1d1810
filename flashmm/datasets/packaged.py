"""The data sets, read from files of the package; every call reads afresh."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pandas as pd

from flashmm.datasets.dataset import Dataset
from flashmm.slips.answers import answered

__all__ = ["kang", "kimma", "orthodont", "penicillin", "sleepstudy", "varpart"]

_LME4 = (
    "GPL (version 2 or later), as the R package lme4, from which the file comes; lme4 states no "
    "separate terms for it. The numbers are those of the publication."
)


@answered
def sleepstudy() -> Dataset:
    """Reaction times of 18 subjects over ten days of a study of sleep deprivation.

    Returns
    -------
    Dataset
        ``data`` (180, 3): Reaction (ms), Days (0 to 9), Subject. The response is a column.

    Examples
    --------
    >>> import flashmm as fm
    >>> sleep = fm.datasets.sleepstudy()
    >>> sleep.formula
    'Reaction ~ Days + (Days | Subject)'
    >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
    >>> result.params.round(2).to_dict("records")
    [{'Intercept': 251.41, 'Days': 10.47}]
    """
    return Dataset(
        name="sleepstudy",
        description="Reaction time (ms) on days 0 to 9 of sleep deprivation, 18 subjects.",
        data=_table("sleepstudy.csv", factors=("Subject",)),
        formula="Reaction ~ Days + (Days | Subject)",
        source=(
            "Belenky, G. et al. (2003), Patterns of performance "
            "degradation and restoration during sleep restriction and subsequent recovery, Journal "
            "of Sleep Research 12, 1-12; data set sleepstudy of the R package lme4 1.1-31."
        ),
        licence=_LME4,
    )


@answered
def penicillin() -> Dataset:
    """Six samples of penicillin on each of 24 plates: two crossed factors.

    Returns
    -------
    Dataset
        ``data`` (144, 3): diameter of the zone of inhibition (mm), plate, sample. The response is
        a column.

    Examples
    --------
    >>> import flashmm as fm
    >>> assay = fm.datasets.penicillin()
    >>> assay.data["plate"].nunique(), assay.data["sample"].nunique()
    (24, 6)
    >>> result = fm.MultiLMM.from_formula(assay.formula, data=assay.data).fit()
    >>> result.theta.round(3).to_dict("records")
    [{'plate': 0.717, 'sample': 3.731, 'Residual': 0.302}]
    """
    return Dataset(
        name="penicillin",
        description="Diameter of the zone of inhibition (mm), six samples on each of 24 plates.",
        data=_table("penicillin.csv", factors=("plate", "sample")),
        formula="diameter ~ 1 + (1 | plate) + (1 | sample)",
        source=(
            "Davies, O. L. and Goldsmith, P. L., editors (1972), Statistical Methods in Research "
            "and Production, 4th edition, Oliver and Boyd; data set Penicillin of the R package "
            "lme4 1.1-31."
        ),
        licence=_LME4,
    )


@answered
def orthodont() -> Dataset:
    """Growth of 27 children, measured at 8, 10, 12 and 14 years.

    Returns
    -------
    Dataset
        ``data`` (108, 4): distance from the pituitary to the pterygomaxillary fissure (mm), age
        (years), Subject, Sex. The response is a column.

    Examples
    --------
    >>> import flashmm as fm
    >>> growth = fm.datasets.orthodont()
    >>> result = fm.MultiLMM.from_formula(growth.formula, data=growth.data).fit()
    >>> result.params["age:Sex[T.Male]"].round(3).item()  # mm a year more than girls
    0.305
    """
    return Dataset(
        name="orthodont",
        description="Distance (mm) by age (years), 11 girls and 16 boys.",
        data=_table("orthodont.csv", factors=("Subject", "Sex")),
        formula="distance ~ age * Sex + (age | Subject)",
        source=(
            "Potthoff, R. F. and Roy, S. N. (1964), A generalized multivariate analysis of "
            "variance model useful especially for growth curve problems, Biometrika 51, 313-326; "
            "data set Orthodont of the R package nlme 3.1-162."
        ),
        licence=(
            "GPL (version 2 or later), as the R package nlme, from which the file comes; nlme "
            "states no separate terms for it. The numbers are those of the publication."
        ),
    )


@answered
def kang() -> Dataset:
    """Blood cells of two patients with and without interferon-beta: counts of 1,267 genes.

    Returns
    -------
    Dataset
        ``data`` (1556, 4): cluster_id (cell type), sample_id, group_id (ctrl, stim) and libsize
        (sum of the cell's counts over these genes) by barcode. ``Y`` (1267, 1556): molecule
        counts, a sparse frame.

    Examples
    --------
    >>> import flashmm as fm
    >>> cells = fm.datasets.kang()
    >>> cells
    kang: 1,267 features, 1,556 samples; ~ 0 + log(libsize) + cluster_id + cluster_id:group_id + \
(1 | sample_id)
    >>> genes = cells.Y.loc[["ISG15", "HSPD1"]]
    >>> model = fm.MultiLMM.from_formula(
    ...     cells.formula, data=cells.data, Y=genes, transform=cells.transform
    ... )
    >>> result = model.fit(parameter_space="psd")
    >>> result.params["cluster_id[B cells]:group_id[T.stim]"].round(2).to_dict()
    {'ISG15': 2.96, 'HSPD1': -0.09}
    """
    import scipy.sparse as sp  # noqa: PLC0415  (slow)

    folder = files(__package__) / "files" / "kang"
    data = _table("kang/cells.csv.gz", "cell", ("cluster_id", "sample_id", "group_id"))
    with (folder / "counts.npz").open("rb") as file:
        counts = sp.load_npz(file)
    genes = (folder / "genes.txt").read_text("utf-8").split()
    return Dataset(
        name="kang",
        description=(
            "Molecule counts of single cells of two lupus patients, a control and a sample "
            "stimulated with interferon-beta of each, five cell types, at most 100 cells of a "
            "type in a sample."
        ),
        data=data,
        Y=pd.DataFrame.sparse.from_spmatrix(counts, index=genes, columns=data.index),
        formula="~ 0 + log(libsize) + cluster_id + cluster_id:group_id + (1 | sample_id)",
        transform="log2p1",
        source=(
            "Kang, H. M. et al. (2018), Multiplexed droplet single-cell "
            "RNA-sequencing using natural genetic variation, Nature Biotechnology 36, 89-94, doi "
            "10.1038/nbt.4042; NCBI GEO accession GSE96583; the subset example_sce of the "
            "Bioconductor package muscat (Crowell et al. 2020)."
        ),
        licence=(
            "None is stated for the deposited data, of which these are a part. NCBI places no "
            "restrictions on the use or distribution of what is in its databases, but submitters "
            "may claim rights in it. The package muscat, which chose the subset, is under the GPL "
            "(version 2 or later at 1.2.1; 3 at 1.16.0)."
        ),
    )


@answered
def varpart() -> Dataset:
    """Simulated expression of 200 genes in 100 samples of individuals, tissues and batches.

    Returns
    -------
    Dataset
        ``data`` (100, 5): Individual (25), Tissue (3), Batch (4), Age and Height by sample.
        ``Y`` (200, 100): expression on a continuous scale.

    Examples
    --------
    >>> import flashmm as fm
    >>> tissue = fm.datasets.varpart()
    >>> model = fm.MultiLMM.from_formula(tissue.formula, data=tissue.data, Y=tissue.Y)
    >>> result = model.fit(parameter_space="psd")
    >>> result.theta.shape
    (200, 4)
    """
    return Dataset(
        name="varpart",
        description="Simulated expression of 200 genes in 100 samples of 25 individuals.",
        data=_table("varpart/samples.csv", "ID", ("Individual", "Tissue", "Batch")),
        Y=_table("varpart/expression.csv.gz", "feature"),
        formula="~ Age + (1 | Individual) + (1 | Tissue) + (1 | Batch)",
        source=(
            "Hoffman, G. E. and Schadt, E. E. (2016), variancePartition: interpreting drivers of "
            "variation in complex gene expression studies, BMC Bioinformatics 17, 483; the "
            "simulated data set varPartData of the Bioconductor package variancePartition."
        ),
        licence=(
            "GPL, version 2 (the package variancePartition 1.32.5; or later at 1.23.2), from which "
            "the files come; it states no separate terms for them."
        ),
    )


@answered
def kimma() -> Dataset:
    """Log-expression of 1,000 genes with voom's weights: six donors with and without a virus.

    Returns
    -------
    Dataset
        ``data`` (12, 8): ptID (donor), virus (none, HRV), asthma, batch and qualities of the
        library by library. ``Y`` (1000, 12): log2 counts per million. ``weights`` (1000, 12).

    Examples
    --------
    >>> import flashmm as fm
    >>> virus = fm.datasets.kimma()
    >>> model = fm.MultiLMM.from_formula(
    ...     virus.formula, data=virus.data, Y=virus.Y[:50], weights=virus.weights[:50]
    ... )
    >>> result = model.fit(parameter_space="psd")
    >>> result.params.shape
    (50, 2)
    """
    data = _table("kimma/targets.csv", "libID", ("ptID", "virus", "asthma", "batch", "group"))
    data["virus"] = pd.Categorical(data["virus"], ["none", "HRV"])
    weights = _table("kimma/weights.csv.gz", "gene").set_axis(data.index, axis=1)
    return Dataset(
        name="kimma",
        description=(
            "RNA-seq of six donors, a library with and one without a virus (HRV) of each: log2 "
            "counts per million of 1,000 genes and limma's voom weights."
        ),
        data=data,
        Y=_table("kimma/log2cpm.csv.gz", "gene"),
        weights=weights,
        formula="~ virus + (1 | ptID)",
        source=(
            "Dill-McFarland, K. A. et al. (2023), Kimma: flexible linear "
            "mixed effects modeling with kinship covariance for RNA-seq data, Bioinformatics 39, "
            "btad279; example.voom of the R package kimma."
        ),
        licence="MIT, copyright 2021 Kim Dill-McFarland: that of the R package kimma.",
    )


def _table(name: str, index: str | None = None, factors: tuple[str, ...] = ()) -> pd.DataFrame:
    """A file; factors are text even where they hold digits."""
    kinds: dict[Any, Any] = dict.fromkeys(factors, str)
    path = (files(__package__) / "files").joinpath(*name.split("/"))
    with path.open("rb") as file:
        packed = "gzip" if name.endswith(".gz") else None
        table = pd.read_csv(file, dtype=kinds, compression=packed)
    return table if index is None else table.set_index(index).rename_axis(index=None)
