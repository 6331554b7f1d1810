"""Tables of a tally, in Markdown."""

from __future__ import annotations

from collections import Counter

from flashmm.solvers.verdict_texts import Status

from .run import Tally

ALLOWED = (
    "score above epsilon, within rounding",
    "a maximum, but unbounded elsewhere",
    "no fit alone either, by another verdict",
)
"""Findings that are no violation: they are counted, and named, apart."""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def verdict_table(tally: Tally) -> str:
    """Counts of verdicts by kind of design, method and space."""
    found = {label for counts in tally.verdicts.values() for label in counts}
    labels = [status.label for status in Status if status.label in found]
    rows = [
        [kind, method, space, *(str(counts[label]) for label in labels)]
        for (kind, method, space), counts in sorted(tally.verdicts.items())
    ]
    total: Counter[str] = sum(tally.verdicts.values(), Counter())
    rows.append(["all", "", "", *(str(total[label]) for label in labels)])
    return _table(["design", "method", "space", *labels], rows)


def findings_table(tally: Tally) -> str:
    """Counts of what was found, by method and space."""
    counts = Counter((v.what, v.method, v.space) for v in tally.violations)
    rows = [[*key, str(count)] for key, count in sorted(counts.items())]
    return _table(["finding", "method", "space", "features"], rows) if rows else "None."


def violations_table(tally: Tally, limit: int = 60) -> str:
    """Each violation and how to replay it."""
    real = [v for v in tally.violations if v.what not in ALLOWED]
    rows = [
        [str(v.index), v.kind, v.method, v.space, v.feature, v.verdict, v.what, v.figure]
        for v in real[:limit]
    ]
    head = ["index", "design", "method", "space", "feature", "verdict", "what", "figure"]
    rest = f"\n\nand {len(real) - limit} more." if len(real) > limit else ""
    return _table(head, rows) + rest if rows else "None."


def report(tally: Tally, designs: int) -> str:
    """Everything."""
    real = sum(v.what not in ALLOWED for v in tally.violations)
    features = sum(sum(counts.values()) for counts in tally.verdicts.values())
    refused = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.refused.items()))
    checks = ", ".join(f"{count} {what}" for what, count in tally.checked.items())
    return "\n\n".join(
        [
            f"{designs} designs, {sum(tally.refused.values())} refused ({refused or 'none'}); "
            f"{features} fits of a feature; checked: {checks}. Violations: {real}.",
            verdict_table(tally),
            "Findings:",
            findings_table(tally),
            "Violations (replay one with `--first INDEX --designs 1` and the same seed):",
            violations_table(tally),
        ]
    )
