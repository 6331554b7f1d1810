"""How time and memory of a fit grow with m, n, q, p and the number of components.

``python -m tests.benchmarks growth``. Every point is a process of its own.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flashmm import SummaryStats

from . import designs
from .environment import memory_now, memory_peak, reset_memory_peak
from .peers import ROOT
from .report import markdown
from .worker import fitted

__all__ = ["AXES", "STRUCTURES", "Point", "measure_growth"]

SECONDS, FEWEST, MOST = 1.0, 2, 5


@dataclass(frozen=True)
class Point:
    """A design of one structure.

    Parameters
    ----------
    structure
        A key of `STRUCTURES`.
    m, n, p
        Features, samples, fixed effects.
    q
        Random effects of the largest factor.
    components
        Crossed factors: beside the largest one, others of `SMALL` levels each.
    """

    structure: str
    m: int
    n: int
    p: int
    q: int
    components: int = 1


SMALL = 20

# Where every axis starts from, per structure.
STRUCTURES = {
    "one component": Point("one component", m=4_000, n=10_000, p=10, q=100),
    "crossed": Point("crossed", m=400, n=10_000, p=10, q=100, components=2),
    "nested": Point("nested", m=400, n=10_000, p=10, q=300),
    "slopes": Point("slopes", m=400, n=10_000, p=10, q=100),
}

# What is varied, over which values, at full size; smaller sizes take the first values.
AXES: dict[str, tuple[int, ...]] = {
    "m": (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000),
    "n": (2_000, 10_000, 100_000, 1_000_000),
    "q": (50, 100, 200, 400, 800),
    "p": (4, 8, 16, 32, 64),
    "components": (1, 2, 3, 4, 5),
}
LENGTHS = {"quick": 2, "medium": 4, "full": 7}


def points(level: str) -> list[tuple[str, Point]]:
    """Axis and design of everything that a level measures."""
    found = []
    for axis, values in AXES.items():
        for start in STRUCTURES.values():
            if axis == "components" and start.structure != "crossed":
                continue
            chosen = values[: LENGTHS[level]]
            found += [(axis, _varied(start, axis, value)) for value in chosen]
    return found


def _varied(start: Point, axis: str, value: int) -> Point:
    changes: dict[str, Any] = {axis: value}
    return replace(start, **changes)


def measure_growth(level: str) -> list[dict[str, Any]]:
    """Measure all points of a level, one process each; for JSON."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stats.pickle"
        command = [sys.executable, "-m", "tests.benchmarks.growth", str(path)]
        for axis, point in points(level):
            print(f"{axis}: {point}", file=sys.stderr, flush=True)
            path.write_bytes(pickle.dumps(statistics(point, np.random.default_rng(1))))
            done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            measured.append({"axis": axis} | point.__dict__ | json.loads(done.stdout))
    return measured


def starts_table() -> str:
    """What every axis starts from, as Markdown."""
    models = {
        "one component": "`(1 | group)`",
        "crossed": f"`(1 | group) + (1 | other)`, {SMALL} levels of each other factor",
        "nested": "`(1 | outer/inner)`, 10 inner levels in each outer one",
        "slopes": "`(1 + x | group)`",
    }
    rows = [["structure", "model", "m", "n", "p", "levels of the largest factor"]]
    rows += [
        [name, models[name], *(f"{value:,}" for value in (x.m, x.n, x.p, x.q))]
        for name, x in STRUCTURES.items()
    ]
    return markdown(rows)


def statistics(point: Point, rng: np.random.Generator) -> SummaryStats:
    """Statistics of a point's design."""
    n, q = point.n, point.q
    X = np.column_stack([np.ones(n), rng.normal(size=(n, point.p - 1))])
    code = rng.permutation(np.arange(n) % q)
    if point.structure == "nested":
        outer = designs.Term("outer", code // 10, q // 10)
        terms = [outer, designs.Term("outer:inner", code, q)]
    elif point.structure == "slopes":
        terms = [designs.Term("group", code, q, slope=X[:, 1])]
    else:
        terms = [designs.Term("group", code, q)]
        terms += [
            designs.Term(f"other{i}", rng.integers(0, SMALL, n), SMALL)
            for i in range(1, point.components)
        ]
    data = designs.with_responses(X, tuple(terms), 1, rng)
    return designs.with_more_features(data, point.m, rng)


def measure(stats: SummaryStats) -> dict[str, Any]:
    """Time and peak memory of the fit of one point."""
    fitted(stats.take(slice(0, 2)), "unconstrained")  # imports, thread pools
    before = memory_now()
    reset_memory_peak()
    repeats: list[float] = []
    while len(repeats) < FEWEST or (len(repeats) < MOST and sum(repeats) < SECONDS):
        start = time.perf_counter()
        result = fitted(stats, "unconstrained")
        repeats.append(time.perf_counter() - start)
    return {
        "engine": result.ds.attrs["engine"],
        "seconds": min(repeats),
        "memory": memory_peak() - before,
        "budget": result.options.memory,
        "iterations": float(np.median(result.ds["n_iter"].to_numpy())),
    }


if __name__ == "__main__":
    # A file that `measure_growth` wrote a moment ago.
    print(json.dumps(measure(pickle.loads(Path(sys.argv[1]).read_bytes()))))
