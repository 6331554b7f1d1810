"""One feature on which an interior-point iterate breaks down must not take the others along."""

from __future__ import annotations

import numpy as np

from flashmm.solvers import cone


def test_a_singular_system_in_one_feature_leaves_the_others_alone(monkeypatch):
    rng = np.random.default_rng(3)
    blocks = (np.array([[0, 2], [2, 1]]), np.array([[3]]))
    root = rng.normal(size=(5, 4, 4))
    information = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(4)
    theta = np.tile([1.0, 1.0, 0.0, 1.0], (5, 1))
    score = -10.0 * rng.random((5, 4))  # pushes every feature against the boundary
    expected = cone.solve_cone_program(cone.ConeProgram(theta, score, information), blocks)
    iterate = cone._iterate

    def breaks_down(H, x, z, gradient, gap, parts):
        if any(np.array_equal(h, scaled) for h in H):
            raise np.linalg.LinAlgError("Singular matrix")
        return iterate(H, x, z, gradient, gap, parts)

    unit = cone._units(information, blocks)
    scaled = information[2] * unit[2, :, None] * unit[2, None, :]
    monkeypatch.setattr(cone, "_iterate", breaks_down)
    result = cone.solve_cone_program(cone.ConeProgram(theta, score, information), blocks)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(result[others], expected[others], rtol=1e-8, atol=1e-10)
    assert np.isfinite(result).all()
