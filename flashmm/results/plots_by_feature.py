"""Pictures of one feature of a fit, by its name; `FeaturePlots` draws them."""

from __future__ import annotations

from typing import Any

from flashmm.arrays.blas import hold_methods
from flashmm.results.fitted import FittedModel
from flashmm.results.pictures_by_name import PicturesByName
from flashmm.results.plots_of_one_feature import FeaturePlots
from flashmm.slips.answers import answer_calls

__all__ = ["PicturesByFeature"]


@answer_calls
@hold_methods
class PicturesByFeature(PicturesByName):
    """Pictures of one feature; part of `ResultPlots`."""

    fitted: FittedModel

    def caterpillar(self, feature: Any, term: str | None = None, **options: Any) -> Any:
        """Predicted random effects of one feature; see `FeaturePlots.caterpillar`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        term, **options
            As in `FeaturePlots.caterpillar`.

        Returns
        -------
        Axes

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.caterpillar("gene1").get_xlabel()
        'predicted random effect'
        >>> plt.close("all")
        """
        return self._one(feature).caterpillar(term, **options)

    def profile(self, feature: Any, param: str | None = None, **options: Any) -> Any:
        """Profile of one variance parameter of one feature; see `FeaturePlots.profile`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        param, **options
            As in `FeaturePlots.profile`.

        Returns
        -------
        Axes

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.profile("gene1", "Individual").get_xlabel()
        'variance, Individual'
        >>> plt.close("all")
        """
        return self._one(feature).profile(param, **options)

    def residuals(self, feature: Any, Y: Any = None, data: Any = None, **options: Any) -> Any:
        """The classic panels of one feature's residuals; see `FeaturePlots.residuals`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        Y, data, **options
            As in `FeaturePlots.residuals`.

        Returns
        -------
        ndarray of Axes

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> len(result.plot.residuals("gene1", genes.Y[:20], genes.data))
        2
        >>> plt.close("all")
        """
        return self._one(feature).residuals(Y, data, **options)

    def predictions(self, feature: Any, x: str, data: Any, Y: Any = None, **options: Any) -> Any:
        """Predictions of one feature over its data; see `FeaturePlots.predictions`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        x, data, Y, **options
            As in `FeaturePlots.predictions`.

        Returns
        -------
        Axes

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.predictions("gene1", "Age", genes.data, genes.Y[:20]).get_xlabel()
        'Age'
        >>> plt.close("all")
        """
        return self._one(feature).predictions(x, data, Y, **options)

    def _one(self, feature: Any) -> FeaturePlots:
        return FeaturePlots(self.fitted, self.fitted.positions([feature]))
