"""What the user reads in the terminal: the plan with its cost, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from models.count import count_parameters
from sweep.plan.cost import Cost
from sweep.plan.spec import PlannedRun

PLAIN_WIDTH = 132  # assumption: a log file or pipe has no width; the widest table fits in this
MOST_ROWS = 60  # assumption: more are not read in a terminal; runs.csv and plan.json have all


def console() -> Console:
    """A console on stdout that is as wide as the terminal, or wide enough when there is none."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def plan_table(runs: Sequence[PlannedRun], costs: Mapping[str, Cost], done: frozenset[str]) -> Table:
    """One row for each run: N (non-embedding), D, C, batch, rate, steps, and what it costs here."""
    table = Table(title="plan", title_justify="left", caption_justify="left", box=None, header_style="bold")
    for name in ("group", "N non-emb.", "D tokens", "D/N", "C FLOPs", "batch", "rate", "steps", "seconds", "memory", ""):
        table.add_column(name, justify="left" if name in ("group", "") else "right", no_wrap=True)
    for planned in runs[:MOST_ROWS]:
        spec, params = planned.spec, count_parameters(planned.spec.shape).non_embedding
        cost = costs.get(planned.run_id)
        state = "done" if planned.run_id in done else planned.role if planned.role != "fit" else ""
        table.add_row(
            planned.group,
            human(params),
            human(spec.tokens),
            f"{spec.tokens / params:.1f}",
            f"{spec.flops:.2e}",
            human(spec.batch_tokens),
            f"{spec.optim.lr:.2e}",
            f"{spec.steps:,}",
            f"{cost.seconds:,.0f}" if cost else "",
            bytes_(cost.peak_bytes) if cost else "",
            state,
        )
    if len(runs) > MOST_ROWS:
        table.caption = f"and {len(runs) - MOST_ROWS:,} more"
    return table


def human(number: float) -> str:
    """1234567 as 1.23M."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def bytes_(count: float) -> str:
    """Bytes as GB or MB, powers of ten."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """75 s as 1 min 15 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds / 86400:.1f} days"
