"""Files through which peers get the data: plain binary, one file per array."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm import SummaryStats

    from .designs import Data

    FloatArray = NDArray[np.float64]

# Peers that fit from the statistics and need no samples.
_FROM_SUMS = {"FLASHMM", "FLASH-MM"}

__all__ = ["formula", "read_matrix", "read_timing", "write_counts", "write_for_peers"]


def write_for_peers(
    folder: Path,
    stats: SummaryStats,
    data: Data,
    features: Mapping[str, int],
    contrasts: FloatArray | None = None,
) -> None:
    """Write statistics and samples of the features that peers fit, and what they test."""
    shapes: list[tuple[str, int, int]] = []

    def write(name: str, values: FloatArray) -> None:
        matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
        matrix.T.tofile(folder / f"{name}.bin")  # column by column, as R reads
        shapes.append((name, *matrix.shape))

    for name in ("XX", "XY", "ZX", "ZY", "yy"):
        write(name, getattr(stats, name))
    if contrasts is not None:
        write("contrasts", contrasts)
    if _FROM_SUMS & set(features):
        write("ZZ", stats.ZZ.toarray())
    write("sizes", np.array([stats.n, *(term.n_columns for term in data.terms)]))
    if set(features) - _FROM_SUMS:
        write("X", data.X)
        write("Y", data.Y)
        write("codes", np.column_stack([term.codes for term in data.terms]))
        (folder / "formula.txt").write_text(formula(data) + "\n")
        (folder / "terms.txt").write_text("".join(f"{term.name}\n" for term in data.terms))
    _write_shapes(folder, shapes)


def write_counts(folder: Path, path: Path, X: FloatArray, codes: FloatArray) -> None:
    """Write the counts of an .h5ad and their design for a peer that sums for itself.

    Parameters
    ----------
    folder
        Where the files go.
    path
        AnnData with X in CSR, cells x genes.
    X, codes
        Fixed-effects design (n, p), and the level of each cell, shape (n,).
    """
    import h5py  # noqa: PLC0415  (optional)

    with h5py.File(path) as file:
        group = file["X"]
        genes = int(group.attrs["shape"][1])
        for name, dtype in (("data", "<f4"), ("indices", "<i4"), ("indptr", "<i4")):
            group[name][:].astype(dtype).tofile(folder / f"{name}.bin")
    shapes = []
    for name, values in (("X", X), ("codes", codes[:, None]), ("genes", np.array([[genes]]))):
        np.asarray(values, dtype=np.float64).T.tofile(folder / f"{name}.bin")
        shapes.append((name, *values.shape))
    _write_shapes(folder, shapes)


def _write_shapes(folder: Path, shapes: list[tuple[str, int, int]]) -> None:
    with (folder / "shapes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "rows", "columns"])
        writer.writerows(shapes)


def formula(data: Data) -> str:
    """The model in lme4's notation; the columns of X are x1, x2, ..."""
    p = data.X.shape[1]
    bars = []
    for term in data.terms:
        slopes = "1"
        if term.slope is not None:
            column = next(j for j in range(p) if np.array_equal(data.X[:, j], term.slope))
            slopes = f"1 + x{column + 1}"
        bars.append(f"({slopes} | {term.name})")
    return "y ~ " + " + ".join(["0", *(f"x{j + 1}" for j in range(p)), *bars])


def read_matrix(folder: Path, name: str) -> FloatArray:
    """One of the arrays, rows x columns."""
    with (folder / "shapes.csv").open(newline="") as file:
        shape = next(
            (int(row["rows"]), int(row["columns"]))
            for row in csv.DictReader(file)
            if row["name"] == name
        )
    return np.fromfile(folder / f"{name}.bin").reshape(shape[::-1]).T


def read_timing(path: Path) -> dict[str, FloatArray]:
    """What a peer wrote: one row per feature, a header of names."""
    table = np.genfromtxt(path, delimiter=",", names=True, ndmin=1)
    return {name: np.asarray(table[name], dtype=np.float64) for name in table.dtype.names or ()}
