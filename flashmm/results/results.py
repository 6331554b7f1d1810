"""MultiLMMResults: the public face of a fitted model."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.likelihood import AnyProjection
from flashmm.results import anndata_out, comparison, files, summary, tidy
from flashmm.results.contrast_results import TTestResults
from flashmm.results.deferred import Deferred
from flashmm.results.feature_results import FeatureResults
from flashmm.results.fitted import FitOptions, FittedModel
from flashmm.results.methods.fixed_effects import FixedEffectMethods
from flashmm.results.methods.groups import GroupMethods
from flashmm.results.methods.marginal import MarginalMethods
from flashmm.results.methods.random_effects import RandomEffectMethods
from flashmm.results.methods.residuals import ResidualMethods
from flashmm.results.methods.samples import SampleMethods
from flashmm.results.methods.shared_prior import SharedPriorMethods
from flashmm.results.methods.tables import TableMethods
from flashmm.results.methods.terms import TermMethods
from flashmm.results.pages import SummaryPage
from flashmm.results.plots_of_fits import ResultPlots
from flashmm.slips.answers import answer_calls, no_such_attribute
from flashmm.slips.attributes import RESULTS
from flashmm.slips.refusals import AnsweringClass, no_operator
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MultiLMMResults"]


@answer_calls
@hold_methods
class MultiLMMResults(
    FixedEffectMethods,
    MarginalMethods,
    TermMethods,
    RandomEffectMethods,
    SampleMethods,
    ResidualMethods,
    SharedPriorMethods,
    GroupMethods,
    TableMethods,
    metaclass=AnsweringClass,
):
    """Fitted models of all features.

    Parameters
    ----------
    ds
        Estimates, as an xarray Dataset; its variables are listed in `flashmm.storage.schema`.
    stats
        The summary statistics that were fitted.
    options
        How they were fitted.
    projection
        The statistics projected off X; computed when left out.
    recipe
        How X and Z are made of data; None when the model was built from matrices.

    Examples
    --------
    >>> import flashmm as fm
    >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
    >>> result = fm.MultiLMM.from_formula(
    ...     "~ 0 + log(libsize) + cls + cls:trt", "~ 0 + sam", sim.metadata, sim.counts,
    ...     transform="log2p1").fit(parameter_space="psd")
    >>> result.t_test("cls1:trtB").top_table(n=2).columns.tolist()
    ['estimate', 'se', 't', 'df', 'p', 'p_adjusted', 'status']
    """

    def __init__(
        self,
        ds: xr.Dataset | Deferred,
        stats: SummaryStats | PatternedStats,
        options: FitOptions,
        projection: AnyProjection | None = None,
        recipe: DesignRecipe | None = None,
    ) -> None:
        super().__init__(FittedModel(ds, stats, options, projection, recipe))

    def __repr__(self) -> str:
        s, o = self.stats, self.options
        good = int(self.fitted.converged.sum())
        return (
            f"<MultiLMMResults: {o.method}, {s.m} features, {good} converged; n={s.n}, p={s.p}, "
            f"q={s.q}>"
        )

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Results", own=RESULTS)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # ---- what was fitted, and how ------------------------------------------------------------

    @property
    def ds(self) -> xr.Dataset:
        """Estimates, as an xarray Dataset."""
        return self.fitted.ds

    @property
    def stats(self) -> SummaryStats | PatternedStats:
        """The summary statistics that were fitted."""
        return self.fitted.stats

    @property
    def options(self) -> FitOptions:
        """How they were fitted."""
        return self.fitted.options

    @property
    def recipe(self) -> DesignRecipe | None:
        """How X and Z are made of data; None when the model was built from matrices."""
        return self.fitted.recipe

    # ---- estimates -----------------------------------------------------------------------------

    @property
    def params(self) -> pd.DataFrame:
        """Fixed effects, features x coefficients (FLASHMM's coef, transposed)."""
        return self.fitted.frame("beta")

    @property
    def bse(self) -> pd.DataFrame:
        """Standard errors of the fixed effects, features x coefficients."""
        return self.fitted.frame("se_beta")

    @property
    def tvalues(self) -> pd.DataFrame:
        """Params / bse, features x coefficients."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.params / self.bse

    @property
    def theta(self) -> pd.DataFrame:
        """Variances and covariances, features x parameters, Residual last."""
        return self.fitted.frame("theta")

    @property
    def bse_theta(self) -> pd.DataFrame:
        """Standard errors of theta, from the expected information."""
        return self.fitted.frame("se_theta")

    @property
    def score(self) -> pd.DataFrame:
        """Derivatives of the log-likelihood by theta (FLASHMM's dlogL)."""
        return self.fitted.frame("score")

    @property
    def llf(self) -> pd.Series[Any]:
        """Maximised log-likelihoods, with the constant of lme4 and statsmodels."""
        return self.fitted.series("llf", self.ds["loglik"].to_numpy())

    @property
    def _counts(self) -> IntArray:
        """Parameters of each feature, shape (m,)."""
        return self.fitted.n_estimated_of(self.fitted.positions())

    @property
    def aic(self) -> pd.Series[Any]:
        """-2 llf + 2 (p + number of variance parameters), as lme4 counts them."""
        return (-2.0 * self.llf + 2.0 * self._counts).rename("aic")

    @property
    def bic(self) -> pd.Series[Any]:
        """-2 llf + log(n) (p + number of variance parameters), as lme4 counts them."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a feature without a value
            return (-2.0 * self.llf + np.log(self.nobs) * self._counts).rename("bic")

    @property
    def n_iter(self) -> pd.Series[Any]:
        """Iterations taken by each feature."""
        return self.fitted.series("n_iter", self.ds["n_iter"].to_numpy())

    @property
    def status(self) -> pd.Series[Any]:
        """Verdict of each feature as text, e.g. ``"converged"``; see `flashmm.Status`."""
        return self.fitted.series("status", self.fitted.verdicts)

    @property
    def converged(self) -> pd.Series[Any]:
        """Whether each feature ended at a stationary point: converged, boundary or indefinite.

        Tests of an indefinite feature mean nothing; see `status` and `summary`.
        """
        return self.fitted.series("converged", self.fitted.converged)

    @property
    def nobs(self) -> Any:
        """Number of samples; of each feature, a Series, where they miss different ones."""
        nobs = self.fitted.nobs
        return nobs if isinstance(nobs, int) else self.fitted.series("nobs", nobs)

    @property
    def df_resid(self) -> Any:
        """Residual degrees of freedom, n - p; like `nobs`."""
        df = self.nobs - self.stats.p
        return df.rename("df_resid") if isinstance(df, pd.Series) else df

    @property
    def method(self) -> str:
        """``"REML"`` or ``"ML"``."""
        return self.options.method

    # ---- looking at it ---------------------------------------------------------------------

    def sel(self, feature: Any) -> Any:
        """One feature, or the results of some; ``result[feature]`` is the same.

        Parameters
        ----------
        feature
            Name of the feature, or its position if no feature is called by a number; or several:
            names, a mask (by label where it has labels) or a slice of positions.

        Returns
        -------
        FeatureResults or MultiLMMResults
            One feature, with the names that statsmodels' MixedLMResults has. The results of
            several in the order asked for: nothing is fitted again, and what is adjusted or
            learned over features then counts these alone.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(
        ...     rng.normal(size=(3, 40)), np.ones((40, 1)), Z, feature_names=list("abc")).fit()
        >>> result["b"].name, result[["c", "a"]].params.index.tolist(), len(result), "d" in result
        ('b', ['c', 'a'], 3, False)
        """
        one = isinstance(feature, tuple) and feature in self  # a label of several levels
        if one or isinstance(feature, (str, bytes)) or np.ndim(feature) == 0:
            several = isinstance(feature, (slice, Iterable)) and not isinstance(feature, str)
            if one or not several:
                return self._one(int(self.fitted.positions([feature])[0]))
        return self._of(tidy.subset(self.fitted, self.fitted.positions(feature)))

    def __getitem__(self, feature: Any) -> Any:
        if isinstance(feature, str) and feature in set(self.fitted.coefs) and feature not in self:
            raise InputError(
                f"{feature!r} is a coefficient, and result[...] chooses features: its estimates "
                f"are result.params[{feature!r}], its tests result.t_test({feature!r})."
            )
        return self.sel(feature)

    __array_ufunc__ = None  # arrays and their numbers ask here
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = no_operator(
        "Results",
        "fit the sums, MultiLMM.from_summary_stats(a.stats + b.stats).fit(), or compare fits by "
        "compare_lr_test",
    )

    def _one(self, position: int) -> FeatureResults:
        return FeatureResults(*self.fitted.around(position), whole=(self.fitted, position))

    def of_pattern(self, feature: Any) -> Self:
        """The results of the features that have the same samples as one, an ordinary fit.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.

        Returns
        -------
        MultiLMMResults
            Nothing is fitted again. These results themselves where no sample is missing.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.fit().of_pattern("gene1")
        <MultiLMMResults: REML, 1 features, 1 converged; n=93, p=2, q=25>
        >>> model.fit().of_pattern("gene2")
        <MultiLMMResults: REML, 2 features, 2 converged; n=100, p=2, q=25>
        """
        fitted, _ = self.fitted.around(int(self.fitted.positions([feature])[0]))
        return self if fitted is self.fitted else self._of(fitted)

    def summary(self, feature: Any = None) -> SummaryPage:
        """A page on the whole fit, or on one feature as statsmodels' MixedLM prints it.

        Parameters
        ----------
        feature
            Name of a feature; None for the whole fit, or for its feature where it has but one.

        Returns
        -------
        SummaryPage
            Prints as text, shows as HTML in a notebook.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> print(result.summary())
                            Mixed Linear Model Regression Results
        ==============================================================================
        Fixed:   ~ Days
        ...
        """
        if feature is not None or self.stats.m == 1:
            feature = slice(None) if feature is None else [feature]
            return self._one(int(self.fitted.positions(feature)[0])).summary()
        return summary.model_page(self.fitted, self.pvalues.to_numpy())

    def compare_lr_test(
        self, other: MultiLMMResults, *, features: Any = None, adjust: str = "bh"
    ) -> pd.DataFrame:
        """Likelihood-ratio test of this fit against that of a nested model, for every feature.

        Parameters
        ----------
        other
            A fit of the same data by the same method with fewer fixed effects (ML only), fewer
            random effects, or both; ``model.drop(...)`` makes such models.
        features
            Names, a mask or a slice; all features of this fit by default. ``other`` must have
            them.
        adjust
            ``"bh"``, ``"by"``, ``"holm"``, ``"bonferroni"`` or ``"none"``.

        Returns
        -------
        DataFrame
            Indexed by feature: ``statistic``, twice the gain in log-likelihood; ``df``, the
            number of parameters more; ``p``; ``p_adjusted``. NaN where either fit did not
            converge. ``attrs["null"]`` names the null distribution: chi-square, or a mixture where
            a variance is tested in the psd space.

        Raises
        ------
        InputError
            If the fits are not of the same data, method and parameter space, the models are not
            nested, or REML fits have different fixed effects: restricted likelihoods are then
            likelihoods of different data.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> X, Z = rng.normal(size=(40, 2)), np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), X, Z)
        >>> test = model.fit("ML").compare_lr_test(model.drop(fixed="x2").fit("ML"))
        >>> test["df"].tolist(), test.attrs["null"]
        ([1, 1, 1], 'chi2_1')
        """
        theirs = other.fitted if isinstance(other, MultiLMMResults) else other
        return comparison.compare_lr_test(
            self.fitted, self.fitted.positions(features), theirs, adjust=adjust
        )

    @property
    def plot(self) -> ResultPlots:
        """Pictures: ``result.plot.volcano("trt")``, ``qq``, ``forest``, ``fractions``, ``theta``.

        They need matplotlib: ``pip install 'multilmm[plot]'``.
        """
        return ResultPlots(self.fitted)

    # ---- keeping it ------------------------------------------------------------------------

    def to_anndata(
        self,
        adata: Any,
        key_added: str = "flashmm",
        *,
        tests: TTestResults | None = None,
        df: str = DEFAULT_DF,
        copy: bool = False,
    ) -> Any:
        """Write the estimates into an AnnData object, matched by the names of the genes.

        ======================================  ==================================================
        ``varm[f"{key_added}_params"]``         fixed effects, genes x coefficients
        ``..._bse``, ``..._pvalues``            their standard errors and two-sided p-values
        ``..._pvalues_adjusted``                these adjusted over the genes (Benjamini-Hochberg)
        ``..._theta``, ``..._bse_theta``        variance components and their standard errors
        ``..._tests_estimate``, ``_se``, ...    ``tests``, genes x contrasts (if given)
        ``var[f"{key_added}_status"]``          verdict of each gene; "not fitted" where absent
        ``..._loglik``, ``..._n_iter``          log-likelihood; iterations taken (-1: not fitted)
        ``uns[key_added]``                      ``coef``, ``param``, ``contrast``: names of the
                                                columns above; ``options``: how it was fitted;
                                                ``df``: degrees of freedom of the p-values
        ======================================  ==================================================

        Parameters
        ----------
        adata
            The object; its ``var_names`` are matched with the features, in any order. Genes
            without a fit get NaN.
        key_added
            Beginning of the keys. What an earlier call wrote under it is replaced.
        tests
            Tests from `t_test` of all features, in any order, to be written too.
        df
            Degrees of freedom of the p-values, as in `t_test`.
        copy
            True to leave ``adata`` as it is and return a copy with the results.

        Returns
        -------
        AnnData or None
            The copy, or None: ``adata`` was written to.

        Raises
        ------
        InputError
            If ``adata`` has no or repeated names of genes, none of them is a feature, or
            ``key_added`` cannot be a key of an .h5ad file.

        Warns
        -----
        UserWarning
            If some features are no genes of ``adata``.

        Examples
        --------
        >>> import anndata, flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> adata = anndata.AnnData(sim.counts.T, obs=sim.metadata)
        >>> result = fm.MultiLMM.from_anndata(
        ...     adata, "~ log(libsize) + trt", "~ 0 + sam", transform="log2p1").fit()
        >>> result.to_anndata(adata)
        >>> adata.varm["flashmm_params"].shape, adata.uns["flashmm"]["coef"].tolist()
        ((20, 3), ['Intercept', 'log(libsize)', 'trt[T.B]'])
        """
        return anndata_out.to_anndata(self.fitted, adata, key_added, tests=tests, df=df, copy=copy)

    def save(self, path: str | PathLike[str]) -> None:
        """Write estimates and summary statistics to one netCDF file, whole or not at all.

        The formulas go along, with the state of their transforms, so that loaded results
        predict; functions passed as ``context`` do not, nor do levels that are no text, number
        or boolean, nor formulas that call methods of columns: a file runs no code.

        Parameters
        ----------
        path
            File to write, ``.nc``, ``.zarr`` or ``.zarr.zip``; an existing file is replaced once
            the new one is complete, the target of a link in its place.

        Examples
        --------
        >>> import tempfile, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.save(f"{folder}/fit.nc")
        ...     fm.load(f"{folder}/fit.nc")
        <MultiLMMResults: REML, 1 features, 1 converged; n=180, p=2, q=36>
        """
        files.save_results(self.fitted, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> MultiLMMResults:
        """Read results that `save` wrote; they can do all that the originals could.

        Parameters
        ----------
        path
            File to read.

        Raises
        ------
        InputError
            If the file holds something else or comes from a later format.

        Examples
        --------
        >>> import tempfile, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result.save(f"{folder}/fit.nc")
        ...     again = fm.MultiLMMResults.load(f"{folder}/fit.nc")
        >>> again.params.equals(result.params)
        True
        """
        return cls._of(files.load_results(path))
