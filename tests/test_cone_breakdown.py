"""One feature on which an interior-point iterate breaks down must not take the others along."""

from __future__ import annotations

import numpy as np

from flashmm.solvers.blocks import Blocks
from flashmm.solvers.interior_point import interior_point


def test_a_singular_system_in_one_feature_leaves_the_others_alone():
    rng = np.random.default_rng(3)
    blocks = Blocks.of((np.array([[0, 2], [2, 1]]), np.array([[3]])), 4, np.zeros(1))
    root = rng.normal(size=(5, 4, 4))
    H = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(4)
    b = -10.0 * rng.random((5, 4))  # pushes every feature against the boundary
    expected, _ = interior_point(blocks, H, b)
    H[2] = np.nan
    result, _ = interior_point(blocks, H, b)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(result[others], expected[others], rtol=1e-7, atol=1e-7)
    assert np.isfinite(result).all()


def test_the_interior_point_method_solves_the_program():
    """With S = H x - b: X and S psd and tr(S X) = 0, sufficient for a convex program."""
    rng = np.random.default_rng(4)
    block = np.array([[0, 2], [2, 1]])
    blocks = Blocks.of((block, np.array([[3]])), 4, np.zeros(1))
    root = rng.normal(size=(50, 4, 4))
    H = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(4)
    b = 3.0 * rng.normal(size=(50, 4))
    x, z = interior_point(blocks, H, b)
    np.testing.assert_allclose(z, (H @ x[:, :, None])[:, :, 0] - b, atol=1e-10)
    np.testing.assert_allclose((x * z).sum(axis=1), 0.0, atol=1e-9)
    for one in (x, z):
        assert (np.linalg.eigvalsh(blocks.matrices(blocks.larger[0], one)) >= -1e-12).all()
        assert (one[:, 3] >= 0).all()
