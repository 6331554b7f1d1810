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


def pytest_addoption(parser: pytest.Parser) -> None:
    """An option for a quick run that still enters every test."""
    parser.addoption(
        "--cases",
        type=int,
        metavar="N",
        help="of each parametrised test, run at most N cases, spread evenly",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what `--cases` leaves out, and tests marked live_r without R or lme4."""
    if (count := config.getoption("--cases")) is not None:
        _keep(config, items, _spread(items, count))
    live = {item for item in items if item.get_closest_marker("live_r")}
    if live and not _r_has_lme4():
        _keep(config, items, set(items) - live)


def _keep(config: pytest.Config, items: list[pytest.Item], kept: set[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def _spread(items: list[pytest.Item], count: int) -> set[pytest.Item]:
    """At most ``count`` cases of each test, first and last among them."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept: set[pytest.Item] = set()
    for cases in tests.values():
        few = min(count, len(cases))
        kept.update(cases[round(i * (len(cases) - 1) / max(few - 1, 1))] for i in range(few))
    return kept
