"""The classic panels of one feature's residuals; needs matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.inference.tails import norm_isf

__all__ = ["draw_panels"]


def draw_panels(
    axes: Any,
    fitted: FloatArray,
    raw: FloatArray,
    standard: FloatArray,
    blup: FloatArray,
    name: str,
) -> Any:
    """Residuals by fitted values, their quantiles, their size, and quantiles of the BLUPs.

    Parameters
    ----------
    axes
        Four axes of matplotlib; new ones for None.
    fitted, raw, standard
        Of the samples, shape (n,); NaN is left out.
    blup
        Predicted random effects, shape (q,); without any the last panel is a histogram.
    name
        Of the feature.
    """
    if axes is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415  (an optional package)

        _, axes = plt.subplots(2, 2, layout="constrained")
    panels = np.ravel(axes)
    there = np.isfinite(standard)
    panels[0].scatter(fitted[there], raw[there], s=8)
    panels[0].axhline(0.0, color="grey", linewidth=0.8)
    panels[0].set(xlabel="fitted value", ylabel="residual", title=name)
    _quantiles(panels[1], standard[there], "standardised residual")
    panels[2].scatter(fitted[there], np.sqrt(np.abs(standard[there])), s=8)
    panels[2].set(xlabel="fitted value", ylabel="root of |standardised residual|")
    if blup.size:
        _quantiles(panels[3], blup[np.isfinite(blup)], "predicted random effect")
    else:
        panels[3].hist(standard[there], bins="auto")
        panels[3].set(xlabel="standardised residual", ylabel="samples")
    return axes


def _quantiles(panel: Any, values: FloatArray, label: str) -> None:
    """Sorted values by normal quantiles, with the line through their quartiles."""
    normal = -norm_isf((np.arange(values.size) + 0.5) / max(values.size, 1))
    panel.scatter(normal, np.sort(values), s=8)
    if values.size > 1:
        low, high = np.quantile(values, [0.25, 0.75])
        slope = (high - low) / (2.0 * norm_isf(0.25))
        panel.axline((0.0, 0.5 * (low + high)), slope=slope, color="grey", linewidth=0.8)
    panel.set(xlabel="normal quantile", ylabel=label)
