"""The sums themselves: fields, their checks, and the shifted sums some features need.

What works on sums (adding, selecting, shifting, saving) takes a `Sums` and gives back the same
class, so that `SummaryStats`, which users see, only says what can be done with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.labels import checked_labels
from flashmm.arrays.numeric import float_array
from flashmm.arrays.sparse import check_sparse
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.aliasing import Aliasing
from flashmm.designs.from_arrays import as_structure, named_levels
from flashmm.exceptions import InputError
from flashmm.stats.checks import check_shapes, sample_count, shared_labels

__all__ = ["AnySums", "CentredSums", "GroupSums", "Shift", "Sums"]

AnySums = TypeVar("AnySums", bound="Sums")


@dataclass(frozen=True)
class Shift:
    """Sums of y - X a for the features whose variation drowns in the raw sums.

    Parameters
    ----------
    features
        Positions of the f features concerned.
    a
        Coefficients that were subtracted, shape (p, f).
    XY, ZY, yy
        The sums for y - X a, shapes (p, f), (q, f), (f,).
    """

    features: IntArray
    a: FloatArray
    XY: FloatArray
    ZY: FloatArray
    yy: FloatArray

    def at(self, positions: IntArray, m: int) -> Shift | None:
        """The sums of the features at ``positions`` among m, renumbered; None if none is here."""
        slots = np.full(m, -1, dtype=np.intp)
        slots[self.features] = np.arange(self.features.size)
        chosen = slots[positions]
        slot = chosen[chosen >= 0]
        if slot.size == 0:
            return None
        return Shift(
            np.flatnonzero(chosen >= 0),
            self.a[:, slot],
            self.XY[:, slot],
            self.ZY[:, slot],
            self.yy[slot],
        )


@dataclass(frozen=True)
class CentredSums:
    """Sums of y - X a for f features, with a zero for those that need no shift.

    Parameters
    ----------
    XY, ZY
        Shapes (p, f) and (q, f).
    a
        Shape (p, f).
    """

    XY: FloatArray
    ZY: FloatArray
    a: FloatArray


@dataclass(frozen=True, eq=False)
class GroupSums:
    """The sums of each group of samples beside those of all.

    Parameters
    ----------
    name
        What the groups are called, e.g. ``"Subject"``.
    labels
        Names of the k groups.
    parts
        The sums of each, over the levels of random effects that it has; all of the same
        coefficients and features as the total.
    """

    name: str
    labels: tuple[str, ...]
    parts: tuple[Sums, ...]

    @property
    def k(self) -> int:
        """Number of groups."""
        return len(self.parts)

    def each(self, change: Callable[[Any], Any]) -> GroupSums:
        """The same groups with something done to the sums of each."""
        return replace(self, parts=tuple(change(part) for part in self.parts))


@dataclass(frozen=True, eq=False)
class Sums:
    """Cross-products of X, Z and Y over n samples, checked and labelled.

    The fields are those of `SummaryStats`, which documents them.
    """

    n: int
    XX: FloatArray
    XY: FloatArray
    ZX: FloatArray
    ZY: FloatArray
    ZZ: sp.csr_array
    yy: FloatArray
    feature_names: Any = None
    coef_names: Any = None
    structure: Any = None
    shift: Shift | None = None
    log_weights: float = 0.0
    XX_root: FloatArray | None = None
    aliased: Aliasing | None = None
    numbered: bool | None = None
    groups: GroupSums | None = None

    def __post_init__(self) -> None:
        fields: dict[str, Any] = {"n": sample_count(self.n)}
        for name in ("XX", "XY", "ZX", "ZY", "yy"):
            fields[name] = float_array(getattr(self, name), name)
        for name in ("XY", "ZY"):
            if fields[name].ndim == 1:
                fields[name] = fields[name][:, None]
        fields["yy"] = np.atleast_1d(fields["yy"])
        if sp.issparse(self.ZZ):
            check_sparse(self.ZZ, "ZZ")
            ready = type(self.ZZ) is sp.csr_array and self.ZZ.dtype == np.float64
            fields["ZZ"] = self.ZZ.copy() if ready else sp.csr_array(self.ZZ).astype(np.float64)
        else:
            fields["ZZ"] = float_array(self.ZZ, "ZZ")
        for name in ("XX", "XY", "ZX", "ZY", "ZZ"):
            if fields[name].ndim != 2:
                raise InputError(f"{name} must be a matrix; it has {fields[name].ndim} dimensions.")
        if not sp.issparse(fields["ZZ"]):
            fields["ZZ"] = sp.csr_array(fields["ZZ"])
        p, m = fields["XY"].shape
        q = fields["ZZ"].shape[0]
        check_shapes(fields, p, q, m)
        if self.XX_root is not None:
            fields["XX_root"] = float_array(self.XX_root, "XX_root")
            if fields["XX_root"].shape != (p, p):
                raise InputError(
                    f"XX_root has shape {fields['XX_root'].shape}, but must be {(p, p)}."
                )
        coefs = shared_labels(self, "coefficients", XX=(0, 1), XY=(0,), ZX=(1,))
        coefs = coefs if self.coef_names is None else self.coef_names
        features = shared_labels(self, "features", XY=(1,), ZY=(1,), yy=(0,))
        features = features if self.feature_names is None else self.feature_names
        fields["feature_names"] = checked_labels(features, m, "feature")
        integers = fields["feature_names"].dtype.kind in "iu"
        numbered = features is None if self.numbered is None else self.numbered
        fields["numbered"] = bool(numbered and integers)
        default = np.array([f"x{i + 1}" for i in range(p)], dtype=object)
        fields["coef_names"] = tuple(
            str(name) for name in checked_labels(coefs, p, "coefficient", default=default)
        )
        levels = shared_labels(self, "random effects", ZX=(0,), ZY=(0,), ZZ=(0, 1))
        fields["structure"] = as_structure(named_levels(self.structure, levels), q)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.yy.size)

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return int(self.XX.shape[0])

    @property
    def q(self) -> int:
        """Number of random effects, the columns of Z."""
        return int(self.ZZ.shape[0])

    def noting(self, aliased: Aliasing | None) -> Self:
        """The same with a note of columns of X that were left out.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.stats.noting(None).aliased is None
        True
        """
        return replace(self, aliased=aliased)

    def at(self, positions: IntArray) -> Self:
        """The sums of the features at some positions, in that order.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.stats.at(np.array([6, 1])).feature_names.tolist()
        ['gene7', 'gene2']
        """
        return replace(
            self,
            XY=self.XY[:, positions],
            ZY=self.ZY[:, positions],
            yy=self.yy[positions],
            feature_names=self.feature_names[positions],
            shift=None if self.shift is None else self.shift.at(positions, self.m),
            groups=self.of_groups(lambda part: part.at(positions)),
        )

    def of_groups(self, change: Callable[[Any], Any]) -> GroupSums | None:
        """The sums by group with something done to each; None where there are none.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, genes.Y[:20], sums_by="Individual"
        ... )
        >>> model.stats.of_groups(lambda sums: sums.n).parts[:3]
        (4, 4, 4)
        """
        return None if self.groups is None else self.groups.each(change)

    def centred_at(self, positions: IntArray) -> CentredSums:
        """X'(y - X a), Z'(y - X a) and a of some features alone.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.stats.centred_at(np.array([6, 1])).XY.shape
        (2, 2)
        """
        XY, ZY, a = self.XY[:, positions], self.ZY[:, positions], np.zeros((self.p, positions.size))
        shift = None if self.shift is None else self.shift.at(positions, self.m)
        if shift is not None:
            here = shift.features
            XY[:, here], ZY[:, here], a[:, here] = shift.XY, shift.ZY, shift.a
        return CentredSums(XY, ZY, a)

    def centred(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """X'y, Z'y and y'y after subtracting X a, and a, shapes (p, m), (q, m), (m,), (p, m).

        a is zero for all features but those in ``shift``.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> XY, ZY, yy, a = model.stats.centred()
        >>> XY.shape, ZY.shape, yy.shape, a.any().item()  # no feature needs it here
        ((2, 20), (25, 20), (20,), False)
        """
        a = np.zeros_like(self.XY)
        XY, ZY, yy = self.XY, self.ZY, self.yy
        if self.shift is not None:
            where = self.shift.features
            XY, ZY, yy = XY.copy(), ZY.copy(), yy.copy()
            XY[:, where], ZY[:, where], yy[where] = self.shift.XY, self.shift.ZY, self.shift.yy
            a[:, where] = self.shift.a
        return XY, ZY, yy, a
