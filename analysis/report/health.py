"""The table of what is wrong with finished runs: a row for each kind, with its worst run."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.report import tables, words
from analysis.values import Analysis, HealthFinding

NAMED = 5
"""Runs that are named for each kind; health.csv has all. Assumption."""


def table(analysis: Analysis) -> tables.Table | None:
    kinds: dict[str, list[HealthFinding]] = {}
    for finding in analysis.health:
        kinds.setdefault(finding.kind, []).append(finding)
    headings = ("|what", "runs", "|the worst", "|which", "|in the fits", "|threshold from")
    note = (
        "What makes a run's loss worse than its size and data would give, as far as the table and the runs' "
        "own logs tell. health.csv beside this report has each finding with its value and threshold."
    )
    return tables.table("Health of the runs", headings, (_row(*item) for item in kinds.items()), note)


def _row(kind: str, findings: Sequence[HealthFinding]) -> tuple[str, ...]:
    worst = max(findings, key=_distance)
    runs = list(dict.fromkeys(finding.run_id for finding in findings))
    more = f", and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    out = len({finding.run_id for finding in findings if finding.excluded})
    fits = "left out" if out == len(runs) else f"{out} left out" if out else "kept"
    sources = words.listing(list(dict.fromkeys(finding.source for finding in findings)))
    return (
        kind,
        str(len(runs)),
        f"{worst.run_id}: {worst.says}",
        ", ".join(runs[:NAMED]) + more,
        fits,
        sources,
    )


def _distance(finding: HealthFinding) -> float:
    """How far beyond the threshold, whichever side is the sick one."""
    ratio = max(abs(finding.value), 1e-12) / finding.threshold
    return max(ratio, 1 / ratio)
