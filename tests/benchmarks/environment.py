"""Where a benchmark ran: hardware, versions, threads, memory."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["environment", "memory_now", "memory_peak", "reset_memory_peak", "threads"]

PACKAGES = (
    "multilmm",
    "numpy",
    "scipy",
    "pandas",
    "xarray",
    "formulaic",
    "statsmodels",
    "lme-python",
    "FLASH-MM",
)
R_PACKAGES = ("lme4", "Matrix", "lmerTest", "pbkrtest", "emmeans", "FLASHMM")
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_CORETYPE")


def environment() -> dict[str, Any]:
    """Everything about this machine and its software that bears on a timing."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _total_memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "blas": blas(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "r": _r_versions(),
    }


def _commit() -> str | None:
    """The commit that is checked out; None without git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def blas() -> list[dict[str, Any]]:
    """BLAS libraries in this process with version, kernel and threads, if threadpoolctl tells."""
    try:
        import threadpoolctl  # noqa: PLC0415  (optional)
    except ImportError:
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return [{"library": found["name"], "version": found["version"]}]
    return [
        {
            "library": pool["internal_api"],
            "version": pool.get("version"),
            "kernel": pool.get("architecture"),
            "threads": pool["num_threads"],
        }
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]


def threads() -> int | None:
    """Threads that BLAS may use here; None when nothing tells."""
    counts = [pool["threads"] for pool in blas() if "threads" in pool]
    return max(counts) if counts else None


def memory_now() -> int:
    """Resident memory of this process, bytes."""
    return _status("VmRSS") or memory_peak()


def memory_peak() -> int:
    """Largest resident memory since the start or `reset_memory_peak`, bytes."""
    peak = _status("VmHWM")
    if peak is None:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return peak


def reset_memory_peak() -> None:
    """Start afresh, where the system can (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def _status(field: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    family = re.search(r"^cpu family\s*:\s*(.*)$", text, re.MULTILINE)
    model = re.search(r"^model\s*:\s*(.*)$", text, re.MULTILINE)
    if found is None:
        return platform.processor() or platform.machine()
    detail = f" (family {family[1]}, model {model[1]})" if family and model else ""
    return found[1] + detail


def _total_memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _r_versions() -> dict[str, str] | None:
    """R, its BLAS and the packages that peers need; None without R."""
    if shutil.which("Rscript") is None:
        return None
    names = ", ".join(f"'{name}'" for name in R_PACKAGES)
    code = f"""
      cat("R\\t", as.character(getRversion()), "\\n", sep = "")
      cat("BLAS\\t", basename(dirname(extSoftVersion()[["BLAS"]])), "\\n", sep = "")
      for (p in c({names}))
        if (requireNamespace(p, quietly = TRUE))
          cat(p, "\\t", as.character(packageVersion(p)), "\\n", sep = "")
    """
    done = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], capture_output=True, text=True, check=False
    )
    return dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
