"""Solvers: they reach the maximum of either space, and never step down or out on the way.

Scores are in standard errors, s_i / sqrt(E_ii), so that 1e-5 means an estimate within about 1e-5
standard errors of the maximum.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import numpy as np
import problems as pb
import pytest
import scipy.linalg
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal

from flashmm import MultiLMM
from flashmm.arrays.namespaces import to_numpy
from flashmm.exceptions import ConvergenceWarning, InputError
from flashmm.likelihood import make_likelihood, project
from flashmm.solvers import EM, SOLVERS, FisherScoring, Objective, State, Status, standardised_score
from flashmm.solvers import verdicts as verdicts_of
from flashmm.solvers.base import maximise
from flashmm.solvers.em import em_map
from flashmm.solvers.fallback import maximise_in_stages
from flashmm.solvers.space import PSD, ParameterSpace, Unconstrained
from flashmm.solvers.start import starting_values

EPSILON = 1e-5  # the default

methods = pytest.mark.parametrize("method", pb.METHODS)
kinds = pytest.mark.parametrize("kind", pb.KINDS)
solvers = pytest.mark.parametrize("solver", SOLVERS)
# Every problem by the default solver, some by the others.
OTHERS = ("intercept", "correlated", "three_crossed")
each_solver = pytest.mark.parametrize(
    ("kind", "solver"),
    [(k, s) for s in SOLVERS for k in pb.KINDS if s == "fisher_scoring" or k in OTHERS],
)
each_unconstrained_solver = pytest.mark.parametrize(
    ("kind", "solver"),
    [
        (k, s)
        for s in SOLVERS
        for k in pb.KINDS
        if s == "fisher_scoring" or (k in OTHERS and s != "em")
    ],
)


def data(kind, where, m, seed=0):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng([seed, pb.KINDS.index(kind)])
    return problem, problem.simulate(problem.theta(rng, where), m, rng)


def fitted(problem, Y, **options):
    with warnings.catch_warnings():  # verdicts are asserted on
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MultiLMM(problem.stats(Y)).fit(**options)


def units(at):
    return np.sqrt(np.diagonal(at.expected, axis1=1, axis2=2))


def internal(problem, Y, method, space_name="psd"):
    """Return the likelihood and the space that a fit would use, and its starting values."""
    stats = problem.stats(Y)
    projection = project(stats)
    likelihood = make_likelihood(projection, method)
    space: ParameterSpace = Unconstrained()
    if space_name == "psd":
        levels = (*problem.structure.block_levels(), problem.n)
        space = PSD(tuple(problem.structure.blocks()), problem.n_params, levels)
    start = starting_values(likelihood, projection, space, None, stats.feature_names).theta
    return likelihood, space, start


# ---- the maximum is found --------------------------------------------------------------------


@each_unconstrained_solver
@methods
def test_unconstrained_fits_end_where_the_score_is_zero(kind, method, solver):
    problem, Y = data(kind, "inside", m=5)
    result = fitted(problem, Y, method=method, solver=solver, max_iter=40)
    good = result.converged.to_numpy()
    # Where V can turn singular in a direction that y lacks, the likelihood has no maximum, or one
    # too close to the edge to be reached; REML with one component always has one.
    left = result.status.to_numpy()
    lost = np.isin(left, ["iteration limit", "stalled"])
    assert (good | lost | (left == "no maximum")).all()
    there = result.fitted.projection.to_internal(result.theta.to_numpy())[lost]
    assert (result.fitted.likelihood.distance_to_edge(there) < 1e-6).all()
    if method == "REML" and problem.n_params == 2 and kind != "saturated":
        assert good.all()
    if not good.any():
        return
    at = problem.evaluate(Y[good], result.theta.to_numpy()[good], method)
    assert np.abs(at.score / units(at)).max() <= EPSILON
    assert_allclose(result.llf[good], at.loglik, rtol=1e-10)
    observed = at.observed / (units(at)[:, :, None] * units(at)[:, None, :])
    assert np.linalg.eigvalsh(observed)[:, 0].min() >= -1e-6


@each_solver
@methods
def test_psd_fits_satisfy_the_first_order_conditions(kind, method, solver):
    problem = pb.PROBLEMS[kind]
    Y = np.vstack([data(kind, where, m=2)[1] for where in ("inside", "singular", "negative")])
    options = {"method": method, "solver": solver, "parameter_space": "psd", "max_iter": 100}
    result = fitted(problem, Y, **options)
    assert set(result.status) <= {"converged", "boundary"}
    theta = result.theta.to_numpy()
    at = problem.evaluate(Y, theta, method)
    assert_allclose(result.llf, at.loglik, rtol=1e-10)
    for j, one in enumerate(theta):
        for position in range(len(problem.structure.terms)):
            values = np.linalg.eigvalsh(problem.block(one, position))
            assert values[0] >= -1e-12 * max(values[-1], one[-1])
        assert max(pb.kkt(problem, one, at, j)) <= 10 * EPSILON


@methods
@pytest.mark.parametrize("kind", ["correlated", "three_effects", "slope_and_crossed"])
def test_no_search_finds_a_higher_likelihood_in_the_psd_space(kind, method):
    problem, Y = data(kind, "singular", m=3, seed=1)
    result = fitted(problem, Y, method=method, parameter_space="psd", max_iter=100)
    assert set(result.status) <= {"converged", "boundary"}
    for j, y in enumerate(Y):
        likelihood, space, _ = internal(problem, y[None], method)
        theta = project(problem.stats(y[None])).to_internal(result.theta.to_numpy()[[j]])
        ours = likelihood.evaluate(theta, np.array([0])).loglik[0]
        assert ours >= pb.search(likelihood, space, np.random.default_rng(j)) - 1e-6


def test_singular_optima_are_among_the_problems():
    """Correlations of +-1 and zero variances do occur above."""
    problem, Y = data("correlated", "singular", m=12)
    result = fitted(problem, Y, parameter_space="psd", max_iter=100)
    intercept, slope, covariance, _ = result.theta.to_numpy().T
    with np.errstate(invalid="ignore"):
        correlation = covariance / np.sqrt(intercept * slope)
    assert (np.abs(np.abs(correlation) - 1) < 1e-8).sum() >= 3
    problem, Y = data("uncorrelated", "negative", m=12)
    result = fitted(problem, Y, parameter_space="psd", max_iter=100)
    assert (result.theta == 0.0).any(axis=1).sum() >= 5


def test_a_maximum_next_to_the_edge_of_the_space_is_found():
    """y is made so that in every eigendirection its square is the variance: an exact maximum."""
    problem = pb.PROBLEMS["dense"]
    Q = problem.contrasts
    Z = problem.Z[:, :5]
    values, vectors = scipy.linalg.eigh(Q.T @ Z @ Z.T @ Q)
    assert values[-1] > 1.05 * values[-2]
    for margin in (1e-4, 1e-6, 1e-8):
        gamma = -(1 - margin) / values[-1]
        y = Q @ (vectors @ np.sqrt(1 + gamma * values))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # V is indefinite
            result = MultiLMM.from_arrays(y, problem.X, Z).fit()
        assert result.converged.all()
        theta, sigma2 = result.theta.iloc[0]
        assert sigma2 == pytest.approx(1.0, rel=1e-6)
        # 16 digits of gamma leave 8 of 1 + gamma lambda = 1e-8
        assert 1 + theta / sigma2 * values[-1] == pytest.approx(margin, rel=1e-4)


# ---- the quadratic program within the psd space ------------------------------------------------


SHAPES = {"1+1": (1, 1), "2": (2,), "3": (3,), "2+2": (2, 2), "3+1": (3, 1)}
shapes = pytest.mark.parametrize("shape", SHAPES)


def cone_space(shape):
    blocks, k = [], 0
    for s in SHAPES[shape]:
        block = np.zeros((s, s), dtype=np.intp)
        rows, columns = np.triu_indices(s)
        block[rows, columns] = block[columns, rows] = np.arange(k, k + rows.size)
        blocks.append(block)
        k += rows.size
    return PSD(tuple(blocks), k + 1)


def cone_problems(shape, condition, m=30, seed=0):
    """Draw theta in the space (some on its boundary), scores and information of a condition."""
    rng = np.random.default_rng(seed)
    space = cone_space(shape)
    k = space.n_params
    theta = np.zeros((m, k))
    for block in space.all_blocks:
        s = len(block)
        root = rng.normal(size=(m, s, s))
        root[: m // 3, :, 0] = 0.0
        theta[:, block] = root @ np.swapaxes(root, 1, 2)
    theta[: m // 6] = 0.0
    theta[:, -1] += 0.1
    vectors = np.linalg.qr(rng.normal(size=(m, k, k)))[0]
    values = condition ** -rng.uniform(size=(m, k))
    values[:, 0], values[:, -1] = 1.0, 1.0 / condition
    information = (vectors * values[:, None, :]) @ np.swapaxes(vectors, 1, 2)
    # Scores such that the unconstrained maximum lies at any distance, most of them outside.
    aim = 2 * rng.normal(size=(m, k)) - theta
    return space, theta, (information @ aim[:, :, None])[:, :, 0], information


@shapes
@pytest.mark.parametrize("condition", [1.0, 1e2])
def test_the_step_within_the_cone_is_that_of_projected_gradients(shape, condition):
    space, theta, score, information = cone_problems(shape, condition)
    step = space.step(theta, score, information)
    slow = pb.projected_gradient(space, theta, score, information)
    assert not space.contains(
        theta + np.linalg.solve(information, score[:, :, None])[:, :, 0]
    ).all()
    gain, best = (
        pb.quadratic_gain(step, score, information),
        pb.quadratic_gain(slow, score, information),
    )
    assert (gain >= best - 1e-9 * (1 + np.abs(best))).all()
    assert_allclose(step, slow, rtol=0, atol=1e-5 * np.abs(slow).max())


@shapes
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e8])
def test_the_step_within_the_cone_satisfies_the_kkt_conditions(shape, condition):
    """With X = theta + d and S = E d - s: X and S psd, tr(S X) = 0; sufficient, being convex.

    Each is compared with the size of what cancels in it: eigenvalues with those of X, the
    multiplier with the score, and X itself is a sum, theta + d.
    """
    space, theta, score, information = cone_problems(shape, condition)
    step = space.step(theta, score, information)
    x = theta + step
    multiplier = (information @ step[:, :, None])[:, :, 0] - score
    gain = pb.quadratic_gain(step, score, information)
    assert (gain >= 0).all()
    gap = np.abs((multiplier * x).sum(axis=1))
    size = (np.abs(score) * (np.abs(theta) + np.abs(step))).sum(axis=1)
    assert (gap <= 1e-12 * size).all()
    half = 1 / pb.weights(space)
    for block in space.all_blocks:
        values = np.linalg.eigvalsh(x[:, block])
        assert (values[:, 0] >= -1e-14 * (np.abs(theta) + np.abs(x)).max(axis=1)).all()
        dual = np.linalg.eigvalsh((multiplier * half)[:, block])
        assert (dual[:, 0] >= -1e-6 * np.abs(score).max(axis=1)).all()


def test_the_step_within_the_cone_finds_solutions_of_low_rank():
    """From D = 0 with scores that have one positive eigenvalue: two eigenvalues end at zero."""
    space = cone_space("3")
    rng = np.random.default_rng(0)
    m = 300
    root = rng.normal(size=(m, 3, 3)) * np.array([1.0, 1.5, 1.5])
    S = (root * np.array([1.0, -1.0, -1.0])) @ np.swapaxes(root, 1, 2)
    score = np.zeros((m, 7))
    for a in range(3):
        for b in range(a, 3):
            score[:, space.blocks[0][a, b]] = (1 if a == b else 2) * S[:, a, b]
    information = np.tile(np.diag(np.r_[pb.weights(space)[:-1], 1.0]), (m, 1, 1))
    theta = np.zeros((m, 7))
    theta[:, -1] = 1.0
    # With this information the step is the projection of S onto the cone.
    projected = pb.onto_cone(space, score / pb.weights(space))
    error = np.abs(space.step(theta, score, information) - projected).max(axis=1)
    assert (error <= 1e-5 * np.abs(score).max(axis=1)).all()


@shapes
@pytest.mark.parametrize("condition", [1.0, 1e8])
def test_the_step_within_the_cone_does_not_depend_on_the_batch(shape, condition):
    space, theta, score, information = cone_problems(shape, condition)
    together = space.step(theta, score, information)
    assert np.isfinite(together).all()
    for j in range(0, len(theta), 6):
        alone = space.step(theta[[j]], score[[j]], information[[j]])[0]
        unit = 1 / np.sqrt(np.diag(information[j]))
        assert_allclose(together[j] / unit, alone / unit, rtol=1e-6, atol=1e-6)


def test_the_step_within_the_cone_does_not_depend_on_units():
    space, theta, score, information = cone_problems("2+2", 1e2)
    step = space.step(theta, score, information)
    effect = np.array([1e-2, 1e1, 1.0, 1e3, 1e2])  # per effect, the residual last
    unit = np.ones(space.n_params)
    start = 0
    for block in space.all_blocks:
        sizes = effect[start : start + len(block)]
        unit[block] = np.outer(sizes, sizes)
        start += len(block)
    scaled = space.step(theta * unit, score / unit, information / np.outer(unit, unit))
    assert_allclose(scaled / unit, step, rtol=0, atol=1e-5 * np.abs(step).max())


@methods
@pytest.mark.parametrize("kind", ["correlated", "three_effects", "slope_and_crossed"])
def test_first_steps_of_real_features_satisfy_the_kkt_conditions(kind, method):
    """At theta = 0; some have a solution of rank one, where X can be known to 1e-16 only."""
    for where in ("inside", "singular", "negative"):
        problem, Y = data(kind, where, m=60)
        likelihood, space, start = internal(problem, Y, method)
        at = likelihood.evaluate(start, np.arange(60))
        step = space.step(start, at.score, at.expected)
        assert np.isfinite(step).all()
        assert space.contains(start + step).all()
        multiplier = (at.expected @ step[:, :, None])[:, :, 0] - at.score
        gap = np.abs((multiplier * (start + step)).sum(axis=1))
        assert (gap <= 1e-8 * (1 + np.abs(at.score * (start + step)).sum(axis=1))).all()
        for block in space.all_blocks:
            dual = np.linalg.eigvalsh((multiplier / pb.weights(space))[:, block])
            assert (dual[:, 0] >= -1e-6 * np.abs(at.score).max(axis=1)).all()


def test_a_step_that_stays_inside_is_the_full_step():
    space, theta, score, information = cone_problems("2", 10.0)
    theta = theta + np.array([10.0, 0.0, 10.0, 10.0])
    full = np.linalg.solve(information, score[:, :, None])[:, :, 0] * 0.1
    assert space.contains(theta + full).all()
    assert_allclose(space.step(theta, 0.1 * score, information), full, rtol=1e-8, atol=1e-12)


# ---- the way there ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorder:
    """A solver that keeps every theta and likelihood that it is shown, by feature."""

    inner: object
    stretch: float = 1.0
    seen: dict = field(default_factory=dict)

    def init(self, objective: Objective, theta0: np.ndarray) -> State:
        return self.inner.init(objective, theta0)

    def step(self, objective: Objective, state: State) -> State:
        for feature, theta, loglik in zip(
            objective.features, state.theta, state.evaluation.loglik, strict=True
        ):
            self.seen.setdefault(int(feature), []).append((theta.copy(), loglik))
        proposed = self.inner.step(objective, state)
        return replace(proposed, step=self.stretch * proposed.step)

    def terminate(self, objective: Objective, state: State) -> np.ndarray:
        return self.inner.terminate(objective, replace(state, step=state.step / self.stretch))


@pytest.mark.parametrize("stretch", [1.0, 30.0], ids=["as proposed", "too far"])
@pytest.mark.parametrize("space_name", ["psd", "unconstrained"])
@solvers
@pytest.mark.parametrize(
    ("kind", "method"),
    [("within_treatment", "REML"), ("correlated", "ML"), ("saturated", "REML")],
)
def test_no_step_leaves_the_space_or_lowers_the_likelihood(
    kind, method, solver, space_name, stretch
):
    if solver == "em" and space_name == "unconstrained":
        pytest.skip("EM works in the psd space alone")
    problem, Y = data(kind, "inside", m=4)
    likelihood, space, start = internal(problem, Y, method, space_name)
    recorder = Recorder(SOLVERS[solver](), stretch)
    solution = maximise(likelihood, space, recorder, start, np.arange(4), max_iter=20)
    assert sorted(recorder.seen) == list(range(4))
    assert max(len(path) for path in recorder.seen.values()) > 2
    for feature, path in recorder.seen.items():
        path.append((solution.theta[feature], solution.evaluation.loglik[feature]))
        thetas, logliks = map(np.array, zip(*path, strict=True))
        assert np.isfinite(logliks).all()
        assert space.contains(thetas).all()
        assert (np.diff(logliks) >= -1e-10 * (1 + np.abs(logliks[:-1]))).all()
        assert solution.n_iter[feature] == len(path) - 2


@methods
@pytest.mark.parametrize("kind", pb.KINDS)
def test_em_steps_never_lower_the_likelihood(kind, method):
    """Bare EM steps from positive definite D, neither accelerated nor damped."""
    problem, Y = data(kind, "singular", m=4)
    likelihood, space, _ = internal(problem, Y, method)
    rng = np.random.default_rng(0)
    theta = np.stack([problem.theta(rng) for _ in range(4)])
    everyone = np.arange(4)
    at = likelihood.evaluate(theta, everyone)
    first = at.loglik
    for _ in range(20):
        before = at
        theta = em_map(space, theta, at)
        assert space.contains(theta).all()
        at = likelihood.evaluate(theta, everyone)
        assert (at.loglik >= before.loglik - 1e-11 * np.abs(before.loglik)).all()
    assert (at.loglik > first).all()


def test_em_is_refused_where_variances_may_be_negative():
    problem, Y = data("intercept", "inside", m=1)
    with pytest.raises(InputError, match="parameter_space='psd'"):
        fitted(problem, Y, solver="em")


def test_unfinished_features_fall_back_on_em():
    """Two steps of scoring are too few; EM takes over from there, and steps of both count."""
    problem, Y = data("intercept", "inside", m=20)
    likelihood, space, start = internal(problem, Y, "REML")
    every = np.arange(20)
    alone = maximise(likelihood, space, FisherScoring(), start, every, max_iter=2)
    stages = (FisherScoring(), EM())
    both = maximise_in_stages(likelihood, space, stages, start, every, max_iter=2)
    left = alone.status == Status.ITERATION_LIMIT
    assert left.sum() >= 5
    assert_array_equal(both.theta[~left], alone.theta[~left])
    assert (both.n_iter[left] > 2).any()
    assert (both.n_iter <= 2 + 20).all()  # EM may take ten times as many
    assert (both.evaluation.loglik >= alone.evaluation.loglik - 1e-9).all()
    assert (both.status <= Status.BOUNDARY).all()


LIBRARIES = ["torch", "array_api_strict"]
SLOW = [
    ("newton_raphson", "unconstrained"),
    ("average_information", "unconstrained"),
    ("fisher_scoring", "psd"),
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("space_name", ["psd", "unconstrained"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_whole_fits_equal_those_of_numpy_in_other_array_libraries(solver, space_name, library):
    xp = pytest.importorskip(library)
    if solver == "em" and space_name == "unconstrained":
        pytest.skip("EM works in the psd space alone")
    if library == "array_api_strict" and (solver, space_name) in SLOW:
        pytest.skip("each in one space: seconds a fit")
    problem, Y = data("slope_and_crossed", "singular", m=6)
    host = project(problem.stats(Y))
    like = xp.asarray(np.zeros(1))
    _, space, start = internal(problem, Y, "REML", space_name)
    ours, theirs = (
        maximise(
            make_likelihood(projection, "REML", "general"),
            space,
            SOLVERS[solver](),
            to(start),
            to(np.arange(6)),
            max_iter=100,
        )
        for projection, to in ((host, np.asarray), (host.on(like), xp.asarray))
    )
    assert type(theirs.theta) is type(like)
    assert_array_equal(to_numpy(theirs.status), ours.status)
    good = ours.status <= Status.BOUNDARY
    assert good.sum() >= 3
    unit = 1 / units(ours.evaluation)
    difference = (to_numpy(theirs.theta) - ours.theta) / unit
    assert_allclose(difference[good], 0.0, atol=1e-6)


def test_finished_features_leave_the_batch_and_keep_their_values():
    problem, Y = data("correlated", "inside", m=20)
    likelihood, space, start = internal(problem, Y, "REML")
    together = maximise(likelihood, space, FisherScoring(), start, np.arange(20), max_iter=50)
    assert len(set(together.n_iter)) > 1
    for j in range(20):
        alone = maximise(likelihood, space, FisherScoring(), start[[j]], np.array([j]), max_iter=50)
        assert alone.n_iter[0] == together.n_iter[j]
        assert alone.status[0] == together.status[j]
        unit = 1 / units(alone.evaluation)[0]
        assert_allclose(alone.theta[0] / unit, together.theta[j] / unit, rtol=0, atol=1e-9)


def test_the_iteration_limit_is_a_verdict_and_more_iterations_are_no_worse():
    problem, Y = data("intercept", "inside", m=20)
    few, many = (fitted(problem, Y, max_iter=limit) for limit in (1, 50))
    assert (few.status == "iteration limit").any()
    assert (few.n_iter <= 5).all()  # one of scoring, four of what it falls back on
    assert many.converged.all()
    assert (many.llf >= few.llf - 1e-9).all()


# ---- solvers of users ------------------------------------------------------------------------


@dataclass(frozen=True)
class AverageInformation:
    """A user's solver: the average information (Gilmour et al. 1995) gives the step."""

    epsilon: float = 1e-6

    def init(self, objective: Objective, theta0: np.ndarray) -> State:
        return State(theta0, objective.evaluate(theta0), np.zeros_like(theta0))

    def step(self, objective: Objective, state: State) -> State:
        at = state.evaluation
        curvature = at.average + 1e-3 * at.expected  # A alone may be singular
        return replace(state, step=objective.space.step(state.theta, at.score, curvature))

    def terminate(self, objective: Objective, state: State) -> np.ndarray:
        score = standardised_score(objective, state)
        return verdicts_of(objective, state, np.abs(score).max(axis=1) < self.epsilon)


@methods
@pytest.mark.parametrize("space_name", ["psd", "unconstrained"])
def test_a_solver_of_30_lines_is_as_good(space_name, method):
    problem, Y = data("intercept", "inside", m=20)
    options = {"method": method, "parameter_space": space_name, "max_iter": 100}
    ours = fitted(problem, Y, **options)
    theirs = fitted(problem, Y, solver=AverageInformation(), **options)
    assert theirs.options.solver == "AverageInformation"
    both = (ours.converged & theirs.converged).to_numpy()
    assert both.sum() >= 15
    assert_allclose(theirs.llf[both], ours.llf[both], rtol=0, atol=1e-6)
    assert_allclose(theirs.params[both], ours.params[both], atol=1e-4)


def test_a_solver_that_never_ends_meets_the_iteration_limit():
    class Endless(FisherScoring):
        def terminate(self, _, state):
            return np.full(state.theta.shape[0], Status.RUNNING, dtype=np.int8)

    problem, Y = data("intercept", "inside", m=5)
    result = fitted(problem, Y, solver=Endless(), max_iter=7)
    assert set(result.status) <= {"iteration limit", "stalled"}
    assert (result.n_iter <= 7).all()


def test_what_is_no_solver_is_refused():
    problem, Y = data("intercept", "inside", m=1)
    with pytest.raises(InputError, match=r"Unknown solver='fisher_scorin'.*fisher_scoring"):
        fitted(problem, Y, solver="fisher_scorin")
    with pytest.raises(InputError, match="object lacks"):
        fitted(problem, Y, solver=object())
