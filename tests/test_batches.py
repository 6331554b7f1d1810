"""Batches and threads: every feature once, never more at once than asked, the same last bit."""

from __future__ import annotations

import threading
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np
import problems as pb
import pytest
from threadpoolctl import ThreadpoolController

from flashmm import MultiLMM
from flashmm.exceptions import InputError
from flashmm.likelihood import make_likelihood
from flashmm.solvers import FisherScoring
from flashmm.solvers.batches import SHARES, over_batches, usable_cores

BLAS = ThreadpoolController().select(user_api="blas")
VARIABLES = ("beta", "se_beta", "theta", "se_theta", "score", "loglik", "n_iter", "status")


@dataclass
class Sized:
    """A likelihood as far as batches know it: ``each`` bytes a feature."""

    each: int

    def batch_size(self, memory: int) -> int:
        return max(1, memory // self.each)


def blas_threads() -> set[int]:
    return {pool.num_threads for pool in BLAS.lib_controllers}


class Recorder:
    """Notes which features came, how many calls ran at once, and BLAS's threads meanwhile."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.batches, self.blas, self.running, self.most = [], set(), 0, 0
        self.lock, self.fails_at, self.error = threading.Lock(), fails_at, error

    def __call__(self, batch) -> None:
        with self.lock:
            self.batches.append(batch)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.002)
        with self.lock:
            self.blas |= blas_threads()
            self.running -= 1
        if self.fails_at is not None and self.fails_at in batch:
            raise self.error


def recorded(m, each, memory, n_jobs):
    recorder = Recorder()
    over_batches(recorder, Sized(each), np.arange(m), memory=memory, n_jobs=n_jobs)
    return recorder


@pytest.mark.parametrize("n_jobs", [1, 2, 5, 40])
@pytest.mark.parametrize(("m", "each"), [(1000, 100), (1000, 7), (33, 100), (1, 1), (0, 1)])
def test_every_feature_comes_once_within_the_budget(m, each, n_jobs):
    memory = 32_000
    recorder = recorded(m, each, memory, n_jobs)
    came = sorted(recorder.batches, key=lambda batch: batch[0])
    assert np.concatenate([np.arange(0), *came]).tolist() == list(range(m))
    alone = sorted(recorded(m, each, memory, 1).batches, key=lambda batch: batch[0])
    assert [b.tolist() for b in came] == [b.tolist() for b in alone]
    assert recorder.most <= min(n_jobs, SHARES)
    largest = max((batch.size for batch in came), default=0)
    assert SHARES * largest * each <= memory or largest == 1


def test_batches_run_at_the_same_time():
    together = threading.Barrier(3, timeout=30)  # nobody passes before three have come
    over_batches(
        lambda _: together.wait(), Sized(100), np.arange(120), memory=32_000, n_jobs=3
    )  # six batches


def test_batches_have_single_threaded_blas():
    before = blas_threads()
    for n_jobs in (1, 2):
        assert recorded(100, 100, 32_000, n_jobs).blas == {1}
        assert recorded(10, 100, 32_000, n_jobs).blas == {1}
    after = blas_threads()
    assert after == before


def test_features_too_large_to_share_come_one_batch_after_the_other():
    before = blas_threads()
    recorder = recorded(20, 5000, 32_000, 4)  # six of them fit, but none into a share
    assert recorder.most == 1
    assert [batch.size for batch in recorder.batches] == [5, 5, 5, 5]
    assert recorder.blas == before


@pytest.mark.parametrize("error", [ValueError("feature 30"), KeyboardInterrupt()])
def test_an_error_in_one_batch_ends_the_others_that_have_not_begun(error):
    recorder = Recorder(fails_at=30, error=error)
    before = threading.active_count()
    with pytest.raises(type(error)):
        over_batches(recorder, Sized(100), np.arange(4000), memory=32_000, n_jobs=2)
    assert len(recorder.batches) < 20  # of 200
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore::flashmm.exceptions.ConvergenceWarning")  # verdicts vary
@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize("kind", ["intercept", "correlated", "three_crossed"])
def test_the_answer_is_the_same_to_the_last_bit_whatever_the_number(kind, method):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(0)
    stats = problem.stats(problem.simulate(problem.theta(rng), 9, rng))
    likelihood = make_likelihood(pb.projection_of(stats), method)
    memory = 3 * SHARES * 2**30 // likelihood.batch_size(2**30)  # three batches of 3
    one, two, many = (
        MultiLMM(stats).fit(method, memory=memory, n_jobs=n_jobs, max_iter=8).ds
        for n_jobs in (1, 2, -1)
    )
    for name in VARIABLES:
        assert two[name].to_numpy().tobytes() == one[name].to_numpy().tobytes(), name
        assert many[name].to_numpy().tobytes() == one[name].to_numpy().tobytes(), name


def test_an_error_in_a_solver_reaches_the_caller():
    @dataclass(frozen=True)
    class Broken(FisherScoring):
        def step(self, *_):
            raise ZeroDivisionError("step")

    problem = pb.PROBLEMS["intercept"]
    Y = np.random.default_rng(0).normal(size=(60, problem.n))
    with pytest.raises(ZeroDivisionError, match="step"):
        MultiLMM(problem.stats(Y)).fit(solver=Broken(), memory=500_000, n_jobs=2)


@pytest.mark.parametrize("n_jobs", [0, -2, 1.5, True, "two"])
def test_a_number_of_threads_must_be_one(n_jobs):
    problem = pb.PROBLEMS["intercept"]
    model = MultiLMM(problem.stats(np.ones((1, problem.n))))
    with pytest.raises(InputError, match="`n_jobs` must be a positive number of threads"):
        model.fit(n_jobs=n_jobs)


def test_there_is_a_core_to_use():
    assert usable_cores() >= 1


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize(
    ("engine", "sizes"), [("spectral", [60]), ("bordered", [60, 12]), ("general", [25, 5])]
)
def test_a_batch_stays_within_its_memory(engine, sizes, method):
    rng = np.random.default_rng(0)
    n, m, p, memory = 300, 2000, 8, 2**23
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    Z = np.hstack([np.eye(size)[rng.integers(size, size=n)] for size in sizes])
    model = MultiLMM.from_arrays(rng.normal(size=(m, n)), X, Z, components=sizes)
    likelihood = make_likelihood(model.projection, method, engine)
    features = np.arange(min(m, likelihood.batch_size(memory)))
    theta = np.full((features.size, len(sizes) + 1), 0.5)

    def work(theta, features):
        likelihood.evaluate(theta, features)
        likelihood.beta(theta, features)
        likelihood.contrast_variance(theta, features, np.eye(p))

    work(theta[:1], features[:1])  # makes what features share
    tracemalloc.start()
    work(theta, features)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.2 * memory
    assert peak >= 0.2 * memory  # and uses it
