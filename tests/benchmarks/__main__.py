"""``python -m tests.benchmarks``: measure, print a table, write JSON.

``python -m tests.benchmarks growth`` measures how time and memory grow instead, ``own-rows``
features with missing values, weights and covariates of their own, ``groups`` what sums by group
give, ``known`` known covariances between levels, ``structured`` structures of a level's effects,
``residual-by`` residual variances by group.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import CASES, LEVELS
from .environment import environment
from .groups import groups_table, measure_groups
from .growth import measure_growth
from .known import known_table, measure_known
from .own_rows import measure_own_rows, own_rows_table
from .peers import PEERS
from .report import environment_table, growth_table, peer_table, slopes_table, target_table
from .residual_by import measure_residual_by, residual_by_table
from .run import run_case
from .structured import measure_structured, structured_table

PACKAGES = list(dict.fromkeys(peer.installed_as for peer in PEERS.values()))
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
    parser.add_argument(
        "what",
        nargs="?",
        choices=("cases", "growth", "own-rows", "groups", "known", "structured", "residual-by"),
        default="cases",
        help="cases by default",
    )
    parser.add_argument("--size", choices=LEVELS, default="quick")
    parser.add_argument(
        "--cases",
        type=lambda text: _names(text, list(CASES), "case"),
        default=list(CASES),
        help=f"comma-separated: {', '.join(CASES)}",
    )
    parser.add_argument(
        "--peers",
        type=lambda text: _names(text, PACKAGES, "peer"),
        default=PACKAGES,
        help=f"comma-separated, or none: {', '.join(PACKAGES)}",
    )
    parser.add_argument("--rounds", type=int, help="repeats of everything, peers included")
    parser.add_argument("--note", default="", help="a sentence to print beside the results")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument(
        "--flashmm-r",
        metavar="FOLDER",
        help="source of the R package FLASHMM; without it the installed package is used",
    )
    return parser


def _write(measured: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.write_text(json.dumps(measured, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for."""
    options = _parser().parse_args(arguments)
    rounds = options.rounds or ROUNDS[options.size]
    measured: dict[str, Any] = {"environment": environment(), "size": options.size}
    measured["note"] = options.note
    if options.what == "growth":
        measured["points"] = measure_growth(options.size)
        _write(measured, options.out)
        print(
            growth_table(measured), slopes_table(measured), environment_table(measured), sep="\n\n"
        )
        return 0
    if options.what == "own-rows":
        measured["own_rows"] = measure_own_rows(options.size)
        _write(measured, options.out)
        print(own_rows_table(measured), environment_table(measured), sep="\n\n")
        return 0
    if options.what == "groups":
        measured["groups"] = measure_groups(options.size)
        _write(measured, options.out)
        print(groups_table(measured), environment_table(measured), sep="\n\n")
        return 0
    if options.what == "known":
        measured["known"] = measure_known(options.size)
        _write(measured, options.out)
        print(known_table(measured), environment_table(measured), sep="\n\n")
        return 0
    if options.what == "structured":
        measured["structured"] = measure_structured(options.size)
        _write(measured, options.out)
        print(structured_table(measured), environment_table(measured), sep="\n\n")
        return 0
    if options.what == "residual-by":
        measured["residual_by"] = measure_residual_by(options.size)
        _write(measured, options.out)
        print(residual_by_table(measured), environment_table(measured), sep="\n\n")
        return 0
    measured |= {"rounds": rounds, "cases": []}
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
        _write(measured, options.out)
    print(target_table(measured), peer_table(measured), environment_table(measured), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
