"""Settings shared by all tests."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

# The same examples in every run and on every machine; no timing, so no deadline.
settings.register_profile(
    "flashmm",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("flashmm")


# Tests run in a process per core (pytest-xdist): BLAS takes no second one in each.
if "PYTEST_XDIST_WORKER" in os.environ:
    threadpool_limits(1)


def _r_has_lme4() -> bool:
    rscript = shutil.which("Rscript")
    if rscript is None:
        return False
    check = "quit(status = !requireNamespace('lme4', quietly = TRUE))"
    done = subprocess.run([rscript, "--vanilla", "-e", check], capture_output=True, check=False)
    return done.returncode == 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests marked live_r where R or lme4 is not installed."""
    live = [item for item in items if item.get_closest_marker("live_r")]
    if live and not _r_has_lme4():
        items[:] = [item for item in items if item not in live]
        config.hook.pytest_deselected(items=live)
