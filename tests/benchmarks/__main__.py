"""``python -m tests.benchmarks``: measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .cases import CASES, LEVELS
from .environment import environment
from .peers import PEERS
from .report import environment_table, peer_table, target_table
from .run import run_case

ROUNDS = {"quick": 1, "medium": 2, "full": 3}


def _names(text: str, known: Sequence[str], what: str) -> list[str]:
    chosen = [name for name in text.split(",") if name]
    if chosen in (["all"], ["none"]):
        return list(known) if chosen == ["all"] else []
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown {what} {', '.join(unknown)}; there are {', '.join(known)}"
        )
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--size", choices=LEVELS, default="quick")
    parser.add_argument(
        "--cases",
        type=lambda text: _names(text, list(CASES), "case"),
        default=list(CASES),
        help=f"comma-separated: {', '.join(CASES)}",
    )
    parser.add_argument(
        "--peers",
        type=lambda text: _names(text, list(PEERS), "peer"),
        default=list(PEERS),
        help=f"comma-separated, or none: {', '.join(PEERS)}",
    )
    parser.add_argument("--rounds", type=int, help="repeats of everything, peers included")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--flashmm-r",
        metavar="FOLDER",
        help="source of the R package FLASHMM; without it the installed package is used",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    options = _parser().parse_args(arguments)
    rounds = options.rounds or ROUNDS[options.size]
    measured = {"environment": environment(), "size": options.size, "rounds": rounds, "cases": []}
    if options.flashmm_r is not None and measured["environment"]["r"] is not None:
        description = (Path(options.flashmm_r) / "DESCRIPTION").read_text("utf-8")
        version = next(x for x in description.splitlines() if x.startswith("Version:"))
        measured["environment"]["r"]["FLASHMM"] = version.split()[1]
    for name in options.cases:
        print(f"{name} ...", file=sys.stderr, flush=True)
        case = run_case(
            CASES[name],
            options.size,
            peers=options.peers,
            rounds=rounds,
            flashmm_r=options.flashmm_r,
        )
        measured["cases"].append(case)
        if options.out is not None:
            options.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(target_table(measured), peer_table(measured), environment_table(measured), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
