"""``python -m tests.benchmarks.waiting``: what a user waits for, beside an earlier checkout.

Four measurements, each in new processes that take turns with those of an earlier checkout
(``--before``) and of peers, so that all have the same machine:

* ``import``: CPU time of importing, bytecode at hand as after an installation;
* ``single``: one response from formula to table of t tests, beside lme4's ``lmer`` alone;
* ``stream``: all statistics of an uncompressed .h5ad, over h5py's reading of its three arrays;
  and of the same matrix in memory, nanoseconds per stored element;
* ``threads``: tests and fits of features with rows of their own while all cores are busy, over the
  same with one BLAS thread and ``n_jobs=1``; wall-clock time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SLEEP = ROOT / "tests" / "reference" / "lme4" / "sleepstudy.csv"
FIXED = "~ 0 + log(libsize) + age + cls + cls:trt"
# Cells and genes of the file and of the matrix in memory; features of tests and of own rows.
SIZES: dict[str, dict[str, Any]] = {
    "quick": {"file": (300, 200), "memory": (300, 200), "repeats": 2, "features": (50, 20)},
    "medium": {
        "file": (40_000, 11_596),
        "memory": (40_000, 2000),
        "repeats": 20,
        "features": (2000, 300),
    },
    "full": {
        "file": (499_973, 11_596),
        "memory": (200_000, 2000),
        "repeats": 40,
        "features": (10_000, 2000),
    },
}
LMER = """
suppressMessages(library(lme4))
d <- read.csv(commandArgs(TRUE)[1]); d$Subject <- factor(d$Subject)
for (f in c(Reaction ~ Days + (Days | Subject), Reaction ~ Days + (1 | Subject))) {
  m <- lmer(f, d)
  once <- function(i) { a <- proc.time(); m <- lmer(f, d); sum((proc.time() - a)[1:2]) }
  cat(1000 * median(sapply(1:as.integer(commandArgs(TRUE)[2]), once)), "")
}
"""


def cpu(function: Callable[[], Any], repeats: int) -> float:
    """Median CPU time of a few calls after a first, seconds."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return statistics.median(times)


def stage_import(_: Sequence[str]) -> dict[str, float]:
    """CPU seconds since the process began, after an import."""
    start = time.process_time()
    import flashmm  # noqa: PLC0415

    alone = time.process_time() - start
    assert flashmm.MultiLMM
    return {"import": alone, "with MultiLMM": time.process_time() - start}


def stage_single(arguments: Sequence[str]) -> dict[str, float]:
    """CPU milliseconds from formula to table of one response."""
    import pandas as pd  # noqa: PLC0415

    import flashmm as fm  # noqa: PLC0415

    data = pd.read_csv(arguments[0])
    y = data["Reaction"].to_numpy()[None, :]

    def run(random: str) -> Any:
        return fm.MultiLMM.from_formula("~ Days", random, data, y).fit().t_test()

    bars = ("(Days | Subject)", "(1 | Subject)")
    return {bar: 1e3 * cpu(lambda bar=bar: run(bar), int(arguments[1])) for bar in bars}


def stage_stream(arguments: Sequence[str]) -> dict[str, float]:
    """Wall-clock seconds of reading and of all statistics, of a file."""
    import h5py  # noqa: PLC0415

    import flashmm as fm  # noqa: PLC0415

    def read() -> None:
        with h5py.File(arguments[0]) as file:
            for name in ("data", "indices", "indptr"):
                file["X"][name][:]

    def ours() -> None:
        fm.MultiLMM.from_anndata(arguments[0], FIXED, "~ 0 + donor", transform="log2p1")

    found: dict[str, float] = {}
    for name, function in (("read", read), ("statistics", ours)):
        walls, used = [], []
        for _ in range(3):
            wall, start = time.perf_counter(), time.process_time()
            function()
            walls.append(time.perf_counter() - wall)
            used.append(time.process_time() - start)
        found |= {name: min(walls), f"{name}, CPU": min(used)}
    return found


def stage_memory(arguments: Sequence[str]) -> dict[str, float]:
    """Nanoseconds per stored element of all statistics of a matrix in memory."""
    import anndata  # noqa: PLC0415

    import flashmm as fm  # noqa: PLC0415

    adata = anndata.read_h5ad(arguments[0])
    best, used = float("inf"), float("inf")
    for _ in range(3):
        wall, start = time.perf_counter(), time.process_time()
        fm.MultiLMM.from_anndata(adata, FIXED, "~ 0 + donor")
        best = min(best, time.perf_counter() - wall)
        used = min(used, time.process_time() - start)
    return {"nanoseconds": 1e9 * best / adata.X.nnz, "CPU": 1e9 * used / adata.X.nnz}


def stage_threads(arguments: Sequence[str]) -> dict[str, float]:
    """Wall-clock seconds of tests and of a fit with rows of their own."""
    import numpy as np  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    import flashmm as fm  # noqa: PLC0415

    m, own, jobs = (int(x) for x in arguments)
    rng = np.random.default_rng(0)
    data = pd.DataFrame(rng.normal(size=(240, 5)), columns=list("abcde"))
    data["g"] = [f"g{i % 60}" for i in range(240)]
    data["h"] = [f"h{i % 11}" for i in range(240)]
    Y = rng.normal(size=(m, 240))
    fixed = "~ a + b + c + d + e"
    model = fm.MultiLMM.from_formula(fixed, "(1 | g) + (1 | h)", data, Y)
    result = model.fit(parameter_space="psd", n_jobs=jobs)
    # Missing values: earlier checkouts know no weights by feature and sample.
    holes = np.where(rng.random((own, 240)) < 0.05, np.nan, Y[:own])
    holed = fm.MultiLMM.from_formula(fixed, "(1 | g)", data, holes, missing="feature")
    found = {}
    for name, function in {
        "t_test": lambda: result.t_test(df="satterthwaite"),
        "table": lambda: result.t_test("a").top_table(n=m),
        "own rows": lambda: holed.fit(parameter_space="psd", n_jobs=jobs),
    }.items():
        start = time.perf_counter()
        function()
        found[name] = time.perf_counter() - start
    return found


STAGES: dict[str, Callable[[Sequence[str]], dict[str, float]]] = {
    "import": stage_import,
    "single": stage_single,
    "stream": stage_stream,
    "memory": stage_memory,
    "threads": stage_threads,
}


def staged(name: str, given: Sequence[object], tree: Path, **variables: str) -> dict[str, float]:
    """Run a stage in a process of its own, with the package of a checkout."""
    run = subprocess.run(
        [sys.executable, __file__, "--stage", name, *map(str, given)],
        env={**os.environ, "PYTHONPATH": str(tree), **variables},
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(run.stdout.splitlines()[-1]))


def lmer(repeats: int) -> dict[str, float]:
    """CPU milliseconds of ``lmer`` alone; empty without R or lme4."""
    if shutil.which("Rscript") is None:
        return {}
    call = ["Rscript", "--vanilla", "-e", LMER, str(SLEEP), str(repeats)]
    run = subprocess.run(call, capture_output=True, text=True, check=False)
    if run.returncode:
        return {}
    slopes, intercepts = map(float, run.stdout.split()[-2:])
    return {"(Days | Subject)": slopes, "(1 | Subject)": intercepts}


def write_cells(path: Path, n: int, m: int) -> None:
    """An uncompressed .h5ad as `tests.benchmarks.data` writes it, but with an age of each cell."""
    from tests.benchmarks import data  # noqa: PLC0415

    def cells(n: int, rng: Any) -> Any:
        return made(n, rng).assign(age=rng.normal(50.0, 10.0, n))

    made, data.cells = data.cells, cells
    try:
        data.write_h5ad(path, n, m)
    finally:
        data.cells = made


def middle(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians of what several runs measured."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def while_busy(function: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What a function measures while every core has something else to do."""
    load = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        return function()
    finally:
        for process in load:
            process.kill()
            process.wait()


def measure(size: str, trees: dict[str, Path], rounds: int, folder: Path) -> dict[str, Any]:
    """All measurements of some checkouts, in turns."""
    choice = SIZES[size]
    file, matrix = folder / "cells.h5ad", folder / "memory.h5ad"
    write_cells(file, *choice["file"])
    write_cells(matrix, *choice["memory"])
    repeats, (m, own) = choice["repeats"], choice["features"]
    runs: dict[str, dict[str, list[dict[str, float]]]] = {tree: {} for tree in trees}
    peer = []
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    for tree in trees.values():
        staged("import", (), tree, **kept)  # writes the bytecode
    for _ in range(rounds):
        peer.append(lmer(repeats))
        for name, tree in trees.items():

            def note(what: str, stage: str, *given: object, **variables: str) -> None:
                found = staged(stage, given, tree, **variables)  # noqa: B023
                runs[name].setdefault(what, []).append(found)  # noqa: B023

            note("import", "import", **kept)
            note("single", "single", SLEEP, repeats)
            note("stream", "stream", file)
            note("memory", "memory", matrix)

            def busy(tree: Path = tree, name: str = name) -> dict[str, float]:
                one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
                alone = staged("threads", (m, own, 1), tree, **one)
                both = staged("threads", (m, own, 2), tree)
                return {what: both[what] / alone[what] for what in alone}

            runs[name].setdefault("threads", []).append(while_busy(busy))
    measured: dict[str, Any] = {
        name: {what: middle(found) for what, found in each.items()} for name, each in runs.items()
    }
    if peer[0]:
        measured["lmer"] = {"single": middle(peer)}
    return measured


def escaped(name: str) -> str:
    """A name in a cell of a table."""
    return name.replace("|", "\\|")


def table(measured: dict[str, Any]) -> str:
    """What was measured, a line each, this tree over the earlier one where there is one."""
    now, before = measured["now"], measured.get("before")
    lines = ["| | now | before | now / before |", "|---|---|---|---|"]
    for what, found in now.items():
        for name, value in found.items():
            old = None if before is None else before[what][name]
            ratio = "" if old is None else f"{value / old:.2f}"
            shown = "" if old is None else f"{old:.3g}"
            lines.append(f"| {what}: {escaped(name)} | {value:.3g} | {shown} | {ratio} |")
        if what == "stream":
            over = [found["statistics"] / found["read"]]
            over += [] if before is None else [before[what]["statistics"] / before[what]["read"]]
            cells = [f"{x:.2f}" for x in over] + [""] * (3 - len(over))
            lines.append(f"| stream: statistics over reading | {' | '.join(cells)} |")
    for name, value in measured.get("lmer", {}).get("single", {}).items():
        lines.append(f"| lmer alone: {escaped(name)} | {value:.3g} | | |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.waiting", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--before", type=Path, help="an earlier checkout, measured in turns")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        print(json.dumps(STAGES[options.stage[0]](options.stage[1:])))
        return 0
    trees = {"now": ROOT} | ({} if options.before is None else {"before": options.before.resolve()})
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options.size, trees, options.rounds, Path(folder))
    if options.out is not None:
        options.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
