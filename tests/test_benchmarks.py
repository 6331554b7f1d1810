"""The benchmark suite runs, and its yardsticks can fail. Nothing here is timed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import designs, own_rows
from benchmarks.cases import CASES, LEVELS, Size, Target
from benchmarks.compare import agreement, outcome
from benchmarks.designs import Data, Term, groups, ratings, with_responses
from benchmarks.exchange import formula, read_matrix, write_for_peers
from benchmarks.peers import PEERS, PeerRun
from benchmarks.report import duration, number, slopes_table

ROOT = Path(__file__).parents[1]


def test_a_quick_case_runs_without_peers(tmp_path):
    out = tmp_path / "measured.json"
    command = [sys.executable, "-m", "tests.benchmarks", "--cases", "three_crossed"]
    command += ["--peers", "none", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "| three crossed, q = 25 + 3 + 4, p = 2, n = 100 | 1,000 |" in done.stdout
    measured = json.loads(out.read_text())
    case = measured["cases"][0]
    assert sum(case["spaces"]["psd"]["status"].values()) == case["m"] == 1000
    assert case["seconds"] > 0
    assert case["memory_peak"] > 0
    assert case["targets"][0]["met"] is None
    assert str(ROOT) not in out.read_text()


def test_every_case_has_every_size_and_known_peers():
    for case in CASES.values():
        assert list(case.sizes) == list(LEVELS)
        assert {peer for size in case.sizes.values() for peer in size.peers} <= set(PEERS)
        assert case.contrasts(62).shape[1] == 62
        assert {t.peer for t in case.targets if t.peer} <= set(case.sizes["full"].peers)


@pytest.mark.parametrize("slope", [False, True])
@pytest.mark.parametrize("route", ["drawn", "summed"])
def test_sums_over_samples_have_the_law_of_the_model(slope, route):
    rng = np.random.default_rng(1)
    X, terms = designs.groups(60, (6,), rng, slope=slope)
    data = designs.with_responses(X, terms, 1, rng)
    stats, count = data.stats(), 20_000
    W = np.hstack([X, data.Z().toarray()])
    effects = np.repeat(rng.normal(size=(W.shape[1], 1)), count, axis=1)
    sigma = np.full(count, 0.5)
    if route == "drawn":
        sums, squares = designs.drawn_sums(stats, effects, sigma, rng)
    else:
        sums, squares = designs.summed_responses(data, effects, sigma, rng)
    U, d, _ = np.linalg.svd(W, full_matrices=False)
    rank = int((d > 1e-10 * d[0]).sum())
    along = U[:, :rank].T @ np.linalg.lstsq(W.T, sums, rcond=None)[0]
    noise = (along - U[:, :rank].T @ (W @ effects)) / 0.5
    np.testing.assert_allclose(noise.mean(axis=1), 0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(np.cov(noise), np.eye(rank), atol=5 * np.sqrt(2 / count))
    beyond = (squares - (along**2).sum(axis=0)) / 0.25
    df = 60 - rank
    assert abs(beyond.mean() - df) < 5 * np.sqrt(2 * df / count)
    assert abs(beyond.var() / (2 * df) - 1) < 0.1


def test_ratings_leave_nobody_out():
    X, (student, teacher, both) = ratings(900, 60, 40, np.random.default_rng(2))
    for term in (student, teacher, both):
        assert set(term.codes) == set(range(term.n_levels))
    assert set(np.unique(X[:, 1])) == {0.0, 1.0}


def test_files_for_peers_keep_rows_and_columns(tmp_path):
    rng = np.random.default_rng(3)
    X, terms = groups(40, (5, 3), rng)
    data = with_responses(X, terms, 3, rng)
    stats = data.stats()
    write_for_peers(tmp_path, stats, data, {"FLASHMM": 3, "lme4": 2})
    np.testing.assert_array_equal(read_matrix(tmp_path, "Y"), data.Y)
    np.testing.assert_array_equal(read_matrix(tmp_path, "ZX"), stats.ZX)
    np.testing.assert_array_equal(read_matrix(tmp_path, "sizes"), [[40, 5, 3]])
    assert formula(data) == "y ~ 0 + x1 + x2 + x3 + x4 + (1 | g1) + (1 | g2)"


def test_a_slope_is_named_after_its_column():
    X, terms = groups(20, (4,), np.random.default_rng(4), slope=True)
    data = Data(X, terms, np.empty((0, 20)))
    assert formula(data).endswith("+ (1 + x3 | g1)")
    Z = Term("g", np.array([1, 0]), 2, slope=np.array([2.0, 3.0])).columns().toarray()
    np.testing.assert_array_equal(Z, [[0, 0, 1, 2], [1, 3, 0, 0]])


def _peer(loglik: list[float]) -> PeerRun:
    k = len(loglik)
    return PeerRun(np.ones(k), 0.0, np.array(loglik), np.ones((k, 2)), np.ones(k, dtype=bool))


def _ours(loglik: list[float]) -> dict[str, np.ndarray]:
    k = len(loglik)
    return {"loglik": np.array(loglik), "theta": np.ones((k, 2)), "se_theta": np.ones((k, 2))}


def test_agreement_tells_other_optima():
    ours = _ours([-10.0] * 10)
    assert agreement(ours, _peer([-10.0] * 10))["agrees"]
    assert agreement(ours, _peer([-10.5] + [-10.0] * 9))["agrees"]
    assert not agreement(ours, _peer([-10.5] * 2 + [-10.0] * 8))["agrees"]
    assert not agreement(ours, _peer([-9.5] + [-10.0] * 9))["agrees"]
    assert not agreement(ours, _peer([np.nan] * 2 + [-10.0] * 8))["agrees"]


def test_agreement_compares_degrees_of_freedom_where_they_matter():
    ours = _ours([-10.0] * 3) | {"df": np.array([[20.0, 5e3]] * 3)}
    close, far = (replace(_peer([-10.0] * 3), df=np.array([[x, 3e3]] * 3)) for x in (20.1, 21.0))
    assert agreement(ours, close)["agrees"]
    assert not agreement(ours, far)["agrees"]


def test_a_target_is_met_only_by_what_was_measured():
    agrees = {"agrees": True, "loglik_relative": 1e-8}
    case = {"seconds": 2.0, "memory_peak": 10**9}
    case["peers"] = {"lme4": {"ratio": 0.5, "agreement": agrees}, "FLASHMM": {"missing": "no"}}
    assert outcome(Target("seconds", 1.0), case) == (2.0, False)
    assert outcome(Target("gigabytes", 1.0), case) == (1.0, True)
    assert outcome(Target("ratio", 0.4, "lme4"), case) == (0.5, True)
    assert outcome(Target("within", 1.5, "lme4"), case) == (2.0, False)
    assert outcome(Target("loglik", 1e-6, "lme4"), case) == (1e-8, True)
    assert outcome(Target("ratio", 1.0, "FLASHMM"), case) == (None, None)
    agrees["agrees"] = False
    assert outcome(Target("ratio", 0.4, "lme4"), case) == (None, None)


def test_slopes_are_those_of_the_powers():
    points = [
        {"axis": axis, "structure": "s", axis: value, "seconds": 3.0 * value**power}
        for axis, power in (("m", 1.0), ("n", 0.0))
        for value in (10, 100, 1000)
    ]
    points[2]["seconds"] *= 10.0
    points.append({"axis": "p", "structure": "t", "p": 4, "seconds": 1.0})
    lines = slopes_table({"points": points}).splitlines()
    assert lines[0] == "| structure | m | n | p |"
    assert lines[2] == "| s | 1.50 (2.00) | 0.00 (0.00) | – |"
    assert lines[3] == "| t | – | – | – |"


def test_numbers_for_readers():
    assert [duration(s) for s in (93.61, 0.00123, 2.5e-5, 1e-8)] == [
        "93.6 s",
        "1.23 ms",
        "25 µs",
        "0.01 µs",
    ]
    assert [number(x) for x in (12345.6, 999.4, 0.5)] == ["12,300", "999", "0.5"]
    assert Size(1, 2).peers == {}


@pytest.mark.filterwarnings("ignore")
def test_rows_of_their_own_are_measured(monkeypatch):
    monkeypatch.setitem(own_rows.SCALE, "quick", 1e-3)
    monkeypatch.setattr(own_rows, "lmer_ms", lambda *_: 30.0)
    measured = own_rows.measure_own_rows("quick")
    assert all(case["sums"] > 0 and case["fit"] > 0 for case in measured)
    assert {one["what"] for one in measured[0]["targets"]} >= {"times faster than lmer"}
    for case in measured:
        for one in case["targets"]:
            assert one["met"] == ((one["value"] <= one["bound"]) == one["most"])
    table = own_rows.own_rows_table({"own_rows": measured})
    assert "| 10 % missing, 400 x (1 \\| 100) | 20 |" in table
