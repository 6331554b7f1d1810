"""The two stages of a case that are ours.

``build`` simulates the data, sums them and writes what the fit and the peers read; ``fit`` times
our fit and keeps its answers, in a process of its own, which makes the peak memory its own.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from flashmm import MultiLMM, SummaryStats
from flashmm.exceptions import ConvergenceWarning
from flashmm.solvers.verdict_texts import Status

from . import designs
from .cases import CASES, Case, Space
from .environment import memory_now, memory_peak, reset_memory_peak, threads
from .exchange import write_for_peers
from .peers import PEERS

# Per level, our fit is repeated until so many seconds have passed, REPEATS times at most.
SECONDS = {"quick": 0.2, "medium": 4.0, "full": 10.0}
REPEATS = 7


def build(case: Case, level: str, folder: Path) -> None:
    """Simulate a case and write statistics, data and settings into ``folder``."""
    size = case.sizes[level]
    rng = np.random.default_rng(zlib.crc32(f"{case.name} {level}".encode()))
    X, terms = case.design(size, rng)
    shared = min(size.m, max(1, *size.peers.values(), 1))
    data = designs.with_responses(X, terms, shared, rng)
    stats = designs.with_more_features(data, size.m, rng)
    (folder / "stats.pickle").write_bytes(pickle.dumps(stats))
    (folder / "data.pickle").write_bytes(pickle.dumps(data))
    contrasts = case.contrasts(stats.p) if case.df else None
    write_for_peers(folder, stats.take(slice(0, shared)), data, size.peers, contrasts)


def fit(case: Case, level: str, folder: Path, spaces: tuple[Space, ...]) -> None:
    """Time our fit in each parameter space; write timings and the answers peers check."""
    # Our own file, written by `build` a moment ago.
    stats: SummaryStats = pickle.loads((folder / "stats.pickle").read_bytes())
    shared = max((0, *case.sizes[level].peers.values()))
    fitted(stats.take(slice(0, min(2, stats.m))), spaces[0])  # imports, thread pools
    report: dict[str, Any] = {
        "n": stats.n,
        "m": stats.m,
        "p": stats.p,
        "q": [term.n_columns for term in stats.structure.terms],
        "spaces": {},
    }
    contrasts = case.contrasts(stats.p)
    for space in spaces:
        before = memory_now()
        reset_memory_peak()
        result: Any = None
        seconds: list[float] = []
        processor: list[float] = []
        while len(seconds) < REPEATS and sum(seconds) < SECONDS[level]:
            # A test runs on a fresh result: it may keep what it computed.
            result = fitted(stats, space) if case.df else None
            start, busy = time.perf_counter(), time.process_time()
            if case.df:
                test = result.t_test(contrasts, df=case.df)
                if case.simultaneous:
                    test.simultaneous(case.simultaneous)
            else:
                result = fitted(stats, space)
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
            peak = memory_peak()
        codes, counts = np.unique(result.ds["status"].to_numpy(), return_counts=True)
        iterations = result.ds["n_iter"].to_numpy()
        report["spaces"][space] = {
            "seconds": seconds,
            "processor_seconds": processor,
            "engine": result.ds.attrs["engine"],
            "blas_threads": threads(),
            "memory_budget": result.options.memory,
            "memory_before": before,
            "memory_peak": peak,
            "iterations": {
                "median": float(np.median(iterations)),
                "maximum": int(iterations.max()),
            },
            "status": {Status(code).label: int(c) for code, c in zip(codes, counts, strict=True)},
        }
        answers = {
            name: result.ds[name].to_numpy()[:shared] for name in ("theta", "se_theta", "loglik")
        }
        if case.df:
            answers["df"] = test.ds["df"].to_numpy()[:shared]
        np.savez(folder / f"ours_{space}.npz", **answers)
        del result
    if case.from_samples:
        data: designs.Data = pickle.loads((folder / "data.pickle").read_bytes())
        start = time.perf_counter()
        fitted(data.stats(), case.space)
        report["seconds_from_samples"] = time.perf_counter() - start
    (folder / "ours.json").write_text(json.dumps(report))


def fitted(stats: SummaryStats, space: Space) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # verdicts are counted instead
        return MultiLMM.from_summary_stats(stats).fit(parameter_space=space)


def main(arguments: list[str]) -> None:
    """Fit: ``worker CASE LEVEL FOLDER``."""
    name, level, folder = arguments
    case = CASES[name]
    wanted = {PEERS[peer].space for peer in case.sizes[level].peers if peer in PEERS}
    fit(case, level, Path(folder), (case.space, *sorted(wanted - {case.space})))


if __name__ == "__main__":
    main(sys.argv[1:])
