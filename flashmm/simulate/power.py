"""Power of a design: draw statistics from a model, fit, test, count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.labels import by_name
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, listing, nearest
from flashmm.formulas.build import build_design
from flashmm.inference.draws import FeatureStreams, Sampler
from flashmm.inference.names import resolve_names
from flashmm.results import FitOptions, MultiLMMResults
from flashmm.results.refit import Progress, replicate_fits
from flashmm.slips.answers import answered
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.block_sums import design_columns
from flashmm.stats.design_products import design_products
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["power"]


@answered
def power(
    design: Any = None,
    *,
    theta: Any,
    beta: Any,
    contrast: Any = None,
    fixed: str | None = None,
    random: Any = None,
    data: pd.DataFrame | None = None,
    alpha: float = 0.05,
    alternative: str = "two-sided",
    df: str = "residual",
    n_sim: int = 1000,
    rng: Any = None,
    method: Literal["REML", "ML"] = "REML",
    parameter_space: Literal["unconstrained", "psd"] = "unconstrained",
    memory: int = 2**30,
    progress: Progress = None,
) -> xr.Dataset:
    """Simulate the power of tests of the fixed effects in a design.

    Parameters
    ----------
    design
        A model, results or `SummaryStats` with the design; its features do not matter.
        Left out when ``fixed``, ``random`` and ``data`` give it.
    theta
        True variance parameters: a dict ``{name: value}`` of all of them, a vector (k,) with the
        residual last, or one row per scenario, (g, k).
    beta
        True fixed effects: a dict (absent ones are zero), a vector (p,), or (g, p).
    contrast
        What is tested, as in `MultiLMMResults.t_test`; every coefficient by default.
    fixed, random, data
        Formulas and data of a design without Y, as in `MultiLMM.from_formula`.
    alpha
        Level of the tests.
    alternative, df
        As in `MultiLMMResults.t_test`.
    n_sim
        Simulated features per scenario.
    rng
        A Generator or a seed.
    method, parameter_space, memory
        As in `MultiLMM.fit`.
    progress
        As in `MultiLMMResults.bootstrap`.

    Returns
    -------
    Dataset
        ``power``, dims scenario, contrast: the share of fits with p < alpha; ``se``, its Monte
        Carlo standard error; ``n_fits``, dims scenario: fits that converged.

    Raises
    ------
    InputError
        If the design is not given in one of the two ways, or a parameter is unknown, absent or
        impossible.

    Examples
    --------
    >>> import numpy as np, pandas as pd, flashmm as fm
    >>> cells = pd.DataFrame({"donor": np.repeat(np.arange(12), 30).astype(str)})
    >>> cells["trt"] = np.where(cells["donor"].astype(int) % 2 == 0, "A", "B")
    >>> found = fm.power(
    ...     fixed="~ trt", random="(1 | donor)", data=cells, theta={"donor": 0.2, "Residual": 1.0},
    ...     beta=[[0, 0], [0, 1]], contrast="trt[T.B]", n_sim=200, parameter_space="psd", rng=1)
    >>> found["power"].to_numpy()[:, 0].round(1).tolist()
    [0.1, 1.0]
    """
    if isinstance(n_sim, bool) or not isinstance(n_sim, (int, np.integer)) or n_sim < 1:
        raise InputError(f"`n_sim` must be a positive whole number, not {n_sim!r}.")
    if not 0.0 < alpha < 1.0:
        raise InputError(f"`alpha` must lie between 0 and 1, not {alpha!r}.")
    stats = _design_statistics(design, fixed, random, data)
    params = stats.structure.param_names
    thetas = _rows(theta, "theta", params, [str(name) for name in params], required=True)
    betas = _rows(beta, "beta", stats.coef_names, stats.coef_names, required=False)
    count = max(thetas.shape[0], betas.shape[0])
    for name, rows in (("theta", thetas), ("beta", betas)):
        if rows.shape[0] not in (1, count):
            raise InputError(
                f"`{name}` has {rows.shape[0]} scenarios, the other argument {count}: give one "
                "row, or as many."
            )
    thetas = np.broadcast_to(thetas, (count, thetas.shape[1]))
    betas = np.broadcast_to(betas, (count, betas.shape[1]))
    if (thetas[:, -1] <= 0).any():
        raise InputError("The residual variance in `theta` must be positive.")
    options = FitOptions(
        method=method,
        solver="fisher_scoring",
        parameter_space=parameter_space,
        max_iter=50,
        epsilon=1e-5,
        memory=memory,
        engine="auto",
    )
    streams = FeatureStreams.spawn(np.random.default_rng(rng), count)
    hits: FloatArray | None = None
    fits = np.zeros(count)
    labels: Sequence[str] = ()
    estimable = np.ones(1, dtype=bool)
    for fit in replicate_fits(Sampler(stats), thetas, betas, n_sim, streams, options, progress):
        results = MultiLMMResults(fit.ds, fit.stats, options, fit.projection)
        test = results.t_test(contrast, alternative=alternative, df=df)
        good = fit.ds["status"].to_numpy() <= Status.INDEFINITE
        below = (test.ds["p"].to_numpy() < alpha) & good[:, None]
        if hits is None:
            labels = list(test.ds["contrast"].to_numpy())
            estimable = test.ds["estimable"].to_numpy()
            hits = np.zeros((count, len(labels)))
        hits[fit.rows] += below.reshape(fit.rows.size, -1, len(labels)).sum(axis=1)
        fits[fit.rows] += good.reshape(fit.rows.size, -1).sum(axis=1)
    assert hits is not None
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where((fits[:, None] > 0) & estimable, hits / fits[:, None], np.nan)
        se = np.sqrt(share * (1.0 - share) / fits[:, None])
    return xr.Dataset(
        {
            "power": (("scenario", "contrast"), share),
            "se": (("scenario", "contrast"), se),
            "n_fits": (("scenario",), fits.astype(np.int64)),
        },
        coords={"scenario": np.arange(count), "contrast": pd.Index(labels)},
        attrs={"alpha": float(alpha), "df": df, "alternative": alternative},
    )


def _design_statistics(design: Any, fixed: str | None, random: Any, data: Any) -> SummaryStats:
    """Statistics without features, from whatever gives the design."""
    if (design is None) == (fixed is None or data is None):
        raise InputError("Give a `design`, or `fixed`, `random` and `data`.")
    if design is not None:
        stats = getattr(design, "stats", design)
        if not isinstance(stats, SummaryStats):
            raise InputError(
                f"`design` must be a model, results or SummaryStats, not {type(design).__name__}."
            )
        return stats
    built = build_design(str(fixed), random, data, context=None, missing="raise").design
    XX, ZX, ZZ = design_products(design_columns(built.X, built.Z))
    return SummaryStats(
        n=built.n,
        XX=XX,
        XY=np.zeros((XX.shape[0], 0)),
        ZX=ZX,
        ZY=np.zeros((ZX.shape[0], 0)),
        ZZ=ZZ,
        yy=np.zeros(0),
        coef_names=built.coef_names,
        structure=built.structure,
    )


def _rows(
    values: Any, what: str, names: Sequence[str], known: Sequence[str], *, required: bool
) -> FloatArray:
    """True parameters, one row per scenario."""
    named = by_name(values)
    if named is not None:
        count = max((np.size(value) for value in named.values()), default=1)
        table = np.full((count, len(names)), np.nan if required else 0.0)
        for name, value in named.items():
            if what == "beta":
                table[:, resolve_names(name, names)[0]] = value
            elif name in known:
                table[:, known.index(name)] = value
            else:
                raise InputError(f"No variance parameter {name!r}. {nearest(str(name), known)}")
        absent = [name for name, empty in zip(names, np.isnan(table).any(0), strict=True) if empty]
        if absent:
            raise InputError(f"`{what}` lacks {listing(absent)}.")
        return table
    rows = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if rows.ndim != 2 or rows.shape[1] != len(names) or not np.isfinite(rows).all():
        raise InputError(
            f"`{what}` must be {len(names)} finite numbers, for {listing(names, 8)}, or one row of "
            f"them per scenario; its shape is {np.shape(values)}."
        )
    return rows
