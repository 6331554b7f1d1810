"""Features that a design's fit must cope with."""

from __future__ import annotations

import numpy as np
import problems as pb


def responses(problem: pb.Problem, rng: np.random.Generator) -> dict[str, pb.FloatArray]:
    """Features (n,) by name: ordinary, degenerate, and close to degenerate."""
    X, Z, n = problem.X, problem.Z, problem.n
    noise = rng.normal(size=(8, n))
    fixed = X @ (rng.normal(size=problem.p) / np.abs(X).max(axis=0))
    alone = problem.D(np.eye(problem.n_params)[rng.integers(problem.n_params - 1)])
    one = Z @ (np.sqrt(np.abs(np.diag(alone))) * rng.normal(size=Z.shape[1]))
    one /= np.abs(one).max() + 1e-300
    everything = Z @ (rng.normal(size=Z.shape[1]) / (np.abs(Z).max(axis=0) + 1e-300))
    means = Z @ np.linalg.lstsq(Z, noise[3], rcond=None)[0]
    return {
        "Gaussian": _gaussian(problem, rng),
        "Gaussian, again": _gaussian(problem, rng),
        "noise alone": fixed + noise[0],
        "one component": fixed + one,
        "one component, tiny residual": fixed + one + 1e-3 * noise[1],
        "all components, tinier residual": fixed + everything + 1e-6 * noise[2],
        "groups alike": fixed + noise[3] - 0.9 * means,
        "counts": np.log2(1.0 + rng.poisson(0.7, size=n)),
        "rare counts": np.log2(1.0 + rng.poisson(0.06, size=n)),
        "one outlier": np.where(np.arange(n) == rng.integers(n), 1e6, noise[4]),
        "huge mean": 1e7 + fixed + 0.5 * everything + noise[5],
        "huge units": 1e12 * (0.5 * everything + noise[6]),
        "tiny units": 1e-12 * (0.5 * everything + noise[7]),
        "constant": np.full(n, 3.7),
        "in X": fixed,
        "in X and Z": fixed + everything,
        "overflow": 1e200 * noise[0],
    }


def _gaussian(problem: pb.Problem, rng: np.random.Generator) -> pb.FloatArray:
    """From the model, each column of Z in units of its own."""
    length = np.sqrt(np.mean(problem.Z**2, axis=0))
    effects = rng.normal(size=problem.Z.shape[1]) / np.where(length > 0, length, 1.0)
    size = np.exp(rng.normal())
    return np.asarray(problem.Z @ effects * size + rng.normal(size=problem.n))
