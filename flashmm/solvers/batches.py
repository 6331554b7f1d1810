"""All features of a fit, batch by batch, in threads where there are several batches."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flashmm.arrays.blas import LARGE, one_blas_thread
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Likelihood
from flashmm.progress import Progress, counted
from flashmm.solvers.base import Solution, Solver
from flashmm.solvers.fallback import maximise_in_stages
from flashmm.solvers.held_residual import HeldLandscape
from flashmm.solvers.other_maxima import Landscape, search_other_maxima
from flashmm.solvers.restart import searched_again
from flashmm.solvers.space import ParameterSpace

__all__ = ["SHARES", "maximise_in_batches", "over_batches", "usable_cores"]

# The memory budget is divided by this number, whatever the number of threads: batches, and with
# them the last digits of the answer, must not depend on it. No more threads are started.
SHARES = 16


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def over_batches(
    function: Callable[[IntArray], None],
    likelihood: Likelihood,
    features: IntArray,
    *,
    memory: int,
    n_jobs: int | None,
    done: Callable[[int], None] | None = None,
) -> None:
    """Call a function for features, batch by batch.

    Batches run in threads with single-threaded BLAS: numpy releases the interpreter's lock in
    what takes time. Features of which a share of ``memory`` holds no more than one run one after
    the other and leave BLAS its threads: there the work is in large matrices. The batches, and
    BLAS's threads within one, are the same whatever ``n_jobs``.

    Parameters
    ----------
    function
        Called with positions of features; keeps its results itself, batches being disjoint.
    likelihood
        Tells how many features fit into how much memory.
    features
        Positions of all features.
    memory
        Bytes for all batches that run at once.
    n_jobs
        Threads, at most; at least 1. None: the likelihood sees to that itself, and batches take
        the whole memory, one after the other.
    done
        Told, in the caller's thread, how many features more are done.
    """
    size = likelihood.batch_size(memory // SHARES)
    alone = n_jobs is None or size == 1
    if alone:
        size = likelihood.batch_size(memory)
    batches = np.array_split(features, -(-features.size // size)) if features.size else []
    if n_jobs is None or alone or len(batches) <= 1:
        # Threads of BLAS cost more than they save where matrices are small.
        small = not alone or getattr(likelihood, "small_products", False)
        with one_blas_thread(0 if small else LARGE):
            for batch in batches:
                function(batch)
                if done is not None:
                    done(batch.size)
        return
    with (
        one_blas_thread(),
        ThreadPoolExecutor(min(n_jobs, SHARES, len(batches)), "flashmm") as pool,
    ):
        futures = [pool.submit(function, batch) for batch in batches]
        try:
            for batch, future in zip(batches, futures, strict=True):
                future.result()
                if done is not None:
                    done(batch.size)
        except BaseException:  # an interrupt too: what has not begun is not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def maximise_in_batches(
    likelihood: Likelihood,
    space: ParameterSpace,
    solver: Solver,
    theta0: FloatArray,
    usable: BoolArray,
    *,
    max_iter: int,
    memory: int,
    n_jobs: int | None = 1,
    fallback: Solver | None = None,
    again_from: FloatArray | None = None,
    landscape: Landscape | HeldLandscape | None = None,
    progress: Progress = False,
) -> Solution:
    """Maximise every usable feature, as many at once as ``memory`` bytes allow.

    Features that ``solver`` leaves unfinished go on with ``fallback``, if there is one (see
    `maximise_in_stages`). Features that are not usable keep NaN and `Status.RUNNING`; their
    verdict is the caller's. Those that end with variances of zero or below are searched again from
    ``again_from`` (m, k), where it is given and not NaN, and the better end counts; those that the
    ``landscape`` shows other maxima of are searched from there. ``progress`` is told of batches.
    """
    m, k = theta0.shape
    total = Solution.empty(m, k)

    # A fine grid has what a second start would find but for negative variances and covariances.
    seen = space.name == "psd" and landscape is not None and landscape.replaces_second_start
    stages = (solver,) if fallback is None else (solver, fallback)

    def fit(batch: IntArray) -> None:
        part = maximise_in_stages(
            likelihood, space, stages, theta0[batch], batch, max_iter=max_iter
        )
        second = None if again_from is None or seen else again_from[batch]
        if landscape is not None:  # the second start is one of its starts
            part = search_other_maxima(
                likelihood, space, stages, part, batch, landscape, second, max_iter=max_iter
            )
        elif second is not None:
            part = searched_again(likelihood, space, stages, part, batch, second, max_iter=max_iter)
        total.put(batch, part)

    features = np.flatnonzero(usable)
    if features.size > likelihood.batch_size(memory // SHARES):
        # Makes what features share, before threads need it.
        likelihood.evaluate(theta0[features[:1]], features[:1])
    with counted(progress, features.size, unit="feature", desc="fit") as done:
        over_batches(fit, likelihood, features, memory=memory, n_jobs=n_jobs, done=done)
    return total
