"""Moments of contrasts and T v, against V itself."""

from __future__ import annotations

import numpy as np
import pytest
from problems import KINDS, PROBLEMS, engines, estimator_of

CASES = [(kind, engine) for kind in KINDS for engine in engines(PROBLEMS[kind])]
FEATURES = 2


def _setting(kind, engine, where="inside"):
    problem = PROBLEMS[kind]
    rng = np.random.default_rng(5)
    stats = problem.stats(rng.normal(size=(FEATURES, problem.n)))
    likelihood = estimator_of(stats, "REML", engine)
    natural = np.stack([problem.theta(rng, where) for _ in range(FEATURES)])
    projection = likelihood.projection
    return problem, likelihood, natural, projection.to_internal(natural), rng


@pytest.mark.parametrize("where", ["inside", "singular"])
@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_T_times_vectors(kind, engine, where):
    problem, likelihood, natural, internal, rng = _setting(kind, engine, where)
    projection = likelihood.projection
    vectors = rng.normal(size=(FEATURES, 3, problem.Z.shape[1]))
    found = likelihood.apply_T(internal, vectors)
    Z = problem.Z / projection.column_scale
    for j in range(FEATURES):
        V = problem.V(natural[j]) / projection.scale[j]
        Q = problem.contrasts
        T = Z.T @ Q @ np.linalg.solve(Q.T @ V @ Q, Q.T @ Z)
        expected = vectors[j] @ T
        np.testing.assert_allclose(found[j], expected, rtol=0, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_moments_of_hypotheses(kind, engine):
    """Kenward and Roger's P_i and Q_ij written out with n x n matrices."""
    problem, likelihood, natural, internal, rng = _setting(kind, engine)
    projection = likelihood.projection
    X, p = problem.X, problem.p
    L = rng.normal(size=(2, min(2, p), p))
    found = likelihood.contrast_moments(internal, L, adjustment=True)
    for j in range(FEATURES):
        unit = projection.param_scale * projection.scale[j]
        dV = problem.derivatives
        V_inverse = np.linalg.inv(problem.V(natural[j]))
        C = np.linalg.inv(X.T @ V_inverse @ X)
        W = V_inverse @ X @ C
        for g, rows in enumerate(L):
            LW = W @ rows.T
            scale = projection.scale[j]
            np.testing.assert_allclose(
                found.variance[j, g] * scale, rows @ C @ rows.T, rtol=1e-8, atol=1e-12
            )
            first = np.stack([LW.T @ d @ LW for d in dV])
            np.testing.assert_allclose(
                found.gradient[j, g] * scale / unit[:, None, None],
                first,
                rtol=1e-7,
                atol=1e-9 * np.abs(first).max(),
            )
            for a in range(len(dV)):
                for b in range(len(dV)):
                    Q_ab = X.T @ V_inverse @ dV[a] @ V_inverse @ dV[b] @ V_inverse @ X
                    P_a = -X.T @ V_inverse @ dV[a] @ V_inverse @ X
                    P_b = -X.T @ V_inverse @ dV[b] @ V_inverse @ X
                    expected = rows @ C @ (Q_ab - P_a @ C @ P_b) @ C @ rows.T
                    value = found.adjustment[j, g, a, b] * scale / (unit[a] * unit[b])
                    size = np.abs(first[a]).max() ** 0.5 * np.abs(first[b]).max() ** 0.5
                    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-8 * size)
