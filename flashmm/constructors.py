"""How a model comes by its statistics: from formulas, AnnData, matrices, or sums made before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import pandas as pd
from numpy.typing import ArrayLike

from flashmm.exceptions import InputError
from flashmm.formulas.left_side import read_responses, responses_of, split_sides
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.formulas.sides_swapped import samples_table, swapped, transposed
from flashmm.results.pages import SummaryPage
from flashmm.results.summary import design_page
from flashmm.slips.answers import answer_calls
from flashmm.slips.cures import CONSTRUCTORS
from flashmm.sources import Source, Transform, make_source
from flashmm.sources.anndata_kinds import is_anndata, open_anndata
from flashmm.sources.anndata_parts import part_of
from flashmm.sources.beside import Beside, beside, beside_of
from flashmm.sources.make import source_of
from flashmm.sources.readers import Labelled
from flashmm.stats.from_formulas import Handling, Summed, sum_formulas
from flashmm.stats.from_matrices import relabelled, sum_matrices
from flashmm.stats.groups import without_residual_groups
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["ModelData"]


@answer_calls
class ModelData:
    """Summary statistics with the formulas behind them; the constructors of `MultiLMM`.

    Its parameters are those of `MultiLMM`, which documents them.
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
        if not isinstance(stats, (SummaryStats, PatternedStats)):
            raise InputError(CONSTRUCTORS["MultiLMM"])
        # Which variances are estimated is said anew by each fit.
        self.stats = without_residual_groups(stats)
        self.fixed = fixed
        self.random = random
        self.n_dropped = n_dropped
        self.recipe = recipe

    def __repr__(self) -> str:
        formulas = f"fixed={self.fixed!r}, random={self.random!r}, " if self.fixed else ""
        s = self.stats
        return f"<MultiLMM: {formulas}n={s.n}, m={s.m}, p={s.p}, q={s.q}>"

    def __str__(self) -> str:
        return str(self._page())

    def _repr_html_(self) -> str:
        return self._page()._repr_html_()

    def _page(self) -> SummaryPage:
        return design_page(self.stats, self.fixed, self.random, self.n_dropped)

    @property
    def feature_names(self) -> pd.Index:
        """Names of the features, in order."""
        return pd.Index(self.stats.feature_names, name="feature")

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
        feature_columns: Any = None,
        min_count: float | None = None,
        min_fraction: float | None = None,
        size_factors: Any = None,
        target_sum: float | None = None,
        weights: Any = None,
        feature_covariates: Mapping[str, Any] | None = None,
        sums_by: Any = None,
        covariances: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Build a model from formulas.

        Parameters
        ----------
        fixed
            Formula of the fixed effects, ``"~ age + group"``; it may hold the random effects
            too, ``"~ age + (1 | donor)"``, and offsets, ``offset(log(depth))``, terms whose
            coefficient is one. Before ``~`` may stand columns of ``data`` that are the
            features, ``"y ~ age"``, ``"a + b ~ age"``, ``"log(y) ~ age"``; Y is then left out.
        random
            Random effects: a formula whose columns are one component with independent
            effects (``"~ 0 + sam"``), lme4 bars (``"(1 + x | g) + (1 | h)"``), a list of
            such, or a dict ``{name: formula}``; left out when ``fixed`` holds the bars. Where
            neither has any the model is one of least squares, and theta the residual variance.
        data
            One row per sample, n rows: a DataFrame of pandas, polars, modin or what else narwhals
            reads, a pyarrow Table, or a dict of columns.
        Y
            Names of columns of ``data``; or features x samples, shape (m, n), matched to
            ``data.index`` by label when both sides carry labels: ndarray (1-D is one feature),
            memory map, Series, DataFrame of any library (of one without an index, a column of
            text names the rows), scipy.sparse, xarray.DataArray (dims told apart by name), dask
            array, h5py dataset, zarr array, or an iterable of ``(samples, block)`` with the
            labels or positions in ``data`` of the samples of each block. AnnData or the path of
            an .h5ad or .zarr has samples as rows, as always. Nothing on disk is ever in memory
            as a whole.
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
            Features to use: names, a boolean mask (by label where it has labels) or a slice of
            positions; None for all.
        feature_columns
            In place of Y: the columns of ``data`` that are the features, by name or as a
            boolean mask of the columns.
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
            ``e_j ~ N(0, sigma2_j diag(1 / weights))``; or of each observation, features x samples,
            shape (m, n), of the kinds that Y may be of, matched to Y by both labels and read
            beside it. There 0 leaves an observation out.
        feature_covariates
            Covariates of each feature's own, ``{name: values}``, values of shape (m, n), of the
            kinds that Y may be of and matched likewise. ``fixed`` may use their names, alone and
            in interactions. Where one is NaN, ``missing="feature"`` leaves the observation out.
        sums_by
            Groups of samples whose sums are kept beside the total, for `influence`, cluster-robust
            tests, `flip_test`, ``fit(residual_by=)`` and ``stats.without``: a column of ``data``,
            several (``"site:assay"`` or a list), or a label of each sample, shape (n,). k groups
            take 8 k (p^2 + p m + m) bytes, and as much as Z'X and Z'Y again, which is logged and
            bounded. Features with samples, weights or covariates of their own have them for
            ``fit(residual_by=)`` alone.
        covariances
            Known covariances between the levels of random terms, ``{"donor": K}`` by grouping
            factor or name of the term: D is then theta K in the place of theta I, Kronecker's
            product of D and K for slopes. K is a labelled DataFrame or DataArray, or a
            `Covariance`: a matrix with names for its levels, sparse, a root, or the inverse. It is
            matched by label; levels that the data lack are predicted.
        n_jobs
            Threads that sum blocks of sparse Y, or a dask array; None for one per processor. A
            dask array is summed by the workers of a cluster if a ``distributed.Client`` is active.
        progress
            None (default) for a bar over the blocks on a terminal once they have taken a few
            seconds (needs tqdm), True for one at once (dask has its own), False for none.

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
        >>> data["y"] = rng.normal(size=40)
        >>> fm.MultiLMM.from_formula("y ~ x + (1 | g)", data=data)
        <MultiLMM: fixed='~ x', random='(1 | g)', n=40, m=1, p=2, q=8>
        """
        table, named = samples_table(data, Y), feature_names
        fixed, responses = read_responses(fixed, Y, table, feature_columns)
        given = Y
        if responses:
            Y, own, _ = responses_of(table, responses)
            named, rows = own if feature_names is None else feature_names, "features"
        if Y is None:
            raise InputError(
                "from_formula needs `Y`, features x samples; or name columns of `data` before `~`, "
                "as in 'y ~ x + (1 | g)'."
            )
        handling = Handling(
            missing=missing,
            features=features,
            min_count=min_count,
            min_fraction=min_fraction,
            size_factors=size_factors,
            target_sum=target_sum,
            weights=_layer_of(Y, weights),
            covariates=feature_covariates,
            n_jobs=n_jobs,
            progress=progress,
            context=context,
            rank=rank,
            sums_by=sums_by,
            covariances=covariances,
        )

        def tables(values: Any, name: str, source: Source, samples: pd.Index | None) -> Beside:
            return beside(values, name, source, samples, rows)

        def source(samples: pd.Index | None, n: int) -> Source:
            made = make_source(Y, transform=transform, samples=samples, n=n, rows=rows)
            return made if named is None else made.renamed(named)

        try:
            return cls._of(sum_formulas(fixed, random, table, source, tables, handling))
        except InputError as error:
            raise swapped(error, fixed, random, table, given) from error

    @classmethod
    def from_anndata(
        cls,
        adata: Any,
        fixed: str,
        random: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        layer: str | None = None,
        mask_var: str | ArrayLike | None = None,
        features: Any = None,
        modality: str | None = None,
        transform: Transform = None,
        missing: Literal["raise", "drop", "feature"] = "raise",
        context: Mapping[str, Any] | None = None,
        rank: Literal["raise", "drop"] = "raise",
        min_count: float | None = None,
        min_fraction: float | None = None,
        size_factors: Any = None,
        target_sum: float | None = None,
        weights: Any = None,
        feature_covariates: Mapping[str, Any] | None = None,
        sums_by: Any = None,
        covariances: Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Build a model from AnnData, cells x genes, whose ``obs`` is the data.

        Parameters
        ----------
        adata
            AnnData in memory, backed or lazy; the path of an .h5ad or .zarr, or of a table inside
            one (``"x.zarr/tables/table"``); or an open group of h5py or zarr. Of a matrix on disk
            no more than a few blocks are in memory at a time. Or MuData or SpatialData, of which
            `modality` names a part; the part's own obs are the data, with columns of MuData's obs
            that it lacks, matched by the names of the cells.
        fixed, random
            Formulas over the columns of ``obs``; see `from_formula`.
        layer
            Name of the layer to use; None for X.
        mask_var
            Genes to use: the name of a boolean column of ``var``, or a mask of its length.
        features
            Genes to use: names, a mask or a slice, as in `from_formula`; of those of `mask_var`.
        modality
            The modality of a MuData or the table of a SpatialData object; may be left out where
            there is one.
        transform, missing, context, rank, min_count, min_fraction, size_factors, target_sum
            See `from_formula`; columns of ``data`` are those of ``obs``.
        weights
            See `from_formula`; or the name of a layer, unless ``obs`` has such a column.
        feature_covariates, sums_by, covariances, n_jobs, progress
            See `from_formula`; covariates may be named layers.

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
        if isinstance(adata, str) and "~" in adata:
            raise InputError(
                "`adata` and `fixed` are swapped: write from_anndata(adata, '~ x + (1 | g)')."
            )
        adata = part_of(adata, modality)
        opened = open_anndata(adata, layer)
        handling = Handling(
            missing=missing,
            features=opened.chosen(mask_var, features),
            min_count=min_count,
            min_fraction=min_fraction,
            size_factors=size_factors,
            target_sum=target_sum,
            weights=weights,
            covariates=feature_covariates,
            n_jobs=n_jobs,
            progress=progress,
            context=context,
            rank=rank,
            sums_by=sums_by,
            covariances=covariances,
        )
        read = Labelled(opened.reader, opened.var.index)  # cells go by position
        if isinstance(weights, str) and weights not in opened.obs.columns:
            handling = replace(handling, weights=_Layer(weights))

        def table(values: Any, name: str, source: Source, samples: pd.Index | None) -> Beside:
            if isinstance(values, (str, _Layer)):
                chosen = values if isinstance(values, str) else values.name
                here = open_anndata(adata, chosen)
                return beside_of(Labelled(here.reader, here.var.index), name, source, samples)
            return beside(values, name, source, samples)

        def source(samples: pd.Index | None, n: int) -> Source:
            return source_of(read, transform, samples, n)

        if split_sides(fixed)[0]:
            raise InputError(
                "Features of an AnnData object are its genes: leave out what stands before `~`, or "
                "pass features=[...]."
            )
        try:
            return cls._of(sum_formulas(fixed, random, opened.obs, source, table, handling))
        except InputError as error:
            raise transposed(error, fixed, random, opened.obs, opened.var) from error

    @classmethod
    def _of(cls, summed: Summed) -> Self:
        design = summed.design
        return cls(
            summed.stats,
            fixed=design.fixed,
            random=design.random,
            n_dropped=summed.n_dropped,
            recipe=design.recipe,
        )

    @classmethod
    def from_arrays(
        cls,
        Y: Any,
        X: ArrayLike,
        Z: Any = None,
        *,
        components: Any = None,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
        weights: Any = None,
        feature_covariates: Mapping[str, Any] | None = None,
        missing: Literal["raise", "feature"] = "raise",
        rank: Literal["raise", "drop"] = "raise",
        sums_by: Any = None,
        covariances: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build a model from matrices, as FLASHMM's lmmfit(Y, X, Z, d).

        Parameters
        ----------
        Y
            Features x samples, shape (m, n).
        X
            Fixed-effects design, shape (n, p).
        Z
            Random-effects design, shape (n, q), dense or sparse; None for a model without random
            effects.
        components
            Number of columns of each variance component, summing to q (FLASHMM's ``d``), or a
            dict ``{name: size}``; one component by default.
        transform
            As in `from_formula`.
        feature_names, coef_names
            Labels that override those of Y and X.
        weights
            Precision of each sample, shape (n,), or of each observation, shape (m, n), as in
            `from_formula`, matched by label where it has labels; None for ones.
        feature_covariates
            Covariates of each feature's own, ``{name: values}``, shape (m, n): each is a further
            fixed effect, after those of X.
        missing
            ``"feature"`` fits each feature over the samples in which it is not NaN.
        rank
            As in `from_formula`.
        sums_by
            As in `from_formula`: a label of each sample, shape (n,), matched by label where it
            has labels.
        covariances
            As in `from_formula`, by component (``"Z1"`` for the first without a name). Levels are
            the labels of the columns of Z; without labels a matrix without names has their order.

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
        return cls(
            sum_matrices(
                Y,
                X,
                Z,
                components=components,
                transform=transform,
                feature_names=feature_names,
                coef_names=coef_names,
                weights=weights,
                feature_covariates=feature_covariates or {},
                missing=missing,
                rank=rank,
                sums_by=sums_by,
                covariances=covariances,
            )
        )

    @classmethod
    def from_summary_stats(
        cls,
        stats: SummaryStats | PatternedStats | Mapping[str, Any],
        *,
        components: Any = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
        rank: Literal["raise", "drop"] = "raise",
        covariances: Mapping[str, Any] | None = None,
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
        covariances
            As in `from_arrays`, for terms of the statistics.

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
        return cls(
            relabelled(
                stats,
                components=components,
                feature_names=feature_names,
                coef_names=coef_names,
                rank=rank,
                covariances=covariances,
            )
        )


@dataclass(frozen=True)
class _Layer:
    """A layer of an AnnData, by name."""

    name: str
    ndim = 2


def _layer_of(Y: Any, weights: Any) -> Any:
    """Weights that are named as a layer of Y, an AnnData in memory, as Y with that layer."""
    if isinstance(weights, str) and is_anndata(Y) and weights in Y.layers:
        return Y.to_df(layer=weights).T
    return weights
