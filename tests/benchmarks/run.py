"""Run cases: our stages and the peers, each in its own process, in rounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cases import Case
from .compare import agreement, outcome
from .peers import PEERS, ROOT, PeerError, PeerRun, run_peer
from .worker import build

__all__ = ["run_case"]


def run_case(
    case: Case,
    level: str,
    *,
    peers: Sequence[str],
    rounds: int,
    flashmm_r: str | None = None,
) -> dict[str, Any]:
    """Measure one case.

    In every round we fit, then each peer does, so that a slow spell of the machine meets both.
    R peers run with one BLAS thread and with as many as there are cores in the first round, and
    the faster setting counts; at size quick only the latter.

    Parameters
    ----------
    case, level
        What, and how large.
    peers
        Packages of the peers that may run.
    rounds
        Number of rounds.
    flashmm_r
        Folder with FLASHMM's source; None to use the installed package.

    Returns
    -------
    dict
        For JSON; times in seconds, memory in bytes.
    """
    size = case.sizes[level]
    wanted = {name: size.peers[name] for name in size.peers if PEERS[name].installed_as in peers}
    report: dict[str, Any] = {"name": case.name, "title": case.title, "level": level}
    absent = {
        name: reason for name in wanted if (reason := PEERS[name].missing(flashmm_r)) is not None
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(case, level, folder)
        ours: list[dict[str, Any]] = []
        runs: dict[str, list[PeerRun]] = {name: [] for name in wanted if name not in absent}
        threads: dict[str, int] = {}
        try_threads = level != "quick" and size.m > 1
        failed: dict[str, str] = {}
        for _ in range(rounds):
            _fit(case, level, folder)
            ours.append(json.loads((folder / "ours.json").read_text()))
            for name, found in runs.items():
                if name in failed:
                    continue
                try:
                    found.append(_peer(name, folder, wanted[name], threads, flashmm_r, try_threads))
                except PeerError as error:
                    failed[name] = str(error)
        report |= _ours(ours, case)
        report["peers"] = {name: {"missing": reason} for name, reason in absent.items()}
        report["peers"] |= {name: {"failed": reason} for name, reason in failed.items()}
        for name, found in runs.items():
            if name not in failed:
                answers = np.load(folder / f"ours_{PEERS[name].space}.npz")
                report["peers"][name] = _beside(report, case, name, found, threads[name], answers)
    report["targets"] = []
    for target in case.targets:
        value, met = outcome(target, report)
        entry = {"kind": target.kind, "bound": target.bound, "peer": target.peer}
        report["targets"].append(entry | {"value": value, "met": met})
    return report


def _fit(case: Case, level: str, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.worker", case.name, level, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)


def _peer(
    name: str,
    folder: Path,
    features: int,
    threads: dict[str, int],
    flashmm_r: str | None,
    try_threads: bool,
) -> PeerRun:
    """One run of a peer; the first may try how many threads suit it best."""
    peer = PEERS[name]
    cores = os.cpu_count() or 1
    if name in threads or not try_threads:
        count = threads.setdefault(name, cores)
        return run_peer(peer, folder, features, threads=count, flashmm_r=flashmm_r)
    tried = {
        count: run_peer(peer, folder, features, threads=count, flashmm_r=flashmm_r)
        for count in sorted({1, cores})
    }
    threads[name] = min(tried, key=lambda count: float(np.nanmean(tried[count].seconds)))
    return tried[threads[name]]


def _ours(rounds: Sequence[Mapping[str, Any]], case: Case) -> dict[str, Any]:
    """Our side of the report: medians over the repeats of all rounds."""
    first = rounds[0]
    report: dict[str, Any] = {key: first[key] for key in ("n", "m", "p", "q")}
    spaces = {}
    for space, measured in first["spaces"].items():
        repeats = [seconds for part in rounds for seconds in part["spaces"][space]["seconds"]]
        busy = [s for part in rounds for s in part["spaces"][space]["processor_seconds"]]
        spaces[space] = measured | {
            "seconds": float(np.median(repeats)),
            "processor_seconds": float(np.median(busy)),
            "repeats": repeats,
            "memory_peak": max(part["spaces"][space]["memory_peak"] for part in rounds),
        }
    main = spaces[case.space]
    report |= {
        "space": case.space,
        "spaces": spaces,
        "seconds": main["seconds"],
        "seconds_per_feature": main["seconds"] / first["m"],
        "memory_peak": main["memory_peak"],
        "memory_over_budget": (main["memory_peak"] - main["memory_before"]) / main["memory_budget"],
    }
    if case.from_samples:
        report["seconds_from_samples"] = float(
            np.median([part["seconds_from_samples"] for part in rounds])
        )
    return report


def _beside(
    report: Mapping[str, Any],
    case: Case,
    name: str,
    runs: Sequence[PeerRun],
    threads: int,
    answers: Mapping[str, Any],
) -> dict[str, Any]:
    """A peer's side, and the ratio of its time to ours in its parameter space."""
    peer = PEERS[name]
    means = [float(np.nanmean(run.seconds)) for run in runs]
    setup = float(np.median([run.setup_seconds for run in runs]))
    seconds = setup if case.from_samples else float(np.median(means))
    ours = report["spaces"][peer.space]["seconds"] / report["m"]
    return {
        "how": "one lmer" if case.from_samples else peer.how,
        "space": peer.space,
        "features": int(runs[0].seconds.size),
        "threads": threads,
        "seconds_per_feature": seconds,
        "setup_seconds": setup,
        "repeats": means,
        "ratio": seconds / ours,
        "agreement": agreement(answers, runs[-1]),
    }
