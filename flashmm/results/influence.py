"""Refits without each group of samples, for all features: what each group does to a fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import ConvergenceWarning, InputError, listing, warn
from flashmm.inference.degrees_of_freedom import DEFAULT_DF, INTEGRATED
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.inference.statistics import check_alpha
from flashmm.plots import groups as pictures
from flashmm.progress import Progress, counted
from flashmm.results import fixed_effects
from flashmm.results.fitted import FittedModel
from flashmm.results.refit import refit
from flashmm.slips.answers import answer_calls, no_index, no_such_attribute
from flashmm.slips.attributes import INFLUENCE
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.algebra import without_groups
from flashmm.stats.group_names import known_groups
from flashmm.stats.groups import grouped_by
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["Influence", "influence"]

log = logging.getLogger("flashmm")

# What the table of all refits may take in memory.
_TABLE_BYTES = 2**32
# More refits than this, each without a single sample, take one step each unless asked otherwise.
_MANY = 10**6


@dataclass(frozen=True)
class _Refit:
    """The fit without one group.

    Parameters
    ----------
    group
        Its position.
    stats
        Statistics of the other samples, of the features with an estimate.
    ds
        Their fit, or None where the others cannot carry the model.
    why
        Why they cannot.
    """

    group: int
    stats: SummaryStats | None
    ds: xr.Dataset | None
    why: str = ""


def influence(
    fitted: FittedModel,
    positions: IntArray,
    by: Any,
    exact: bool | None = None,
    progress: Progress = None,
) -> Influence:
    """Refits without each group; see `MultiLMMResults.influence`."""
    fitted.one_residual("influence")
    whole = fitted.of_groups("influence")
    stats = grouped_by(whole, by, "influence", "by").at(positions)
    groups = known_groups(stats)
    if groups.k < 2:
        raise InputError(f"There is one group of {groups.name!r}: nothing is left without it.")
    p, params, k = stats.p, len(stats.structure.param_names), groups.k
    size = 8 * stats.m * k * (2 * p + params + 2)
    if size > _TABLE_BYTES:
        raise InputError(
            f"The refits of {stats.m} features without each of {k} groups take "
            f"{size / 2**30:.1f} GiB. Take some of them at a time: features=, or coarser groups."
        )
    if exact is None:
        exact = k < stats.n or stats.m * k <= _MANY
    theta, beta = (fitted.values(name, positions) for name in ("theta", "beta"))
    here = np.flatnonzero(np.isfinite(theta).all(axis=1) & fitted.converged[positions])
    known = stats.at(here)
    shape = stats.m, k
    found = {
        "params": np.full((*shape, p), np.nan),
        "se": np.full((*shape, p), np.nan),
        "theta": np.full((*shape, params), np.nan),
        "cooks_distance": np.full(shape, np.nan),
    }
    status = np.full(shape, np.int8(Status.NOT_ESTIMABLE))
    status[:] = fitted.ds["status"].to_numpy()[positions][:, None]
    covariance = fitted.on_request.covariance(positions[here])
    failed: list[tuple[str, str]] = []
    log.info("influence: %d refits of %d features", k, here.size)
    with counted(progress, k, unit="group", desc="influence") as done:
        for one in _refits(known, fitted, theta[here], exact):
            done(1)
            status[here, one.group] = np.int8(Status.NOT_ESTIMABLE)
            if one.ds is None:
                failed.append((groups.labels[one.group], one.why))
                continue
            new = one.ds["beta"].to_numpy()
            found["params"][here, one.group] = new
            found["se"][here, one.group] = one.ds["se_beta"].to_numpy()
            found["theta"][here, one.group] = one.ds["theta"].to_numpy()
            found["cooks_distance"][here, one.group] = cooks_distance(beta[here] - new, covariance)
            status[here, one.group] = one.ds["status"].to_numpy()
    ds = _labelled(stats, found, status, fitted, exact)
    _warn_of(failed, status[here], groups.name, exact)
    return Influence(ds, fitted, positions, stats)


def cooks_distance(change: FloatArray, covariance: FloatArray) -> FloatArray:
    """d'C^-1 d / p for changes d (B, p) of the coefficients and their covariance C (B, p, p)."""
    known = np.isfinite(change).all(axis=1) & np.isfinite(covariance).all(axis=(1, 2))
    result = np.full(change.shape[0], np.nan)
    length = np.sqrt(np.abs(np.diagonal(covariance, axis1=1, axis2=2)))
    known &= (length > 0).all(axis=1)
    length = length[known]
    scaled = covariance[known] / (length[:, :, None] * length[:, None, :])
    d = change[known] / length
    inverse = np.linalg.pinv(scaled, hermitian=True)
    result[known] = (np.matmul(inverse, d[..., None])[..., 0] * d).sum(axis=1) / change.shape[1]
    return result


def _refits(
    stats: SummaryStats, fitted: FittedModel, theta: FloatArray, exact: bool
) -> Iterator[_Refit]:
    """Fits without each group in turn, from the estimates theta (m, k) of all samples."""
    groups = known_groups(stats)
    for group in range(groups.k):
        try:
            others = _without(stats, group)
            ds, _ = refit(others, fitted.options, theta, one_step=not exact)
        except InputError as error:
            yield _Refit(group, None, None, str(error))
            continue
        yield _Refit(group, others, ds)


def _without(stats: SummaryStats, group: int) -> SummaryStats:
    """The statistics without one group, whose effects are those of the whole."""
    left = without_groups(stats, np.array([group])).ungrouped()
    if left.structure.param_names != stats.structure.param_names or any(
        not term.levels for term in left.structure.terms
    ):
        raise InputError("no level of a random effect is left.")
    return left


def _labelled(
    stats: SummaryStats,
    found: dict[str, FloatArray],
    status: NDArray[np.int8],
    fitted: FittedModel,
    exact: bool,
) -> xr.Dataset:
    groups = known_groups(stats)
    dims = {
        "params": ("feature", "group", "coef"),
        "se": ("feature", "group", "coef"),
        "theta": ("feature", "group", "param"),
        "cooks_distance": ("feature", "group"),
    }
    n = np.array([part.n for part in groups.parts])
    return xr.Dataset(
        {
            **{name: (dims[name], values) for name, values in found.items()},
            "status": (("feature", "group"), status),
            "n": (("group",), n),
        },
        coords={
            "feature": pd.Index(stats.feature_names),
            "group": pd.Index(groups.labels),
            "coef": pd.Index(list(stats.coef_names)),
            "param": pd.Index(list(stats.structure.param_names)),
        },
        attrs={
            "by": groups.name,
            "refits": "exact" if exact else "one step",
            "method": fitted.options.method,
        },
    )


def _warn_of(
    failed: list[tuple[str, str]], status: NDArray[np.int8], name: str, exact: bool
) -> None:
    """One warning of what was not refitted."""
    lost = [label for label, _ in failed]
    said = []
    if lost:
        said.append(
            f"without {listing(lost)} of {name!r} the model cannot be fitted: {failed[0][1]}"
        )
    good = status <= Status.INDEFINITE
    if exact and (unfinished := int((~good).sum() - len(lost) * status.shape[0])) > 0:
        said.append(f"{unfinished} of {status.size} refits ended without a regular fit")
    if said:
        warn("Influence: " + "; ".join(said) + ". See its status.", ConvergenceWarning)


@answer_calls
class Influence:
    """What each group of samples does to the fit of every feature.

    Parameters
    ----------
    ds
        Dataset of the fits without each group: ``params`` and ``se`` (feature, group, coef),
        ``theta`` (feature, group, param), ``cooks_distance`` and ``status`` (feature, group), and
        ``n`` (group), its samples.
    fitted, positions
        The fit of all samples, and the features here.
    stats
        Their statistics, with the sums of each group.

    Examples
    --------
    >>> import numpy as np, pandas as pd, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
    >>> model = fm.MultiLMM.from_formula(
    ...     "~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)), sums_by="g")
    >>> found = model.fit(parameter_space="psd").influence()
    >>> found
    <Influence: 3 features x 8 groups of 'g', exact refits>
    >>> found.cooks_distance.idxmax(axis=1).tolist()
    ['c', 'd', 'h']
    """

    def __init__(
        self, ds: xr.Dataset, fitted: FittedModel, positions: IntArray, stats: SummaryStats
    ) -> None:
        self.ds = ds
        self._fitted = fitted
        self._positions = positions
        self._stats = stats

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Influence results", own=INFLUENCE)

    __getitem__ = no_index("Influence", "groups are labels of `ds`: influence.ds.sel(group=...)")
    __iter__ = None

    def __repr__(self) -> str:
        m, k = self.ds.sizes["feature"], self.ds.sizes["group"]
        return (
            f"<Influence: {m} features x {k} groups of {self.ds.attrs['by']!r}, "
            f"{self.ds.attrs['refits']} refits>"
        )

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return [str(name) for name in self.ds["group"].to_numpy()]

    @property
    def cooks_distance(self) -> pd.DataFrame:
        """Cook's distances, features x groups.

        (b - b_g)'C^-1 (b - b_g) / p, with b and C the coefficients and their covariance in the fit
        of all samples and b_g those without the group (Cook 1977; as lme4 has it).
        """
        return self._frame(self.ds["cooks_distance"].to_numpy())

    @property
    def dfbetas(self) -> xr.DataArray:
        """Change of the coefficients by a group, b - b_g, over their standard errors without it.

        Dims feature, group, coef (Belsley, Kuh & Welsch 1980).
        """
        beta = self._fitted.values("beta", self._positions)
        change = beta[:, None, :] - self.ds["params"].to_numpy()
        return self.ds["se"].copy(data=change / self.ds["se"].to_numpy()).rename("dfbetas")

    def t_test(
        self, contrast: Any = None, *, alternative: str = "two-sided", df: str = DEFAULT_DF
    ) -> xr.Dataset:
        """Tests of contrasts without each group, for every feature.

        Parameters
        ----------
        contrast, alternative, df
            As in `MultiLMMResults.t_test`; not ``df="integrated"``.

        Returns
        -------
        Dataset
            ``estimate``, ``se``, ``t``, ``df``, ``p``, dims feature, group, contrast; and
            ``p_all``, dims feature, contrast, with all samples.

        Raises
        ------
        InputError
            If the contrast cannot be read, or df is integrated.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(
        ...     "Reaction ~ Days + (1 | Subject)", data=sleep.data, sums_by="Subject"
        ... )
        >>> found = model.fit().influence()
        >>> dict(found.t_test("Days")["p"].sizes)
        {'feature': 1, 'group': 18, 'contrast': 1}
        """
        if df == INTEGRATED:
            raise InputError(
                "df='integrated' learns from all features of one fit; without a group use another "
                "df, or fit model.stats.without(group) by itself."
            )
        options: dict[str, Any] = {"alternative": alternative, "df": df}
        whole = fixed_effects.t_test(self._fitted, self._positions, contrast, **options).ds
        m, k = self.ds.sizes["feature"], self.ds.sizes["group"]
        names = ("estimate", "se", "t", "df", "p")
        found = {name: np.full((m, k, whole.sizes["contrast"]), np.nan) for name in names}
        for group in range(k):
            here, fit = self._fit_without(group)
            if fit is None:
                continue
            tests = fixed_effects.t_test(fit, np.arange(here.size), contrast, **options).ds
            for name in names:
                found[name][here, group] = tests[name].to_numpy()
        dims = ("feature", "group", "contrast")
        coords = {name: self.ds[name] for name in ("feature", "group")}
        return xr.Dataset(
            {
                **{name: (dims, values) for name, values in found.items()},
                "p_all": (("feature", "contrast"), whole["p"].to_numpy()),
            },
            coords={**coords, "contrast": whole["contrast"].to_numpy()},
            attrs={"alternative": whole.attrs["alternative"], "df": whole.attrs["df"]},
        )

    def hits(
        self,
        contrast: Any,
        alpha: float = 0.05,
        *,
        adjust: str = "bh",
        alternative: str = "two-sided",
        df: str = DEFAULT_DF,
    ) -> pd.DataFrame:
        """Which group drives how many hits of one contrast.

        Parameters
        ----------
        contrast
            One contrast, as in `MultiLMMResults.t_test`.
        alpha
            A hit is a feature whose adjusted p-value is at most alpha.
        adjust
            How p-values are adjusted over the features, as in `top_table`.
        alternative, df
            As in `MultiLMMResults.t_test`.

        Returns
        -------
        DataFrame
            Indexed by group, the one that most hits depend on first: ``n``, its samples;
            ``hits``, with all samples; ``without``, those without the group; ``lost`` and
            ``gained``, how many of them stop being hits or begin; ``largest_change``, the feature
            whose p-value changes most, by its logarithm.

        Raises
        ------
        InputError
            If there are several contrasts, or one cannot be read.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> Y = rng.normal(size=(3, 40)) + 0.6 * data["x"].to_numpy()
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y, sums_by="g")
        >>> found = model.fit(parameter_space="psd").influence()
        >>> found.hits("x").head(2).loc[:, "n":"gained"].to_dict("list")
        {'n': [5, 5], 'hits': [3, 3], 'without': [1, 1], 'lost': [2, 2], 'gained': [0, 0]}
        """
        check_alpha(alpha)
        tests = self.t_test(contrast, alternative=alternative, df=df)
        if tests.sizes["contrast"] != 1:
            raise InputError(f"Name one contrast; here are {tests.sizes['contrast']}.")
        p, before = tests["p"].to_numpy()[:, :, 0], tests["p_all"].to_numpy()
        hit_before = adjust_pvalues(before, adjust) <= alpha
        hit = adjust_pvalues(p, adjust) <= alpha
        done = np.isfinite(p).any(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.abs(np.log(p) - np.log(before))
        change = np.where(np.isfinite(change), change, -1.0)
        names = self.ds["feature"].to_numpy()
        largest = (
            names[change.argmax(axis=0)].astype(object) if names.size else np.full(done.size, "")
        )
        table = pd.DataFrame(
            {
                "n": self.ds["n"].to_numpy(),
                "hits": np.full(done.size, int(hit_before.sum())),
                "without": hit.sum(axis=0).astype(np.float64),
                "lost": (hit_before & ~hit).sum(axis=0).astype(np.float64),
                "gained": (~hit_before & hit).sum(axis=0).astype(np.float64),
                "largest_change": largest,
            },
            index=pd.Index(self.groups, name=str(self.ds.attrs["by"])),
        )
        counts = ["without", "lost", "gained"]
        if done.all():
            table[counts] = table[counts].astype(np.int64)
        else:
            table.loc[~done, counts] = np.nan
            table.loc[~done, "largest_change"] = ""
        moved = (table["lost"] + table["gained"]).fillna(-1.0)
        return table.iloc[np.argsort(-moved.to_numpy(), kind="stable")]

    def summary(self, threshold: float | None = None) -> pd.DataFrame:
        """One row per group: how far the coefficients of the features move without it.

        Parameters
        ----------
        threshold
            Cook's distance from which a feature counts as driven by the group; 4 over the number
            of groups by default.

        Returns
        -------
        DataFrame
            Indexed by group, the most influential first: ``n``, its samples; ``median`` and
            ``largest`` Cook's distance over the features; ``driven``, features at or above the
            threshold; ``first``, features whose most influential group it is; ``refitted``,
            features with a regular fit without it.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(
        ...     "Reaction ~ Days + (1 | Subject)", data=sleep.data, sums_by="Subject"
        ... )
        >>> found = model.fit().influence()
        >>> found.summary()[["n", "median", "driven"]].head(2).round(3)
                  n  median  driven
        Subject
        335      10   0.526       1
        308      10   0.382       1
        """
        D = self.ds["cooks_distance"].to_numpy()
        limit = 4.0 / D.shape[1] if threshold is None else threshold
        filled = np.where(np.isfinite(D), D, -1.0)
        first = np.bincount(filled.argmax(axis=1)[(filled >= 0).any(axis=1)], minlength=D.shape[1])
        there = np.where(np.isfinite(D), D, np.nan)
        some = np.isfinite(D).any(axis=0)
        median, largest = np.full(D.shape[1], np.nan), np.full(D.shape[1], np.nan)
        if some.any():
            median[some] = np.nanmedian(there[:, some], axis=0)
            largest[some] = np.nanmax(there[:, some], axis=0)
        table = pd.DataFrame(
            {
                "n": self.ds["n"].to_numpy(),
                "median": median,
                "largest": largest,
                "driven": (filled >= limit).sum(axis=0),
                "first": first,
                "refitted": (self.ds["status"].to_numpy() <= Status.INDEFINITE).sum(axis=0),
            },
            index=pd.Index(self.groups, name=str(self.ds.attrs["by"])),
        )
        order = np.argsort(-np.where(np.isfinite(median), median, -1.0), kind="stable")
        return table.iloc[order]

    def plot(
        self, contrast: Any = None, alpha: float = 0.05, ax: Any = None, **options: Any
    ) -> Any:
        """Draw how much each group does; needs matplotlib.

        Parameters
        ----------
        contrast
            One contrast: the hits that each group adds and takes are drawn. None for the
            distribution of Cook's distance over the features.
        alpha
            As in `hits`.
        ax
            Axes of matplotlib; new ones by default.
        **options
            As in `hits`.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, or the contrast cannot be read.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(
        ...     "Reaction ~ Days + (1 | Subject)", data=sleep.data, sums_by="Subject"
        ... )
        >>> found = model.fit().influence()
        >>> ax = found.plot()
        >>> plt.close()
        """
        if contrast is None and options:
            raise InputError(f"{listing(options)} belong to tests: name a contrast.")
        name = str(self.ds.attrs["by"])
        if contrast is None:
            order = self.summary().index
            distance = self.cooks_distance[order].to_numpy()
            return pictures.cooks_distances(distance, list(order), ylabel=name, ax=ax)
        table = self.hits(contrast, alpha, **options)
        return pictures.hits_without_groups(
            table["lost"],
            table["gained"],
            list(table.index),
            hits=int(table["hits"].iloc[0]),
            ylabel=name,
            ax=ax,
        )

    def _frame(self, values: FloatArray) -> pd.DataFrame:
        index = pd.Index(self.ds["feature"].to_numpy(), name="feature")
        return pd.DataFrame(values, index=index, columns=pd.Index(self.groups, name="group"))

    def _fit_without(self, group: int) -> tuple[IntArray, FittedModel | None]:
        """The fit without one group as it was found, and which features it is of."""
        one = self.ds.isel(group=group)
        here = np.flatnonzero(np.isfinite(one["theta"].to_numpy()).all(axis=1))
        if here.size == 0:
            return here, None
        ds = xr.Dataset(
            {
                "beta": (("feature", "coef"), one["params"].to_numpy()[here]),
                "se_beta": (("feature", "coef"), one["se"].to_numpy()[here]),
                "theta": (("feature", "param"), one["theta"].to_numpy()[here]),
                "status": (("feature",), one["status"].to_numpy()[here]),
            },
            coords={
                "feature": one["feature"].to_numpy()[here],
                "coef": one["coef"].to_numpy(),
                "param": one["param"].to_numpy(),
            },
        )
        others = _without(self._stats.at(here), group)
        options = replace(self._fitted.options, engine="auto")
        return here, FittedModel(ds, others, options)
