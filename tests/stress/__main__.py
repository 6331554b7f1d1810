"""``python -m tests.stress --designs N --seed S [--jobs J]``: print the report as Markdown."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest finds the module problems

from .report import ALLOWED, report
from .run import Tally, run_design


def main() -> int:
    """Run, print, and return 1 where something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--designs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="index of the first design")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="stop early, and report what was run by then")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    indices = range(arguments.first, arguments.first + arguments.designs)
    total, one, done = Tally(), partial(run_design, arguments.seed), 0
    end = time.monotonic() + 60.0 * (arguments.minutes or 1e9)
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for tally in pool.map(one, indices):
            total.add(tally)
            done += 1
            if time.monotonic() > end:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    text = report(total, done)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", "utf-8")
    return int(any(v.what not in ALLOWED for v in total.violations))


if __name__ == "__main__":
    sys.exit(main())
