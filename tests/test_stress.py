"""A slice of the stress suite, and that its checks can tell a wrong verdict from a right one."""

from __future__ import annotations

import numpy as np
import problems as pb
import pytest

from flashmm.results.assemble import _standard_errors
from flashmm.solvers.space import PSD
from tests.stress.checks import VERDICTS, Fit, check_refusal, check_search
from tests.stress.designs import GROUPED, KINDS, LATER, LATEST, draw
from tests.stress.report import ALLOWED, report
from tests.stress.run import SETTINGS, Tally, run_design

DESIGNS = 20
PSD_SETTINGS = [(method, space) for method, space in SETTINGS if space == "psd"]


def fit(kind: str = "crossed", method: str = "REML", space: str = "psd") -> Fit:
    problem = pb.PROBLEMS[kind]
    Y = problem.simulate(problem.theta(np.random.default_rng(1)), 3, np.random.default_rng(2))
    stats = problem.stats(Y)
    return Fit(
        problem, Y, stats, method, space, problem.fit(Y, method=method, parameter_space=space)
    )


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_the_checks_pass_a_maximum_and_object_to_other_points(method, space):
    right = fit(method=method, space=space)
    assert set(right.status) <= {"converged", "boundary"}
    inside = right.status.index("converged")
    assert not list(VERDICTS["converged"](right, inside))
    assert not list(check_search(right, inside, np.random.default_rng(0)))
    moved = fit(method=method, space=space)
    moved.result.ds["theta"][inside] += 0.3 * moved.result.ds["se_theta"][inside]
    findings = {what for what, _ in VERDICTS["converged"](moved, inside)}
    assert "score above epsilon" in findings
    assert "log-likelihood differs from the plain one" in findings
    assert "a higher likelihood exists" in dict(
        check_search(moved, inside, np.random.default_rng(0))
    )
    if space == "unconstrained":
        assert "a combination of scores above epsilon" in findings
    moved.result.ds["beta"][inside, 0] = np.nan
    assert dict(VERDICTS["converged"](moved, inside)) == {"not finite under a good verdict": "beta"}


@pytest.mark.parametrize("verdict", ["zero variance", "perfect fit", "non finite"])
def test_the_checks_object_to_verdicts_that_are_not_true(verdict):
    assert list(VERDICTS[verdict](fit(), 0))


def test_a_design_that_can_be_fitted_may_not_be_refused():
    assert list(check_refusal(pb.PROBLEMS["crossed"]))
    problem = pb.PROBLEMS["crossed"]
    singular = pb.Problem(
        "crossed", np.hstack([problem.X, problem.X[:, :1]]), problem.Z, problem.structure, 0
    )
    assert not list(check_refusal(singular))


def test_a_slice_of_the_suite():
    """Each design by one method in one space; all four over the designs of a kind."""
    total = Tally()
    for index in range(DESIGNS):
        setting = SETTINGS[(index + index // len(KINDS)) % len(SETTINGS)]
        total.add(run_design(1, index, [setting], every=3))
    for index in range(4):
        total.add(run_design(1, LATER + index, [SETTINGS[index]], every=4))
    for index in range(4):
        total.add(run_design(1, LATEST + index, [PSD_SETTINGS[index % 2]], every=6))
    for index in range(4):
        total.add(run_design(1, GROUPED + index, [SETTINGS[index]]))
    violations = [v for v in total.violations if v.what not in ALLOWED]
    assert not violations, report(total, DESIGNS)
    assert len(total.verdicts) > len(KINDS)


@pytest.mark.parametrize(
    ("seed", "index", "setting"),
    [
        (1, 4, ("REML", "unconstrained")),  # information spoilt by rounding
        (1, 16, ("REML", "psd")),  # standard errors of zero
        (2026, 3, ("REML", "psd")),  # near-collinear X
        (2026, 7, ("ML", "unconstrained")),  # no maximum
        (2026, 9, ("REML", "unconstrained")),  # tiny residuals
        (2026, 65, ("REML", "psd")),
        (2026, 628, ("REML", "psd")),  # V singular but for rounding: no standard errors
        (2026, 226, ("REML", "unconstrained")),  # information singular but for rounding
        (2026, 1187, ("ML", "psd")),  # a fit that goes far
        (11, 2, ("ML", "psd")),  # a residual variance of zero but for rounding
        (11, 73, ("ML", "psd")),  # another maximum, 7 higher
        (11, 130, ("REML", "psd")),  # and a warning
        (5, 3_001_013, ("REML", "psd")),  # of two maxima of cs(hom=FALSE) the lower
        (5, 3_001_107, ("ML", "psd")),  # two effects have variance, all three together have none
        (5, 3_001_052, ("REML", "psd")),  # a correlation of zero by its last step
        (9, 3_002_068, ("ML", "psd")),  # one effect is zero, the others are one
    ],
)
def test_designs_that_failed_once(seed, index, setting):
    tally = run_design(seed, index, [setting])
    assert not [v for v in tally.violations if v.what not in ALLOWED], report(tally, 1)


@pytest.mark.parametrize("index", [2_000_003, 2_000_012])
def test_matrices_without_an_inverse_do_not_end_a_fit_by_group(index):
    """Next to the domain's edge numpy raised, for all features of the batch."""
    tally = run_design(7, index, [("ML", "unconstrained")])
    assert not tally.violations, report(tally, 1)


def test_a_residual_variance_of_zero_is_on_the_boundary():
    space = PSD(tuple(np.array([[i]]) for i in range(2)), 3)
    theta = np.array([[0.5, 0.2, 0.0], [0.5, 0.2, 0.1], [0.5, 0.0, 0.1]])
    assert space.on_boundary(theta).tolist() == [True, False, True]


def test_standard_errors_of_spoilt_information_are_nan_without_a_warning():
    """Rounding at the edge of the domain may leave an information matrix indefinite."""
    expected = np.array(
        [[[1.0, 2.0], [2.0, 1.0]], [[4.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.0, 1.0]]]
    )
    nothing = [np.nan, np.nan]
    np.testing.assert_array_equal(_standard_errors(expected), [nothing, [0.5, 1.0], nothing])


@pytest.mark.parametrize("engine", ["blocked", "general"])
def test_a_residual_variance_next_to_zero_gives_no_warning(engine):
    """Entries of the information overflow there."""
    problem = pb.PROBLEMS["three_crossed"]
    Y = problem.simulate(np.ones(problem.n_params), 2, np.random.default_rng(3))
    at = pb.evaluate(problem.stats(Y), np.array([1.0, 1.0, 1.0, 1e-160]), "ML", engine)
    assert not np.isfinite(at.expected).all()


def test_designs_are_the_same_again():
    for index in range(0, DESIGNS, 5):
        one, two = draw(1, index), draw(1, index)
        np.testing.assert_array_equal(one.X, two.X)
        np.testing.assert_array_equal(one.Z, two.Z)
