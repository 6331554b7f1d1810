"""``python -m tests.benchmarks.data``: from cells to statistics, in memory and from files.

Four measurements, each in a process of its own:

* ``memory``: CSR cells x genes in memory, 259 donors, cell type, cell type x treatment and log
  library size (p = 62): nanoseconds per stored element for all statistics, with the time of
  scipy's X'Y for 50 dense columns beside it;
* ``file``: an .h5ad from disk to a fitted, tested table, with FLASHMM's lmm on the same
  statistics for some genes where R has it;
* ``beside``: the same at a tenth of the cells, beside FLASHMM's own sums over all genes and its
  lmm for some of them;
* ``peak``: peak memory of the process from an .h5ad to statistics at growing numbers of cells,
  and what the metadata and the design of a cell take.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm import MultiLMM
from flashmm.exceptions import ConvergenceWarning
from flashmm.formulas.build import build_design
from flashmm.results import MultiLMMResults
from flashmm.sources import make_source
from flashmm.sources.anndata_kinds import open_anndata
from flashmm.stats.summary_stats import SummaryStats

from .compare import agreement
from .designs import Data, Term
from .environment import environment, memory_now, memory_peak, reset_memory_peak
from .exchange import write_counts, write_for_peers
from .peers import PEERS, ROOT, PeerError, run_peer

FIXED = "~ 0 + log(libsize) + age + cls + cls:trt"
RANDOM = "~ 0 + donor"
DONORS, TYPES, DENSITY = 259, 30, 0.08
STEP = 4000

# (genes, cells) in memory; (genes, cells) of the file; (genes, cells, genes that FLASHMM fits)
# beside it; genes and the cells of the peaks.
SIZES: dict[str, dict[str, Any]] = {
    "quick": {
        "memory": [(100, 2000)],
        "file": (40, 3000),
        "beside": (40, 2000, 4),
        "peak": (50, [2000, 8000]),
    },
    "medium": {
        "memory": [(2000, 100_000), (20_000, 10_000)],
        "file": (11_596, 49_997),
        "beside": (2000, 20_000, 50),
        "peak": (500, [100_000, 500_000]),
    },
    "full": {
        "memory": [(2000, 200_000), (20_000, 25_000)],
        "file": (11_596, 499_973),
        "beside": (11_596, 49_997, 1000),
        "peak": (500, [100_000, 500_000, 2_000_000]),
    },
}
PEER_GENES = 20


def cells(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Metadata of n cells; donors in any order, half of them treated."""
    donor, cls = rng.integers(0, DONORS, n), rng.integers(0, TYPES, n)
    return pd.DataFrame(
        {
            "donor": pd.Categorical.from_codes(donor, [f"d{i:03d}" for i in range(DONORS)]),
            "cls": pd.Categorical.from_codes(cls, [f"c{i:02d}" for i in range(TYPES)]),
            "trt": pd.Categorical.from_codes(donor % 2, ["A", "B"]),
            "age": rng.normal(50.0, 10.0, DONORS)[donor],
            "libsize": rng.gamma(4.0, 500.0, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )


def counts(n: int, m: int, rng: np.random.Generator) -> Iterator[sp.csr_matrix]:
    """Synthetic counts, cells x genes, a few thousand cells at a time."""
    share = rng.beta(0.6, 6.9, m).astype(np.float32)
    share *= DENSITY / share.mean()
    for start in range(0, n, STEP):
        present = rng.random((min(STEP, n - start), m), dtype=np.float32) < share
        pattern = sp.csr_matrix(present)
        values = 1 + rng.standard_exponential(pattern.nnz, dtype=np.float32) * 1.2
        yield sp.csr_matrix(
            (np.floor(values), pattern.indices, pattern.indptr), shape=pattern.shape
        )


def write_h5ad(path: Path, n: int, m: int) -> int:
    """Write cells and counts as AnnData does, without holding them; the number of elements."""
    import h5py  # noqa: PLC0415  (optional)
    from anndata.io import write_elem  # noqa: PLC0415

    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", cells(n, rng))
        write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(m)]))
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = np.array([n, m])
        data, indices = (
            group.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(2**18,))
            for name, dtype in (("data", "f4"), ("indices", "i4"))
        )
        ends = [np.zeros(1, dtype=np.int64)]
        for part in counts(n, m, rng):
            start = int(ends[-1][-1])
            for dataset, values in ((data, part.data), (indices, part.indices)):
                dataset.resize((start + part.nnz,))
                dataset[start:] = values
            ends.append(start + part.indptr[1:].astype(np.int64))
        group.create_dataset("indptr", data=np.concatenate(ends))
        return int(ends[-1][-1])


def best(function: Callable[[], Any], repeats: int = 5) -> float:
    """Shortest of a few runs, seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def in_memory(m: int, n: int) -> dict[str, Any]:
    """Time per stored element of all statistics of a CSR matrix in memory."""
    rng = np.random.default_rng(1)
    data = cells(n, rng)
    Y = sp.vstack(list(counts(n, m, rng)), format="csr")
    design = build_design(FIXED, RANDOM, data).design
    dense = rng.normal(size=(n, 50))

    def statistics(transform: str | None) -> SummaryStats:
        source = make_source(Y, transform=transform, rows="samples", n=n)
        return SummaryStats.from_design(source, design)

    per_element = 1e9 / Y.nnz
    return {
        "genes": m,
        "cells": n,
        "elements": Y.nnz,
        "p": design.X.shape[1],
        "nanoseconds": best(lambda: statistics(None)) * per_element,
        "nanoseconds_log2p1": best(lambda: statistics("log2p1")) * per_element,
        "nanoseconds_scipy_50_columns": best(lambda: Y.T @ dense, 2) * per_element,
    }


def to_table(path: Path) -> tuple[dict[str, Any], MultiLMMResults]:
    """From an .h5ad to a tested table: seconds of each part and peak memory."""
    reset_memory_peak()
    start = time.perf_counter()
    model = MultiLMM.from_anndata(path, FIXED, RANDOM, transform="log2p1")
    summed = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = model.fit()
    fitted = time.perf_counter()
    table = result.t_test(model.stats.coef_names[-1]).top_table(n=model.stats.m)
    stop = time.perf_counter()
    measured = {
        "cells": model.stats.n,
        "genes": model.stats.m,
        "p": model.stats.p,
        "seconds": stop - start,
        "seconds_statistics": summed - start,
        "seconds_fit": fitted - summed,
        "seconds_test": stop - fitted,
        "gigabytes": memory_peak() / 1e9,
        "tested": int(table["p"].notna().sum()),
    }
    return measured, result


def from_file(path: Path, source: str | None = None) -> dict[str, Any]:
    """`to_table`, and FLASHMM's lmm on the same statistics for the first genes."""
    measured, result = to_table(path)
    stats = result.stats
    genes = min(PEER_GENES, stats.m)
    donors = Term("donor", np.empty(0, int), stats.structure.terms[0].n_columns)
    data = Data(np.empty((0, stats.p)), (donors,), np.empty((0, 0)))
    with tempfile.TemporaryDirectory() as folder:
        write_for_peers(Path(folder), stats.take(slice(0, genes)), data, {"FLASHMM": genes})
        measured["flashmm_r"] = run_flashmm("FLASHMM", Path(folder), result, genes, source)
    return measured


def beside(path: Path, genes: int, source: str | None = None) -> dict[str, Any]:
    """`to_table`, and FLASHMM from the counts: sums of all genes, lmm for some."""
    measured, result = to_table(path)
    obs = open_anndata(path).obs
    X = build_design(FIXED, RANDOM, obs).design.X[:]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write_counts(Path(folder), path, X, obs["donor"].cat.codes.to_numpy())
        found = run_flashmm("FLASHMM from counts", Path(folder), result, genes, source)
    if "seconds_for_all" in found:
        found["ratio"] = found["seconds_for_all"] / measured["seconds"]
    return measured | {"flashmm_r": found}


def run_flashmm(
    name: str, folder: Path, result: MultiLMMResults, genes: int, source: str | None
) -> dict[str, Any]:
    """Time FLASHMM on what lies in a folder, and compare its fits with ours."""
    peer = PEERS[name]
    reason = peer.missing(source)
    if reason is not None:
        return {"missing": reason}
    try:
        run = run_peer(peer, folder, genes, threads=os.cpu_count() or 1, flashmm_r=source)
    except PeerError as error:
        return {"failed": str(error)}
    each = float(np.mean(run.seconds))
    ours = {key: result.ds[key].to_numpy() for key in ("theta", "se_theta", "loglik")}
    return {
        "genes": genes,
        "seconds_statistics": run.setup_seconds,
        "seconds_per_gene": each,
        "seconds_for_all": run.setup_seconds + each * result.stats.m,
        "agreement": agreement(ours, run),
    }


def peak(path: Path) -> dict[str, Any]:
    """Peak memory of the whole process, from an .h5ad to its statistics."""
    before = memory_now()
    reset_memory_peak()
    model = MultiLMM.from_anndata(path, FIXED, RANDOM, transform="log2p1")
    whole = memory_peak()
    obs = open_anndata(path).obs
    metadata = obs.memory_usage(deep=True).sum()
    tracemalloc.start()
    design = build_design(FIXED, RANDOM, obs).design
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "cells": model.stats.n,
        "genes": model.stats.m,
        "p": model.stats.p,
        "megabytes_before": before / 1e6,
        "megabytes": whole / 1e6,
        "metadata_bytes_per_cell": float(metadata) / design.n,
        "design_bytes_per_cell": held / design.n,
    }


STAGES: dict[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "memory": lambda given: in_memory(int(given[0]), int(given[1])),
    "file": lambda given: from_file(Path(given[0]), *given[1:]),
    "beside": lambda given: beside(Path(given[0]), int(given[1]), *given[2:]),
    "peak": lambda given: peak(Path(given[0])),
}


def staged(stage: str, *given: object) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.data", "--stage", stage, *map(str, given)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all, print JSON, write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.data", description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), default="quick")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--folder", type=Path, help="where files go while they are read")
    parser.add_argument(
        "--flashmm-r",
        metavar="FOLDER",
        help="source of the R package FLASHMM; without it the installed package is used",
    )
    parser.add_argument("--stage", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        print(json.dumps(STAGES[options.stage[0]](options.stage[1:])))
        return 0
    size = SIZES[options.size]
    measured: dict[str, Any] = {"environment": environment(), "size": options.size}
    measured["memory"] = [staged("memory", m, n) for m, n in size["memory"]]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "cells.h5ad"
        m, n = size["file"]
        elements = write_h5ad(path, n, m)
        source = [] if options.flashmm_r is None else [options.flashmm_r]
        measured["file"] = staged("file", path, *source) | {
            "elements": elements,
            "file_gigabytes": path.stat().st_size / 1e9,
        }
        m, n, fitted = size["beside"]
        write_h5ad(path, n, m)
        measured["beside"] = staged("beside", path, fitted, *source)
        m, numbers = size["peak"]
        measured["peak"] = []
        for n in numbers:
            write_h5ad(path, n, m)
            measured["peak"].append(staged("peak", path))
    text = json.dumps(measured, indent=1) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
