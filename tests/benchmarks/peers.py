"""The peers: whether they are installed, how they are run, what they answer.

Each runs in a process of its own, reads the files of `exchange`, times itself (start-up and
reading left out) and writes one row per feature: seconds, loglik, theta.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .cases import Space
from .exchange import read_timing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["PEERS", "Peer", "PeerError", "PeerRun", "run_peer"]

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "r"


class PeerError(Exception):
    """A peer that is installed but failed."""


@dataclass(frozen=True)
class Peer:
    """A program that fits the same models.

    Parameters
    ----------
    name
        As tables print it.
    how
        What is timed.
    space
        Its parameter space, as ours is called.
    script
        R script, or empty for a Python peer.
    module
        Module that a Python peer imports.
    package
        What must be installed, and what ``--peers`` chooses by; the name by default.
    """

    name: str
    how: str
    space: Space
    script: str = ""
    module: str = ""
    package: str = ""

    def missing(self, flashmm_r: str | None) -> str | None:
        """Why it cannot run here; None if it can."""
        if self.module:
            found = importlib.util.find_spec(self.module) is not None
            return None if found else "not installed"
        if shutil.which("Rscript") is None:
            return "R is not installed"
        if self.installed_as == "FLASHMM" and flashmm_r is not None:
            return None
        return None if _r_has(self.installed_as) else "not installed"

    @property
    def installed_as(self) -> str:
        """Name of the package."""
        return self.package or self.name


@dataclass(frozen=True)
class PeerRun:
    """One run of a peer.

    Parameters
    ----------
    seconds
        Time of each feature, shape (k,).
    setup_seconds
        Time of what is done once for all features.
    loglik
        Shape (k,).
    theta
        Variance parameters in our order, shape (k, params).
    converged
        By the peer's own account, shape (k,).
    df
        Degrees of freedom of the contrasts, shape (k, contrasts), from peers of tests.
    """

    seconds: FloatArray
    setup_seconds: float
    loglik: FloatArray
    theta: FloatArray
    converged: NDArray[np.bool_]
    df: FloatArray | None = None


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("FLASHMM", "lmm on the same statistics", "unconstrained", script="flashmm.R"),
        Peer("FLASH-MM", "lmm on the same statistics", "unconstrained", module="flash_mm"),
        Peer(
            "FLASHMM from counts",
            "sslmm on the counts of all features, then lmm",
            "unconstrained",
            script="flashmm_counts.R",
            package="FLASHMM",
        ),
        Peer("lme4", "refit of one lmer, without derivative checks", "psd", script="lme4.R"),
        Peer("lme-python", "prepare_lmer once, then fit(y=...)", "psd", module="lme_python"),
        Peer("statsmodels", "MixedLM(...).fit(reml=True)", "psd", module="statsmodels"),
        Peer("lmerTest", "as_lmerModLmerTest and contest1D", "psd", script="lmertest.R"),
        Peer("emmeans", 'summary(adjust = "mvt") of an emmobj', "psd", script="emmeans.R"),
        Peer("pbkrtest", "vcovAdj and Lb_ddf", "psd", script="pbkrtest.R"),
        Peer(
            "lme-python, Satterthwaite",
            "with_satterthwaite",
            "psd",
            module="lme_python",
            package="lme-python",
        ),
    )
}


@cache
def _r_has(package: str) -> bool:
    check = f"quit(status = !requireNamespace('{package}', quietly = TRUE))"
    done = subprocess.run(["Rscript", "--vanilla", "-e", check], capture_output=True, check=False)
    return done.returncode == 0


def run_peer(
    peer: Peer, folder: Path, features: int, *, threads: int, flashmm_r: str | None
) -> PeerRun:
    """Run a peer on the first ``features`` features in ``folder``.

    Raises
    ------
    PeerError
        With the end of its messages, if it fails.
    """
    out = folder / f"{''.join(filter(str.isalnum, peer.name))}.csv"
    if peer.script:
        command = ["Rscript", "--vanilla", str(SCRIPTS / peer.script)]
    else:
        command = [sys.executable, "-m", "tests.benchmarks.python_peers", peer.name]
    command += [str(folder), str(features), str(out)]
    if peer.installed_as == "FLASHMM" and flashmm_r is not None:
        command.append(str(Path(flashmm_r).resolve()))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    variables = dict(os.environ) | dict.fromkeys(names, str(threads))
    if peer.script:
        variables["FLASHMM_BENCHMARK_SCRIPTS"] = str(SCRIPTS)
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PeerError("\n".join(done.stderr.strip().splitlines()[-5:]))
    table = read_timing(out)
    return _parsed(table)


def _parsed(table: dict[str, FloatArray]) -> PeerRun:
    theta = [values for name, values in table.items() if name.startswith("theta")]
    df = [values for name, values in table.items() if name.startswith("df")]
    return PeerRun(
        seconds=table["seconds"],
        setup_seconds=float(table["setup"][0]),
        loglik=table["loglik"],
        theta=np.column_stack(theta),
        converged=table["converged"] > 0,
        df=np.column_stack(df) if df else None,
    )
