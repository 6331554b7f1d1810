"""``python -m tests.stress --designs N --seed S [--jobs J]``: print the report as Markdown."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest finds the module problems

from .report import ALLOWED, report  # noqa: E402
from .run import Tally, run_design  # noqa: E402


def main() -> int:
    """Run, print, and return 1 where something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--designs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="index of the first design")
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    indices = range(arguments.first, arguments.first + arguments.designs)
    total, one = Tally(), partial(run_design, arguments.seed)
    if arguments.jobs == 1:
        for index in indices:
            total.add(one(index))
    else:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            for tally in pool.map(one, indices, chunksize=4):
                total.add(tally)
    print(report(total, arguments.designs))
    return int(any(v.what not in ALLOWED for v in total.violations))


if __name__ == "__main__":
    sys.exit(main())
