"""How a model comes by its statistics: from formulas, AnnData, matrices, or sums made before."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import pandas as pd

from flashmm.designs.from_arrays import as_structure, design_and_source
from flashmm.designs.per_sample import per_sample
from flashmm.exceptions import FormulaWarning, InputError, MissingSamplesWarning, listing, nearest
from flashmm.formulas.build import build_design
from flashmm.sources import Source, Transform, make_source
from flashmm.sources.anndata_kinds import open_anndata
from flashmm.sources.make import source_of
from flashmm.sources.pieces import Labelled
from flashmm.sources.scans import missing_samples, normalised
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.own_rows_sums import sum_by_pattern
from flashmm.stats.rank import of_full_rank
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from flashmm.formulas.recipe import DesignRecipe

__all__ = ["ModelData"]

MISSING = ["raise", "drop", "feature"]
RANKS = ["raise", "drop"]


@dataclass(frozen=True)
class _Handling:
    """What is done to Y on the way, as the constructors take it."""

    missing: Any = "raise"
    features: Any = None
    min_count: float | None = None
    min_fraction: float | None = None
    size_factors: Any = None
    target_sum: float | None = None
    weights: Any = None
    n_jobs: int | None = None
    progress: bool = False
    context: Mapping[str, Any] | None = field(default=None, repr=False)
    rank: Any = "raise"


class ModelData:
    """Summary statistics with the formulas behind them; the constructors of `MultiLMM`.

    Parameters
    ----------
    stats
        Summary statistics of the data; they carry the labels and the covariance structure.
        `PatternedStats` where features miss different samples.
    fixed, random
        Formulas as text, for printing.
    n_dropped
        Samples left out because of missing values.
    recipe
        How X and Z are made of data, for predictions; None when built from matrices.
    """

    def __init__(
        self,
        stats: SummaryStats | PatternedStats,
        *,
        fixed: str = "",
        random: str = "",
        n_dropped: int = 0,
        recipe: DesignRecipe | None = None,
    ) -> None:
        self.stats = stats
        self.fixed = fixed
        self.random = random
        self.n_dropped = n_dropped
        self.recipe = recipe

    def __repr__(self) -> str:
        formulas = f"fixed={self.fixed!r}, random={self.random!r}, " if self.fixed else ""
        s = self.stats
        return f"<MultiLMM: {formulas}n={s.n}, m={s.m}, p={s.p}, q={s.q}>"

    @classmethod
    def from_formula(
        cls,
        fixed: str,
        random: str | Sequence[str] | Mapping[str, str] | None = None,
        data: pd.DataFrame | None = None,
        Y: Any = None,
        *,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        missing: Literal["raise", "drop", "feature"] = "raise",
        context: Mapping[str, Any] | None = None,
        rank: Literal["raise", "drop"] = "raise",
        rows: Literal["features", "samples"] = "features",
        features: Any = None,
        min_count: float | None = None,
        min_fraction: float | None = None,
        size_factors: Any = None,
        target_sum: float | None = None,
        weights: Any = None,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Build a model from formulas.

        Parameters
        ----------
        fixed
            One-sided formula of the fixed effects, ``"~ age + group"``; it may hold the
            random effects too, ``"~ age + (1 | donor)"``, and offsets, ``offset(log(depth))``,
            terms whose coefficient is one.
        random
            Random effects: a formula whose columns are one component with independent
            effects (``"~ 0 + sam"``), lme4 bars (``"(1 + x | g) + (1 | h)"``), a list of
            such, or a dict ``{name: formula}``; left out when ``fixed`` holds the bars.
        data
            One row per sample, n rows.
        Y
            Features x samples, shape (m, n), matched to ``data.index`` by label when both sides
            carry labels: ndarray (1-D is one feature), memory map, Series, DataFrame,
            scipy.sparse, xarray.DataArray (dims told apart by name), dask array, h5py dataset,
            zarr array, or an iterable of ``(samples, block)`` with the labels or positions in
            ``data`` of the samples of each block. AnnData or the path of an .h5ad or .zarr has
            samples as rows, as always. Nothing on disk is ever in memory as a whole.
        transform
            Applied to Y block by block: ``"log2p1"`` (log2(1 + y), FLASHMM's is.counts),
            ``"log1p"``, or a callable that acts on each element alone.
        feature_names
            Labels of the m features, for a Y that carries none (a sparse matrix, say).
        missing
            What to do about missing values in ``data`` or Y: ``"raise"``; ``"drop"`` the
            samples concerned, for all features alike; or ``"feature"``: where Y is NaN, that
            feature is fitted without the sample, and only samples with a missing value in
            ``data`` are dropped. Values must be missing at random given X and Z.
        context
            Names that the formulas may use besides the columns of ``data``. The caller's
            variables are not seen.
        rank
            Columns of X that depend on others, as an empty cell of ``a * b`` makes: ``"raise"``
            refuses them when the model is fitted; ``"drop"`` leaves them out, the earlier columns
            staying, with one warning that names them. Terms keep their tests, and contrasts,
            marginal means and predictions that the samples do not determine are NaN.
        rows
            What the rows of an array, frame or block are: ``"features"`` or ``"samples"``.
        features
            Features to use: names, positions or a boolean mask; None for all.
        min_count
            Leave out features whose values, before anything is done to them, sum to less.
        min_fraction
            Leave out features that are not zero in a smaller fraction of the samples.
        size_factors
            What each sample is divided by before ``transform``: shape (n,), the name of a column
            of ``data``, or ``"total"`` for its sum over all features over ``target_sum``.
        target_sum
            What samples sum to under ``size_factors="total"``; their median total by default,
            which takes a first pass over Y.
        weights
            Precision of each sample, shape (n,) or the name of a column of ``data``:
            ``e_j ~ N(0, sigma2_j diag(1 / weights))``.
        n_jobs
            Threads that sum blocks of sparse Y, or a dask array; None for one per processor. A
            dask array is summed by the workers of a cluster if a ``distributed.Client`` is active.
        progress
            Show a progress bar over the blocks on a terminal (needs tqdm; dask has its own).

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If the formulas, ``data`` and Y do not make a model; the message names the culprit.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> model.stats.coef_names
        ('Intercept', 'x')
        """
        if data is None or Y is None:
            raise InputError("from_formula needs `data` (one row per sample) and `Y`.")
        handling = _Handling(
            missing=missing,
            features=features,
            min_count=min_count,
            min_fraction=min_fraction,
            size_factors=size_factors,
            target_sum=target_sum,
            weights=weights,
            n_jobs=n_jobs,
            progress=progress,
            context=context,
            rank=rank,
        )

        def source(samples: pd.Index | None, n: int) -> Source:
            made = make_source(Y, transform=transform, samples=samples, n=n, rows=rows)
            return made if feature_names is None else made.renamed(feature_names)

        return cls._from_source(fixed, random, data, source, handling)

    @classmethod
    def from_anndata(
        cls,
        adata: Any,
        fixed: str,
        random: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        layer: str | None = None,
        mask_var: str | ArrayLike | None = None,
        transform: Transform = None,
        missing: Literal["raise", "drop", "feature"] = "raise",
        context: Mapping[str, Any] | None = None,
        rank: Literal["raise", "drop"] = "raise",
        min_count: float | None = None,
        min_fraction: float | None = None,
        size_factors: Any = None,
        target_sum: float | None = None,
        weights: Any = None,
        n_jobs: int | None = None,
        progress: bool = False,
    ) -> Self:
        """Build a model from AnnData, cells x genes, whose ``obs`` is the data.

        Parameters
        ----------
        adata
            AnnData in memory, backed or lazy; the path of an .h5ad or .zarr, or of a table inside
            one (``"x.zarr/tables/table"``); or an open group of h5py or zarr. Of a matrix on disk
            no more than a few blocks are in memory at a time.
        fixed, random
            Formulas over the columns of ``obs``; see `from_formula`.
        layer
            Name of the layer to use; None for X.
        mask_var
            Genes to use: the name of a boolean column of ``var``, or a mask of its length.
        transform, missing, context, rank, min_count, min_fraction, size_factors, target_sum
            See `from_formula`; columns of ``data`` are those of ``obs``.
        weights, n_jobs, progress
            See `from_formula`.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If there is no such layer or column, or the file is damaged; and as `from_formula`.

        Examples
        --------
        >>> import anndata, flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> adata = anndata.AnnData(sim.counts.T, obs=sim.metadata)
        >>> fm.MultiLMM.from_anndata(
        ...     adata, "~ 0 + log(libsize) + cls + cls:trt", "~ 0 + sam", transform="log2p1")
        <MultiLMM: fixed='~ 0 + log(libsize) + cls + cls:trt', random='~ 0 + sam', n=300, m=20, \
p=5, q=6>
        """
        opened = open_anndata(adata, layer)
        handling = _Handling(
            missing=missing,
            features=opened.mask(mask_var),
            min_count=min_count,
            min_fraction=min_fraction,
            size_factors=size_factors,
            target_sum=target_sum,
            weights=weights,
            n_jobs=n_jobs,
            progress=progress,
            context=context,
            rank=rank,
        )
        read = Labelled(opened.reader, opened.var.index)  # cells go by position

        def source(samples: pd.Index | None, n: int) -> Source:
            return source_of(read, transform, samples, n)

        return cls._from_source(fixed, random, opened.obs, source, handling)

    @classmethod
    def _from_source(
        cls, fixed: Any, random: Any, data: Any, source_for: Any, handling: _Handling
    ) -> Self:
        """Build the design, drop what is missing, and sum."""
        missing = handling.missing
        if missing not in MISSING:
            raise InputError(f"Unknown missing={missing!r}. {nearest(str(missing), MISSING)}")
        _check_rank(handling.rank)
        context = handling.context
        in_data: Any = "raise" if missing == "raise" else "drop"
        build = build_design(fixed, random, data, context=context, missing=in_data)
        source: Source = source_for(getattr(data, "index", None), len(build.dropped))
        if handling.features is not None:
            source = source.taking(handling.features)
        weights = per_sample(handling.weights, data, "weights")
        factors = handling.size_factors
        if handling.target_sum is not None and not _is_total(factors):
            raise InputError("`target_sum` goes with size_factors='total'.")
        if factors is not None and not _is_total(factors):
            source = replace(source, size_factors=per_sample(factors, data, "size_factors"))
        dropped = build.dropped
        if missing != "raise":
            if missing == "drop":
                dropped = dropped | missing_samples(source)
            if dropped.all():
                raise InputError(
                    f"All {dropped.size} samples have a missing value: nothing is left to fit."
                )
            if dropped.any():
                source = source.restricted(~dropped)
                weights = None if weights is None else weights[~dropped]
                frame = pd.DataFrame(data).loc[~dropped]
                with warnings.catch_warnings():  # what they say has been said
                    warnings.simplefilter("ignore", FormulaWarning)
                    build = build_design(fixed, random, frame, context=context, missing="raise")
                warnings.warn(
                    f"{int(dropped.sum())} of {dropped.size} samples have a missing value and "
                    "were dropped for all features.",
                    MissingSamplesWarning,
                    stacklevel=3,
                )
        if _is_total(factors):
            if missing == "feature":
                raise InputError(
                    "size_factors='total' needs samples without missing values. Pass the factors "
                    "as an array."
                )
            source = normalised(source, handling.target_sum)
        design = build.design
        sum_up = sum_by_pattern if missing == "feature" else SummaryStats.from_design
        stats = sum_up(
            source,
            design,
            weights=weights,
            min_count=handling.min_count,
            min_fraction=handling.min_fraction,
            workers=handling.n_jobs,
            progress=handling.progress,
        )
        return cls(
            _ranked(stats, handling.rank),
            fixed=design.fixed,
            random=design.random,
            n_dropped=int(dropped.sum()),
            recipe=design.recipe,
        )

    @classmethod
    def from_arrays(
        cls,
        Y: Any,
        X: ArrayLike,
        Z: Any,
        *,
        components: Any = None,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
        weights: ArrayLike | None = None,
        missing: Literal["raise", "feature"] = "raise",
        rank: Literal["raise", "drop"] = "raise",
    ) -> Self:
        """Build a model from matrices, as FLASHMM's lmmfit(Y, X, Z, d).

        Parameters
        ----------
        Y
            Features x samples, shape (m, n).
        X
            Fixed-effects design, shape (n, p).
        Z
            Random-effects design, shape (n, q), dense or sparse.
        components
            Number of columns of each variance component, summing to q (FLASHMM's ``d``), or a
            dict ``{name: size}``; one component by default.
        transform
            As in `from_formula`.
        feature_names, coef_names
            Labels that override those of Y and X.
        weights
            Precision of each sample, shape (n,); None for ones.
        missing
            ``"feature"`` fits each feature over the samples in which it is not NaN.
        rank
            As in `from_formula`.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If the shapes do not match or a value is missing or infinite.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> model
        <MultiLMM: n=40, m=3, p=1, q=8>
        """
        if missing not in ("raise", "feature"):
            options = ["raise", "feature"]
            raise InputError(f"Unknown missing={missing!r}. {nearest(str(missing), options)}")
        _check_rank(rank)
        design, source, precision = design_and_source(
            Y, X, Z, components, coef_names, transform, feature_names, weights
        )
        sum_up: Any = sum_by_pattern if missing == "feature" else SummaryStats.from_design
        return cls(_ranked(sum_up(source, design, weights=precision), rank))

    @classmethod
    def from_summary_stats(
        cls,
        stats: SummaryStats | PatternedStats | Mapping[str, Any],
        *,
        components: Any = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
        rank: Literal["raise", "drop"] = "raise",
    ) -> Self:
        """Build a model from summary statistics, as FLASHMM's lmm(XX, XY, ZX, ZY, ZZ, ...).

        Parameters
        ----------
        stats
            `SummaryStats`, or a mapping with n, XX, XY, ZX, ZY, ZZ and yy (or Ynorm).
        components
            Sizes of the components (FLASHMM's ``d``), a dict ``{name: size}``, or None to
            keep those of ``stats``.
        feature_names, coef_names
            Labels that override those of ``stats``.
        rank
            As in `from_formula`.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If a statistic is absent or has the wrong shape.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Y, X = rng.normal(size=(3, 40)), np.ones((40, 1))
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> stats = fm.SummaryStats(
        ...     n=40, XX=X.T @ X, XY=X.T @ Y.T, ZX=Z.T @ X, ZY=Z.T @ Y.T, ZZ=Z.T @ Z,
        ...     yy=(Y * Y).sum(axis=1))
        >>> bool(fm.MultiLMM.from_summary_stats(stats).fit().converged.all())
        True
        """
        _check_rank(rank)
        if isinstance(stats, PatternedStats) and components is feature_names is coef_names is None:
            return cls(_ranked(stats, rank))
        if isinstance(stats, Mapping):
            stats = _stats_from_mapping(stats)
        if not isinstance(stats, SummaryStats):
            raise InputError(
                "`stats` must be a SummaryStats or a mapping with n, XX, XY, ZX, ZY, ZZ and yy; "
                f"it is {type(stats).__name__}."
            )
        structure = stats.structure if components is None else as_structure(components, stats.q)
        if coef_names is not None and stats.aliased is not None:
            stats = stats.noting(stats.aliased.renamed(coef_names))
        named = replace(
            stats,
            feature_names=stats.feature_names if feature_names is None else feature_names,
            coef_names=stats.coef_names if coef_names is None else coef_names,
            structure=structure,
            numbered=stats.numbered and feature_names is None,
        )
        return cls(_ranked(named, rank))


def _check_rank(rank: object) -> None:
    if rank not in RANKS:
        raise InputError(f"Unknown rank={rank!r}. {nearest(str(rank), RANKS)}")


def _ranked(stats: SummaryStats | PatternedStats, rank: str) -> SummaryStats | PatternedStats:
    return of_full_rank(stats) if rank == "drop" else stats


def _is_total(size_factors: Any) -> bool:
    return isinstance(size_factors, str) and size_factors == "total"


def _stats_from_mapping(values: Mapping[str, Any]) -> SummaryStats:
    names = dict(values)
    if "Ynorm" in names:
        names["yy"] = names.pop("Ynorm")
    required = ("n", "XX", "XY", "ZX", "ZY", "ZZ", "yy")
    absent = [name for name in required if name not in names]
    if absent:
        raise InputError(f"`stats` lacks {listing(absent)}; it needs {listing(required, 7)}.")
    known = set(SummaryStats.__dataclass_fields__)
    return SummaryStats(**{name: value for name, value in names.items() if name in known})
