"""Measurements as Markdown; the page in docs prints its tables with these functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "data_tables",
    "environment_table",
    "growth_table",
    "markdown",
    "peer_table",
    "provenance",
    "slopes_table",
    "target_table",
]


def target_table(measured: Mapping[str, Any]) -> str:
    """One row per case: size, our time, and every target beside what was measured."""
    rows = [
        [
            "case",
            "features",
            "engine",
            "all features",
            "per feature",
            "iterations (median, max)",
            "cores busy",
            "peak memory",
            "target",
            "measured",
            "met",
        ]
    ]
    for case in measured["cases"]:
        main = case["spaces"][case["space"]]
        iterations = main["iterations"]
        targets = case["targets"]
        rows.append(
            [
                case["title"],
                f"{case['m']:,}",
                main["engine"],
                duration(case["seconds"]),
                duration(case["seconds_per_feature"]),
                f"{iterations['median']:.0f}, {iterations['maximum']}",
                f"{main['processor_seconds'] / main['seconds']:.1f}",
                f"{case['memory_peak'] / 1e9:.2f} GB",
                "<br>".join(_target(t) for t in targets),
                "<br>".join(_value(t) for t in targets),
                "<br>".join({True: "yes", False: "no", None: "–"}[t["met"]] for t in targets),
            ]
        )
    return markdown(rows)


def peer_table(measured: Mapping[str, Any]) -> str:
    """One row per case and peer: its time, ours in the same space, and whether they agree."""
    rows = [
        [
            "case",
            "peer",
            "features it fitted",
            "its time per feature",
            "ours",
            "ratio",
            "same optimum",
            "largest difference of log-likelihoods",
        ]
    ]
    for case in measured["cases"]:
        for name, peer in case["peers"].items():
            if "agreement" not in peer:
                reason = peer.get("missing", "failed")
                rows.append([case["title"], name, "–", reason, "–", "–", "–", "–"])
                continue
            found = peer["agreement"]
            same = f"{found['same']} of {found['features']}"
            if found["peer_lower"]:
                same += f" ({found['peer_lower']} left lower by the peer)"
            difference = found["loglik_difference"]
            ours = case["spaces"][peer["space"]]["seconds"] / case["m"]
            rows.append(
                [
                    case["title"],
                    name,
                    str(peer["features"]),
                    duration(peer["seconds_per_feature"]),
                    duration(ours),
                    number(peer["ratio"]) if found["agrees"] else "answers differ",
                    same,
                    "–" if difference is None else f"{difference:.0e}",
                ]
            )
    return markdown(rows)


def environment_table(measured: Mapping[str, Any]) -> str:
    """Machine, versions and date."""
    where = measured["environment"]
    rows = [["what", "value"]]
    rows.append(["date", where["date"]])
    if where.get("commit"):
        rows.append(["commit of flashmm", where["commit"]])
    rows.append(["processor", f"{where['processor']}, {where['cores']} cores"])
    rows.append(["memory", f"{where['memory_gib']} GiB"])
    rows.append(["Python", where["python"]])
    for pool in where["blas"]:
        details = [str(pool[key]) for key in ("version", "kernel") if pool.get(key)]
        rows.append(["BLAS in Python", ", ".join([pool["library"], *details])])
    rows += [[name, version] for name, version in where["packages"].items() if version]
    for name, version in (where["r"] or {}).items():
        rows.append([name if name == "R" else f"{name} in R", version])
    return markdown(rows)


def provenance(measured: Mapping[str, Any]) -> str:
    """When and where it was measured, in a sentence."""
    where = measured["environment"]
    rounds = measured.get("rounds")
    words = "" if rounds is None else f", {rounds} round{'s' if rounds > 1 else ''}"
    sentence = (
        f"Measured on {where['date']} at size *{measured['size']}*{words}, on {where['cores']} "
        f"cores of {where['processor']}, {where['memory_gib']} GiB of memory."
    )
    return f"{sentence} {measured.get('note', '')}".strip()


def growth_table(measured: Mapping[str, Any]) -> str:
    """One row per point of the growth curves."""
    rows = [["varied", "structure", "m", "n", "p", "q", "engine", "time", "memory"]]
    rows += [
        [
            f"{point['axis']} = {point[point['axis']]:,}",
            point["structure"],
            *(f"{point[name]:,}" for name in ("m", "n", "p", "q")),
            point["engine"],
            duration(point["seconds"]),
            f"{point['memory'] / 1e6:.0f} MB",
        ]
        for point in measured["points"]
    ]
    return markdown(rows)


def slopes_table(measured: Mapping[str, Any]) -> str:
    """Slope of log time against the log of what is varied: all points, and the last two."""
    points = measured["points"]
    axes = list(dict.fromkeys(point["axis"] for point in points))
    structures = list(dict.fromkeys(point["structure"] for point in points))
    rows = [["structure", *axes]]
    for structure in structures:
        rows.append([structure])
        for axis in axes:
            here = [p for p in points if (p["axis"], p["structure"]) == (axis, structure)]
            rows[-1].append(_slopes([p[axis] for p in here], [p["seconds"] for p in here]))
    return markdown(rows)


def _slopes(values: Sequence[float], seconds: Sequence[float]) -> str:
    if len(values) < 2:
        return "–"
    x, y = np.log(values), np.log(seconds)
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return f"{np.polyfit(x, y, 1)[0]:z.2f} ({last:z.2f})"


def data_tables(measured: Mapping[str, Any]) -> str:
    """What ``python -m tests.benchmarks.data`` measured, each target in the heading."""
    memory = [["genes", "cells", "stored elements", "sums", "with log2(1 + y)", "scipy"]]
    memory += [
        [
            *(f"{row[name]:,}" for name in ("genes", "cells", "elements")),
            *(
                f"{row[name]:.1f} ns"
                for name in ("nanoseconds", "nanoseconds_log2p1", "nanoseconds_scipy_50_columns")
            ),
        ]
        for row in measured["memory"]
    ]
    file = measured["file"]
    peer = file["flashmm_r"].get("seconds_for_all")
    whole = [["cells", "genes", "in all", "sums", "fit", "tests", "peak memory", "FLASHMM's lmm"]]
    whole.append(
        [
            f"{file['cells']:,}",
            f"{file['genes']:,}",
            *(
                duration(file[name])
                for name in ("seconds", "seconds_statistics", "seconds_fit", "seconds_test")
            ),
            f"{file['gigabytes']:.2f} GB",
            "not installed" if peer is None else duration(peer),
        ]
    )
    beside = [
        ["cells", "genes", "ours in all", "FLASHMM's sums", "its lmm per gene", "genes fitted"]
    ]
    beside[0] += ["its time in all", "ratio", "same optimum"]
    if "beside" in measured:
        beside.append(_beside_flashmm(measured["beside"]))
    peaks = [["cells", "genes", "p", "peak memory", "metadata per cell", "design per cell"]]
    peaks[0].append("peak memory more, per cell more")
    above: Mapping[str, Any] | None = None
    for row in measured["peak"]:
        more = "–"
        if above is not None:
            cells = row["cells"] - above["cells"]
            more = f"{1e6 * (row['megabytes'] - above['megabytes']) / cells:.0f} bytes"
        peaks.append(
            [
                *(f"{row[name]:,}" for name in ("cells", "genes", "p")),
                f"{row['megabytes']:.0f} MB",
                *(f"{row[f'{name}_bytes_per_cell']:.0f} bytes" for name in ("metadata", "design")),
                more,
            ]
        )
        above = row
    return "\n\n".join(markdown(rows) for rows in (memory, whole, beside, peaks) if rows[1:])


def _beside_flashmm(row: Mapping[str, Any]) -> list[str]:
    cells = [f"{row['cells']:,}", f"{row['genes']:,}", duration(row["seconds"])]
    peer = row["flashmm_r"]
    if "agreement" not in peer:
        return [*cells, peer.get("missing", "failed"), *["–"] * 5]
    found = peer["agreement"]
    times = (duration(peer[f"seconds_{part}"]) for part in ("statistics", "per_gene"))
    return [
        *(*cells, *times, f"{peer['genes']:,}", duration(peer["seconds_for_all"])),
        number(peer["ratio"]) if found["agrees"] else "answers differ",
        f"{found['same']} of {found['features']}",
    ]


def duration(seconds: float) -> str:
    """A time with three digits in the unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1.0:
            return f"{number(seconds * factor)} {unit}"
    return f"{number(seconds * 1e6)} µs"


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if value >= 1000:
        digits = len(str(int(value))) - 3
        return f"{int(round(value, -digits)):,}"
    return f"{value:.3g}"


def _target(target: Mapping[str, Any]) -> str:
    bound = number(target["bound"])
    return {
        "ratio": f"{bound} times faster than {target['peer']}",
        "within": f"within {bound} times {target['peer']}'s time",
        "loglik": f"log-likelihood within {target['bound']:.0e} of {target['peer']}'s",
        "seconds": f"{bound} s",
        "gigabytes": f"{bound} GB",
    }[target["kind"]]


def _value(target: Mapping[str, Any]) -> str:
    if target["value"] is None:
        return "not measured"
    unit = {"seconds": " s", "gigabytes": " GB"}.get(target["kind"], "")
    if target["kind"] == "loglik":
        return f"{target['value']:.0e}"
    return number(target["value"]) + unit


def markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
