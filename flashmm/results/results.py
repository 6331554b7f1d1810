"""MultiLMMResults: one class over the rooms of this package, with summaries and files."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from flashmm.exceptions import InputError
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text
from flashmm.results.anndata_out import AnnDataOutput
from flashmm.results.bootstrap import ParametricBootstrap
from flashmm.results.comparison import ModelComparison
from flashmm.results.estimates import FitOptions, attributes
from flashmm.results.feature_results import FeatureResults
from flashmm.results.marginal_means import MarginalMeans
from flashmm.results.predictions import NewDataPredictions
from flashmm.results.random_effects import RandomEffectPredictions
from flashmm.results.summary import SummaryPage, feature_page, model_page
from flashmm.stats.own_rows import PatternedStats, any_from_dataset
from flashmm.storage.files import load_dataset, save_dataset
from flashmm.storage.schema import OPTIONAL, RESULTS

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["MultiLMMResults"]


class MultiLMMResults(
    MarginalMeans,
    ModelComparison,
    RandomEffectPredictions,
    NewDataPredictions,
    ParametricBootstrap,
    AnnDataOutput,
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

    def __repr__(self) -> str:
        s, o = self.stats, self.options
        good = int(self.converged.sum())
        return (
            f"<MultiLMMResults: {o.method}, {s.m} features, {good} converged; n={s.n}, p={s.p}, "
            f"q={s.q}>"
        )

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    # ---- looking at it ---------------------------------------------------------------------

    def sel(self, feature: Any) -> FeatureResults:
        """One feature, with the names that statsmodels' MixedLMResults has.

        Parameters
        ----------
        feature
            Name of the feature, or its position when the features have text names.

        Returns
        -------
        FeatureResults
        """
        position = int(self._positions([feature])[0])
        if isinstance(self.stats, PatternedStats):
            pattern = self.stats.pattern
            within = np.flatnonzero(pattern == pattern[position])
            return FeatureResults(self.of_pattern(feature), int(np.searchsorted(within, position)))
        return FeatureResults(self, position)

    def summary(self, feature: Any = None) -> SummaryPage:
        """A page on the whole fit, or on one feature as statsmodels' MixedLM prints it.

        Parameters
        ----------
        feature
            Name of a feature; None for the whole fit.

        Returns
        -------
        SummaryPage
            Prints as text, shows as HTML in a notebook.
        """
        return model_page(self) if feature is None else feature_page(self.sel(feature))

    # ---- keeping it ------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write estimates and summary statistics to one netCDF file, whole or not at all.

        The formulas go along, with the state of their transforms, so that loaded results
        predict; functions passed as ``context`` do not, nor do levels that are no text, number
        or boolean.

        Parameters
        ----------
        path
            File to write; an existing file is replaced once the new one is complete.
        """
        stats = self.stats.to_dataset()
        ds = xr.merge([self.ds, stats], join="exact", compat="no_conflicts")
        ds.attrs = {**stats.attrs, **self.ds.attrs}
        ds.attrs["flashmm_kind"] = "MultiLMMResults"
        if self.recipe is not None:
            with contextlib.suppress(InputError):
                text = np.array([recipe_to_text(self.recipe)], dtype=object)
                ds = ds.assign(recipe=("recipes", text))
        save_dataset(ds, path)

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
        """
        merged = load_dataset(path, kind="MultiLMMResults")
        stats = any_from_dataset(merged)
        attrs = merged.attrs
        values = {field.name: attrs[field.name] for field in fields(FitOptions)}
        for name in ("max_iter", "memory", "n_dropped"):
            values[name] = int(values[name])
        options = FitOptions(**values)
        ds = merged[[*RESULTS, *(name for name in OPTIONAL if name in merged)]]
        ds = ds.drop_vars([name for name in ds.coords if name not in ("feature", "coef", "param")])
        ds["n_iter"], ds["status"] = ds["n_iter"].astype(np.int64), ds["status"].astype(np.int8)
        ds.attrs = attributes(stats, options)
        recipe = None
        if "recipe" in merged:
            recipe = recipe_from_text(str(merged["recipe"].to_numpy()[0]))
        if "nobs" in ds:
            ds["nobs"] = ds["nobs"].astype(np.int64)
        return cls(ds, stats, options, recipe=recipe)
