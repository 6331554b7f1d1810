"""Eliminating blocks: structure found from Z'Z alone, T times vectors, hard corners, memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import problems as pb
import pytest
from numpy.testing import assert_allclose

from flashmm import MultiLMM, SummaryStats
from flashmm.formulas.build import build_design
from flashmm.likelihood import make_likelihood, project
from flashmm.likelihood.choose_engine import choose, works
from flashmm.likelihood.elimination.eliminate import eliminate
from flashmm.likelihood.elimination.layout import find_partition

BY_BLOCKS = [
    (kind, engine)
    for kind in pb.KINDS
    for engine in pb.engines(pb.PROBLEMS[kind])
    if engine in ("blocked", "nested")
]


HELD_UP = [
    ("correlated", "blocked"),
    ("child_first", "nested"),
    ("nested_slopes", "nested"),
    ("three_levels", "nested"),
]


def dense_T(problem, theta):
    """Z'PZ from n x n matrices."""
    X, Z = problem.X, problem.Z
    inverse = np.linalg.inv(problem.V(theta))
    C = np.linalg.inv(X.T @ inverse @ X)
    return Z.T @ (inverse - inverse @ X @ C @ X.T @ inverse) @ Z


@pytest.mark.parametrize("where", ["inside", "singular", "negative"])
@pytest.mark.parametrize(("kind", "engine"), BY_BLOCKS)
def test_T_times_vectors_is_that_of_dense_matrices(kind, engine, where):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(3)
    thetas = np.stack([problem.theta(rng, where) for _ in range(3)])
    stats = problem.stats(rng.normal(size=(3, problem.n)))
    projection = pb.projection_of(stats)
    vectors = rng.normal(size=(3, 2, stats.q))
    # Internally Z's columns are divided by column_scale and V by scale.
    found = pb.estimator_of(stats, "ML", engine).apply_T(
        projection.to_internal(thetas), vectors * projection.column_scale
    )
    found = found * projection.column_scale / projection.scale[:, None, None]
    for j in range(3):
        expected = vectors[j] @ dense_T(problem, thetas[j])
        assert_allclose(found[j], expected, atol=1e-11 * np.abs(expected).max())


def samples(rng, n=240):
    """Cells within donors within sites, a crossed batch; unbalanced, some cells seen once."""
    donor = rng.choice(12, size=n, p=rng.dirichlet(np.full(12, 2.0)))
    kind = rng.choice(6, size=n, p=rng.dirichlet(np.full(6, 1.0)))
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "donor": [f"d{i}" for i in donor],
            "site": [f"s{i % 3}" for i in donor],
            "kind": [f"k{i}" for i in kind],
            "batch": [f"b{i}" for i in rng.choice(4, size=n)],
        }
    )


def projection_for(random, seed=0, fixed="~ x", m=3):
    rng = np.random.default_rng(seed)
    data = samples(rng)
    design = build_design(fixed, random, data).design
    Y = rng.normal(size=(m, len(data)))
    Y += 0.5 * rng.normal(size=(m, design.Z.shape[1])) @ design.Z.T
    return project(SummaryStats.from_arrays(Y, design.X, design.Z, components=design.structure))


@pytest.mark.parametrize(
    "terms",
    [
        ["(1 | donor)", "(1 | donor:kind)"],
        ["(1 + x | donor)", "(1 | donor:kind)"],
        ["(1 | donor)", "(1 | donor:kind)", "(0 + x | donor:kind)"],
        ["(1 | donor)", "(1 | donor:kind)", "(1 | batch)"],
        ["(1 | site)", "(1 | site:donor)", "(1 | site:donor:kind)"],
    ],
)
def test_nesting_is_found_whatever_the_order_of_terms(terms):
    for order in (terms, terms[::-1], terms[1:] + terms[:1]):
        _, partition = find_partition(projection_for(" + ".join(order)), nested=True)
        names = {
            name: {int(c) for c in part.ravel() if c >= 0}
            for name, part in (("fine", partition.fine), ("coarse", partition.coarse))
        }
        structure = projection_for(" + ".join(order)).structure
        for i, term in enumerate(structure.terms):
            columns = set(range(structure.offsets[i], structure.offsets[i + 1]))
            finest = "donor:kind" in term.group
            assert columns <= names["fine"] or not finest
            if term.group in ("donor", "site:donor"):
                assert columns <= names["coarse"]
            if term.group in ("batch", "site"):
                assert columns <= set(partition.border.tolist())


def test_nesting_is_found_without_names():
    """Components given as sizes of an indicator matrix carry no factors."""
    rng = np.random.default_rng(1)
    data = samples(rng)
    design = build_design("~ x", "(1 | donor:kind) + (1 | donor)", data).design
    sizes = [len(term.levels) for term in design.structure.terms]
    shuffled = design.Z.toarray()
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        order = start + rng.permutation(size)
        shuffled[:, start : start + size] = shuffled[:, order]
    Y = rng.normal(size=(2, len(data)))
    stats = SummaryStats.from_arrays(Y, design.X, shuffled, components=sizes)
    _, partition = find_partition(project(stats), nested=True)
    assert partition.fine.shape == (sizes[0], 1)
    assert partition.coarse.shape == (sizes[1], 1)
    assert partition.border.size == 0


@pytest.mark.parametrize(
    ("random", "engine"),
    [
        ("(1 | donor)", "spectral"),
        ("(1 + x | donor)", "blocked"),
        ("(1 | donor / kind)", "nested"),
        ("(1 | site / donor / kind)", "nested"),
        ("(1 | donor / kind) + (1 | batch)", "nested"),
        ("(1 + x | donor) + (1 | batch)", "blocked"),
    ],
)
def test_the_engine_with_least_work_is_chosen(random, engine):
    projection = projection_for(random, m=300)  # of few features, blocks are not even looked for
    assert choose(projection)[0] == engine
    found = works(projection)
    assert found[engine][0] == min(work for work, _ in found.values())


def test_columns_of_zeros_in_the_border_do_no_harm():
    """A category that a site lacks, and a dose that is zero all over it."""
    rng = np.random.default_rng(5)
    data = samples(rng)
    data["dose"] = np.where(data.site == "s0", 0.0, rng.integers(0, 4, len(data)))
    data["kind"] = np.where(data.site == "s1", "k0", data.kind)
    Y = (
        rng.normal(size=(2, len(data)))
        + 2.0 * rng.normal(size=(2, 12))[:, pd.factorize(data.donor)[0]]
    )
    for random in ("(1 + dose | site) + (1 | donor)", "diag(kind | site) + (1 | donor)"):
        design = build_design("~ x", random, data).design
        stats = SummaryStats.from_arrays(Y, design.X, design.Z, components=design.structure)
        assert (stats.ZZ.diagonal() == 0).any()
        model = MultiLMM.from_summary_stats(stats)
        fits = {
            engine: model.fit(engine=engine, parameter_space="psd")
            for engine in ("blocked", "general")
        }
        assert_allclose(fits["blocked"].llf, fits["general"].llf, rtol=1e-10)


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize(
    ("random", "engine"),
    [
        ("(1 + x | donor)", "blocked"),
        ("(1 | site) + (1 + x | donor)", "blocked"),
        ("(1 | donor / kind)", "nested"),
    ],
)
def test_a_batch_keeps_within_a_fifth_of_its_budget(random, engine, method):
    rng = np.random.default_rng(0)
    n, m = 4000, 12
    data = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "donor": [f"d{i}" for i in rng.choice(150, size=n)],
            "kind": [f"k{i}" for i in rng.choice(25, size=n)],
            "site": [f"s{i}" for i in rng.choice(15, size=n)],
        }
    )
    design = build_design("~ x + kind", random, data).design
    Y = rng.normal(size=(m, n))
    stats = SummaryStats.from_arrays(Y, design.X, design.Z, components=design.structure)
    estimator = pb.estimator_of(stats, method, engine)
    theta = np.full((m, stats.structure.is_variance.size), 0.1)
    theta[:, ~stats.structure.is_variance] = 0.01
    theta[:, -1] = 1.0
    features = np.arange(m)
    memory = 2**16
    while estimator.batch_size(memory) < m:
        memory = int(memory * 1.1)
    estimator.evaluate(theta, features)  # what all features share is computed once
    for work in (
        lambda: estimator.evaluate(theta, features),
        lambda: estimator.random_effects(theta, features, "conditional"),
        lambda: estimator.covariance(theta, features),
    ):
        tracemalloc.start()
        work()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= 1.2 * memory


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize(("kind", "engine"), [*HELD_UP, ("slope_and_crossed", "blocked")])
def test_indefinite_parts_are_eliminated_where_v_is_definite(kind, engine, method):
    """What takes over beyond the general likelihood's reach, on problems small enough for V."""
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng([7, pb.KINDS.index(kind)])
    definite = held_up = 0
    for _ in range(20):
        theta = np.zeros(problem.n_params)
        theta[-1] = 1.0
        for block in problem.structure.blocks():
            matrix = rng.normal(size=block.shape)
            theta[block] = rng.choice([0.02, 0.2]) * (matrix + matrix.T)
        V, Q = problem.V(theta), problem.contrasts
        lowest = np.linalg.eigvalsh(V if method == "ML" else Q.T @ V @ Q)[0]
        if abs(lowest) < 1e-3:
            continue
        y = rng.normal(size=problem.n)
        stats = problem.stats(y[None])
        estimator = pb.estimator_of(stats, method, engine)
        beyond = replace(estimator, indefinite=True)
        internal = pb.projection_of(stats).to_internal(theta[None])
        found = beyond.evaluate(internal, np.array([0]))
        if not np.isfinite(found.loglik[0]):
            assert lowest < 0
            continue
        assert lowest > 0
        general = pb.estimator_of(stats, method, "general").evaluate(internal, np.array([0]))
        unit = np.sqrt(np.diag(general.expected[0]))
        assert found.loglik[0] == pytest.approx(general.loglik[0], abs=1e-8)
        assert_allclose(found.score / unit, general.score / unit, atol=1e-7)
        for name in ("expected", "average"):
            matrices = [getattr(at, name)[0] / np.outer(unit, unit) for at in (found, general)]
            assert_allclose(*matrices, atol=1e-7)
        definite += 1
        held_up += float(eliminate(estimator.layout, internal, problem.n).distance[0]) < 0
    assert definite >= 5
    assert held_up or method == "ML" or kind != "correlated"


def near_the_edge(likelihood, direction, shares):
    """Theta (len(shares), k) on a way from the identity that leaves the domain at a share of 1."""
    start = np.zeros_like(direction)
    start[-1] = 1.0
    inside, outside = 0.0, 1.0
    while likelihood.distance_to_edge((start + outside * direction)[None])[0] > 0:
        outside *= 2.0
    for _ in range(60):
        middle = 0.5 * (inside + outside)
        if likelihood.distance_to_edge((start + middle * direction)[None])[0] > 0:
            inside = middle
        else:
            outside = middle
    return start + inside * np.multiply.outer(np.asarray(shares), direction)


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize(("kind", "engine"), [*HELD_UP, ("slope_and_crossed", "blocked")])
def test_next_to_the_edge_the_likelihood_is_the_same_in_company_and_to_rounding(
    kind, engine, method
):
    """Among features within the domain, next to its edge, and beyond it at every elimination."""
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng([8, pb.KINDS.index(kind)])
    stats = problem.stats(rng.normal(size=(1, problem.n)))
    general = pb.estimator_of(stats, method)
    fast = pb.estimator_of(stats, method, engine)
    theta = []
    for _ in range(8):
        direction = rng.normal(size=problem.n_params)
        direction[-1] = 0.0
        direction[rng.integers(problem.n_params - 1)] = -2.0
        theta.append(near_the_edge(general, direction, [0.5, 0.99, 1 - 1e-3, 1 - 1e-5, 2.0]))
    theta = np.concatenate(theta)
    together = fast.evaluate(theta, np.zeros(len(theta), dtype=np.intp))
    distance = fast.distance_to_edge(theta)
    truth = general.evaluate(theta, np.zeros(len(theta), dtype=np.intp))
    unit = np.sqrt(np.diagonal(truth.expected, axis1=1, axis2=2))
    for j, each in enumerate(theta):
        alone = fast.evaluate(each[None], np.zeros(1, dtype=np.intp))
        assert together.loglik[j] == pytest.approx(alone.loglik[0], rel=1e-9, abs=1e-8)
        assert distance[j] == pytest.approx(fast.distance_to_edge(each[None])[0], rel=1e-5)
        if np.isfinite(truth.loglik[j]):
            assert together.loglik[j] == pytest.approx(truth.loglik[j], rel=1e-9, abs=1e-6)
            assert_allclose(together.score[j] / unit[j], truth.score[j] / unit[j], atol=1e-6)


@pytest.mark.filterwarnings("ignore::flashmm.ConvergenceWarning")
@pytest.mark.parametrize("kind", ["child_first", "nested_and_crossed"])
def test_fits_beyond_the_reach_of_the_general_likelihood_end_alike(kind, monkeypatch):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(2)
    Y = problem.simulate(problem.theta(rng, "inside"), 6, rng)
    expected = problem.fit(Y, engine="general")
    assert expected.converged.any()
    monkeypatch.setattr("flashmm.likelihood.elimination.blocked.DENSE_LIMIT", 0)
    found = problem.fit(Y, engine="nested")
    assert found.status.tolist() == expected.status.tolist()
    ended = expected.converged.to_numpy()
    assert_allclose(found.llf[ended], expected.llf[ended], atol=1e-7)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize(
    "random", ["ar1(t | g)", "ar1(t | g) + (1 | h)", "us(0 + f | g) + (1 | h)"]
)
def test_blocks_that_are_alike_are_those_one_by_one(random, method):
    """Levels with the same samples, some of them, and none with another's: stacks equal planes."""
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(30), 6)
    data = pd.DataFrame({"g": g, "t": np.tile([0, 1, 2], 60), "x": rng.normal(size=180)})
    # Levels 0 to 19 as they are; 20 to 25 lack a sample, two by two of the same time; the others
    # are alike to none.
    lost = [120, 126, 133, 139, 146, 152, 156, 157, 163, 164, 168, 171, 175, 178]
    data = data.drop(index=lost).reset_index(drop=True)
    Y = rng.normal(size=(4, len(data))) + rng.normal(size=(4, 30))[:, data["g"]]
    data["f"], data["h"] = data["t"].map("f{}".format), rng.integers(0, 5, size=len(data))
    data[["g", "h"]] = data[["g", "h"]].astype(str)
    model = MultiLMM.from_formula("~ x", random, data, Y)
    stacks, planes = (make_likelihood(model.projection, method, "blocked") for _ in range(2))
    assert stacks.alike.counts.max() >= 20
    assert len(stacks.alike.shelves) >= 3
    planes.__dict__["alike"] = None
    features, curved = np.arange(4), model.stats.structure.curved
    if curved is None:
        theta = np.array([[0.5, 0.2, 0.7, 0.1, -0.1, 0.4, 0.3, 0.9]]) * rng.uniform(0.5, 2, (4, 1))
    else:
        u = rng.uniform(0.2, 0.8, size=(4, curved.k))
        theta = curved.theta(u)
        (mine, known), (theirs, _) = (
            each.evaluate_along(curved, u, features) for each in (stacks, planes)
        )
        assert known.all()
        assert_same(mine, theirs)
    assert_same(stacks.evaluate(theta, features), planes.evaluate(theta, features))
    mine, theirs = (each.at_one(theta[:1], features) for each in (stacks, planes))
    assert_allclose(mine[0], theirs[0], rtol=1e-12)
    assert_allclose(mine[1], theirs[1], rtol=1e-12)


def assert_same(mine, theirs):
    for part in ("loglik", "score", "expected", "average"):
        expected = getattr(theirs, part)
        size = np.abs(expected).max()
        assert_allclose(getattr(mine, part), expected, rtol=1e-10, atol=1e-12 * size)
