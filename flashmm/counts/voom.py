"""voom: log2 counts per million, and the precision of each of them.

Without random effects this is limma's voom (Law, Chen, Shi & Smyth 2014, Genome Biology 15:R29),
with them variancePartition's voomWithDreamWeights (Hoffman & Roussos 2021, Bioinformatics 37:192):
the trend is that of a mixed model's residual standard deviations, by maximum likelihood, and the
fitted values count the random effects in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.types import FloatArray
from flashmm.constructors import ModelData
from flashmm.counts.tmm import tmm_factors
from flashmm.counts.trend import Trend, log2_cpm, mean_variance_trend, trend_weights
from flashmm.designs.per_sample import per_sample
from flashmm.exceptions import InputError
from flashmm.formulas.bars import parse_formula
from flashmm.formulas.build import build_design
from flashmm.formulas.sample_table import check_data
from flashmm.likelihood import make_likelihood, project_any
from flashmm.plots.variances import voom_trend
from flashmm.progress import Progress
from flashmm.results import FitOptions, MultiLMMResults
from flashmm.results.fitting import FitPlan, fit_features
from flashmm.slips.answers import answered, no_such_attribute
from flashmm.slips.attributes import VOOM
from flashmm.solvers import EM, FisherScoring
from flashmm.solvers.batches import usable_cores
from flashmm.sources import Source, make_source
from flashmm.sources.anndata_kinds import is_anndata, open_anndata
from flashmm.sources.make import source_of
from flashmm.sources.readers import Labelled

__all__ = ["Voom", "voom"]

_ONE_GROUP = "flashmm: all samples"


@dataclass(frozen=True)
class Voom:
    """What `voom` makes of counts.

    Parameters
    ----------
    log2cpm
        Log2 counts per million, features x samples.
    weights
        Precision of each of them, features x samples.
    trend
        One row per feature that made the trend, by mean: ``x``, its mean log2-count, ``y``, the
        root of its residual standard deviation, and ``fitted``, the curve.
    lib_size
        Effective total of each sample: its sum of counts times its normalisation factor.
    span
        Share of the features in each local line of the trend.

    Examples
    --------
    >>> import flashmm as fm
    >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=60, n_samples=6, n_clusters=2, rng=1)
    >>> weighted = fm.voom(sim.counts, "~ trt", data=sim.metadata)
    >>> weighted.weights.shape
    (20, 60)
    """

    log2cpm: pd.DataFrame
    weights: pd.DataFrame
    trend: pd.DataFrame
    lib_size: pd.Series[Any]
    span: float

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "What voom returns", own=VOOM)

    def __repr__(self) -> str:
        m, n = self.log2cpm.shape
        return f"<Voom: {m} features x {n} samples, span={self.span:g}>"

    def plot(self, ax: Any = None) -> Any:
        """Draw the mean-variance trend.

        Parameters
        ----------
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=60, n_samples=6, n_clusters=2, rng=1)
        >>> ax = fm.voom(sim.counts, "~ trt", data=sim.metadata).plot()
        >>> plt.close()
        """
        trend = self.trend
        return voom_trend(trend["x"], trend["y"], trend["fitted"], ax=ax)


@answered
def voom(
    counts: Any,
    fixed: str,
    random: Any = None,
    data: pd.DataFrame | None = None,
    *,
    norm_factors: Any = None,
    lib_size: Any = None,
    span: float = 0.5,
    rows: Literal["features", "samples"] = "features",
    layer: str | None = None,
    context: Mapping[str, Any] | None = None,
    progress: Progress = None,
) -> Voom:
    """Log2 counts per million with a weight for each observation.

    Parameters
    ----------
    counts
        Features x samples, shape (m, n), not negative: of every kind that `MultiLMM.from_formula`
        takes; or AnnData (samples x features), or a path to one.
    fixed
        Formula of the fixed effects; it may hold bars.
    random
        Random effects, as in `MultiLMM.from_formula`. None, and no bars in ``fixed``: limma's voom,
        which fits least squares; else dream's weights.
    data
        One row per sample, n rows; ``obs`` of an AnnData by default.
    norm_factors
        Normalisation factors of the samples: shape (n,), a Series matched by label, or the name of
        a column of ``data``. ``"TMM"``, where no column has that name: edgeR's trimmed mean of
        M-values, through rnanorm (``pip install "multilmm[tmm]"``). None for ones.
    lib_size
        Totals of the samples before ``norm_factors``, likewise; the sums of ``counts`` by default.
        Give them where features were filtered out and the totals were to stay.
    span
        Share of the features in each local line of the trend. Recent versions of limma may adapt
        it to the number of features; older ones, and dream, have 0.5.
    rows
        What the rows of an array or frame are.
    layer
        Layer of an AnnData that holds the counts; None for X.
    context
        Names that the formulas may use besides the columns of ``data``.
    progress
        As in `MultiLMM.fit`, of the fit that dream's weights need.

    Returns
    -------
    Voom
        ``log2cpm`` and ``weights``, features x samples, for `MultiLMM.from_formula`.

    Raises
    ------
    InputError
        If a count is negative or missing, nothing is counted in a sample, the model leaves no
        residual degrees of freedom, or TMM factors cannot be had.

    Examples
    --------
    >>> import numpy as np, pandas as pd, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> samples = pd.DataFrame({"dose": np.tile([0.0, 1.0], 6)})
    >>> counts = rng.negative_binomial(5, 0.05, size=(50, 12))
    >>> fm.voom(counts, "~ dose", data=samples)
    <Voom: 50 features x 12 samples, span=0.5>
    """
    if not 0.0 < span <= 1.0:
        raise InputError(f"`span` must lie between 0 and 1, not {span!r}.")
    table, source = _counted(counts, data, rows, layer)
    values = _read(source)
    totals = per_sample(lib_size, table, "lib_size")
    totals = values.sum(axis=0) if totals is None else totals
    empty = np.flatnonzero(totals <= 0)
    if empty.size:
        raise InputError(f"Nothing is counted in sample {table.index[empty[0]]!r}.")
    if isinstance(norm_factors, str) and norm_factors == "TMM" and "TMM" not in table:
        if lib_size is not None:
            raise InputError(
                "norm_factors='TMM' takes the sums of `counts` for totals; with `lib_size` pass "
                "factors, e.g. those of edgeR."
            )
        factors: FloatArray | None = tmm_factors(values, table.index)
    else:
        factors = per_sample(norm_factors, table, "norm_factors")
    totals = totals if factors is None else totals * factors
    names = pd.Index(source.feature_names)
    y = log2_cpm(values, totals)
    _, _, bars = parse_formula(fixed, "fixed")
    if random is None and not bars:
        sigma, fitted = _least_squares(y, fixed, table, context)
    else:
        sigma, fitted = _mixed_model(
            pd.DataFrame(y, names, table.index), fixed, random, table, context, progress
        )
    usable = (values.sum(axis=1) > 0) & np.isfinite(sigma)
    if not usable.any():
        raise InputError("No feature has a residual variance: there is no trend to fit.")
    trend = mean_variance_trend(y, totals, sigma, usable, span=span)
    fitted = np.where(np.isfinite(fitted), fitted, y.mean(axis=1, keepdims=True))
    weights = trend_weights(trend, fitted, totals)
    return Voom(
        pd.DataFrame(y, names, table.index),
        pd.DataFrame(weights, names, table.index),
        _table(trend, names),
        pd.Series(totals, table.index, name="lib_size"),
        float(span),
    )


def _table(trend: Trend, names: pd.Index) -> pd.DataFrame:
    columns = {"x": trend.x, "y": trend.y, "fitted": trend.fitted}
    return pd.DataFrame(columns, index=names[trend.features])


def _counted(counts: Any, data: Any, rows: str, layer: str | None) -> tuple[pd.DataFrame, Source]:
    """The samples' table, and the counts in its order."""
    is_path = isinstance(counts, str) or hasattr(counts, "__fspath__")
    if is_anndata(counts) or is_path:
        opened = open_anndata(counts, layer)
        data = opened.obs if data is None else data
        table = check_data(data)
        read = Labelled(opened.reader, opened.var.index, opened.obs.index)
        return table, source_of(read, None, table.index, len(table))
    if layer is not None:
        raise InputError("`layer` names a layer of an AnnData; `counts` is none.")
    if data is None:
        raise InputError("voom needs `data`, one row per sample.")
    table = check_data(data)
    return table, make_source(counts, samples=table.index, n=len(table), rows=rows)


def _read(source: Source) -> FloatArray:
    """All counts, shape (m, n)."""
    values = np.empty((source.m, source.n))
    features, samples = np.arange(source.m), np.arange(source.n)
    try:
        for block in source.blocks():
            part: Any = block.values
            part = part.toarray() if sp.issparse(part) else part
            values[np.ix_(features[block.features], samples[block.samples])] = part
    except InputError as error:
        message = str(error).split(". Use missing=")[0]
        raise InputError(re.sub(r"\bY\b", "`counts`", message)) from None
    if (values < 0).any():
        row, column = (int(x) for x in np.argwhere(values < 0)[0])
        sample = column if source.sample_names is None else source.sample_names[column]
        raise InputError(
            f"`counts` must not be negative; it is {values[row, column]:g} for feature "
            f"{source.feature_names[row]!r}, sample {sample!r}. voom takes counts, not logarithms."
        )
    return values


def _least_squares(
    y: FloatArray, fixed: str, data: pd.DataFrame, context: Mapping[str, Any] | None
) -> tuple[FloatArray, FloatArray]:
    """Residual standard deviations and fitted values of each feature by itself."""
    grouped = data.assign(**{_ONE_GROUP: "all"})
    design = build_design(fixed, f"(1 | `{_ONE_GROUP}`)", grouped, context=context).design
    X = np.asarray(design.X[: len(data)])
    U, singular, _ = np.linalg.svd(X, full_matrices=False)
    U = U[:, singular > 1e-10 * singular[0]]
    df = X.shape[0] - U.shape[1]
    if df <= 0:
        raise InputError(
            f"`fixed` leaves no residual degrees of freedom: {X.shape[0]} samples, "
            f"{U.shape[1]} coefficients."
        )
    fitted = (y @ U) @ U.T
    return np.sqrt(((y - fitted) ** 2).sum(axis=1) / df), fitted


def _mixed_model(
    y: pd.DataFrame, fixed: str, random: Any, data: pd.DataFrame, context: Any, progress: Progress
) -> tuple[FloatArray, FloatArray]:
    """The same by maximum likelihood, random effects among the fitted values."""
    model = ModelData.from_formula(fixed, random, data, y, context=context)
    projection = project_any(model.stats)
    likelihood = make_likelihood(projection, "ML")
    options = FitOptions(
        method="ML",
        solver="fisher_scoring",
        parameter_space="psd",
        max_iter=50,
        epsilon=1e-5,
        memory=2**30,
        engine=likelihood.engine,
        fixed=model.fixed,
        random=model.random,
        n_dropped=0,
    )
    plan = FitPlan(options, FisherScoring(), EM(), usable_cores(), progress=progress)
    with one_blas_thread(model.stats.q):
        found = fit_features(model.stats, projection, likelihood, plan)
    # Features without a regular fit have NaN here: they are not in the trend.
    sigma2 = found.arrays["theta"][:, -1]
    sigma = np.sqrt(np.where(sigma2 > 0, sigma2, np.nan))
    results = MultiLMMResults(found, model.stats, options, projection, model.recipe)
    fitted = results.fittedvalues(data, context=context)
    return sigma, np.asarray(fitted.transpose("feature", "sample").to_numpy())
