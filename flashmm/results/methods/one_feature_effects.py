"""Random effects of one feature: their covariances and predictions, by level."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.linalg import block_diag

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.conditional_covariance import conditional_covariance, covariance_of_effects
from flashmm.results import random_effects
from flashmm.results.fitted import FittedModel
from flashmm.slips.answers import answer_calls

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OneFeatureEffects"]


@answer_calls
@hold_methods
class OneFeatureEffects:
    """Random effects of one feature; part of `FeatureResults`."""

    _fitted: FittedModel
    _position: int
    _positions: IntArray
    _one: xr.Dataset

    @property
    def scale(self) -> float:
        """The residual variance."""
        raise NotImplementedError

    @property
    def _one_group(self) -> bool:
        """Whether all random terms share one grouping factor, which is all statsmodels has."""
        terms = self._fitted.stats.structure.terms
        return len({(term.group, term.levels) for term in terms}) == 1

    @cached_property
    def _groups(self) -> list[tuple[list[str], list[str], IntArray]]:
        """For each grouping factor the keys of its levels, its effects and their columns (L, s)."""
        structure = self._fitted.stats.structure
        factors: dict[tuple[str, tuple[str, ...]], list[int]] = {}
        for position, term in enumerate(structure.terms):
            factors.setdefault((term.group, term.levels), []).append(position)
        groups = []
        for (group, levels), positions in factors.items():
            keys = list(levels) if self._one_group else [f"{group}[{level}]" for level in levels]
            effects = [e for i in positions for e in structure.terms[i].effects]
            columns = [
                np.arange(structure.offsets[i], structure.offsets[i + 1]).reshape(len(levels), -1)
                for i in positions
            ]
            groups.append((keys, effects, np.concatenate(columns, axis=1)))
        return groups

    @property
    def cov_re(self) -> pd.DataFrame:
        """Covariance matrix of the effects of one level, in squared units of Y.

        With several grouping factors their matrices stand along the diagonal, labelled as the
        variances in `theta`; statsmodels has one.
        """
        theta, structure = self._one["theta"].to_numpy(), self._fitted.stats.structure
        matrices, labels = [], []
        for position, term in enumerate(structure.terms):
            owned = [p for p in structure.parameters if p.term == position and p.is_variance]
            names = [parameter.name for parameter in owned]
            if len(names) < len(term.effects) or term.covariance == "cs":
                names = [f"{term.name}[{effect}]" for effect in term.effects]
            matrices.append(structure.effect_covariance(theta, position))
            labels += names if len(term.effects) > 1 else [owned[0].name]
        if self._one_group:
            labels = [effect for term in structure.terms for effect in term.effects]
        values = block_diag(*matrices) if matrices else np.zeros((0, 0))
        return pd.DataFrame(values, index=labels, columns=labels)

    @property
    def cov_re_unscaled(self) -> pd.DataFrame:
        """`cov_re` divided by `scale`."""
        return self.cov_re / self.scale

    @property
    def random_effects(self) -> dict[str, pd.Series[Any]]:
        """Predicted effects of each level, as statsmodels has them: ``{"308": Series}``.

        With several grouping factors the keys are ``"plate[a]"``; lme4's tables are those of
        `ranef`.
        """
        values = self._blup()
        return {
            key: pd.Series(values[own], index=effects)
            for keys, effects, columns in self._groups
            for key, own in zip(keys, columns, strict=True)
        }

    @property
    def random_effects_cov(self) -> dict[str, pd.DataFrame]:
        """Conditional covariance matrices of `random_effects`, given y and beta."""
        self._fitted.shared_samples("random_effects_cov", "blup(se='conditional') has errors.")
        stats = self._fitted.one_design("random_effects_cov")
        theta = self._one["theta"].to_numpy()
        proper = np.isfinite(theta).all() and theta[-1] > 0
        result = {}
        for keys, effects, columns in self._groups:
            blocks = np.full((*columns.shape, columns.shape[1]), np.nan)
            if proper:
                blocks = self._conditional_blocks(stats, theta, columns)
                turn = self._turn_of(effects, columns)
                blocks = turn @ blocks @ turn
            for key, block in zip(keys, blocks, strict=True):
                result[key] = pd.DataFrame(block, index=effects, columns=effects)
        return result

    def _turn_of(self, effects: list[str], columns: IntArray) -> FloatArray:
        """The directions that the columns of a level are, (s, s); the identity but for cs terms."""
        structure = self._fitted.stats.structure
        if not structure.turned or columns.size == 0:
            return np.eye(len(effects))
        first = columns[0]
        return np.asarray(structure.turn()[first][:, first].toarray())

    def _conditional_blocks(self, stats: Any, theta: FloatArray, columns: IntArray) -> FloatArray:
        roots, by_group = self._fitted.projection.roots, self._fitted.options.residual_by
        if by_group:
            whole = self._fitted.on_request.conditional_covariance(self._position)
            if roots is None:
                return whole[columns[:, :, None], columns[:, None, :]]
            D = covariance_of_effects(stats.structure, theta)
            return roots.blocks(whole, D, columns)
        if roots is None:
            return conditional_covariance(stats.ZZ, stats.structure, theta, columns)
        inner: Any = self._fitted.independent
        every = np.arange(roots.inner.q)[None]
        whole = conditional_covariance(inner.ZZ, roots.inner, theta, every)[0]
        D = covariance_of_effects(stats.structure, theta)
        return roots.blocks(whole, D, columns)

    def coef(self) -> dict[str, xr.DataArray]:
        """Fixed plus predicted random effects of each group; see `MultiLMMResults.coef`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.coef()["Subject"].sel(coef="Days").values[:3].round(2).tolist()
        [19.67, 1.85, 5.02]
        """
        found = random_effects.coefficients_by_group(self._fitted, self._positions)
        return {group: table.isel(feature=0) for group, table in found.items()}

    def ranef(self) -> dict[str, pd.DataFrame]:
        """Predicted effects of each random term: levels x effects, as lme4's ranef.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.ranef()["Subject"].head(2).round(2)
                 Intercept  Days
        Subject
        308           2.26  9.20
        309         -40.40 -8.62
        """
        values, structure = self._blup(), self._fitted.stats.structure
        return {
            term.name: pd.DataFrame(
                values[start : start + term.n_columns].reshape(len(term.levels), -1),
                index=pd.Index(term.levels, name=term.group),
                columns=list(term.effects),
            )
            for term, start in zip(structure.terms, structure.offsets, strict=False)
        }

    def _blup(self) -> FloatArray:
        values, _ = self._fitted.on_request.level_effects(self._positions, None)
        return np.asarray(values[0])
