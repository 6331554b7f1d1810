"""The layout of an elimination in the directions of own parameters, in the place of theta."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flashmm.arrays.namespaces import Array
from flashmm.designs.curves import CurvedParameters
from flashmm.likelihood.elimination.layout import Layout

__all__ = ["in_directions"]


def in_directions(layout: Layout, curved: CurvedParameters, u: Array) -> Layout | None:
    """The layout with own parameters u (B, k) in the place of theta: bases of each feature.

    None where a structure is not in the finest blocks.
    """
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
    weights = J[:, np.array(fine.parameters, dtype=np.intp)][:, :, chosen]  # (B, k_fine, d)
    k, count, L = fine.bases.shape
    planes = np.tensordot(weights, fine.bases.reshape(k, count * L), axes=(1, 0))  # (B, d, count L)
    bases = np.moveaxis(planes, 0, -1).reshape(planes.shape[1], count, L, u.shape[0])
    return replace(
        layout,
        fine=replace(fine, parameters=(*directions, *shared), bases=bases),
        coarse=replace(layout.coarse, parameters=tuple(place[i] for i in layout.coarse.parameters)),
        border_parameters=tuple(
            replace(each, position=place[each.position]) for each in layout.border_parameters
        ),
    )
