"""Files of relationship matrices: GCTA's, and plain tables."""

from __future__ import annotations

import gzip
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_option, listing

__all__ = ["read_covariance", "read_grm"]


def read_grm(
    prefix: str | PathLike[str],
    *,
    labels: Literal["individual", "family:individual"] = "individual",
) -> pd.DataFrame:
    r"""Read a genetic relationship matrix as GCTA and PLINK write it.

    Parameters
    ----------
    prefix
        Of ``prefix.grm.id`` (family and individual) and ``prefix.grm.bin`` (its lower triangle,
        row by row, in float32) or, where that is absent, ``prefix.grm.gz`` or ``prefix.grm`` (text:
        row, column, number of markers, value). With or without ``.grm`` or ``.grm.bin``. A first
        line ``#FID IID`` of the names is skipped; after ``#IID`` there are no families.
    labels
        What names a level: the individual, or ``"family:individual"``, as a random term
        ``(1 | family:individual)`` has it.

    Returns
    -------
    DataFrame
        The matrix, shape (q, q), labelled.

    Raises
    ------
    InputError
        If a file is absent or does not fit the other, or a name repeats.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile, flashmm as fm
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "two.grm.id").write_text("f1 ann\nf2 bob\n")
    >>> np.array([1.0, 0.25, 0.75], np.float32).tofile(folder / "two.grm.bin")
    >>> fm.read_grm(folder / "two").loc["bob"].tolist()
    [0.25, 0.75]
    """
    check_option("labels", labels, ("individual", "family:individual"))
    base = str(prefix)
    for ending in (".grm.N.bin", ".grm.bin", ".grm.gz", ".grm.id", ".grm"):
        if base.endswith(ending):
            base = base.removesuffix(ending)
            break
    names = _names(Path(f"{base}.grm.id"), labels)
    q = len(names)
    size = q * (q + 1) // 2
    if (path := Path(f"{base}.grm.bin")).exists():
        if path.stat().st_size != 4 * size:
            raise InputError(
                f"{str(path)!r} has {path.stat().st_size} bytes, but the lower triangle of the "
                f"{q} individuals of its .grm.id takes {4 * size} in float32."
            )
        values = np.fromfile(path, dtype="<f4").astype(np.float64)
    else:
        values = _text_triangle(base, q)
    if not np.isfinite(values).all():
        raise InputError(f"The matrix of {base!r} holds values that are missing or infinite.")
    K = np.zeros((q, q))
    rows, columns = np.tril_indices(q)
    K[rows, columns] = values
    K[columns, rows] = values
    return pd.DataFrame(K, names, names)


def read_covariance(path: str | PathLike[str], *, sep: str | None = None) -> pd.DataFrame:
    r"""Read a square table whose first row and first column name the levels.

    Parameters
    ----------
    path
        A text file, which may be compressed (.gz).
    sep
        What separates its columns; None to find out: comma, semicolon, tab or blanks.

    Returns
    -------
    DataFrame
        The matrix, labelled; the order of its columns may differ from that of its rows.

    Raises
    ------
    InputError
        If the file is absent or holds no square table of numbers.

    Examples
    --------
    >>> import pathlib, tempfile, flashmm as fm
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "kinship.csv"
    >>> _ = path.write_text('"donor","a","b"\n"a",1,0.5\n"b",0.5,1\n')
    >>> float(fm.read_covariance(path).loc["a", "b"])
    0.5
    """
    try:
        found = _separator(Path(path)) if sep is None else sep
        table = _table(path, found, ".")
        if found == ";" and _text_columns(table):  # a decimal comma, as R's write.csv2 has
            table = _table(path, found, ",")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no file {str(path)!r}.") from None
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{str(path)!r} is no table: {error}") from error
    rows, columns = ([str(x) for x in axis] for axis in (table.index, table.columns))
    twice = pd.Index(rows)[pd.Index(rows).duplicated()].unique()
    if len(twice):
        raise InputError(f"{str(path)!r} has several rows called {listing(twice)}.")
    if sorted(rows) != sorted(columns):
        apart = sorted(set(rows) ^ set(columns))
        raise InputError(
            f"{str(path)!r} is no square table with the same names in its first row and column: "
            f"{listing(apart) or 'names repeat'} on one side only."
        )
    if text := _text_columns(table):
        raise InputError(f"The column {text[0]!r} of {str(path)!r} holds text.")
    missing = np.argwhere(table.isna().to_numpy())
    if len(missing):
        row, column = missing[0]
        raise InputError(
            f"{str(path)!r} lacks {len(missing)} of its {table.size} values: the first in the row "
            f"{rows[row]!r} and the column {columns[column]!r}. A triangle alone is no matrix yet."
        )
    return table.set_axis(rows, axis=0).set_axis(columns, axis=1).rename_axis(None)


def _table(path: str | PathLike[str], sep: str, decimal: str) -> pd.DataFrame:
    """A table whose first column names its rows: as text, ``001`` and ``NA`` too."""
    head = pd.read_csv(path, sep=sep, index_col=False, nrows=0)
    wide = pd.read_csv(path, sep=sep, header=None, skiprows=1, nrows=1).shape[1]
    names = [str(name) for name in head.columns]
    if wide not in (len(names), len(names) + 1):
        raise InputError(
            f"{str(path)!r} is no square table: its first row has {wide} entries, its header "
            f"{len(names)}."
        )
    corner = names.pop(0) if wide == len(names) else ""  # R's write.table leaves it out
    if _is_number(corner):
        raise InputError(
            f"The first row and column of {str(path)!r} must name the levels, but begin with the "
            f"number {corner}. Read a matrix without names with numpy and name its levels: "
            "fm.Covariance(K, levels=[...])."
        )
    options: dict[str, Any] = {
        **{"sep": sep, "header": None, "skiprows": 1, "index_col": False},
        "names": range(len(names) + 1),
    }
    rows = pd.read_csv(path, usecols=[0], dtype=str, na_filter=False, **options)[0]
    body = pd.read_csv(path, decimal=decimal, **options).drop(columns=0)
    return body.set_axis(rows.str.strip().to_numpy(), axis=0).set_axis(names, axis=1)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text_columns(table: pd.DataFrame) -> list[str]:
    return [str(c) for c, kind in table.dtypes.items() if kind.kind not in "iuf"]


def _separator(path: Path) -> str:
    """What separates the names in the first line of a file."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        line = file.readline()
    return next((sep for sep in (",", ";", "\t") if sep in line), r"\s+")


def _names(path: Path, labels: str) -> list[str]:
    if not path.exists():
        raise InputError(f"There is no file {str(path)!r}, which names the individuals.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read as text: {error}") from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    header = [word.lstrip("#").upper() for word in lines[0]] if lines else []
    alone = header[:1] == ["IID"] and lines[0][0].startswith("#")  # as PLINK 2 writes them
    if header[:2] == ["FID", "IID"] or alone:
        lines = lines[1:]
    lines = [line for line in lines if not line[0].startswith("#")]
    if alone and labels != "individual":
        raise InputError(f"{str(path)!r} has no families: leave out `labels`.")
    if alone:
        lines = [["", line[0]] for line in lines]
    wrong = [i for i, line in enumerate(lines) if len(line) < 2]
    if wrong or not lines:
        raise InputError(
            f"{str(path)!r} must have two columns, family and individual; line "
            f"{wrong[0] + 1 if wrong else 1} has not."
        )
    names = [line[1] if labels == "individual" else f"{line[0]}:{line[1]}" for line in lines]
    twice = sorted(pd.Index(names)[pd.Index(names).duplicated()].unique())
    if twice:
        advice = " Individuals of several families: pass labels='family:individual'."
        advice = "" if ":" in labels or alone else advice
        raise InputError(f"{str(path)!r} has the names {listing(twice)} more than once.{advice}")
    return names


def _text_triangle(base: str, q: int) -> FloatArray:
    """The lower triangle from lines ``row column markers value``, in any order."""
    path = next((p for p in (Path(f"{base}.grm.gz"), Path(f"{base}.grm")) if p.exists()), None)
    if path is None:
        raise InputError(f"There is neither {base + '.grm.bin'!r} nor {base + '.grm.gz'!r}.")
    try:
        table = pd.read_csv(path, sep=r"\s+", header=None, usecols=[0, 1, 3], dtype=np.float64)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read: each line must hold row, column, number of markers and "
            f"value, all numbers ({error})."
        ) from error
    i, j = (table[c].to_numpy().astype(np.intp) - 1 for c in (0, 1))
    low, high = np.minimum(i, j), np.maximum(i, j)
    place: IntArray = high * (high + 1) // 2 + low
    size = q * (q + 1) // 2
    outside = np.flatnonzero((low < 0) | (high >= q))
    if outside.size:
        raise InputError(
            f"Line {outside[0] + 1} of {str(path)!r} names row {i[outside[0]] + 1} and column "
            f"{j[outside[0]] + 1}; the {q} individuals of its .grm.id are counted from 1."
        )
    count = np.bincount(place, minlength=size)
    if (count != 1).any():
        first = int(np.flatnonzero(count != 1)[0])
        row = int((np.sqrt(8.0 * first + 1.0) - 1.0) // 2.0)
        raise InputError(
            f"{str(path)!r} has {place.size} lines, {count[first]} of them for row {row + 1} and "
            f"column {first - row * (row + 1) // 2 + 1}; {q} individuals need {size}, one each."
        )
    values = np.full(size, np.nan)
    values[place] = table[3].to_numpy()
    return values
