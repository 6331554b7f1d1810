"""Predictions of the random effects."""

from __future__ import annotations

from typing import Any, Literal

import xarray as xr

from flashmm.exceptions import InputError, nearest
from flashmm.results.estimates import Estimates
from flashmm.stats.stored import level_coordinates

__all__ = ["RandomEffectPredictions"]


class RandomEffectPredictions(Estimates):
    """Random effects of all features; part of `MultiLMMResults`."""

    def blup(
        self,
        se: Literal["conditional", "prediction"] | bool | None = None,
        *,
        features: Any = None,
    ) -> xr.DataArray | xr.Dataset:
        """Best linear unbiased predictions of the random effects.

        Parameters
        ----------
        se
            ``"conditional"`` (or True): standard deviations given y and beta, lme4's condVar
            and statsmodels' random_effects_cov; ``"prediction"``: standard errors of
            prediction with beta estimated; None: predictions alone.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        DataArray or Dataset
            Dims feature, level; the coordinates term, group, group_level and effect tell the
            levels apart. With ``se`` a Dataset with the variables blup and se.
        """
        kind = {True: "conditional", False: None}.get(se, se) if isinstance(se, bool) else se
        if kind not in (None, "conditional", "prediction"):
            raise InputError(
                f"Unknown se={se!r}. {nearest(str(se), ['conditional', 'prediction'])}"
            )
        positions = self._positions(features)
        blup, errors = self._on_request.random_effects(positions, kind)
        dims = ("feature", "level")
        coords = {
            "feature": self._features.to_numpy()[positions],
            **level_coordinates(self.stats.structure),
        }
        if kind is None:
            return xr.DataArray(blup, dims=dims, coords=coords, name="blup")
        return xr.Dataset(
            {"blup": (dims, blup), "se": (dims, errors)}, coords=coords, attrs={"se": kind}
        )

    @property
    def random_effects(self) -> dict[str, xr.DataArray]:
        """Predictions by random term: dims feature, the grouping factor's levels, effect."""
        blup = self.blup()
        assert isinstance(blup, xr.DataArray)
        values, structure = blup.to_numpy(), self.stats.structure
        result = {}
        for term, start in zip(structure.terms, structure.offsets, strict=False):
            shape = (values.shape[0], len(term.levels), len(term.effects))
            result[term.name] = xr.DataArray(
                values[:, start : start + term.n_columns].reshape(shape),
                dims=("feature", "group_level", "effect"),
                coords={
                    "feature": self._features.to_numpy(),
                    "group_level": list(term.levels),
                    "effect": list(term.effects),
                },
                name=term.name,
            )
        return result
