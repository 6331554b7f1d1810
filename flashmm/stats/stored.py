"""Sums as an xarray Dataset and back: what the files of statistics hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import xarray as xr

from flashmm.arrays.labels import counts_up
from flashmm.designs.aliasing import Aliasing
from flashmm.designs.curves import ALONG
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.exceptions import InputError
from flashmm.stats.fields import AnySums, Shift, Sums
from flashmm.stats.stored_groups import groups_from_dataset, groups_to_variables
from flashmm.stats.stored_roots import roots_to_variables, with_stored_roots
from flashmm.storage.files import text
from flashmm.storage.format_version import FORMAT, KNOWN_FORMAT, marked

__all__ = ["feature_coordinate", "level_coordinates", "sums_from_dataset", "sums_to_dataset"]


def sums_to_dataset(stats: Sums) -> xr.Dataset:
    """The statistics as a Dataset; Z'Z as the row, column and value of its non-zeros."""
    structure: CovarianceStructure = stats.structure
    ZZ = stats.ZZ.tocoo()
    data: dict[str, Any] = {
        "XX": (("coef", "coef_"), stats.XX),
        "XY": (("coef", "feature"), stats.XY),
        "ZX": (("level", "coef"), stats.ZX),
        "ZY": (("level", "feature"), stats.ZY),
        "yy": (("feature",), stats.yy),
        "ZZ_row": (("nonzero",), ZZ.row.astype(np.int32)),
        "ZZ_column": (("nonzero",), ZZ.col.astype(np.int32)),
        "ZZ_value": (("nonzero",), ZZ.data),
        "term_name": (("random_term",), text([term.name for term in structure.terms])),
        "term_covariance": (("random_term",), text([t.covariance for t in structure.terms])),
        "term_effects": (
            ("random_term",),
            np.array([len(t.effects) for t in structure.terms], np.int32),
        ),
        "term_columns": (
            ("random_term",),
            np.array([t.n_columns for t in structure.terms], np.int32),
        ),
    }
    positions = np.concatenate([np.zeros(0), *(term.positions for term in structure.terms)])
    if positions.size:
        data["term_positions"] = (("along",), positions)
    if any(term.unit for term in structure.terms):
        data["term_unit"] = (("random_term",), text([term.unit for term in structure.terms]))
    if stats.shift is not None:
        shift = stats.shift
        data |= {
            "shift_feature": (("shifted",), shift.features.astype(np.int32)),
            "shift_a": (("coef", "shifted"), shift.a),
            "shift_XY": (("coef", "shifted"), shift.XY),
            "shift_ZY": (("level", "shifted"), shift.ZY),
            "shift_yy": (("shifted",), shift.yy),
        }
    if stats.XX_root is not None:
        data["XX_root"] = (("root", "coef"), stats.XX_root)
    if stats.aliased is not None:
        aliased = stats.aliased
        data |= {
            "column_name": (("column",), text(aliased.names)),
            "column_kept": (("coef",), aliased.kept.astype(np.int32)),
            "column_dropped": (("aliased",), aliased.dropped.astype(np.int32)),
            "column_weights": (("coef", "aliased"), aliased.weights),
        }
    data |= roots_to_variables(structure) | groups_to_variables(stats)
    names = list(stats.coef_names)
    coords: dict[str, Any] = {
        "feature": feature_coordinate(stats.feature_names),
        "coef": text(names),
        "coef_": text(names),
        **level_coordinates(structure),
    }
    attrs = {"n": stats.n, "log_weights": stats.log_weights, "numbered": int(bool(stats.numbered))}
    version = KNOWN_FORMAT if structure.has_roots else FORMAT
    return marked(xr.Dataset(data, coords=coords, attrs=attrs), "SummaryStats", version)


def sums_from_dataset(cls: type[AnySums], ds: xr.Dataset) -> AnySums:
    """The inverse of `sums_to_dataset`."""
    q = ds.sizes["level"]
    terms, start, placed = [], 0, 0
    positions = ds["term_positions"].to_numpy() if "term_positions" in ds else np.zeros(0)
    for i in range(ds.sizes["random_term"]):
        s, stop = int(ds["term_effects"][i]), start + int(ds["term_columns"][i])
        levels = [str(x) for x in ds["group_level"].to_numpy()[start:stop:s]]
        effects = [str(x) for x in ds["effect"].to_numpy()[start : start + s]]
        covariance: Any = str(ds["term_covariance"].to_numpy()[i])
        along = s if covariance in ALONG else 0
        at = tuple(float(x) for x in positions[placed : placed + along])
        placed += along
        terms.append(
            RandomTerm(
                str(ds["term_name"].to_numpy()[i]),
                str(ds["group"].to_numpy()[start]),
                tuple(levels),
                tuple(effects),
                covariance,
                positions=at,
                unit=str(ds["term_unit"].to_numpy()[i]) if "term_unit" in ds else "",
            )
        )
        start = stop
    terms = with_stored_roots(terms, ds)
    shift = None
    if "shift_feature" in ds:
        shift = Shift(
            ds["shift_feature"].to_numpy().astype(np.intp),
            *(ds[f"shift_{name}"].to_numpy() for name in ("a", "XY", "ZY", "yy")),
        )
    entries = (ds["ZZ_row"].to_numpy(), ds["ZZ_column"].to_numpy())
    stats = cls(
        n=int(ds.attrs["n"]),
        XX=ds["XX"].to_numpy(),
        XY=ds["XY"].to_numpy(),
        ZX=ds["ZX"].to_numpy(),
        ZY=ds["ZY"].to_numpy(),
        ZZ=sp.csr_array((ds["ZZ_value"].to_numpy(), entries), shape=(q, q)),
        yy=ds["yy"].to_numpy(),
        feature_names=ds["feature"].to_numpy(),
        coef_names=[str(x) for x in ds["coef"].to_numpy()],
        structure=CovarianceStructure(tuple(terms)),
        shift=shift,
        log_weights=float(ds.attrs.get("log_weights", 0.0)),
        XX_root=ds["XX_root"].to_numpy() if "XX_root" in ds else None,
        aliased=_aliasing(ds) if "column_name" in ds else None,
        numbered=_was_numbered(ds),
    )
    groups = groups_from_dataset(stats, ds)
    return stats if groups is None else replace(stats, groups=groups)


def _was_numbered(ds: xr.Dataset) -> bool:
    """Whether the features are called by their rows; files of earlier versions do not say."""
    counted = counts_up(ds["feature"].to_numpy())
    return bool(ds.attrs.get("numbered", counted))


def _aliasing(ds: xr.Dataset) -> Aliasing:
    """The columns of X that were left out; a file's word is checked."""
    try:
        names = tuple(str(name) for name in ds["column_name"].to_numpy())
        kept, dropped = (
            ds[f"column_{which}"].to_numpy().astype(np.intp) for which in ("kept", "dropped")
        )
        weights = ds["column_weights"].to_numpy().astype(np.float64)
        kept_names = [names[i] for i in kept]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"What was left out of X cannot be read: {error!r}.") from error
    if (
        sorted([*kept, *dropped]) != list(range(len(names)))
        or kept_names != [str(name) for name in ds["coef"].to_numpy()]
        or weights.shape != (kept.size, dropped.size)
        or not np.isfinite(weights).all()
    ):
        raise InputError("What was left out of X does not fit the coefficients.")
    return Aliasing(names, kept, dropped, weights)


def level_coordinates(structure: CovarianceStructure) -> dict[str, Any]:
    """The ``level`` coordinate with the term, group, level and effect of each column of Z."""
    labels = {name: ("level", text(values)) for name, values in structure.column_labels().items()}
    return {"level": text(structure.column_names), **labels}


def feature_coordinate(names: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Feature labels as a coordinate: text, or integers when Y had no labels."""
    return names if names.dtype.kind in "iu" else text(names)
