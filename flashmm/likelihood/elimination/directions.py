"""The directions of own parameters in the place of theta, for an elimination of blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flashmm.arrays.namespaces import Array
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.curves import CurvedParameters
from flashmm.likelihood.elimination.alike import Alike
from flashmm.likelihood.elimination.layout import Layout

__all__ = ["OwnDirections", "in_directions", "own_directions"]


@dataclass(frozen=True)
class OwnDirections:
    """Own parameters of the finest blocks as combinations of theta, at one u of each feature.

    Parameters
    ----------
    fine
        Positions among own parameters of those of the finest blocks, shape (d,).
    weights
        Derivatives of the blocks' theta by them, shape (B, k_fine, d).
    border, coarse
        Positions of the border's and the coarse blocks' parameters, in their order.
    """

    fine: IntArray
    weights: FloatArray
    border: tuple[int, ...]
    coarse: tuple[int, ...]

    def of_kinds(self, alike: Alike) -> FloatArray:
        """Derivatives of D by own parameters for each kind of block, (B, U, d, s, s)."""
        k, U, s, _ = alike.bases.shape
        weights = np.swapaxes(self.weights, 1, 2)
        flat = np.swapaxes(alike.bases, 0, 1).reshape(U, k, s * s)
        planes = np.matmul(weights[:, None], flat)
        return np.asarray(planes.reshape(-1, U, weights.shape[1], s, s))


def own_directions(layout: Layout, curved: CurvedParameters, u: Array) -> OwnDirections | None:
    """The directions of own parameters u (B, k); None where a curve is not in the finest blocks."""
    fine, J = layout.fine, curved.jacobian(u)
    place: dict[int, int] = {}
    directions: list[int] = []
    for curve, linear, own in curved.parts():
        if curve is None:
            place |= {linear.start + i: own.start + i for i in range(own.stop - own.start)}
            continue
        if linear.start not in fine.parameters:
            return None
        directions += range(own.start, own.stop)
    shared = [place[i] for i in fine.parameters if i in place]
    chosen = np.array([*directions, *shared], dtype=np.intp)
    weights = J[:, np.array(fine.parameters, dtype=np.intp)][:, :, chosen]
    return OwnDirections(
        chosen,
        weights,
        tuple(place[each.position] for each in layout.border_parameters),
        tuple(place[i] for i in layout.coarse.parameters),
    )


def in_directions(layout: Layout, along: OwnDirections) -> Layout:
    """The layout with own parameters in the place of theta: bases of each feature."""
    fine, weights = layout.fine, along.weights
    k, count, L = fine.bases.shape
    planes = np.tensordot(weights, fine.bases.reshape(k, count * L), axes=(1, 0))  # (B, d, count L)
    bases = np.moveaxis(planes, 0, -1).reshape(planes.shape[1], count, L, weights.shape[0])
    return replace(
        layout,
        fine=replace(fine, parameters=tuple(along.fine.tolist()), bases=bases),
        coarse=replace(layout.coarse, parameters=along.coarse),
        border_parameters=tuple(
            replace(each, position=position)
            for each, position in zip(layout.border_parameters, along.border, strict=True)
        ),
    )
